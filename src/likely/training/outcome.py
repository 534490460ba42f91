"""What came of a distillation experiment: its numbers, and how they are shown.

Legend: S splits, m held-out rows of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.evaluation import paired_difference
from likely.measures import Estimate
from likely.training.experiment import TUNED, Results, measure

FORMULA = "loss = T² · mean CE(p_T, softmax(z/T)) + λ/2 · ‖weights‖², with p the labels or the teacher; CE = H(p) + KL"
PERCENT = ("error", "agreement", "calibration_error")
COLUMNS = {
    "error": "error %",
    "nll": "NLL",
    "cross_entropy": "CE to teacher",
    "entropy": "= entropy",
    "kl": "+ KL",
    "agreement": "agreement %",
    "calibration_error": "calibration error %",
}


@dataclass(eq=False)
class Outcome:
    """The results and every number that is reported of them; `rows` and `full` have one entry per student."""

    results: Results
    overlap: float | None
    rows: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    full: dict[str, dict[str, Estimate]]
    full_difference: dict[str, Estimate]
    recall: dict[str, Estimate]


SPLITS = (
    "CE to the teacher = the teacher's entropy, which is the floor, + KL, in nats. "
    "± is one standard error over the splits."
)


def summarise(results: Results, overlap: float | None) -> Outcome:
    """Every number that is reported, as means over the splits with their standard errors."""
    y = [results.y_R[split.test] for split in results.splits]
    teachers = [teacher_RC[split.test] for teacher_RC, split in zip(results.teacher_RC, results.splits)]

    def of(held_out: Sequence[Tensor]) -> dict[str, np.ndarray]:
        each = [measure(z_mC, y_m, t_mC) for z_mC, y_m, t_mC in zip(held_out, y, teachers)]
        return {name: np.array([one[name] for one in each]) for name in each[0]}

    def mean(value_S: np.ndarray) -> Estimate:
        return paired_difference(value_S, np.zeros_like(value_S), test_train_ratio=overlap)

    def means(values: dict[str, np.ndarray]) -> dict[str, Estimate]:
        return {name: mean(value_S) for name, value_S in values.items()}

    def against(values: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> dict[str, Estimate]:
        return {
            name: paired_difference(values[name], base[name], test_train_ratio=overlap) for name in ("error", "nll")
        }

    kinds = {name: of(kind.held_out) for name, kind in results.kinds.items()}
    full = {name: of(kind.held_out) for name, kind in results.full.items()}
    hard, soft = full.values()
    recall = {}
    for name, kind in results.without.items():
        right = [
            float((z_mC.argmax(1)[y_m == results.left_out] == torch.tensor(results.left_out)).double().mean())
            for z_mC, y_m in zip(kind.held_out, y)
        ]
        recall[name] = mean(np.array(right))
    return Outcome(
        results,
        overlap,
        {"the teacher": means(of(teachers)), **{name: means(values) for name, values in kinds.items()}},
        {name: against(values, kinds[TUNED]) for name, values in kinds.items() if name != TUNED},
        {name: means(values) for name, values in full.items()},
        against(soft, hard),
        recall,
    )


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON has it: fractions and nats, each with its standard error and interval."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {name: getattr(value, name) for name in ("mean", "standard_error", "low", "high", "n")}
        return {name: plain(inner) for name, inner in value.items()}

    results = outcome.results
    return {
        "splits_overlap": outcome.overlap,
        "students": plain(outcome.rows),
        "difference_to_tuned_hard_labels": plain(outcome.differences),
        "all_labels": plain(outcome.full),
        "all_labels_difference": plain(outcome.full_difference),
        "recall_of_the_class_left_out": plain(outcome.recall),
        "penalty": {name: kind.penalty for name, kind in results.kinds.items()},
        "converged": {name: float(kind.trained.converged.double().mean()) for name, kind in results.kinds.items()},
        "curves": {name: kind.curve for name, kind in results.kinds.items()},
    }


def verdict(difference: Estimate) -> str:
    """What an interval says of a difference in a loss or an error.

    >>> verdict(Estimate(-0.1, 0.01, -0.12, -0.08, 8, 0.95))
    'better'
    """
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "no established difference"


def table_rows(rows: dict[str, dict[str, Estimate]]) -> list[list[str]]:
    """The students' rows as text: percent and nats ± standard error."""
    return [[name, *(_cell(values[key], key in PERCENT) for key in COLUMNS)] for name, values in rows.items()]


def difference_rows(differences: dict[str, dict[str, Estimate]]) -> list[list[str]]:
    """The paired differences as text, with their intervals and what they say."""
    return [
        [name, _interval(of["error"], True), verdict(of["error"]), _interval(of["nll"], False), verdict(of["nll"])]
        for name, of in differences.items()
    ]


def recall_rows(outcome: Outcome) -> list[list[str]]:
    """The recall of the class left out, as text in percent."""
    return [[name, _cell(value, True)] for name, value in outcome.recall.items()]


DIFFERENCE_COLUMNS = ["student", "Δ error, points [95 %]", "error", "Δ NLL, nats [95 %]", "NLL"]


def _cell(value: Estimate, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    return f"{scale * value.mean:.{digits}f} ± {scale * value.standard_error:.{digits}f}"


def _interval(value: Estimate, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    mean, low, high = (scale * x for x in (value.mean, value.low, value.high))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def full_sentence(outcome: Outcome) -> str:
    """What the teacher adds where every label is known."""
    error, loss = outcome.full_difference["error"], outcome.full_difference["nll"]
    return (
        f"With every label known, the teacher changes the error by {_interval(error, True)} points "
        f"({verdict(error)}) and the NLL by {_interval(loss, False)} nats ({verdict(loss)})."
    )
