"""Laws of records of a teacher: buckets and truncation, samples, and the teacher that is asked itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import likely
from tests.cases import CLASSES, KERNELS, ROWS, Draw, Kernel, double, make_head, requiring_grad

kernels = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def teacher_rows(classes: int = 12, rows: int = 9) -> Tensor:
    return torch.tensor(np.random.default_rng(3).dirichlet(np.full(classes, 0.4), rows))


def student(classes: int = 12, rows: int = 9, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@kernels
def test_a_bucket_is_the_cross_entropy_of_k_plus_1_cells(kernel: Kernel) -> None:
    p_NC, z_NC = teacher_rows(), student()
    p_NK, index_NK = p_NC.topk(4)
    score = kernel.nll(likely.Logits(z_NC), likely.top_k(index_NK, p_NK, 12, tail="bucket"))
    q_NK = torch.softmax(z_NC, dim=-1).gather(-1, index_NK)
    cells_p = torch.cat([p_NK, 1 - p_NK.sum(dim=-1, keepdim=True)], dim=-1)
    cells_q = torch.cat([q_NK, 1 - q_NK.sum(dim=-1, keepdim=True)], dim=-1)
    torch.testing.assert_close(score.entropy, likely.measures.entropy(cells_p, check=False))
    torch.testing.assert_close(score.kl, likely.measures.kl_divergence(cells_p, cells_q, check=False))


@kernels
@pytest.mark.parametrize("stored", [1, 4, 11])
def test_a_bucket_is_a_lower_bound_of_the_whole_which_more_classes_raise(stored: int, kernel: Kernel) -> None:
    p_NC, z_NC = teacher_rows(), student()
    whole = kernel.nll(likely.Logits(z_NC), likely.probabilities(p_NC))
    fewer, more = (
        kernel.nll(likely.Logits(z_NC), likely.top_k(index, p, 12, tail="bucket"))
        for p, index in (p_NC.topk(k) for k in (stored, min(stored + 1, 12)))
    )
    for name in ("entropy", "kl"):
        assert (getattr(fewer, name) <= getattr(more, name) + 1e-14).all()
        assert (getattr(more, name) <= getattr(whole, name) + 1e-14).all()
        assert (getattr(fewer, name) >= 0).all()


@kernels
def test_the_gradient_of_a_bucket_leaves_the_tails_shape_to_the_student(kernel: Kernel) -> None:
    """`q − p_S − rest · q_{∖S} / Q_{∖S}`."""
    p_NC, z_NC = teacher_rows(), student()
    p_NK, index_NK = p_NC.topk(4)
    leaf = z_NC.clone().requires_grad_()
    loss, _ = kernel.objective(likely.Logits(leaf), likely.top_k(index_NK, p_NK, 12, tail="bucket"), total=1)
    (grad,) = torch.autograd.grad(loss, leaf)
    q_NC = torch.softmax(z_NC, dim=-1)
    inside_NC = torch.zeros_like(q_NC).scatter(-1, index_NK, 1.0)
    outside_NC = q_NC * (1 - inside_NC)
    rest_N = 1 - p_NK.sum(dim=-1, keepdim=True)
    wanted = q_NC - torch.zeros_like(q_NC).scatter(-1, index_NK, p_NK) - rest_N * outside_NC / outside_NC.sum(-1, True)
    torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad.sum(dim=-1), torch.zeros(9).double(), rtol=0, atol=1e-14)


@kernels
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_bucket_of_a_student_who_has_no_doubt_is_formed_by_masking(scale: float, kernel: Kernel) -> None:
    """`log(1 − Σ q)` would be −inf where the student's mass outside the record is 1e-80."""
    z_NC = torch.zeros(1, 12).double()
    z_NC[0, 3] = 200.0 * scale
    z_NC.requires_grad_()
    target = likely.top_k([[3, 5]], torch.tensor([[0.5, 0.25]]).double(), 12, tail="bucket")
    score = kernel.nll(likely.Logits(z_NC), target)
    assert abs(float(score.cross_entropy.detach()) / (0.5 * 200 * scale - 0.25 * math.log(10)) - 1) < 1e-12
    (grad,) = torch.autograd.grad(score.cross_entropy.sum(), z_NC)
    wanted = [-0.025] * 12
    wanted[3], wanted[5] = 0.5, -0.25
    torch.testing.assert_close(grad, torch.tensor([wanted], dtype=torch.float64), rtol=1e-12, atol=1e-14)


@kernels
def test_a_bucket_without_mass_costs_nothing_where_nothing_else_is_possible(kernel: Kernel) -> None:
    z_NC = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]], requires_grad=True)
    full = likely.top_k([[0, 1]], torch.tensor([[0.25, 0.75]]), 4, tail="bucket")
    loss, _ = kernel.objective(likely.Logits(z_NC), full)
    (grad,) = torch.autograd.grad(loss, z_NC)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    some = likely.top_k([[0, 1]], torch.tensor([[0.25, 0.5]]), 4, tail="bucket")
    assert float(kernel.nll(likely.Logits(z_NC), some).cross_entropy.detach()) == math.inf


@pytest.mark.parametrize("tail", ["uniform", "renormalise", "bucket"])
def test_a_record_of_every_class_is_the_distribution(tail: str) -> None:
    p_NC, z_NC = teacher_rows(), student()
    p_NK, index_NK = p_NC.topk(12)
    one = likely.nll(likely.Logits(z_NC), likely.top_k(index_NK, p_NK, 12, tail=tail))
    two = likely.nll(likely.Logits(z_NC), likely.probabilities(p_NC))
    torch.testing.assert_close(one.cross_entropy, two.cross_entropy)
    torch.testing.assert_close(one.kl, two.kl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tail", ["uniform", "renormalise", "bucket"])
def test_a_half_precision_record_is_a_distribution_even_where_it_rounds_above_one(
    tail: str, dtype: torch.dtype
) -> None:
    p_NK = torch.tensor([[0.5, 0.503], [0.6, 0.3]]).to(dtype)
    target = likely.top_k([[0, 1], [2, 0]], p_NK, 5, tail=tail)
    mass_N = target.tile(slice(None), 1.0, torch.float64).mass()
    torch.testing.assert_close(mass_N, torch.ones(2).double(), rtol=0, atol=2e-7)
    assert (likely.nll(likely.Logits(torch.zeros(2, 5)), target).kl >= 0).all()


# ----------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("draws", [1, 3])
def test_samples_are_unbiased_for_any_number_of_draws(draws: int) -> None:
    """The expectation over all draws, each with its probability: exact, and not only in the limit."""
    p_C = np.random.default_rng(1).dirichlet(np.ones(4))
    z_C = student(4, 1)[0]
    tuples = np.stack(np.meshgrid(*[np.arange(4)] * draws, indexing="ij"), axis=-1).reshape(-1, draws)
    chance_N = torch.tensor(p_C[tuples].prod(axis=-1))
    entropy = float(likely.measures.entropy(p_C))
    target = likely.samples(tuples, np.ones_like(tuples), 4, entropy=np.full(len(tuples), entropy))
    leaf = z_C.expand(len(tuples), 4).clone().requires_grad_()
    score = likely.nll(likely.Logits(leaf), target)
    exact = likely.nll(likely.Logits(z_C[None]), likely.probabilities(p_C[None]))
    for name in ("cross_entropy", "entropy", "kl"):
        torch.testing.assert_close(
            (chance_N * getattr(score, name)).sum(), getattr(exact, name)[0], rtol=1e-13, atol=1e-14
        )
    (grad,) = torch.autograd.grad((chance_N * score.cross_entropy).sum(), leaf)
    torch.testing.assert_close(grad.sum(dim=0), torch.softmax(z_C, dim=-1) - torch.tensor(p_C), rtol=1e-13, atol=1e-14)


def test_samples_converge_by_the_law_of_large_numbers() -> None:
    p_NC, z_NC = teacher_rows(), student()
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(200_000, row / row.sum()) for row in double(p_NC)])
    index_NK = np.broadcast_to(np.arange(12), counts.shape).copy()
    target = likely.samples(index_NK, counts, 12, entropy=likely.measures.entropy(p_NC))
    exact = likely.nll(likely.Logits(z_NC), likely.probabilities(p_NC))
    torch.testing.assert_close(likely.nll(likely.Logits(z_NC), target).kl, exact.kl, rtol=0, atol=0.02)


def test_samples_without_the_entropy_say_so() -> None:
    score = likely.nll(likely.Logits(torch.zeros(1, 3)), likely.samples([[0, 1]], [[2, 1]], 3))
    for name in ("entropy", "kl"):
        with pytest.raises(
            ValueError, match=rf"{name}: samples do not know the entropy .*; give samples\(..., entropy=\)"
        ):
            getattr(score, name)
    assert score.estimate().kl is None


# ----------------------------------------------------------------------------------------------------- teacher


def test_a_teacher_that_asks_for_a_gradient_is_refused() -> None:
    head, leaves = requiring_grad(make_head("linear"))
    for asks in (head, leaves[0][:, :1].expand(ROWS, CLASSES)):
        with pytest.raises(ValueError, match=r"teacher: its tensors require a gradient; .*no_grad\(\) or detach"):
            likely.teacher(asks)
        for divergence in (likely.reverse_kl, likely.jensen_shannon):
            with pytest.raises(ValueError, match="teacher: its tensors require a gradient"):
                divergence(make_head("logits"), asks)


@kernels
def test_a_teacher_is_its_own_softmax(kernel: Kernel) -> None:
    draw = Draw("teacher")
    z_NC, teacher_NC = (torch.tensor(2 * draw.rng.normal(size=(ROWS, CLASSES))) for _ in range(2))
    for T in (1.0, 4.0):
        one = kernel.nll(likely.Logits(z_NC), likely.teacher(teacher_NC), T)
        two = kernel.nll(likely.Logits(z_NC), likely.measure(torch.softmax(teacher_NC / T, dim=-1)), T)
        given = kernel.nll(likely.Logits(z_NC), likely.probabilities(torch.softmax(teacher_NC, dim=-1)), T)
        for other in (two, given):
            torch.testing.assert_close(one.cross_entropy, other.cross_entropy, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(one.entropy, other.entropy, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(one.kl, other.kl, rtol=1e-12, atol=1e-14)


def test_a_softcapped_teacher_is_capped_before_it_is_softened() -> None:
    draw = Draw("softcap")
    x_ND, weight_CD = (
        torch.tensor(draw.rng.normal(size=(ROWS, 4))),
        torch.tensor(3 * draw.rng.normal(size=(CLASSES, 4))),
    )
    capped_NC = 2 * torch.tanh(x_ND @ weight_CD.T / 2)
    head = make_head("logits")
    one = likely.nll(head, likely.teacher(likely.Linear(x_ND, weight_CD, softcap=2.0)), temperature=3.0)
    two = likely.nll(head, likely.teacher(capped_NC), temperature=3.0)
    torch.testing.assert_close(one.cross_entropy, two.cross_entropy, rtol=1e-13, atol=1e-14)


def test_vocabularies_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"target: is over 6 classes where the head has 5; .* never padding"):
        likely.nll(make_head("logits"), likely.teacher(torch.zeros(ROWS, 6)))
