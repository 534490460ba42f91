"""Estimates from samples: a mean, its standard error and its confidence interval, clustered where asked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from likely._checks import require, require_rows


@dataclass(frozen=True)
class Estimate:
    """A mean estimated from a sample, with its standard error and the interval `low … high` at level `confidence`.

    `n` is the number of rows that had a weight, `groups` the number of clusters they came in (None if they were
    taken as independent). Where a spread cannot be known it is NaN: one row, one group, a value that is not finite.

    Example:
        >>> print(Estimate(mean=0.41234, standard_error=0.01311, low=0.386, high=0.438, n=500, confidence=0.95))
        0.412 ± 0.013
    """

    mean: float
    standard_error: float
    low: float
    high: float
    n: int
    confidence: float
    groups: int | None = None

    def __str__(self) -> str:
        """The mean to the decimals that its standard error leaves standing: `0.412 ± 0.013`."""
        if math.isfinite(self.mean) and math.isfinite(self.standard_error) and self.standard_error > 0:
            # The exponent after rounding to two digits, so that 0.0996 becomes 0.10 and not 0.100.
            decimals = max(0, 1 - int(f"{self.standard_error:.1e}".partition("e")[2]))
            if decimals <= 9:
                return f"{self.mean:.{decimals}f} ± {self.standard_error:.{decimals}f}"
        return f"{self.mean:.6g} ± {self.standard_error:.2g}"


def estimate(
    values: Any, weights: Any = None, groups: Iterable[Any] | None = None, confidence: float = 0.95
) -> Estimate:
    """The mean of a population, estimated from a sample: weighted, and clustered where the rows are not independent.

    The mean is `m = Σ w v / Σ w`. With the residuals `e = w (v − m) / Σ w`, summed within each group where `groups`
    are given, its standard error is `sqrt(n/(n−1) · Σ e²)`, n being the number of rows, or of groups: without weights
    the familiar `s/√n`, with groups the cluster-robust one. The interval is Student's, with n − 1 degrees of freedom.
    Computed in float64, outside any graph.

    The rows of one document, of one patient or of one conversation resemble each other; treated as independent they
    promise an interval that is too narrow. Name their group and the interval is right, if there are enough groups
    (thirty, say). For the difference of two models give the differences of their rows.

    Args:
        values: (N,) numbers.
        weights: (N,) weights ≥ 0, ones by default. Rows of weight 0 are left out and do not count in `n`.
        groups: (N,) labels of any hashable kind (an integer or string array, a list of tuples).
        confidence: of the interval, between 0 and 1.

    Returns:
        An Estimate in the unit of `values`. The standard error and the interval of a single row or group are NaN, as
        they are where a value is infinite; the mean over no rows is NaN.

    Raises:
        ValueError: shapes that do not fit, a negative weight, a label that is NaN, a confidence outside (0, 1).

    Example:
        >>> print(estimate([1.0, 2.0, 3.0, 4.0]))
        2.50 ± 0.65
        >>> print(estimate([1.0, 2.0, 3.0, 4.0], groups=["a", "a", "b", "b"]))
        2.5 ± 1.0

    Source: A. C. Cameron and D. L. Miller, A Practitioner's Guide to Cluster-Robust Inference (2015), sections II, VI.
    """
    from scipy.special import stdtrit  # here, so that `import likely` does not wait for SciPy

    require(0.0 < confidence < 1.0, f"confidence: {confidence} is not between 0 and 1; 0.95 is usual")
    v_N = _vector("values", values)
    w_N = np.ones_like(v_N) if weights is None else _vector("weights", weights, ("values", len(v_N)))
    wrong_N = ~(np.isfinite(w_N) & (w_N >= 0))
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise ValueError(f"weights: row {row} is {w_N[row]:.6g}; a weight is finite and at least 0")
    g_N = None if groups is None else _group_numbers(groups, len(v_N))

    kept_N = w_N > 0
    v_N, w_N = v_N[kept_N], w_N[kept_N]
    if len(v_N) == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, confidence, None if g_N is None else 0)
    share_N = w_N / w_N.sum()  # before anything is squared: weights of 1e-300 would underflow
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite value is an answer, not an accident
        # A constant has itself for a mean, and no spread: not what is left of the rounding of its shares.
        mean = float(v_N[0] if (v_N == v_N[0]).all() else (share_N * v_N).sum())
        residual_N = share_N * (v_N - mean)
        if g_N is not None:
            _, g_N = np.unique(g_N[kept_N], return_inverse=True)
            residual_N = np.bincount(g_N, weights=residual_N)
        independent = len(residual_N)
        square = float((residual_N**2).sum())
    error = half = math.nan
    if independent > 1 and math.isfinite(square):
        error = math.sqrt(independent / (independent - 1) * square)
        half = error * float(stdtrit(independent - 1, (1 + confidence) / 2))
    return Estimate(mean, error, mean - half, mean + half, len(v_N), confidence, None if g_N is None else independent)


def estimate_kl(
    log_p: Any,
    log_q: Any,
    *,
    weights: Any = None,
    groups: Iterable[Any] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """KL(P ‖ Q) estimated from samples of P: the mean of `log P(x) − log Q(x)` over `x ~ P`, in nats.

    By the law of large numbers it converges to KL(P ‖ Q), at the rate 1/√n. It is unbiased, and a single estimate may
    be negative although the divergence is not. Its number carries no gradient.

    Args:
        log_p: (N,) the log-probabilities (or log-densities) of the samples under P, from which they were drawn.
        log_q: (N,) those under Q; −inf where Q holds a sample impossible, which makes the estimate +inf.
        weights, groups, confidence: as in `estimate`.

    Raises:
        ValueError: as `estimate`; or a sample that is impossible under P, and so was not drawn from it.

    Example:
        >>> from likely.measures import kl_divergence
        >>> p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
        >>> x = np.random.default_rng(0).choice(3, size=100_000, p=p)
        >>> kl = estimate_kl(np.log(p[x]), np.log(q[x]))
        >>> bool(kl.low < kl_divergence(p, q) < kl.high)
        True

    Source: T. M. Cover and J. A. Thomas, Elements of Information Theory (2006), section 11.8 (Stein's lemma).
    """
    log_p_N = _vector("log_p", log_p)
    log_q_N = _vector("log_q", log_q, ("log_p", len(log_p_N)))
    for name, wrong_N in (("log_p", ~np.isfinite(log_p_N)), ("log_q", ~(log_q_N < np.inf))):
        if wrong_N.any():
            row = int(wrong_N.argmax())
            value = (log_p_N if name == "log_p" else log_q_N)[row]
            rule = "a sample drawn from P has a finite log-probability" if name == "log_p" else "it must be below +inf"
            raise ValueError(f"{name}: row {row} is {value}; {rule}")
    return estimate(log_p_N - log_q_N, weights, groups, confidence)


def _vector(name: str, value: Any, like: tuple[str, int] | None = None) -> np.ndarray:
    """One float64 number a row; as many as `like`, the name and the length of the argument it goes with."""
    array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
    require(array.dtype.kind in "fiub", f"{name}: holds {array.dtype}, not real numbers", TypeError)
    require(array.ndim == 1, f"{name}: has shape {array.shape}; give one number a row, shape (N,)")
    if like is not None:
        require_rows(name, len(array), like[1], like[0])
    return array.astype(np.float64)


def _group_numbers(groups: Iterable[Any], rows: int) -> np.ndarray:
    """The labels, whatever they are, numbered in the order of their appearance."""
    numbers: dict[Any, int] = {}
    try:
        labels = groups.tolist() if isinstance(groups, (Tensor, np.ndarray)) else list(groups)
        require_rows("groups", len(labels), rows, "values")
        g_N = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), dtype=np.int64, count=rows)
        missing = not all(label == label for label in numbers)
    except TypeError:
        raise ValueError("groups: give one hashable label a row (a number, a string, a tuple)") from None
    # NaN differs from itself: every missing label would count as a group of its own.
    require(not missing, "groups: a label is NaN; say which group its row belongs to, or leave the row out")
    return g_N
