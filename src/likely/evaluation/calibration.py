"""Calibration: whether what is predicted with probability 0.8 comes true in 80 % of the cases.

Shapes: N rows, C classes, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binom

from likely._checks import require
from likely.evaluation._rows import Array, Rows, checked, is_soft, numbered, per_row
from likely.measures import Estimate, estimate

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class Reliability:
    """The confidences in bins, and what came true in each: the numbers behind a reliability diagram.

    `edges` (B+1,), the other arrays (B,): `count` of rows, `share` of the total weight, mean `confidence`, `accuracy`
    with its interval `low … high` (Wilson's), and `gap = accuracy − confidence` with its `standard_error`. Empty bins
    have a share of 0 and NaN for the rest.

    `error` is the calibration error; `floor` is the error that a perfectly calibrated model with these confidences
    is expected to show by the chance of the labels alone (None where the target is not labels): an error near its
    floor is no evidence of miscalibration.
    """

    edges: Array
    count: Array
    share: Array
    confidence: Array
    accuracy: Array
    low: Array
    high: Array
    gap: Array
    standard_error: Array
    error: Estimate
    floor: float | None

    @property
    def debiased_squared_error(self) -> float:
        """The squared calibration error `Σ_b share_b · (gap_b² − se_b²)`, freed of its bias; it may be negative.

        Its square root is an ℓ2 norm, hence at least the (ℓ1) calibration error in the long run. Bins of a single
        row, whose standard error is unknown, are left out.

        Source: A. Kumar, P. Liang and T. Ma, Verified Uncertainty Calibration (2019), section 4.
        """
        known_B = np.isfinite(self.standard_error)
        excess_B = self.gap[known_B] ** 2 - self.standard_error[known_B] ** 2
        return float((self.share[known_B] * excess_B).sum() / self.share[known_B].sum()) if known_B.any() else math.nan


def reliability(
    probabilities: Any,
    target: Any,
    *,
    log_input: bool = False,
    weights: Any = None,
    groups: Iterable[Any] | None = None,
    bins: int = 15,
    binning: Binning = "width",
    confidence: float = 0.95,
) -> Reliability:
    """The reliability of the predicted class: in each bin of confidence, how often the prediction was right.

    A row's confidence is its largest probability. The calibration error is `ECE = Σ_b share_b · |accuracy_b −
    confidence_b|`, the field's usual one. It is computed as the mean of `sign(gap_b) · (correct − confidence)`, which
    is the same number, and its standard error is that mean's: the signs are held as they are.

    What to know about it. It is biased upwards, since noise within a bin never averages out under the absolute value;
    compare it with `floor`. Where the gaps are mere noise its standard error is too large rather than too small. It
    depends on the bins, and it sees the predicted class only: a model may be calibrated there and wrong about the rest.

    Args:
        probabilities: (N, C) predicted probabilities (log-probabilities if `log_input`).
        target: (N,) labels, or (N, C) distributions; of these, the mass at the prediction is what "came true".
        weights, groups: (N,) as in `likely.measures.estimate`.
        bins: how many bins of confidence.
        binning: "width" for equal intervals of [0, 1], "mass" for equally many rows in each.
        confidence: level of the intervals.

    Raises:
        ValueError: a row is not a distribution, shapes do not fit. TypeError, IndexError: labels that are none.

    Example:
        >>> r = reliability([[0.8, 0.2]] * 5, [0, 0, 0, 0, 1], bins=5)
        >>> round(float(r.accuracy[-2]), 12), abs(round(r.error.mean, 12))
        (0.8, 0.0)

    Source: C. Guo et al., On Calibration of Modern Neural Networks (2017), section 2; for `floor`, J. Bröcker and
    L. A. Smith, Increasing the Reliability of Reliability Diagrams (2007).
    """
    q_NC, target = checked(probabilities, target, log_input)
    rows = per_row(q_NC, target, log_input)
    group_N = None if groups is None else numbered(groups, q_NC.shape[0])
    return of_rows(rows, is_soft(target), weights, group_N, bins, binning, confidence)


def calibration_error(probabilities: Any, target: Any, **options: Any) -> Estimate:
    """The expected calibration error of the predicted class: `reliability(probabilities, target, …).error`.

    Takes the options of `reliability`, and raises what it raises.

    >>> print(calibration_error([[0.9, 0.1]] * 4, [0, 0, 0, 1]))
    0.15 ± 0.25
    """
    return reliability(probabilities, target, **options).error


def of_rows(
    rows: Rows,
    soft: bool,
    weights: Any = None,
    group_N: NDArray[np.int64] | None = None,
    bins: int = 15,
    binning: Binning = "width",
    confidence: float = 0.95,
) -> Reliability:
    """`reliability` of rows that have been computed already."""
    require(isinstance(bins, int) and bins > 0, f"bins: {bins} is not a number of bins; 15 is usual")
    require(binning in ("width", "mass"), f"binning: {binning!r} is neither 'width' nor 'mass'")
    c_N, a_N = rows.confidence, rows.accuracy
    w_N = np.ones_like(c_N) if weights is None else np.asarray(weights, dtype=np.float64)
    gap_N = a_N - c_N
    # Checks the weights and the level before the rows are cut into bins.
    require(estimate(gap_N, w_N, group_N, confidence).n > 0, "weights: every row has weight 0; nothing is evaluated")
    edges = np.linspace(0.0, 1.0, bins + 1)
    if binning == "mass":
        edges[1:-1] = np.quantile(c_N[w_N > 0], edges[1:-1])
    # (lower, upper], as usual: a confidence on an edge belongs to the bin below it.
    bin_N = np.clip(np.searchsorted(edges, c_N, side="left") - 1, 0, bins - 1)

    names = ("count", "share", "confidence", "accuracy", "low", "high", "gap", "standard_error")
    table = {name: np.full(bins, math.nan) for name in names}
    table["count"][:] = table["share"][:] = 0.0
    signed_N, floor = np.zeros_like(gap_N), 0.0
    for b in np.unique(bin_N[w_N > 0]):
        of_bin = np.flatnonzero((bin_N == b) & (w_N > 0))
        w_n = w_N[of_bin]
        gap = estimate(gap_N[of_bin], w_n, None if group_N is None else group_N[of_bin], confidence)
        accuracy, mean_confidence = np.average(a_N[of_bin], weights=w_n), np.average(c_N[of_bin], weights=w_n)
        effective = w_n.sum() ** 2 / (w_n**2).sum()
        share = w_n.sum() / w_N.sum()
        low, high = _wilson(float(accuracy), float(effective), confidence)
        values = (len(of_bin), share, mean_confidence, accuracy, low, high, gap.mean, gap.standard_error)
        for name, value in zip(names, values):
            table[name][b] = value
        signed_N[of_bin] = math.copysign(1.0, gap.mean) * gap_N[of_bin]
        floor += share * _mean_deviation(float(mean_confidence), max(1, round(effective)))
    error = estimate(signed_N, w_N, group_N, confidence)
    # An absolute value is at least 0, and so is what is left of its interval.
    error = replace(error, low=max(0.0, error.low) if math.isfinite(error.low) else error.low)
    return Reliability(edges=edges, **table, error=error, floor=None if soft else floor)


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a proportion: it has a width even where all or none came true."""
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 / n * (share * (1 - share) + z2 / (4 * n))) / (1 + z2 / n)
    # The share itself always lies within, whatever the rounding.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _mean_deviation(p: float, n: int) -> float:
    """`E |K/n − p|` of a binomial K, exactly: `2 (1 − p) k P(K = k) / n` with `k = ⌊np⌋ + 1` (De Moivre, 1730)."""
    k = math.floor(n * p) + 1
    return 2 * (1 - p) * k * float(binom.pmf(k, n, p)) / n if k <= n else 0.0
