"""Laws over inputs that Hypothesis looks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import likely
from tests.cases import Kernel, double

settings.register_profile("laws", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("laws")

sizes = st.tuples(st.integers(0, 5), st.integers(1, 6))
EXACT = 1e-12


def logits(shape: tuple[int, int], impossible: bool = True) -> Any:
    numbers = st.floats(-1e6, 1e6) | st.floats(-5, 5)
    if impossible:
        numbers = numbers | st.just(-math.inf)
    return hnp.arrays(np.float64, shape, elements=numbers)


def possible(z: np.ndarray) -> np.ndarray:
    """At least one class of every row is possible."""
    z = z.copy()
    z[np.isneginf(z).all(axis=-1), 0] = 0
    return z


@st.composite
def rows(draw: Any) -> tuple[Tensor, Tensor]:
    """Logits and masses, with impossible classes and masses of 0."""
    shape = draw(sizes)
    mass = st.floats(0, 10) | st.just(0.0) | st.floats(0, 1e-300) | st.sampled_from([1.0, 1e-12])
    return torch.tensor(possible(draw(logits(shape)))), torch.tensor(draw(hnp.arrays(np.float64, shape, elements=mass)))


def scale(z: Tensor, mu: Tensor) -> Tensor:
    finite = torch.where(torch.isneginf(z), 0, z).abs()
    return 1 + mu.sum(-1) * (1 + finite.amax(-1)) + mu.sum(-1) * mu.sum(-1).clamp_min(1).log()


@given(rows(), st.integers(1, 3))
def test_cross_entropy_is_entropy_plus_a_divergence_that_is_at_least_zero(
    case: tuple[Tensor, Tensor], block: int
) -> None:
    z, mu = case
    for kernel in (Kernel("eager"), Kernel("chunked", block)):
        score = kernel.nll(likely.Logits(z), likely.measure(mu))
        costly = ((mu > 0) & torch.isneginf(z)).any(-1)
        assert torch.equal(torch.isinf(score.cross_entropy), costly)
        assert torch.equal(torch.isinf(score.kl), costly)
        near = EXACT * scale(z, mu)
        assert (score.kl >= -near).all()
        assert (score.entropy >= -near).all()
        fine = ~costly
        gap = (score.cross_entropy - score.entropy - score.kl)[fine].abs()
        assert (gap <= near[fine]).all()


@given(rows(), st.integers(1, 3))
def test_the_kernels_agree_on_loss_and_gradient(case: tuple[Tensor, Tensor], block: int) -> None:
    z, mu = case
    mu = torch.where(torch.isneginf(z), 0, mu)
    found = []
    for kernel in (Kernel("eager"), Kernel("chunked", block)):
        leaf = z.clone().requires_grad_()
        loss, _ = kernel.objective(likely.Logits(leaf), likely.measure(mu))
        (grad,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach(), grad))
    size = float(scale(z, mu).sum())
    assert abs(found[0][0] - found[1][0]) <= EXACT * size
    assert (found[0][1] - found[1][1]).abs().sum() <= EXACT * size
    assert (found[1][1].sum(-1).abs() <= EXACT * (1 + mu.sum(-1))).all()


@given(rows(), st.floats(-1e3, 1e3))
def test_a_constant_in_the_logits_and_a_factor_in_the_measure(case: tuple[Tensor, Tensor], constant: float) -> None:
    z, mu = case
    one = likely.nll(likely.Logits(z), likely.measure(mu)).cross_entropy
    moved = likely.nll(likely.Logits(z + constant), likely.measure(mu)).cross_entropy
    twice = likely.nll(likely.Logits(z), likely.measure(2 * mu)).cross_entropy
    near = EXACT * (1 + abs(constant)) * scale(z, mu)
    finite = torch.isfinite(one)
    assert torch.equal(finite, torch.isfinite(moved))
    assert ((one - moved)[finite].abs() <= near[finite]).all()
    assert ((2 * one - twice)[finite].abs() <= 4 * near[finite]).all()


@given(st.data())
def test_a_record_of_a_distribution_is_never_nan_and_no_bucket_exceeds_it(data: Any) -> None:
    count, classes = data.draw(st.tuples(st.integers(1, 4), st.integers(2, 6)))
    z = torch.tensor(data.draw(logits((count, classes), impossible=False)))
    mass = data.draw(hnp.arrays(np.float64, (count, classes), elements=st.integers(0, 5).map(float)))
    mass[mass.sum(axis=-1) == 0, 0] = 1
    p = torch.tensor(mass / mass.sum(axis=-1, keepdims=True))
    stored = data.draw(st.integers(1, classes))
    p_NK, index_NK = p.topk(stored)
    whole = likely.nll(likely.Logits(z), likely.probabilities(p))
    near = 1e-9 * (1 + z.abs().amax(-1))
    for tail in ("uniform", "renormalise", "bucket"):
        score = likely.nll(likely.Logits(z), likely.top_k(index_NK, p_NK, classes, tail=tail))
        for part in (score.cross_entropy, score.entropy, score.kl):
            assert torch.isfinite(part).all()
            assert (part >= -near).all()
        if tail == "bucket":
            assert (score.kl <= whole.kl + near).all()
            assert (score.entropy <= whole.entropy + near).all()
        if tail == "uniform":  # the flattest completion
            assert (score.entropy >= whole.entropy - near).all()


@given(st.data())
def test_labels_are_the_distributions_that_they_stand_for(data: Any) -> None:
    count, classes = data.draw(st.tuples(st.integers(0, 5), st.integers(1, 6)))
    z = torch.tensor(data.draw(logits((count, classes), impossible=False)))
    y = torch.tensor(data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1))))
    smoothing = data.draw(st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1))
    weight = torch.tensor(data.draw(hnp.arrays(np.float64, classes, elements=st.floats(0, 4))))
    one = likely.nll(likely.Logits(z), likely.labels(y, classes, smoothing=smoothing, class_weight=weight))
    p = (1 - smoothing) * torch.eye(classes).double()[y] + smoothing / classes
    two = likely.nll(likely.Logits(z), likely.measure(p * weight))
    near = 1e-11 * scale(z, p * weight)
    for name in ("cross_entropy", "entropy", "kl"):
        assert ((getattr(one, name) - getattr(two, name)).abs() <= near).all(), name
    np.testing.assert_array_equal(double(one.count), double(weight[y]))


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6)),
    st.integers(0, 2**16),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_binary_losses_are_the_logistic_ones(z: np.ndarray, bits: int, dtype: torch.dtype) -> None:
    leaf = torch.tensor(z, dtype=dtype).requires_grad_()
    y = torch.tensor([bits >> (i % 16) & 1 for i in range(len(z))])
    score = likely.nll(likely.Binary(leaf), likely.labels(y, 2))
    sign = 1 - 2 * y.to(dtype)
    wanted = torch.logaddexp(torch.zeros_like(leaf), sign * leaf.detach())
    torch.testing.assert_close(score.cross_entropy.detach(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)
    (grad,) = torch.autograd.grad(score.cross_entropy.sum(), leaf)
    torch.testing.assert_close(grad, sign * torch.sigmoid(sign * leaf.detach()), rtol=1e-5, atol=1e-37)
