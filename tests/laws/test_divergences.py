"""Laws of the divergences that are no cross-entropy: reverse KL and Jensen–Shannon."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

import likely
from likely.kernels import loop
from tests.cases import CLASSES, ROWS, make_head, requiring_grad

Divergence = Callable[..., Tensor]
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def of_beta(beta: float) -> Divergence:
    return lambda head, teacher, **keywords: likely.jensen_shannon(head, teacher, beta=beta, **keywords)


DIVERGENCES: dict[str, Divergence] = {"reverse": likely.reverse_kl, **{f"beta {b}": of_beta(b) for b in BETAS}}
every = pytest.mark.parametrize("name", DIVERGENCES)
student = make_head("linear bias")
teacher = make_head("logits").logits()


def definition(name: str, log_q: Tensor, log_p: Tensor) -> Tensor:
    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_a.exp() * (log_a - log_b)).sum(dim=-1)

    if name in ("reverse", "beta 1.0"):
        return kl(log_q, log_p)
    beta = float(name.split()[1])
    if beta == 0:
        return kl(log_p, log_q)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


@every
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_equals_the_definition_with_its_gradient_in_blocks_of_any_size(
    name: str, temperature: float, rows: int
) -> None:
    head, leaves = requiring_grad(student)
    log_q = torch.log_softmax(head.logits() / temperature, dim=-1)
    wanted = definition(name, log_q, torch.log_softmax(teacher / temperature, dim=-1))
    a_N = torch.linspace(-1, 2, ROWS).double()
    true = torch.autograd.grad((a_N * wanted).sum(), leaves)
    with mock.patch.object(loop, "BLOCK_BYTES", rows * CLASSES * 8):
        found_N = DIVERGENCES[name](head, teacher, temperature=temperature)
        found = torch.autograd.grad((a_N * found_N).sum(), leaves)
    torch.testing.assert_close(found_N, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-12)


@every
def test_is_zero_at_p_and_positive_elsewhere(name: str) -> None:
    z = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = DIVERGENCES[name](likely.Logits(z), z)
    assert own.abs().max() < 1e-14
    assert (DIVERGENCES[name](likely.Logits(z), z.roll(1, 0)) > 1e-3).all()


@every
def test_gradcheck(name: str) -> None:
    head, leaves = requiring_grad(make_head("linear softcap", rows=3))

    def rows(*tensors: Tensor) -> Tensor:
        return DIVERGENCES[name](head.with_tensors(tensors), teacher[:3], temperature=2.0)

    assert torch.autograd.gradcheck(rows, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(rows, leaves, fast_mode=True)


def test_the_two_ends_of_beta_are_the_two_kls() -> None:
    forward = likely.nll(student, likely.teacher(teacher)).kl
    torch.testing.assert_close(likely.jensen_shannon(student, teacher, beta=0.0), forward, rtol=1e-12, atol=1e-14)
    backward = likely.reverse_kl(student, teacher)
    assert torch.equal(likely.jensen_shannon(student, teacher, beta=1.0), backward)
    near = 1e-6
    limit = likely.jensen_shannon(student, teacher, beta=near) / (near * (1 - near))
    torch.testing.assert_close(limit, forward, rtol=1e-4, atol=1e-6)
    limit = likely.jensen_shannon(student, teacher, beta=1 - near) / (near * (1 - near))
    torch.testing.assert_close(limit, backward, rtol=1e-4, atol=1e-6)


def test_jensen_shannon_is_symmetric_at_one_half_and_at_most_log_2() -> None:
    z = 30 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = likely.jensen_shannon(likely.Logits(z), z.roll(1, 0))
    two = likely.jensen_shannon(likely.Logits(z.roll(1, 0)), z)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    assert (one <= math.log(2) + 1e-15).all()


def test_reverse_kl_is_the_forward_one_of_exchanged_roles_and_differs_from_it() -> None:
    q, p = student.logits(), teacher
    exchanged = likely.nll(likely.Logits(p), likely.teacher(q)).kl
    torch.testing.assert_close(likely.reverse_kl(student, teacher), exchanged, rtol=1e-12, atol=1e-14)
    assert (likely.reverse_kl(student, teacher) - likely.nll(student, likely.teacher(p)).kl).abs().min() > 1e-4


@every
def test_impossible_classes_are_infinite_or_free_and_never_nan(name: str) -> None:
    shared = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)  # impossible for both
    value = DIVERGENCES[name](likely.Logits(shared), torch.tensor([[1.0, 0.0, -torch.inf]]))
    (grad,) = torch.autograd.grad(value.sum(), shared)
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()
    assert float(grad[0, 2]) == 0
    for q, p, infinite in (
        ([0.0, 0.0], [0.0, -torch.inf], name in ("reverse", "beta 1.0")),
        ([0.0, -torch.inf], [0.0, 0.0], name == "beta 0.0"),
    ):
        value = DIVERGENCES[name](likely.Logits(torch.tensor([q])), torch.tensor([p]))
        assert not torch.isnan(value).any()
        assert bool(torch.isinf(value)) == infinite


@every
def test_half_precision_comes_back_in_float32_and_no_rows_are_no_rows(name: str) -> None:
    head, leaves = requiring_grad(make_head("linear", dtype=torch.bfloat16))
    value = DIVERGENCES[name](head, teacher.bfloat16())
    assert value.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(value.sum(), leaves)] == [torch.bfloat16] * 2
    nothing, leaves = requiring_grad(make_head("linear", rows=0))
    value = DIVERGENCES[name](nothing, teacher[:0])
    assert value.shape == (0,)
    assert (torch.autograd.grad(value.sum(), leaves)[1] == 0).all()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"beta: is 1.5; it is between 0 \(forward KL\) and 1 \(reverse KL\)"):
        likely.jensen_shannon(student, teacher, beta=1.5)
    with pytest.raises(ValueError, match="temperature: is 0; it is a positive number"):
        likely.reverse_kl(student, teacher, temperature=0)
    with pytest.raises(ValueError, match="teacher: has 4 classes where the student has 5"):
        likely.reverse_kl(student, teacher[:, :4])
    with pytest.raises(ValueError, match="teacher: has 2 rows where the student has 7"):
        likely.reverse_kl(student, teacher[:2])
