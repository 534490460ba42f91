"""Laws of the divergences that are no cross-entropy: reverse KL and Jensen–Shannon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import mpmath
import pytest
import torch
from torch import Tensor

import likely
from likely import divergences
from likely.kernels import exact
from tests.cases import CLASSES, ROWS, Kernel, make_head, requiring_grad
from tests.laws import test_memory

Divergence = Callable[..., Tensor]
BETAS = [0.0, 0.02, 0.1, 0.5, 0.9, 1.0]


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
    a_row = CLASSES * 8
    with Kernel("chunked", rows).at(head), mock.patch.object(divergences, "CACHE_BYTES", 2 * a_row):
        found_N = DIVERGENCES[name](head, teacher, temperature=temperature)
        found = torch.autograd.grad((a_N * found_N).sum(), leaves)
    torch.testing.assert_close(found_N, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-12)


@every
def test_is_zero_at_p_and_positive_elsewhere(name: str) -> None:
    z = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = DIVERGENCES[name](likely.Logits(z), z)
    assert own.abs().max() < 1e-14
    assert (DIVERGENCES[name](likely.Logits(z), z.roll(1, 0)) > 1e-4).all()


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
    other = torch.tensor([[1.0, 0.0, -torch.inf]])
    by_func = torch.func.grad(lambda z: DIVERGENCES[name](likely.Logits(z), other).sum())(shared.detach())
    torch.testing.assert_close(by_func, grad)
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


# -------------------------------------------------------------------------------------------------- half precision


def close_models(dtype: torch.dtype, step: float, **options: Any) -> tuple[likely.Linear, likely.Linear]:
    """A student and a teacher whose weights differ by `step` of their size, with the same hidden states."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x_ND, weight_CD, bias_C = normal(33, 24), 0.4 * normal(101, 24), 0.2 * normal(101)
    near_CD = weight_CD + step * 0.4 * normal(101, 24)
    one, two = ((x_ND.to(dtype), w.to(dtype), bias_C.to(dtype)) for w in (weight_CD, near_CD))
    return likely.Linear(*one, **options), likely.Linear(*two, **options)


def in_float64(head: likely.Head) -> likely.Head:
    return head.with_tensors([None if t is None else t.double() for t in head.tensors])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("step", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
def test_half_precision_costs_the_rounding_of_the_gradient_and_no_more(
    name: str, step: float, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """Against float64 on the same operands, also where the two models differ by less than a logit's rounding."""
    head, own = close_models(dtype, step, **options)
    wide, wide_leaves = requiring_grad(in_float64(head))
    a_N = torch.linspace(-1, 2, head.rows, dtype=torch.float64)
    true_N = DIVERGENCES[name](wide, in_float64(own), temperature=2.0)
    true = torch.autograd.grad((a_N * true_N).sum(), wide_leaves)
    student, leaves = requiring_grad(head)
    with Kernel("chunked", 5).at(student), mock.patch.object(exact, "TILE_BYTES", 4 * 24 * 7):
        found_N = DIVERGENCES[name](student, own, temperature=2.0)
        found = torch.autograd.grad((a_N * found_N).sum(), leaves)
    torch.testing.assert_close(found_N.double(), true_N, rtol=1e-4, atol=1e-9)
    for t, f in zip(true, found):
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # float16 has no smaller number
        rounding = 0.5 * torch.finfo(dtype).eps * t.abs() + 0.5 * least
        assert ((f.double() - t).abs() <= 1.01 * rounding + 3e-4 * t.abs().mean()).all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_a_model_from_itself_is_exactly_zero_with_its_gradient(name: str, dtype: torch.dtype) -> None:
    own = close_models(dtype, 0)[0]
    head, leaves = requiring_grad(own)
    rows_N = DIVERGENCES[name](head, own, temperature=2.0)
    assert (rows_N == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(rows_N.sum(), leaves))


@every
@pytest.mark.parametrize("step", [1e-2, 1e-4])
def test_the_gradient_of_a_small_difference_of_float32_logits_keeps_its_digits(name: str, step: float) -> None:
    z = 5 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    t = z + step * torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    leaf, wide = z.clone().requires_grad_(), z.double().requires_grad_()
    (found,) = torch.autograd.grad(DIVERGENCES[name](likely.Logits(leaf), t).sum(), leaf)
    (true,) = torch.autograd.grad(DIVERGENCES[name](likely.Logits(wide), t.double()).sum(), wide)
    assert (found - true).norm() < 2e-6 * true.norm()


@every
def test_is_never_negative_where_it_is_smallest(name: str) -> None:
    z = torch.randn(300, 50, generator=torch.Generator().manual_seed(2))
    for step in (1e-7, 1e-5, 1e-3):
        near = z + step * torch.randn(300, 50, generator=torch.Generator().manual_seed(3))
        assert (DIVERGENCES[name](likely.Logits(near), z + 7) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("divergence", [likely.reverse_kl, likely.jensen_shannon])
def test_the_largest_tensor_is_a_block_or_a_weight(divergence: Divergence, dtype: torch.dtype) -> None:
    kernel = Kernel("chunked", test_memory.BLOCK)
    head, leaves = requiring_grad(test_memory.linear(dtype))
    with test_memory.Largest() as seen, kernel.at(head):
        loss = divergence(head, test_memory.linear(dtype, 2 * test_memory.D)).sum()
        kernel.gradients(loss, head, leaves)
    assert 0 < seen.numel <= max(test_memory.BLOCK * test_memory.C, test_memory.C * 2 * test_memory.D)


def test_two_halves_hold_a_float32_number_to_17_bits_and_what_is_not_finite() -> None:
    a = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    a[0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    high, low = exact._halves(a)
    assert low is not None
    assert high.dtype == low.dtype == torch.bfloat16
    torch.testing.assert_close(high.float() + low.float(), a, rtol=2**-17, atol=0, equal_nan=True)
    assert exact._halves(high) == (high, None)


# -------------------------------------------------------------------------------------------------- small and extreme


@every
@pytest.mark.parametrize("step", [1e-2, 1e-5])
def test_small_divergences_and_their_gradients_keep_their_digits(name: str, step: float) -> None:
    """Against arbitrary precision: the divergence is of the order step², its gradient of the order step."""
    mp = mpmath.mp.clone()
    mp.dps = 60
    z = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = (z + step * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()

    def value(student: list[mpmath.mpf]) -> mpmath.mpf:
        q, p = ([mp.exp(v) for v in logits] for logits in (student, [mp.mpf(float(v)) for v in z]))
        q, p = ([v / mp.fsum(x) for v in x] for x in (q, p))
        beta = 1.0 if name == "reverse" else float(name.split()[1])
        if beta in (0, 1):
            q, p = (q, p) if beta == 1 else (p, q)
            return mp.fsum(a * mp.log(a / b) for a, b in zip(q, p))
        share = mp.mpf(beta)
        m = [share * b + (1 - share) * a for a, b in zip(q, p)]
        parts = [share * b * mp.log(b / c) + (1 - share) * a * mp.log(a / c) for a, b, c in zip(q, p, m)]
        return mp.fsum(parts)

    student = [mp.mpf(float(v.detach())) for v in near]
    (found,) = DIVERGENCES[name](likely.Logits(near[None]), z[None])
    (grad,) = torch.autograd.grad(found, near)
    assert abs(mp.mpf(float(found.detach())) / value(student) - 1) < 1e-14 / step
    for at in range(6):
        tiny = mp.mpf(10) ** -20
        moved = [[v + (sign * tiny if i == at else 0) for i, v in enumerate(student)] for sign in (1, -1)]
        true = (value(moved[0]) - value(moved[1])) / (2 * tiny)
        assert abs(mp.mpf(float(grad[at])) - true) < 1e-14 * max(abs(v) for v in grad.tolist()) / step


@pytest.mark.parametrize("beta", [1e-9, 1e-6, 1 - 1e-6, 1 - 1e-9])
def test_shares_near_0_and_1_are_as_good_as_float32_sums(beta: float) -> None:
    z, t = (12 * torch.randn(50, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    leaf, wide = z.clone().requires_grad_(), z.double().requires_grad_()
    found, true = (likely.jensen_shannon(likely.Logits(x), t.to(x.dtype), beta=beta) for x in (leaf, wide))
    torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-6)
    (grad,), (wide_grad,) = torch.autograd.grad(found.sum(), leaf), torch.autograd.grad(true.sum(), wide)
    torch.testing.assert_close(grad.double(), wide_grad, rtol=1e-5, atol=3e-6)


@every
def test_a_huge_common_offset_costs_only_the_logits_own_digits(name: str) -> None:
    z = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) + 2.0**13
    t = torch.randn(20, 7, generator=torch.Generator().manual_seed(1)) - 2.0**13
    one = DIVERGENCES[name](likely.Logits(z), t)
    two = DIVERGENCES[name](likely.Logits(z - 2.0**13), t + 2.0**13)
    torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)  # z − t is rounded to 2⁻¹⁰


@every
def test_nan_stays_in_its_row_and_a_row_without_weight_gives_nothing(name: str) -> None:
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    z[1, 2], z[2, 0] = torch.nan, torch.inf
    z.requires_grad_()
    rows_N = DIVERGENCES[name](likely.Logits(z), torch.zeros(4, 5))
    assert torch.isnan(rows_N).tolist() == [False, True, True, False]
    (grad,) = torch.autograd.grad(rows_N, z, torch.ones(4), retain_graph=True)
    assert torch.isnan(grad).all(dim=-1).tolist() == [False, True, True, False]
    assert torch.isfinite(grad[[0, 3]]).all()
    (grad,) = torch.autograd.grad(rows_N, z, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert torch.isfinite(grad).all()
    assert (grad[1:3] == 0).all()


# -------------------------------------------------------------------------------------------------------- torch.func


@every
def test_transforms_agree_with_the_loop_or_raise(name: str) -> None:
    z, t = teacher[:3], teacher[3:6]
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)

    def total(z: Tensor) -> Tensor:
        return DIVERGENCES[name](likely.Logits(z), t).square().sum()

    leaf = z.clone().requires_grad_()
    (true,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((true * v).sum(), leaf)
    (plain,) = torch.autograd.grad(total(leaf), leaf)
    close: Any = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(plain, true, **close)
    torch.testing.assert_close(torch.func.grad(total)(z), plain, **close)
    torch.testing.assert_close(torch.func.jvp(total, (z,), (v,))[1], (plain * v).sum(), **close)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(total), (z,), (v,))[1], second, **close)
    hessian = torch.func.hessian(total)(z)
    torch.testing.assert_close((hessian * v).sum(dim=(-2, -1)), second, **close)
    each = torch.func.vmap(torch.func.grad(lambda z, t: DIVERGENCES[name](likely.Logits(z[None]), t[None])[0]))(z, t)
    torch.testing.assert_close(each, torch.autograd.grad(DIVERGENCES[name](likely.Logits(leaf), t).sum(), leaf)[0])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"beta: is 1.5; it is between 0 \(forward KL\) and 1 \(reverse KL\)"):
        likely.jensen_shannon(student, teacher, beta=1.5)
    with pytest.raises(ValueError, match="temperature: is 0; it is a positive number"):
        likely.reverse_kl(student, teacher, temperature=0)
    with pytest.raises(ValueError, match="teacher: has 4 classes where the student has 5"):
        likely.reverse_kl(student, teacher[:, :4])
    with pytest.raises(ValueError, match="teacher: has 2 rows where the student has 7"):
        likely.reverse_kl(student, teacher[:2])
    with pytest.raises(ValueError, match="teacher: its tensors require a gradient; a teacher is constant"):
        likely.reverse_kl(student, teacher.clone().requires_grad_())
    with pytest.raises(ValueError, match="teacher: is on meta where the student is on cpu"):
        likely.reverse_kl(student, teacher.to("meta"))
    with pytest.raises(TypeError, match="teacher: cannot be read as a tensor of numbers"):
        likely.reverse_kl(student, "teacher")  # type: ignore[arg-type]
    assert likely.reverse_kl(likely.Logits(torch.zeros(2, 0)), torch.zeros(2, 0)).tolist() == [0, 0]
