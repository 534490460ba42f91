"""Every measure of a network as one value per unit of its sample, so that all are estimated and compared alike.

Legend: E examples, N rows, L of them labelled, n units of a sample (rows or examples).

The number is the mean of the values: of a loss the loss itself, of a function of means its linearisation.  Their
spread, summed within documents, is its standard error; and the mean of the differences of two networks' values is the
difference of their numbers, whatever the number is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from likely.evaluation._rows import Rows
from likely.evaluation.calibration import Reliability, of_rows
from likely.measures import Estimate, estimate
from likely.training.measure import Array, Integers, Measured

Values = tuple[Array, Integers]
"""One value a unit, and the units' documents."""


class Units:
    """The values of every measure of one network, one a unit, and the documents of the units."""

    def __init__(self, measured: Measured, confidence: float) -> None:
        self.confidence = confidence
        self.values: dict[str, Values] = {}
        self.reliability: Reliability | None = None
        rows = {
            "cross_entropy": measured.cross_entropy,
            "entropy": measured.entropy,
            "kl": measured.kl,
            "agreement": None if measured.agreement is None else measured.agreement.astype(np.float64),
        }
        if len(measured):
            self.values = {name: (value_N, measured.group) for name, value_N in rows.items() if value_N is not None}
        labelled_N = measured.labelled
        if not labelled_N.any():
            return
        group_L, wrong_L = measured.group[labelled_N], ~measured.correct
        self.values["nll"] = measured.nll, group_L
        self.values["error"] = wrong_L.astype(np.float64), group_L
        if measured.language:
            self.values["perplexity"] = _perplexity(measured.nll), group_L
            bits = _bits_per_byte(measured)
            if bits is not None:
                self.values["bits_per_byte"] = bits
        self.reliability, signed_L = _calibration(measured, group_L, confidence)
        self.values["calibration_error"] = signed_L, group_L

    def known(self, measure: str) -> Values | None:
        """The values of a measure; where a teacher's entropy is unknown, KL differs as the cross-entropy does."""
        return self.values.get(measure) or (self.values.get("cross_entropy") if measure == "kl" else None)

    def estimates(self) -> dict[str, Estimate]:
        """The number of every measure that is known."""
        found = {measure: self._estimate(*values) for measure, values in self.values.items()}
        if "perplexity" in found:
            nll = found["nll"]
            found["perplexity"] = replace(found["perplexity"], low=_exp(nll.low), high=_exp(nll.high))
        if self.reliability is not None:
            found["calibration_error"] = self.reliability.error
        return found

    def less(self, other: Units, measure: str) -> Estimate | None:
        """The paired difference of a measure, None where it is unknown of one of them."""
        own, theirs = self.known(measure), other.known(measure)
        if own is None or theirs is None:
            return None
        with np.errstate(invalid="ignore"):  # of two infinite losses the difference is unknown
            return self._estimate(own[0] - theirs[0], own[1])

    def _estimate(self, value_n: Array, group_n: Integers) -> Estimate:
        return estimate(value_n, groups=group_n, confidence=self.confidence)


def _perplexity(nll_L: Array) -> Array:
    """Values whose mean is `exp(mean NLL)`, and whose spread is the delta method's."""
    mean = float(nll_L.mean())
    top = _exp(mean)
    return top * (1 + (nll_L - mean)) if math.isfinite(top) else np.full_like(nll_L, top)


def _bits_per_byte(measured: Measured) -> Values | None:
    """Values of the examples whose mean is the ratio of all bits to all bytes, linearised, and their documents."""
    if measured.example_bytes is None:
        return None
    examples = len(measured.example_group)
    unlabelled_E = np.bincount(measured.example[~measured.labelled], minlength=examples)
    rows_E = np.bincount(measured.example, minlength=examples)
    # The bytes of an example are those of all its rows: they divide no sum over a part of them.
    whole_E = (rows_E > 0) & (unlabelled_E == 0)
    bytes_n = measured.example_bytes[whole_E].astype(np.float64)
    if bytes_n.sum() == 0:
        return None
    nats_E = np.bincount(measured.example[measured.labelled], weights=measured.nll, minlength=examples)
    bits_n = nats_E[whole_E] / math.log(2)
    ratio = float(bits_n.sum() / bytes_n.sum())
    n = len(bits_n)
    value_n = np.full(n, ratio)
    if math.isfinite(ratio):
        value_n += n * (bits_n - ratio * bytes_n) / bytes_n.sum()
    return value_n, measured.example_group[whole_E]


def _calibration(measured: Measured, group_L: Integers, confidence: float) -> tuple[Reliability, Array]:
    """The reliability of the rows with a label, and the values whose mean is its calibration error."""
    c_L, right_L = measured.confidence[measured.labelled], measured.correct.astype(np.float64)
    none = np.empty(0)
    rows = Rows(none, none, none, none, accuracy=right_L, agreement=none, confidence=c_L)
    found = of_rows(rows, False, group_N=group_L, confidence=confidence)
    bin_L = np.clip(np.searchsorted(found.edges, c_L, side="left") - 1, 0, len(found.gap) - 1)
    return found, np.copysign(1.0, found.gap[bin_L]) * (right_L - c_L)


def p_value(difference: Estimate) -> float:
    """Two-sided, of Student's t with one degree of freedom less than there are documents; NaN where it is unknown."""
    from scipy.special import stdtr

    if not math.isfinite(difference.standard_error) or difference.groups is None:
        return math.nan
    if difference.standard_error == 0:
        return 1.0 if difference.mean == 0 else 0.0
    return float(2 * stdtr(difference.groups - 1, -abs(difference.mean) / difference.standard_error))


def holm(p: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """P-values that hold for all together: the k-th smallest of m times m − k + 1, and never below a smaller one's.

    >>> holm({"a": {"nll": 0.01, "error": 0.04}, "b": {"nll": 0.03}})
    {'a': {'nll': 0.03, 'error': 0.06}, 'b': {'nll': 0.06}}
    """
    flat = sorted((value, name, m) for name, of in p.items() for m, value in of.items() if not math.isnan(value))
    corrected = {name: dict(of) for name, of in p.items()}
    least = 0.0
    for at, (value, name, measure) in enumerate(flat):
        least = max(least, min(1.0, (len(flat) - at) * value))
        corrected[name][measure] = least
    return corrected


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf
