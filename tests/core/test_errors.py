"""Bad arguments of the core get one clear line that names the argument, the row and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import likely

F32, F64 = torch.float32, torch.float64
third = [[1 / 3, 1 / 3, 1 / 3]]


def rows(n: int, bad: list[float]) -> torch.Tensor:
    """n distributions over 3 classes of which the last but one is `bad`."""
    p_NC = torch.full((n, 3), 1 / 3, dtype=F64)
    p_NC[n - 2] = torch.tensor(bad, dtype=F64)
    return p_NC


head = likely.Logits(torch.zeros(4, 3))
y = torch.tensor([0, 1, 2, 0])

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # ------------------------------------------------------------------------------------------------- labels
    "a label that is no class": (
        lambda: likely.labels([0, 1, 7, 2], 3),
        IndexError,
        "y: row 2 holds 7, which is no class; classes are 0 … 2, or -100 to ignore the row",
    ),
    "a negative label": (lambda: likely.labels([0, -1], 3, ignore_index=-5), IndexError, "y: row 1 holds -1"),
    "labels that are not integers": (
        lambda: likely.labels([0.0, 1.0], 3),
        TypeError,
        "y: has dtype torch.float32; labels are integers (probabilities go through probabilities())",
    ),
    "labels that are truth values": (
        lambda: likely.labels(torch.tensor([True]), 3),
        TypeError,
        "y: has dtype torch.bool",
    ),
    "labels of two axes": (
        lambda: likely.labels([[0], [1]], 3),
        ValueError,
        "y: has shape (2, 1); labels are one integer",
    ),
    "labels that are words": (lambda: likely.labels(np.array(["cat"]), 3), TypeError, "y: cannot be read as a tensor"),
    "labels that are objects": (
        lambda: likely.labels(np.array([None]), 3),
        TypeError,
        "y: an array of Python objects; give numbers",
    ),
    "labels that are nothing": (
        lambda: likely.labels([None], 3),
        TypeError,
        "y: cannot be read as a tensor of numbers",
    ),
    "a smoothing above one": (
        lambda: likely.labels(y, 3, smoothing=10),
        ValueError,
        "smoothing: is 10; it is a fraction between 0 and 1",
    ),
    "a smoothing that is no number": (
        lambda: likely.labels(y, 3, smoothing=float("nan")),
        ValueError,
        "smoothing: is nan",
    ),
    "both spellings": (
        lambda: likely.labels(y, 3, smoothing=0.1, confidence=0.9),
        ValueError,
        "confidence: says the same as smoothing in another spelling; give one of them",
    ),
    "a confidence in percent": (
        lambda: likely.labels(y, 3, confidence=90),
        ValueError,
        "confidence: is 90; it is a prob",
    ),
    "nothing to spread over": (lambda: likely.labels([0], 1, confidence=0.9), ValueError, "confidence: a single class"),
    "class weights of another length": (
        lambda: likely.labels(y, 3, class_weight=[1.0, 2.0]),
        ValueError,
        "class_weight: has shape (2,); it is one weight for each of 3 classes",
    ),
    "row weights of another length": (
        lambda: likely.labels(y, 3, weight=[1.0, 2.0]),
        ValueError,
        "weight: has 2 rows where the target has 4",
    ),
    "row weights of two axes": (
        lambda: likely.labels(y, 3, weight=[[1.0]] * 4),
        ValueError,
        "weight: has shape (4, 1); it is one number per row",
    ),
    "a negative row weight": (
        lambda: likely.labels(y, 3, weight=[1.0, 1.0, -1.0, 1.0]),
        ValueError,
        "weight: row 2 is negative or not finite; a row to leave out has weight 0",
    ),
    # ------------------------------------------------------------------------------------------ distributions
    "a row that sums to more": (
        lambda: likely.probabilities(rows(9, [0.5, 0.5, 0.25])),
        ValueError,
        "p: row 7 sums to 1.25, not 1; divide it by its sum, or use measure() for a target that is not a distribution",
    ),
    "the worst row": (
        lambda: likely.probabilities([[0.5, 0.625], [0.25, 0.25], [0.5, 0.5]]),
        ValueError,
        "p: row 1 sums to 0.5, not 1",
    ),
    "a negative probability": (
        lambda: likely.probabilities(rows(5, [1.5, -0.5, 0.0])),
        ValueError,
        "p: row 3 holds the negative value -0.5; probabilities are at least 0 "
        "(a signed or unnormalised target goes through measure())",
    ),
    "a probability that is no number": (
        lambda: likely.probabilities(rows(5, [float("nan"), 0.5, 0.5])),
        ValueError,
        "p: row 3 holds NaN or an infinite value; every probability must be finite",
    ),
    "probabilities of one axis": (
        lambda: likely.probabilities([0.5, 0.5]),
        ValueError,
        "p: has shape (2,); it is (rows, cl",
    ),
    "a measure of one axis": (
        lambda: likely.measure([0.5, 0.5]),
        ValueError,
        "mu: has shape (2,); it is (rows, classes)",
    ),
    # ------------------------------------------------------------------------------------------------- records
    "an unknown tail": (
        lambda: likely.top_k([[0]], [[0.5]], 3, tail="zero"),
        ValueError,
        "tail: is 'zero'; say how the missing mass is meant: 'uniform', 'renormalise', 'bucket'",
    ),
    "no tail": (lambda: likely.top_k([[0]], [[0.5]], 3), TypeError, "tail"),  # type: ignore[call-arg]
    "a class twice": (
        lambda: likely.top_k([[0, 1], [2, 2]], [[0.5, 0.1]] * 2, 3, tail="bucket"),
        ValueError,
        "index: row 1 stores a class twice; add them up",
    ),
    "a class too many": (
        lambda: likely.top_k([[0, 1], [2, 3]], [[0.5, 0.1]] * 2, 3, tail="bucket"),
        IndexError,
        "index: row 1 holds 3, which is no class; classes are 0 … 2",
    ),
    "classes that are not integers": (
        lambda: likely.top_k([[0.0]], [[0.5]], 3, tail="bucket"),
        TypeError,
        "index: has dtype torch.float32; classes are integers",
    ),
    "an index of one axis": (
        lambda: likely.samples([0], [1], 3),
        ValueError,
        "index: has shape (1,); it is (rows, stored",
    ),
    "more mass than there is": (
        lambda: likely.top_k([[0, 1], [1, 2]], [[0.5, 0.1], [0.75, 0.5]], 3, tail="bucket"),
        ValueError,
        "p: row 1 sums to 1.25, more than 1; divide it by its sum",
    ),
    "a negative record": (
        lambda: likely.top_k([[0, 1], [1, 2]], [[0.5, 0.1], [0.75, -0.5]], 3, tail="bucket"),
        ValueError,
        "p: row 1 holds a value that is no probability",
    ),
    "shapes that differ": (
        lambda: likely.top_k([[0, 1]], [[0.5]], 3, tail="bucket"),
        ValueError,
        "p: has shape (1, 1) where index has (1, 2)",
    ),
    "nothing to renormalise": (
        lambda: likely.top_k([[0], [1]], [[0.5], [0.0]], 3, tail="renormalise"),
        ValueError,
        "p: row 1 has no mass to renormalise",
    ),
    "all classes and too little mass": (
        lambda: likely.top_k([[0, 1]], [[0.5, 0.25]], 2, tail="bucket"),
        ValueError,
        "p: row 0 sums to 0.75, though all 2 classes are stored",
    ),
    "a record that asks for a gradient": (
        lambda: likely.top_k([[0]], torch.tensor([[0.5]], requires_grad=True), 3, tail="bucket"),
        ValueError,
        "p: requires a gradient; a record is constant (detach it)",
    ),
    "no draws": (
        lambda: likely.samples([[0], [1]], [[1], [0]], 3),
        ValueError,
        "count: row 1 has no draws; leave it out",
    ),
    "negative draws": (
        lambda: likely.samples([[0, 1], [1, 2]], [[1, 1], [3, -1]], 3),
        ValueError,
        "count: row 1 holds a value that is no count; they are finite and at least 0",
    ),
    "an entropy for each draw": (
        lambda: likely.samples([[0, 1]], [[1, 1]], 3, entropy=[[0.5, 0.5]]),
        ValueError,
        "entropy: has shape (1, 2); it is one value per row",
    ),
    # --------------------------------------------------------------------------------------------------- heads
    "logits that are integers": (
        lambda: likely.Logits(torch.zeros(2, 3).long()),
        TypeError,
        "z: has dtype torch.int64; logits and weights are floating point numbers",
    ),
    "logits of one axis": (
        lambda: likely.Logits(torch.zeros(3)),
        ValueError,
        "z: has shape (3,); logits are (rows, classes)",
    ),
    "hidden states of three axes": (
        lambda: likely.Linear(torch.zeros(2, 3, 4), torch.zeros(5, 4)),
        ValueError,
        "x: has shape (2, 3, 4); hidden states are (rows, features)",
    ),
    "a weight of another width": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(5, 4)),
        ValueError,
        "weight: has 4 features where x has 3",
    ),
    "a weight of one axis": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(3)),
        ValueError,
        "weight: has shape (3,)",
    ),
    "a weight of another dtype": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(5, 3, dtype=F64)),
        TypeError,
        "weight: has dtype torch.float64 where x has torch.float32",
    ),
    "a bias of another length": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(4)),
        ValueError,
        "bias: has shape (4,) where weight has 5 classes",
    ),
    "a bias of another dtype": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5, dtype=F64)),
        TypeError,
        "bias: has dtype torch.float64 where x has torch.float32",
    ),
    "a softcap of zero": (
        lambda: likely.Linear(torch.zeros(2, 3), torch.zeros(5, 3), softcap=0.0),
        ValueError,
        "softcap: is 0.0; it is a positive number",
    ),
    # -------------------------------------------------------------------------------------------------- the verb
    "another number of rows": (
        lambda: likely.nll(head, likely.labels([0, 1], 3)),
        ValueError,
        "target: has 2 rows where the head has 4",
    ),
    "another number of classes": (
        lambda: likely.nll(head, likely.labels(y, 4)),
        ValueError,
        "target: is over 4 classes where the head has 3; vocabularies that differ need an explicit map, never padding",
    ),
    "another device": (
        lambda: likely.nll(likely.Logits(torch.zeros(4, 3, device="meta")), likely.labels(y, 3)),
        ValueError,
        "target: is on cpu where the head is on meta",
    ),
    "a temperature of zero": (
        lambda: likely.nll(head, likely.labels(y, 3), temperature=0.0),
        ValueError,
        "temperature: is 0.0; it is a positive number",
    ),
    "a record at another temperature": (
        lambda: likely.objective(head, likely.Term(likely.samples([[0]] * 4, [[1]] * 4, 3), temperature=2.0)),
        ValueError,
        "temperature: the record was taken at temperature 1 and cannot be had at 2; "
        "take it again, or give Term(..., temperature=1)",
    ),
    "no terms": (lambda: likely.objective(head, []), ValueError, "terms: is empty; an objective has at least one term"),
    "a kernel that is not there": (
        lambda: likely.nll(head, likely.labels(y, 3), kernel="cuda"),
        ValueError,
        "kernel: is 'cuda'; there are 'chunked', 'minimal', 'inplace', 'triton', 'eager'",
    ),
    "the entropy of a signed measure": (
        lambda: likely.nll(likely.Logits(torch.zeros(1, 2)), likely.measure([[2.0, -1.0]])).entropy,
        ValueError,
        "entropy: the target has negative entries, so it is no distribution and has no entropy; "
        "only its cross-entropy exists",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_names_the_argument_the_row_and_the_fix(name: str) -> None:
    provoke, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)) as caught:
        provoke()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_rounding_of_the_dtype_is_no_error() -> None:
    p_NC = torch.softmax(torch.randn(50, 1000, generator=torch.Generator().manual_seed(0), dtype=F64), dim=-1)
    for dtype in (F64, F32, torch.bfloat16, torch.float16):
        likely.probabilities(p_NC.to(dtype))
    with pytest.raises(ValueError, match="not 1"):
        likely.probabilities(p_NC * (1 + 1e-6))


def test_the_original_arrays_are_left_as_they_were() -> None:
    p_NC, weight_N = np.array(third * 2), np.array([1.0, 2.0])
    p_NC.flags.writeable = weight_N.flags.writeable = False
    index_NK = np.array([[0, 1], [1, 2]])
    targets = [
        likely.probabilities(p_NC, weight=weight_N),
        likely.top_k(index_NK, p_NC[:, :2], 3, tail="uniform", weight=weight_N),
        likely.labels(np.array([0, 2], dtype=">i8"), 3, class_weight=p_NC[0], smoothing=0.1),
    ]
    leaf = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    likely.objective(likely.Logits(leaf), targets)[0].backward()
    np.testing.assert_array_equal(p_NC, third * 2)
    np.testing.assert_array_equal(index_NK, [[0, 1], [1, 2]])
    assert (leaf == 0).all()
