"""How good predictions are: each measure an estimate with its standard error.

Shapes: N rows, C classes, J splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from likely._checks import require, require_rows
from likely.evaluation import calibration
from likely.evaluation._rows import checked, is_soft, numbered, per_row
from likely.measures import Estimate, estimate


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: estimates in nats (`cross_entropy = entropy + kl`) and as fractions (the rest).

    `brier` is `Σ_c (q_c − p_c)²`, the squared distance to the target. `expected_brier` is the Brier score that labels
    drawn from the target are expected to give, `brier + 1 − Σ_c p_c²`. `accuracy` is the target's mass at the
    prediction: the expected accuracy on labels drawn from it. `agreement` counts the rows whose most probable class is
    the target's. On labels `expected_brier` equals `brier`, `agreement` equals `accuracy`, and `entropy` is 0.

    `calibration_floor` is the calibration error that a perfectly calibrated model with these confidences would show by
    chance (None for distributions); see `likely.evaluation.reliability`. `soft` says that the target was distributions.
    """

    cross_entropy: Estimate
    entropy: Estimate
    kl: Estimate
    brier: Estimate
    expected_brier: Estimate
    accuracy: Estimate
    agreement: Estimate
    calibration_error: Estimate
    calibration_floor: float | None
    n: int
    classes: int
    soft: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and numbers that `json.dumps(…, allow_nan=False)` takes.

        Infinity becomes the string "inf" or "-inf", and what is unknown (NaN) None: JSON has no number for either.
        """
        return {name: _plain(value) for name, value in asdict(self).items()}

    def rows(self) -> list[tuple[str, Estimate | float]]:
        """Names with their values, as they stand in a table: what only a soft target has is left out for labels."""
        table: list[tuple[str, Estimate | float]] = [
            ("cross-entropy (nats)", self.cross_entropy),
            ("= entropy of the target", self.entropy),
            ("+ KL divergence", self.kl),
            ("Brier score", self.brier),
        ]
        if self.soft:
            table += [("expected Brier score", self.expected_brier), ("expected accuracy", self.accuracy)]
            table += [("agreement of the largest", self.agreement)]
        else:
            table += [("accuracy", self.accuracy)]
        table += [("calibration error", self.calibration_error)]
        if self.calibration_floor is not None:
            table += [("  if calibrated, by chance", self.calibration_floor)]
        return table

    def __str__(self) -> str:
        """A table: a line per measure, the number of rows and of classes first."""
        rows = [(name, str(value) if isinstance(value, Estimate) else f"{value:.2g}") for name, value in self.rows()]
        width = max(len(name) for name, _ in rows)
        kind = "distributions" if self.soft else "labels"
        head = f"{self.n:,} rows, {self.classes:,} classes, target: {kind}"
        return "\n".join([head, *(f"{name:<{width}}  {value}" for name, value in rows)])


def evaluate(
    probabilities: Any,
    target: Any,
    *,
    log_input: bool = False,
    weights: Any = None,
    groups: Iterable[Any] | None = None,
    bins: int = 15,
    confidence: float = 0.95,
) -> Evaluation:
    """Compare predicted probabilities q with labels or distributions p, and say how sure the comparison is.

    The cross-entropy `H(p, q) = −Σ p log q = H(p) + KL(p ‖ q)` is what training minimises; on labels the entropy is 0,
    and cross-entropy, KL and negative log-likelihood are one number. A target that the prediction holds impossible
    makes it infinite, and that is what is reported. The prediction is the most probable class (the first of equals).

    Args:
        probabilities: (N, C), NumPy or torch.
        target: (N,) integer labels, or (N, C) distributions.
        log_input: `probabilities` holds log-probabilities, which keep what is smaller than 1e-308.
        weights: (N,) weights ≥ 0 of the rows; rows of weight 0 do not count in `n`.
        groups: (N,) what belongs together (a document, a patient): standard errors are then clustered.
        bins: of equal width, for the calibration error.
        confidence: level of the intervals, which are Student's.

    Returns:
        An Evaluation, computed in float64.

    Raises:
        ValueError: a row is not a distribution (it is named), or shapes do not fit.
        IndexError: a label outside 0 … C − 1. TypeError: labels that are not integers.

    Example:
        >>> result = evaluate([[0.5, 0.5], [0.25, 0.75], [0.875, 0.125]], [0, 1, 0])
        >>> print(result)
        3 rows, 2 classes, target: labels
        cross-entropy (nats)       0.37 ± 0.17
        = entropy of the target    0 ± 0
        + KL divergence            0.37 ± 0.17
        Brier score                0.22 ± 0.14
        accuracy                   1 ± 0
        calibration error          0.29 ± 0.11
          if calibrated, by chance 0.36

    Source: G. W. Brier, Verification of Forecasts Expressed in Terms of Probability (1950); T. Gneiting and
    A. E. Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation (2007).
    """
    q_NC, p = checked(probabilities, target, log_input)
    rows = per_row(q_NC, p, log_input)
    if weights is not None:
        weights = _vector("weights", weights, q_NC.shape[0])
    group_N = None if groups is None else numbered(groups, q_NC.shape[0])

    def of(values_N: Any) -> Estimate:
        return estimate(values_N, weights, group_N, confidence)

    bands = calibration.of_rows(rows, is_soft(p), weights, group_N, bins, "width", confidence)
    entropy, accuracy = of(rows.entropy), of(rows.accuracy)
    return Evaluation(
        # Both parts are at least 0, so nothing cancels in their sum, and the identity holds row by row.
        cross_entropy=of(rows.entropy + rows.kl),
        entropy=entropy,
        kl=of(rows.kl),
        brier=of(rows.brier),
        expected_brier=of(rows.expected_brier),
        accuracy=accuracy,
        agreement=of(rows.agreement),
        calibration_error=bands.error,
        calibration_floor=bands.floor,
        n=accuracy.n,
        classes=q_NC.shape[1],
        soft=is_soft(p),
    )


def paired_difference(a: Any, b: Any, *, test_train_ratio: float | None = None, confidence: float = 0.95) -> Estimate:
    """The mean difference `a − b` of two methods over the same splits, with its standard error and interval.

    With `d = a − b`, `m = mean(d)` and `s²` the variance of d over J splits, the standard error is `s/√J` where the
    test sets are disjoint, and `s·√(1/J + n_test/n_train)` where they overlap: splits drawn again and again from the
    same data repeat each other, and more of them cannot make the interval arbitrarily narrow. Student's t, J − 1
    degrees of freedom.

    The correction takes the differences of two overlapping splits to correlate by n_test/(n_test + n_train): right for
    predictors that hardly depend on the draw of their training rows, an approximation for others. Folds of a cross-
    validation have disjoint test sets but share training data, so that s/√J is an approximation there, too.

    Args:
        a, b: (J,) the two methods' values on each split, in the same order.
        test_train_ratio: `n_test / n_train` where the splits overlap (random resamples, repeated cross-validation);
            None for the folds of a single cross-validation or fresh data each time.
        confidence: level of the interval.

    Returns:
        An Estimate of `a − b` with n = J; negative where `a` is lower. It differs from 0 at level `confidence` where
        its interval leaves 0 out.

    Raises:
        ValueError: fewer than two splits, different lengths, values that are NaN, a ratio that is not positive.

    Example:
        >>> print(paired_difference([0.12, 0.10, 0.13, 0.11], [0.15, 0.14, 0.15, 0.15]))
        -0.0325 ± 0.0048
        >>> print(paired_difference([0.12, 0.10, 0.13, 0.11], [0.15, 0.14, 0.15, 0.15], test_train_ratio=0.25))
        -0.0325 ± 0.0068

    Source: C. Nadeau and Y. Bengio, Inference for the Generalization Error (2003), section 4; R. R. Bouckaert and
    E. Frank, Evaluating the Replicability of Significance Tests (2004), for repeated cross-validation.
    """
    a_J = np.asarray(a, dtype=np.float64)
    require(a_J.ndim == 1, f"a: has shape {a_J.shape}; give one value per split")
    b_J = _vector("b", b, len(a_J), of="a")
    require(len(a_J) > 1, f"a: has {len(a_J)} split; a spread needs two or more")
    for name, x_J in (("a", a_J), ("b", b_J)):
        require(not np.isnan(x_J).any(), f"{name}: split {int(np.isnan(x_J).argmax())} is NaN")
    require(0.0 < confidence < 1.0, f"confidence: {confidence} is not between 0 and 1; 0.95 is usual")
    if test_train_ratio is None:
        return estimate(_difference(a_J, b_J), confidence=confidence)
    require(
        0.0 < test_train_ratio < math.inf,
        f"test_train_ratio: {test_train_ratio} is not the ratio n_test / n_train of a split; give a positive number",
    )
    d_J = _difference(a_J, b_J)
    splits = len(d_J)
    with np.errstate(invalid="ignore"):
        mean, spread = float(d_J.mean()), float(d_J.std(ddof=1))
    error = spread * math.sqrt(1 / splits + test_train_ratio)
    half = error * float(stdtrit(splits - 1, (1 + confidence) / 2))
    return Estimate(mean, error, mean - half, mean + half, splits, confidence)


def _difference(a_J: np.ndarray, b_J: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf − inf is unknown, and NaN says so
        return a_J - b_J


def _vector(name: str, value: Any, rows: int, of: str = "probabilities") -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    require(array.ndim == 1, f"{name}: has shape {array.shape}; give one number a row")
    require_rows(name, len(array), rows, of)
    return array


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
