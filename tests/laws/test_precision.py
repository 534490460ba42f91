"""Accuracy: against arbitrary precision, and of each kernel against the honest alternative in its own dtype."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import likely
from tests.cases import KERNELS, Kernel, double, requiring_grad

kernels = pytest.mark.parametrize("kernel", KERNELS[:3], ids=str)
mp = mpmath.mp.clone()
mp.dps = 340  # 1 − q, where q differs from 1 by 1e-300


def exact_log_softmax(z: Tensor) -> list[mpmath.mpf]:
    row = [mp.mpf(float(v)) for v in z]
    A = mp.log(mp.fsum(mp.exp(v) for v in row))
    return [v - A for v in row]


@kernels
@pytest.mark.parametrize("margin", [0.5, 1, 20, 37, 100, 400, 690])
def test_small_losses_keep_their_digits(margin: float, kernel: Kernel) -> None:
    """A confident and right model: losses down to 1e-300, each to a relative 1e-13, and their gradients."""
    z = torch.tensor([[0.0, -margin, -margin - 3, -margin - 0.25]], dtype=torch.float64, requires_grad=True)
    targets = {"labels": likely.labels([0], 4), "samples": likely.samples([[0, 0]], [[1, 2]], 4, entropy=[0.0])}
    targets["probabilities"] = likely.probabilities([[1.0, 0.0, 0.0, 0.0]])
    exact = -exact_log_softmax(z.detach()[0])[0]
    for name, target in targets.items():
        score = kernel.nll(likely.Logits(z), target)
        assert abs(mp.mpf(float(score.cross_entropy.detach())) / exact - 1) < 1e-13, name
        assert abs(mp.mpf(float(score.kl.detach())) / exact - 1) < 1e-13, name
        (grad,) = torch.autograd.grad(score.cross_entropy.sum(), z)
        gap = abs(mp.mpf(float(grad[0, 0])) / mp.expm1(-exact) - 1)
        # Automatic differentiation forms q − 1 by subtraction.
        assert gap < 1e-13 or (kernel.name == "eager" and abs(float(grad[0, 0]) - float(mp.expm1(-exact))) < 1e-15), (
            name
        )
    binary = kernel.nll(likely.Binary(torch.tensor([margin], dtype=torch.float64)), likely.labels([1], 2))
    assert abs(mp.mpf(float(binary.cross_entropy)) / mp.log1p(mp.exp(-mp.mpf(margin))) - 1) < 1e-13


@kernels
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 300.0])
def test_losses_of_any_target_against_arbitrary_precision(scale: float, kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    z_NC = torch.tensor(scale * rng.normal(size=(6, 9)))
    p_NC = torch.tensor(rng.dirichlet(np.full(9, 0.2), 6))
    score = kernel.nll(likely.Logits(z_NC), likely.measure(p_NC))
    for row in range(6):
        log_q = exact_log_softmax(z_NC[row])
        p = [mp.mpf(float(v)) for v in p_NC[row]]
        mass = mp.fsum(p)
        cross_entropy = -mp.fsum(a * b for a, b in zip(p, log_q))
        entropy = mass * mp.log(mass) - mp.fsum(a * mp.log(a) for a in p if a)
        size = 1 + abs(cross_entropy) + mp.fsum(abs(a * mp.mpf(float(v))) for a, v in zip(p, z_NC[row]))
        for found, wanted in (
            (score.cross_entropy, cross_entropy),
            (score.entropy, entropy),
            (score.kl, cross_entropy - entropy),
        ):
            assert abs(mp.mpf(float(found[row])) - wanted) < 4e-16 * 4 * size


@kernels
@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
def test_small_divergences_are_wrong_by_no_more_than_the_rounding_of_p(step: float, kernel: Kernel) -> None:
    """The divergence of nearby distributions is about step²; what the float64 rows lose of it is of the order 1e-16."""
    rng = np.random.default_rng(1)
    z_NC = torch.tensor(rng.normal(size=(5, 6)))
    other_NC = z_NC + step * torch.tensor(rng.normal(size=(5, 6)))
    found = kernel.nll(likely.Logits(other_NC), likely.teacher(z_NC)).kl
    for row in range(5):
        log_p, log_q = exact_log_softmax(z_NC[row]), exact_log_softmax(other_NC[row])
        wanted = mp.fsum(mp.exp(a) * (a - b) for a, b in zip(log_p, log_q))
        assert abs(mp.mpf(float(found[row])) - wanted) < 4e-16 + 1e-10 * wanted


@kernels
def test_a_common_offset_costs_no_digit(kernel: Kernel) -> None:
    z = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    exact = float(-exact_log_softmax(z[0])[1])
    for offset in (0.0, 2.0**20, -(2.0**45)):
        found = float(kernel.nll(likely.Logits(z + offset), likely.labels([1], 3)).cross_entropy)
        assert abs(found / exact - 1) < 1e-15


# ---------------------------------------------------------------------------------------- the budget of a kernel


def problem(rows: int, features: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator)
    weight = torch.randn(classes, features, generator=generator) * 0.25
    bias = torch.randn(classes, generator=generator) * 0.1
    y = torch.randint(classes, (rows,), generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), y


def loss_and_gradients(kernel: Kernel, dtype: torch.dtype, tensors: tuple[Tensor, ...], soft: bool) -> list[Tensor]:
    x, weight, bias, y = tensors
    head, leaves = requiring_grad(likely.Linear(x.to(dtype), weight.to(dtype), bias.to(dtype)))
    terms = [likely.Term(likely.labels(y, head.classes, smoothing=0.1))]
    if soft:
        teacher = likely.Linear(x.roll(1, 0).to(dtype), weight.to(dtype))
        terms.append(likely.Term(likely.teacher(teacher), temperature=2.0))
    loss, _ = kernel.objective(head, terms)
    return [loss.detach(), *kernel.gradients(loss, head, leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "features", "classes", "block"), [(63, 24, 101, 5), (257, 8, 64, 32), (64, 130, 37, 64)]
)
def test_chunked_is_no_less_accurate_than_eager_in_the_same_dtype(
    rows: int, features: int, classes: int, block: int, dtype: torch.dtype
) -> None:
    """`err(chunked) ≤ 1.5 · err(eager) + ulp`, in the largest element and in the root mean square."""
    tensors = problem(rows, features, classes, dtype)
    for soft in (False, True):
        true = loss_and_gradients(KERNELS[0], torch.float64, tensors, soft)
        plain = loss_and_gradients(KERNELS[0], dtype, tensors, soft)
        fast = loss_and_gradients(Kernel("chunked", block), dtype, tensors, soft)
        for name, t, p, f in zip(("loss", "x", "weight", "bias"), true, plain, fast):
            ulp = torch.finfo(f.dtype).eps * double(t.abs())
            ours, theirs = np.abs(double(f) - double(t)), np.abs(double(p) - double(t))
            assert ours.max() <= 1.5 * theirs.max() + ulp.max(), f"{name}: {ours.max():.2e}, eager {theirs.max():.2e}"
            rms = [math.sqrt(float((e**2).mean())) for e in (ours, theirs, ulp)]
            assert rms[0] <= 1.5 * rms[1] + rms[2], f"{name}: rms {rms[0]:.2e}, eager {rms[1]:.2e}"


def test_a_bfloat16_loss_over_many_blocks_is_accumulated_in_float32() -> None:
    """4,096 rows in 256 blocks: a running sum in bfloat16 stops growing at 8.0."""
    x, weight, _, y = problem(4096, 16, 4096, torch.bfloat16)
    target = likely.labels(y, 4096)
    loss, scores = Kernel("chunked", 16).objective(likely.Linear(x, weight), target)
    truth = likely.nll(likely.Linear(x.float(), weight.float()), target).mean().cross_entropy
    assert loss.dtype == torch.float32
    assert float(truth) > 8.5
    assert abs(float(loss) - float(truth)) < 1e-3
    assert abs(float(scores[0].mean().cross_entropy) - float(loss)) < 1e-5


@pytest.mark.parametrize("row_pass", [None, "plain"])
def test_a_bfloat16_gradient_over_many_blocks_is_accumulated_in_float32(row_pass: str | None) -> None:
    x, weight, _, y = problem(4096, 16, 64, torch.bfloat16)
    found = []
    for kernel, dtype in (
        (KERNELS[0], torch.float64),
        (KERNELS[0], torch.bfloat16),
        (Kernel("chunked", 16, row_pass), torch.bfloat16),
    ):
        head, leaves = requiring_grad(likely.Linear(x.to(dtype), weight.to(dtype)))
        loss, _ = kernel.objective(head, likely.labels(y, 64))
        found.append(double(kernel.gradients(loss, head, leaves)[1]))
    true, plain, fast = found
    assert np.abs(fast - true).max() <= 1.5 * np.abs(plain - true).max() + 2**-8 * np.abs(true).max()


def test_what_eager_and_chunked_give_in_float64_is_the_same() -> None:
    tensors = tuple(t.double() if t.is_floating_point() else t for t in problem(63, 24, 101, torch.float64))
    one = loss_and_gradients(KERNELS[0], torch.float64, tensors, True)
    two = loss_and_gradients(Kernel("chunked", 5), torch.float64, tensors, True)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_many_features_are_formed_by_parts_and_are_the_same(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 800, generator=generator), torch.randn(1001, 800, generator=generator)
    b = torch.randn(1001, generator=generator) if bias else None
    found = likely.Linear(x, w, b).logits(slice(1, 4), out=torch.full((3, 1001), torch.nan))
    exact = torch.nn.functional.linear(x[1:4].double(), w.double(), None if b is None else b.double())
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-4)
