"""What every measure of an evaluation starts from: checked arguments, and a few numbers per row.

Shapes: N rows, C classes, n rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from likely import measures
from likely._checks import as_tensor, is_integer, require, require_class_indices, require_rows
from likely._estimates import _group_numbers

Array = NDArray[np.float64]

# Entries that are widened to float64 at a time: 8 MiB, so that a large vocabulary is never copied whole.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Rows:
    """One number a row, each (N,) in float64."""

    entropy: Array
    kl: Array
    brier: Array
    expected_brier: Array
    accuracy: Array
    agreement: Array
    confidence: Array


def is_soft(target: Tensor) -> bool:
    """Whether a checked target holds distributions and not labels."""
    return target.ndim == 2


def checked(probabilities: Any, target: Any, log_input: bool = False) -> tuple[Tensor, Tensor]:
    """Tensors `q (N, C)` and `target`, labels (N,) or distributions (N, C); or a message that names the row."""
    q_NC = _numbers(probabilities, "probabilities")
    shape = tuple(q_NC.shape)
    require(
        q_NC.ndim == 2,
        f"probabilities: has shape {shape}; give (N, C), a row per observation and a column per class "
        "(for two classes the columns 1 - p and p)",
    )
    require(shape[0] > 0, "probabilities: has no rows, so there is nothing to evaluate")
    require(shape[1] > 1, "probabilities: has a single class; give a column for each of two or more classes")
    require(q_NC.is_floating_point(), f"probabilities: holds {q_NC.dtype}; give floating-point numbers", TypeError)
    _require_distributions("probabilities", q_NC, log_input)

    p = _numbers(target, "target")
    if p.ndim == 1:
        require_rows("target", p.shape[0], shape[0], "probabilities")
        require(is_integer(p), f"target: labels are integers 0 … {shape[1] - 1}, not {p.dtype}", TypeError)
        p = p.long()
        require_class_indices("target", p, shape[1])
        return q_NC, p.to(q_NC.device)
    require(
        tuple(p.shape) == shape,
        f"target: has shape {tuple(p.shape)}; give labels of shape {shape[:1]} or distributions of shape {shape}",
    )
    require(p.is_floating_point(), f"target: distributions hold floating-point numbers, not {p.dtype}", TypeError)
    _require_distributions("target", p, False)
    return q_NC, p.to(q_NC.device)


def per_row(q_NC: Tensor, target: Tensor, log_input: bool = False) -> Rows:
    """The numbers of every row, formed in float64 a block of rows at a time."""
    found = Rows(*(np.empty(q_NC.shape[0]) for _ in fields(Rows)))
    for rows, q_nC in _blocks(q_NC):
        block = _block(q_nC, target[rows], log_input)
        for name in vars(found):  # copied, not kept: small arrays among large ones would keep the heap from shrinking
            getattr(found, name)[rows] = getattr(block, name)
    return found


def numbered(groups: Iterable[Any], rows: int) -> NDArray[np.int64]:
    """Group labels of any hashable kind as integers (N,), which can be cut into bins."""
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    require_rows("groups", len(labels), rows, "probabilities")
    return _group_numbers(labels, rows)


def _block(q_nC: Tensor, target: Tensor, log_input: bool) -> Rows:
    given_nC = q_nC
    q_nC = given_nC.exp() if log_input else given_nC
    confidence_n, prediction_n = q_nC.max(dim=1)
    if log_input:  # where every exponential rounds alike, the logarithms still know the largest
        prediction_n = given_nC.argmax(dim=1)
    if is_soft(target):
        p_nC = target.double()
        entropy_n = measures.entropy(p_nC, check=False)
        kl_n = measures.kl_divergence(p_nC, given_nC, log_q=log_input, check=False)
        brier_n = (q_nC - p_nC).square().sum(dim=1)
        expected_n = brier_n + (p_nC * (1 - p_nC)).sum(dim=1)
        accuracy_n = p_nC.gather(1, prediction_n[:, None])[:, 0]
        agreement_n = (p_nC.argmax(dim=1) == prediction_n).double()
    else:
        at_label_n1 = target[:, None]
        kl_n = measures.surprisal(given_nC.gather(1, at_label_n1)[:, 0], log_input=log_input, check=False)
        entropy_n = torch.zeros_like(kl_n)
        # One is taken from the label's own probability before squaring: 1 − 2 q_y + Σ q² would cancel near q_y = 1.
        off_nC = q_nC.scatter_add(1, at_label_n1, torch.full_like(kl_n, -1.0)[:, None])
        brier_n = expected_n = off_nC.square().sum(dim=1)
        accuracy_n = agreement_n = (prediction_n == target).double()
    numbers = (entropy_n, kl_n, brier_n, expected_n, accuracy_n, agreement_n, confidence_n)
    return Rows(*(number_n.cpu().numpy() for number_n in numbers))


def _blocks(x_NC: Tensor) -> Iterator[tuple[slice, Tensor]]:
    rows = max(1, BLOCK // x_NC.shape[1])
    for start in range(0, x_NC.shape[0], rows):
        yield slice(start, start + rows), x_NC[start : start + rows].double()


def _numbers(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name}: cannot be read as an array of numbers ({error})") from None
    require(array.dtype.kind in "fiub", f"{name}: holds {array.dtype}, not numbers", TypeError)
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return as_tensor(array, name)


def _require_distributions(name: str, x_NC: Tensor, log_input: bool) -> None:
    """Every row is a distribution within the tolerance of its dtype; else the first block's worst row is named."""
    tolerance = measures._tolerance(x_NC.dtype)
    logits = "; if these are logits, give their log_softmax and log_input=True" if name == "probabilities" else ""
    logs = "; if these are log-probabilities, say log_input=True" if name == "probabilities" else ""
    for rows, x_nC in _blocks(x_NC):
        mass_nC = x_nC.exp() if log_input else x_nC
        wrong_n = ~torch.isfinite(mass_nC).all(dim=1)
        if bool(wrong_n.any()):
            row = rows.start + int(wrong_n.int().argmax())
            raise ValueError(f"{name}: row {row} holds NaN or an infinite value; every probability must be finite")
        least_n = mass_nC.amin(dim=1)
        at = int(least_n.argmin())
        require(
            float(least_n[at]) >= 0,
            f"{name}: row {rows.start + at} holds the negative value {float(least_n[at]):.6g}{logs or '; give p ≥ 0'}",
        )
        total_n = mass_nC.sum(dim=1)
        off_n = (total_n - 1).abs()
        at = int(off_n.argmax())
        what = "has exponentials that sum" if log_input else "sums"
        fix = "subtract its logsumexp" if log_input else "divide it by its sum"
        require(
            float(off_n[at]) <= tolerance,
            f"{name}: row {rows.start + at} {what} to {float(total_n[at]):.9g}, not 1; {fix}{logits}",
        )
