"""Laws of the gradient: for every target, head and kernel."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import likely
from tests.cases import (
    CLASSES,
    DTYPES,
    HEADS,
    KERNELS,
    ROWS,
    TARGETS,
    Draw,
    Kernel,
    double,
    make,
    make_case,
    make_head,
    requiring_grad,
)
from tests.laws.twin import TOLERANCE, twin

targets = pytest.mark.parametrize("target", TARGETS)
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def weighted(kernel: Kernel, head: likely.Head, target: likely.Target, temperature: float, way: str) -> Tensor:
    """The mean loss: through the rows of `nll`, or through `objective`, without its T²."""
    if way == "rows":
        return kernel.nll(head, target, temperature).mean().cross_entropy
    term = likely.Term(target, weight=temperature**-2, temperature=temperature)
    return kernel.objective(head, term)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", ["logits", "logits impossible", "logits confident"])
@targets
def test_is_mass_times_softmax_less_the_measure_and_its_rows_sum_to_zero(
    target: str, head: str, dtype: torch.dtype
) -> None:
    made, own = make_case(target, head, dtype=dtype)
    for temperature in made.temperatures:
        true = twin(double(own.logits()), made, temperature)
        share_N1 = (made.weight / made.count.sum())[:, None]
        for kernel in KERNELS:
            for way in ("rows", "objective"):
                with_grad, leaves = requiring_grad(own)
                loss = weighted(kernel, with_grad, made.target, temperature, way)
                (grad,) = kernel.gradients(loss, own, leaves)
                assert grad.dtype == dtype
                rounding = torch.finfo(dtype).eps * np.abs(true.gradient * share_N1)
                near = TOLERANCE[dtype] * share_N1 * np.abs(made.mu(temperature)).sum(axis=-1, keepdims=True) + rounding
                gap = np.abs(double(grad) - true.gradient * share_N1)
                assert (gap <= near + 1e-300).all(), f"{kernel}, {way}, T={temperature}: off by {gap.max():.2e}"
                sums = np.abs(double(grad).sum(axis=-1))
                assert (sums <= near.sum(axis=-1) + 1e-300).all(), f"{kernel}, {way}: rows sum to {sums.max():.2e}"


def jacobian(head: likely.Head) -> Any:
    """How a gradient in the logits is carried back, by autograd alone."""
    with_grad, leaves = requiring_grad(head)
    z_NC = with_grad.logits()
    return lambda g_NC: torch.autograd.grad(z_NC, leaves, g_NC, retain_graph=True)


@pytest.mark.parametrize("head", HEADS)
@targets
def test_is_carried_back_to_every_tensor_of_the_head(target: str, head: str) -> None:
    made, own = make_case(target, head)
    temperature = made.temperatures[-1]
    g_NC = torch.tensor(
        twin(double(own.logits()), made, temperature).gradient * (made.weight / made.count.sum())[:, None]
    )
    wanted = jacobian(own)(g_NC)
    for kernel in KERNELS:
        for way in ("rows", "objective"):
            with_grad, leaves = requiring_grad(own)
            # Buffers start as NaN, so that what a kernel never wrote shows.
            with (
                mock.patch.object(torch, "empty", nans(torch.empty)),
                mock.patch.object(torch, "empty_like", nans(torch.empty_like)),
            ):
                loss = weighted(kernel, with_grad, made.target, temperature, way)
                found = kernel.gradients(loss, own, leaves)
            torch.testing.assert_close(
                found, list(wanted), rtol=1e-12, atol=1e-13, msg=f"{kernel}, {way}: {found} is not {wanted}"
            )


def nans(make_empty: Any) -> Any:
    def filled(*sizes: Any, **keywords: Any) -> Tensor:
        empty = make_empty(*sizes, **keywords)
        return empty.fill_(torch.nan) if empty.dtype.is_floating_point else empty

    return filled


@pytest.mark.parametrize("kernel", [Kernel("eager"), Kernel("chunked", 2)], ids=str)
@pytest.mark.parametrize("head", ["binary", "linear softcap"])
@pytest.mark.parametrize("target", [t for t in TARGETS if "row" not in t and t not in ("labels", "probabilities")])
def test_gradcheck(target: str, head: str, kernel: Kernel) -> None:
    made, own = make_case(target, head, rows=3, classes=4)
    temperature = made.temperatures[-1]
    leaves = tuple(t.detach().clone().requires_grad_() for t in own.tensors if t is not None)

    def rows(*tensors: Tensor) -> tuple[Tensor, ...]:
        score = kernel.nll(own.with_tensors(tensors), made.target, temperature)
        return (score.cross_entropy, score.kl) if made.known else (score.cross_entropy,)

    def loss(*tensors: Tensor) -> Tensor:
        term = likely.Term(made.target, temperature=temperature)
        return kernel.objective(own.with_tensors(tensors), [term], z_loss=0.1)[0]

    for function in (rows, loss):
        with kernel.at(own):
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("kernel", [Kernel("eager"), Kernel("chunked", 2)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_to_a_target_are_those_of_the_definition(temperature: float, kernel: Kernel) -> None:
    draw = Draw("gradients to targets", rows=3)
    head = make_head("logits", rows=3)
    weight_C, row_weight_N = draw.class_weight(), draw.row_weight()
    mu_NC = torch.tensor(draw.rng.normal(size=(3, CLASSES)))

    def of_measure(mu: Tensor, class_weight: Tensor, weight: Tensor) -> Tensor:
        target = likely.measure(mu, class_weight=class_weight, weight=weight)
        return kernel.objective(head, likely.Term(target, temperature=temperature))[0]

    def of_labels(class_weight: Tensor, weight: Tensor) -> Tensor:
        target = likely.labels([0, -100, 4], CLASSES, smoothing=0.2, class_weight=class_weight, weight=weight)
        return kernel.objective(head, likely.Term(target, temperature=temperature))[0]

    leaves = [t.clone().requires_grad_() for t in (mu_NC, weight_C, row_weight_N)]
    assert float(row_weight_N[1]) == 0  # which is where a masked row would lose its gradient
    for function, given in ((of_measure, leaves), (of_labels, leaves[1:])):
        found = torch.autograd.grad(function(*given), given)
        for at, leaf in enumerate(given):
            for entry in range(leaf.numel()):
                # A weight may not be negative, so that the difference is a forward one, refined.
                differences = []
                for step in (1e-4, 5e-5):
                    moved = [t.detach().clone() for t in given]
                    moved[at].view(-1)[entry] += step
                    differences.append((function(*moved) - function(*given)).detach() / step)
                wanted = 2 * differences[1] - differences[0]
                torch.testing.assert_close(found[at].reshape(-1)[entry], wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_to_a_probability_of_zero_is_no_nan() -> None:
    p_NC = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    head = likely.Logits(torch.tensor([[1.0, 0.0, -1.0]]))
    for temperature in (1.0, 2.0):
        score = likely.nll(head, likely.probabilities(p_NC), temperature=temperature)
        for value in (score.cross_entropy, score.kl, score.entropy):
            (grad,) = torch.autograd.grad(value.sum(), p_NC, retain_graph=True)
            assert torch.isfinite(grad).all()


def test_a_kernel_that_does_not_exist_is_refused_with_those_that_do() -> None:
    kernels = "'chunked', 'minimal', 'inplace', 'triton', 'eager'"
    with pytest.raises(ValueError, match=f"kernel: is 'fast'; there are {kernels}"):
        likely.objective(make_head("logits"), make("labels").target, kernel="fast")


@kernels
@pytest.mark.parametrize("head", ["logits", "linear bias"])
@targets
def test_accumulated_gradient_is_the_whole_batchs(target: str, head: str, kernel: Kernel) -> None:
    """Micro-batches of uneven size, each divided by the whole batch's total, sum to the whole."""
    made, own = make_case(target, head)
    temperature = made.temperatures[-1]
    whole_head, whole_leaves = requiring_grad(own)
    term = likely.Term(made.target, temperature=temperature)
    whole, scores = kernel.objective(whole_head, term, z_loss=0.3, total=made.count.sum())
    torch.testing.assert_close(whole - scores.z_loss, kernel.objective(own, term)[0])
    wanted = kernel.gradients(whole, own, whole_leaves)
    split_head, leaves = requiring_grad(own)
    losses = []
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6), slice(6, 7)):
        part = likely.Term(rows_of(made.target, rows), temperature=temperature)
        loss, _ = kernel.objective(head_rows(split_head, rows), part, z_loss=0.3, total=made.count.sum())
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses).sum(), whole.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close([t.grad for t in leaves], list(wanted), rtol=1e-12, atol=1e-14)


def rows_of(target: Any, rows: slice) -> Any:
    """Some of the rows of a target, as a data loader would have made it."""
    import dataclasses

    def cut(value: Any, name: str) -> Any:
        if isinstance(value, Tensor) and name not in ("base", "class_weight"):
            return value[rows]
        return head_rows(value, rows) if isinstance(value, likely.Head) else value

    return type(target)(**{f.name: cut(getattr(target, f.name), f.name) for f in dataclasses.fields(target)})


def head_rows(head: likely.Head, rows: slice) -> likely.Head:
    first, *others = head.tensors
    assert first is not None
    return head.with_tensors([first[rows], *others])


@kernels
def test_a_second_backward_pass_and_a_cotangent(kernel: Kernel) -> None:
    made, own = make_case("probabilities", "linear bias")
    head, leaves = requiring_grad(own)
    loss, _ = kernel.objective(head, made.target)
    once = kernel.gradients(loss, own, leaves, retain_graph=True)
    thrice = kernel.gradients(3 * loss, own, leaves, retain_graph=True)
    torch.testing.assert_close(thrice, [3 * g for g in once])
    (0.5 * loss).backward()
    torch.testing.assert_close([t.grad for t in leaves], [0.5 * g for g in once])


@kernels
def test_each_row_has_its_own_cotangent(kernel: Kernel) -> None:
    """A row's loss and its KL may both be wanted, in any proportion; the entropy has no gradient in the head."""
    made, own = make_case("teacher logits", "linear bias")
    head, leaves = requiring_grad(own)
    a_N = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    score = kernel.nll(head, made.target, 2.5)
    found = kernel.gradients((a_N * score.cross_entropy + 2 * score.kl).sum(), own, leaves)
    g_NC = torch.tensor(twin(double(own.logits()), made, 2.5).gradient) * (a_N + 2)[:, None]
    torch.testing.assert_close(found, list(jacobian(own)(g_NC)), rtol=1e-12, atol=1e-13)
    assert not score.entropy.requires_grad


@kernels
@pytest.mark.parametrize("target", [t for t in TARGETS if "bucket" not in t and "signed" not in t])
def test_the_optimum_of_a_constant_head_is_the_mean_measure(target: str, kernel: Kernel) -> None:
    """For labels these are the class frequencies: at q = Σ μ / Σ M the gradient of a bias alone is 0.

    A signed measure has no optimum, and a bucket, which says nothing of its tail, more than one.
    """
    made = make(target, rows=40)
    mu_C = made.weight @ made.mu(made.temperatures[0])
    bias_C = torch.tensor(np.log(mu_C / mu_C.sum())).requires_grad_()
    head = likely.Linear(torch.zeros(40, 1).double(), torch.zeros(CLASSES, 1).double(), bias_C)
    loss, _ = kernel.objective(head, likely.Term(made.target, temperature=made.temperatures[0]))
    (grad,) = kernel.gradients(loss, head, [bias_C])
    assert grad.abs().max() < 1e-14
    for step in torch.eye(CLASSES).double():
        elsewhere = head.with_tensors([head.x, head.weight, bias_C + 0.1 * step])
        assert kernel.objective(elsewhere, made.target)[0] > loss


def test_inputs_changed_in_place_after_the_forward_pass_are_refused() -> None:
    made, own = make_case("labels", "linear")
    head, leaves = requiring_grad(own)
    loss, _ = likely.objective(head, made.target)
    with torch.no_grad():
        leaves[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_coefficients_that_are_not_numbers_are_the_same_in_every_kernel(total: float) -> None:
    made, own = make_case("labels", "linear")
    results = []
    for kernel in KERNELS[:2]:
        head, leaves = requiring_grad(own)
        loss, _ = kernel.objective(head, made.target, total=total)
        results.append([loss.detach(), *kernel.gradients(loss, own, leaves)])
    torch.testing.assert_close(*results, equal_nan=True)
    assert torch.isnan(results[0][0]) == np.isnan(total)
