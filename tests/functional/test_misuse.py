"""Calls that torch refuses are refused with the same type of exception, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import likely.functional
import likely.nn

Z = torch.randn(4, 3)
Y = torch.tensor([0, 1, 2, 0])
P = torch.rand(4, 3)
W = torch.randn(5, 3)
LONG = torch.long
FAR = torch.tensor([0, 1, 5, 0])

CALLS: dict[str, Callable[[Any], Any]] = {
    "a label too large": lambda f: f.cross_entropy(Z, FAR),
    "a negative label": lambda f: f.cross_entropy(Z, torch.tensor([0, 1, -1, 0])),
    "a label too large, smoothed": lambda f: f.cross_entropy(Z, FAR, label_smoothing=0.1),
    "a label too large at a position": lambda f: f.cross_entropy(torch.randn(2, 3, 2), torch.tensor([[0, 1], [2, 3]])),
    "a label too large, nll": lambda f: f.nll_loss(Z, FAR),
    "a label too large, linear": lambda f: f.linear_cross_entropy(Z, W, FAR),
    "labels of int32": lambda f: f.cross_entropy(Z, Y.int()),
    "labels of bool": lambda f: f.cross_entropy(Z, Y.bool()),
    "labels of float": lambda f: f.cross_entropy(Z, Y.float()),
    "labels of int32, linear": lambda f: f.linear_cross_entropy(Z, W, Y.int()),
    "integer probabilities": lambda f: f.cross_entropy(Z, torch.zeros(4, 3, dtype=LONG)),
    "a list of labels": lambda f: f.cross_entropy(Z, [0, 1, 2, 0]),
    "a number for logits": lambda f: f.cross_entropy(torch.tensor(1.0), torch.tensor(1.0)),
    "two labels for one row": lambda f: f.cross_entropy(torch.randn(3), torch.tensor([1, 2])),
    "too few labels": lambda f: f.cross_entropy(Z, Y[:3]),
    "one label for a batch": lambda f: f.cross_entropy(Z, torch.tensor(1)),
    "labels in a column": lambda f: f.cross_entropy(Z, Y[:, None]),
    "labels of other positions": lambda f: f.cross_entropy(torch.randn(2, 3, 5), torch.zeros(2, 4, dtype=LONG)),
    "labels without positions": lambda f: f.cross_entropy(torch.randn(2, 3, 5), torch.zeros(2, dtype=LONG)),
    "labels of too few positions": lambda f: f.cross_entropy(torch.randn(2, 3, 5, 2), torch.zeros(2, 5, dtype=LONG)),
    "class weights of another size": lambda f: f.cross_entropy(Z, Y, weight=torch.ones(2)),
    "class weights in a row": lambda f: f.cross_entropy(Z, Y, weight=torch.ones(1, 3)),
    "class weights of another size, soft": lambda f: f.cross_entropy(Z, P, weight=torch.ones(2)),
    "class weights of another dtype": lambda f: f.cross_entropy(Z, Y, weight=torch.ones(3).double()),
    "class weights that want a gradient": lambda f: f.cross_entropy(Z, Y, weight=torch.ones(3, requires_grad=True)),
    "an ignored class among probabilities": lambda f: f.cross_entropy(Z, P, ignore_index=1),
    "an ignored class among probabilities, linear": lambda f: f.linear_cross_entropy(
        Z, torch.randn(3, 3), P, ignore_index=-100
    ),
    "reduction batchmean": lambda f: f.cross_entropy(Z, Y, reduction="batchmean"),
    "reduction unknown, kl": lambda f: f.kl_div(Z, P, reduction="avg"),
    "reduction unknown, linear": lambda f: f.linear_cross_entropy(Z, W, Y, reduction="avg"),
    "reduction None": lambda f: f.cross_entropy(Z, Y, reduction=None),
    "too much smoothing": lambda f: f.cross_entropy(Z, Y, label_smoothing=1.5),
    "too much smoothing, linear": lambda f: f.linear_cross_entropy(Z, W, Y, label_smoothing=2),
    "integer logits": lambda f: f.cross_entropy(torch.ones(4, 3, dtype=LONG), Y),
    "complex logits": lambda f: f.cross_entropy(Z.to(torch.complex64), Y),
    "no classes": lambda f: f.cross_entropy(torch.randn(2, 0), torch.zeros(2, dtype=LONG)),
    "weights of another dtype, linear": lambda f: f.linear_cross_entropy(Z, W.double(), Y),
    "a bias of another dtype, linear": lambda f: f.linear_cross_entropy(Z, W, Y, linear_bias=torch.ones(5).double()),
    "too few labels, linear": lambda f: f.linear_cross_entropy(Z, W, Y[:3]),
    "other sizes, binary": lambda f: f.binary_cross_entropy_with_logits(Z, P[:3]),
    "integer targets, binary": lambda f: f.binary_cross_entropy_with_logits(Z, torch.ones(4, 3, dtype=LONG)),
    "weights of another size, binary": lambda f: f.binary_cross_entropy_with_logits(Z, P, weight=torch.ones(2)),
    "weights of more dimensions": lambda f: f.binary_cross_entropy_with_logits(Z, P, weight=torch.ones(2, 4, 3)),
    "pos_weight of another size": lambda f: f.binary_cross_entropy_with_logits(Z, P, pos_weight=torch.ones(2)),
    "integer logits, binary": lambda f: f.binary_cross_entropy_with_logits(torch.ones(4, 3, dtype=LONG), P),
    "probabilities above one": lambda f: f.binary_cross_entropy(P + 1, P),
    "other sizes of probabilities": lambda f: f.binary_cross_entropy(P, P[:3]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_the_same_exception_as_torch(call: str) -> None:
    if "linear" in call and not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    with pytest.raises(Exception) as theirs:
        CALLS[call](F)
    with pytest.raises(Exception) as ours:
        CALLS[call](likely.functional)
    assert ours.type is theirs.type, ours.value
    assert "\n" not in str(ours.value)


def test_a_label_out_of_bounds_is_named() -> None:
    with pytest.raises(IndexError, match=r"Target 5 is out of bounds. target: row 2 holds it, and classes are 0 … 2"):
        likely.functional.cross_entropy(Z, FAR)


@pytest.mark.parametrize("smoothing", [-0.5, float("nan")])
def test_smoothing_that_torch_takes_for_none_is_refused(smoothing: float) -> None:
    with pytest.raises(RuntimeError, match="label_smoothing must be between"):
        likely.functional.cross_entropy(Z, Y, label_smoothing=smoothing)


def test_labels_one_past_an_ignored_class_are_still_refused() -> None:
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        likely.functional.cross_entropy(Z, torch.tensor([5, 1, 3, 0]), ignore_index=5)


@pytest.mark.parametrize("module", [torch.nn, likely.nn], ids=["torch", "likely"])
def test_a_module_refuses_what_it_cannot_use(module: ModuleType) -> None:
    if not hasattr(module, "LinearCrossEntropyLoss"):
        pytest.skip(f"torch {torch.__version__} has no LinearCrossEntropyLoss")
    with pytest.raises(RuntimeError, match="expected weight shape"):
        module.LinearCrossEntropyLoss(3, 2, weight=torch.ones(3))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        module.LinearCrossEntropyLoss(3, 2, label_smoothing=2.0)
