"""What the functions can beyond torch: temperature, soft-cap, z-loss, a denominator, row weights, any target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import likely
import likely.functional as LF
import likely.nn

N, C, D = 6, 5, 4
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def logits() -> Tensor:
    return torch.randn(N, C, dtype=torch.float64, requires_grad=True)


def some_labels() -> Tensor:
    return torch.tensor([0, 3, -100, 1, 4, 1])


def agree(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    along = torch.randn(found.shape, dtype=found.dtype)
    ours, theirs = (torch.autograd.grad(loss, leaves, along, retain_graph=True) for loss in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@REDUCTIONS
def test_temperature_divides_the_logits_and_nothing_else(reduction: str) -> None:
    z, y, p = logits(), some_labels(), torch.rand(N, C, dtype=torch.float64)
    for target in (y, p):
        found = LF.cross_entropy(z, target, reduction=reduction, temperature=2.5)
        agree(found, F.cross_entropy(z / 2.5, target, reduction=reduction), z)
    found = LF.binary_cross_entropy_with_logits(z, p, reduction=reduction, temperature=2.5)
    agree(found, F.binary_cross_entropy_with_logits(z / 2.5, p, reduction=reduction), z)


@REDUCTIONS
@pytest.mark.parametrize("positions", [(), (2, 3)], ids=str)
def test_the_soft_cap_comes_before_the_temperature(positions: tuple[int, ...], reduction: str) -> None:
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, *positions, D, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, C, (N, *positions))
    z = F.linear(x, weight.flatten(0, -2)).reshape(N, C, *positions)
    found = LF.linear_cross_entropy(x, weight, y, reduction=reduction, softcap=3.0, temperature=2.0)
    agree(found, F.cross_entropy(3 * torch.tanh(z / 3) / 2, y, reduction=reduction), x, weight)


def test_parts_of_a_batch_add_up_with_a_total() -> None:
    z, y = logits(), some_labels()
    weight = torch.rand(C, dtype=torch.float64) + 0.5
    total = weight[y[y >= 0]].sum()
    parts = [slice(0, 3), slice(3, N)]
    found = torch.stack([LF.cross_entropy(z[part], y[part], weight, total=total) for part in parts]).sum()
    agree(found, F.cross_entropy(z, y, weight), z)
    found = torch.stack([LF.nll_loss(z[part], y[part], weight, total=float(total)) for part in parts]).sum()
    agree(found, F.nll_loss(z, y, weight), z)
    p = torch.rand(N, C, dtype=torch.float64)
    for name, source in (("binary_cross_entropy_with_logits", z), ("binary_cross_entropy", p.requires_grad_())):
        ours, theirs = getattr(LF, name), getattr(F, name)
        target = torch.rand(N, C, dtype=torch.float64)
        found = torch.stack([ours(source[part], target[part], total=N * C) for part in parts]).sum()
        agree(found, theirs(source, target), source)
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(C, 2, D, dtype=torch.float64, requires_grad=True)
    both = torch.stack([y, y.flip(0)], dim=1)
    whole = LF.linear_cross_entropy(x, heads, both)
    counted = int((both >= 0).sum())
    found = torch.stack([LF.linear_cross_entropy(x[part], heads, both[part], total=counted) for part in parts]).sum()
    agree(found, whole, x, heads)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_total_belongs_to_a_mean(reduction: str) -> None:
    z, y, p = logits(), some_labels(), torch.rand(N, C, dtype=torch.float64)
    calls: list[Callable[..., Tensor]] = [
        lambda **k: LF.cross_entropy(z, y, **k),
        lambda **k: LF.nll_loss(z, y, **k),
        lambda **k: LF.binary_cross_entropy(p, p, **k),
        lambda **k: LF.binary_cross_entropy_with_logits(z, p, **k),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="total"):
            call(total=3, reduction=reduction)


@REDUCTIONS
def test_row_weights_weigh_rows_and_the_mean(reduction: str) -> None:
    z = torch.randn(2, C, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, 3, -100], [1, 4, 1]])
    p = torch.rand(2, C, 3, dtype=torch.float64)
    w = torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.5, 1.5]], dtype=torch.float64)
    for target, counts in ((y, w * (y >= 0)), (p, w)):
        rows = F.cross_entropy(z, target, reduction="none") * w
        expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum()}[reduction]
        agree(LF.cross_entropy(z, target, row_weight=w, reduction=reduction), expected, z)
    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(C, 3, D, dtype=torch.float64, requires_grad=True)
    own = F.linear(x, heads.flatten(0, 1)).reshape(2, C, 3)
    rows = F.cross_entropy(own, y, reduction="none") * w
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / (w * (y >= 0)).sum()}[reduction]
    agree(LF.linear_cross_entropy(x, heads, y, row_weight=w, reduction=reduction), expected, x, heads)


def test_row_weights_have_the_labels_shape() -> None:
    z, y = logits(), some_labels()
    with pytest.raises(ValueError, match=r"row_weight: has shape \(5,\); it is one number per row, \(6,\)"):
        LF.cross_entropy(z, y, row_weight=torch.ones(5))
    with pytest.raises(ValueError, match=r"row_weight: has shape \(6, 5\)"):
        LF.cross_entropy(z, torch.rand(N, C), row_weight=torch.ones(N, C))


@pytest.mark.parametrize("positions", [(), (3,)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_z_loss_is_that_of_the_rows_that_count(reduction: str, positions: tuple[int, ...]) -> None:
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, *positions, D, dtype=torch.float64, requires_grad=True)
    y = some_labels().reshape(N, *(1 for _ in positions)).expand(N, *positions)
    z = F.linear(x, weight.flatten(0, -2)).reshape(N, C, *positions)
    squares = torch.logsumexp(z, dim=1).square()[y >= 0]
    for temperature in (1.0, 2.0):  # the z-loss is always at T = 1
        loss = F.cross_entropy(z / temperature, y, reduction=reduction)
        expected = loss + 0.3 * (squares.mean() if reduction == "mean" else squares.sum())
        options: dict[str, Any] = {"reduction": reduction, "z_loss": 0.3, "temperature": temperature}
        agree(LF.linear_cross_entropy(x, weight, y, **options), expected, x, weight)
        agree(LF.cross_entropy(z, y, **options), expected, x, weight)
    with pytest.raises(ValueError, match="z_loss"):
        LF.cross_entropy(z, y, reduction="none", z_loss=0.3)


# -------------------------------------------------------------------------------------------------- targets of any kind


def kinds() -> dict[str, likely.Target]:
    p = torch.rand(N, C, dtype=torch.float64)
    p = p / p.sum(dim=-1, keepdim=True)
    kept, index = p.topk(2)
    w = torch.rand(N, dtype=torch.float64)
    return {
        "labels": likely.labels(some_labels(), C, smoothing=0.1, class_weight=torch.rand(C, dtype=torch.float64)),
        "weighted": likely.labels(some_labels(), C, weight=w),
        "probabilities": likely.probabilities(p, weight=w),
        "measure": likely.measure(p * 3 - 1),
        "top_k": likely.top_k(index, kept, C, tail="bucket"),
        "samples": likely.samples([[0, 1]] * N, [[3, 1]] * N, C, weight=w),
        "teacher": likely.teacher(torch.randn(N, C, dtype=torch.float64)),
    }


@pytest.mark.parametrize("kind", kinds())
def test_a_target_gives_the_same_objective(kind: str) -> None:
    target = kinds()[kind]
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, D, dtype=torch.float64, requires_grad=True)
    z = F.linear(x, weight)
    row_weight = 1 if target.weight is None else target.weight
    score = likely.nll(likely.Linear(x, weight), target)
    rows = score.cross_entropy * row_weight
    expected = {"mean": score.mean().cross_entropy, "sum": rows.sum(), "none": rows}
    for reduction, value in expected.items():
        agree(LF.linear_cross_entropy(x, weight, target, reduction=reduction), value, x, weight)
        agree(LF.cross_entropy(z, target, reduction=reduction), value, x, weight)
    loss, _ = likely.objective(likely.Linear(x, weight), target, total=7, z_loss=0.1)
    agree(LF.linear_cross_entropy(x, weight, target, total=7, z_loss=0.1), loss, x, weight)
    agree(likely.nn.CrossEntropyLoss(z_loss=0.1)(z, target, total=7), loss, x, weight)


def test_a_target_of_positions() -> None:
    z = torch.randn(2, C, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, C, (2, 3))
    found = LF.cross_entropy(z, likely.labels(y.flatten(), C), reduction="none")
    agree(found, F.cross_entropy(z, y, reduction="none"), z)


@REDUCTIONS
def test_a_binary_target(reduction: str) -> None:
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, 1], [1, 1], [0, 0]])
    found = LF.binary_cross_entropy_with_logits(z, likely.labels(y.flatten(), 2), reduction=reduction)
    agree(found, F.binary_cross_entropy_with_logits(z, y.double(), reduction=reduction), z)


@pytest.mark.parametrize(
    "given",
    [{"weight": torch.ones(C)}, {"label_smoothing": 0.1}, {"ignore_index": 1}, {"row_weight": torch.ones(N)}],
    ids=lambda given: next(iter(given)),
)
def test_what_a_target_says_itself_is_refused(given: dict[str, Any]) -> None:
    target = likely.labels([0] * N, C)
    with pytest.raises(ValueError, match=next(iter(given))):
        LF.cross_entropy(torch.zeros(N, C), target, **given)
    with pytest.raises(ValueError, match=next(iter(given))):
        LF.linear_cross_entropy(torch.zeros(N, D), torch.zeros(C, D), target, **given)


def test_a_target_is_for_one_position() -> None:
    with pytest.raises(ValueError, match="target: a Target has rows for one position"):
        LF.linear_cross_entropy(torch.zeros(N, D), torch.zeros(C, 2, D), likely.labels([0] * N, C))
    with pytest.raises(ValueError, match="target: is over 4 classes where the head has 5"):
        LF.cross_entropy(torch.zeros(N, C), likely.labels([0] * N, 4))
