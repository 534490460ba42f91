"""Whether a maximum likelihood estimate exists: the classes of a sample may be separable.

Shapes: N rows, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from likely._checks import require_rows

# Beyond this many numbers in the linear program, or this many seconds, the question is left open.
MOST_ENTRIES, MOST_SECONDS, MOST_ROUNDS = 5_000_000, 30.0, 50


def separable(x_ND: np.ndarray, possible_NC: np.ndarray) -> bool | None:
    """Whether some linear classifier ranks every row's possible classes first: then the likelihood has no maximum.

    Along a direction `d` of the parameters with logits `z = d · (1, x)` the cross-entropy of a row to a target never
    rises if the logits of its possible classes are equal and no other is larger, and falls towards its limit for ever
    if another is smaller. A linear program looks for the `d` in a box that makes the sum of those gaps largest.

    Args:
        x_ND: (N, D) features.
        possible_NC: (N, C) booleans: where the target has mass. For labels one a row; a row of all is never separated.

    Returns:
        False: a maximum likelihood estimate exists. True: it does not, since all rows are separated (completely) or
        some are (quasi-completely). None where the program is too large to be asked.

    Raises: ValueError for shapes that do not fit.
    Source: Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models,
        Biometrika 71 (1984); Konis, Linear programming algorithms for detecting separated data (2007).

    >>> y = np.eye(2, dtype=bool)
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> separable(x, y[[0, 0, 1, 1]]), separable(x, y[[0, 1, 0, 1]])
    (True, False)
    """
    require_rows("x", len(x_ND), len(possible_NC), "possible")
    open_N = ~possible_NC.all(axis=1)
    x_ND, possible_NC = x_ND[open_N], possible_NC[open_N]
    N, C = possible_NC.shape
    if N == 0:
        return False
    scale_D = x_ND.std(axis=0)
    x = (x_ND - x_ND.mean(axis=0)) / np.where(scale_D > 0, scale_D, 1.0)
    x = np.concatenate([x, np.ones((N, 1))], axis=1)
    if 2 * N * (C - 1) * x.shape[1] > MOST_ENTRIES:
        return None
    free, tied = _gaps(x, possible_NC)
    found = _widest(free, tied, np.ones(free.shape[0], dtype=bool), N)
    return None if found is None else bool((free @ found).max(initial=0.0) > OPEN)


ROWS, FLOOR = 4096, 1e-10
"""Rows that are looked at at once; a probability of what is excluded that is suspicious however small the gap."""

# The program holds its inequalities to 1e-7; in standardised columns a separating direction opens gaps near 1.
OPEN = 1e-4


def _gaps(x: np.ndarray, possible_NC: np.ndarray) -> tuple[Any, Any]:
    """One row of a matrix for each row of x and class other than its first possible one: its gap, as a function of d.

    The gap `z_first − z_class` has to be ≥ 0 (the first matrix), and = 0 where that class is possible too (the second).
    The parameters of class 0 stay 0: only differences of logits count.
    """
    C = possible_NC.shape[1]
    first_N = possible_NC.argmax(axis=1)
    row_G, class_G = np.nonzero(np.arange(C) != first_N[:, None])
    G = len(row_G)
    which = scipy.sparse.csr_matrix(
        (np.repeat([1.0, -1.0], G), (np.tile(np.arange(G), 2), np.concatenate([first_N[row_G], class_G]))), (G, C)
    )[:, 1:]
    signs, rows = which.toarray(), x[row_G]
    gaps = scipy.sparse.hstack([scipy.sparse.csr_matrix(signs[:, [c]] * rows) for c in range(C - 1)]).tocsr()
    equal_G = possible_NC[row_G, class_G]
    return gaps[~equal_G], gaps[equal_G]


def _widest(free: Any, tied: Any, wanted: np.ndarray, scale: float) -> np.ndarray | None:
    """The d in a box whose gaps are ≥ 0 and sum up to most over the `wanted` ones; None where it was not found."""
    result = scipy.optimize.linprog(
        -np.asarray(free[wanted].sum(axis=0)).ravel() / scale,
        A_ub=-free,
        b_ub=np.zeros(free.shape[0]),
        A_eq=tied if tied.shape[0] else None,
        b_eq=np.zeros(tied.shape[0]) if tied.shape[0] else None,
        bounds=(-1, 1),
        method="highs",
        options={"time_limit": MOST_SECONDS},
    )
    return np.asarray(result.x) if result.status == 0 else None


def _sparsest(free: Any, tied: Any, d: np.ndarray, costless: np.ndarray) -> np.ndarray:
    """Of the directions that open as much as d does, one with the least sum of |d_j|: few columns tell the story."""
    opened = np.asarray(free.sum(axis=0)).ravel()
    equal = scipy.sparse.vstack([tied, scipy.sparse.csr_matrix(opened)]).tocsr()
    cost = np.where(costless, 0.0, 1.0)
    result = scipy.optimize.linprog(
        np.r_[cost, cost],
        A_ub=scipy.sparse.hstack([-free, free]),
        b_ub=np.zeros(free.shape[0]),
        A_eq=scipy.sparse.hstack([equal, -equal]),
        b_eq=np.r_[np.zeros(tied.shape[0]), opened @ d],
        bounds=(0, None),
        method="highs",
        options={"time_limit": MOST_SECONDS},
    )
    return result.x[: len(d)] - result.x[len(d) :] if result.status == 0 else d


@dataclass(frozen=True, eq=False)
class Separation:
    """A direction of the parameters along which the likelihood rises for ever.

    Attributes:
        direction: (D, C) the change of each class's coefficients, in the units of the columns, of largest size 1 after
            standardisation. intercept: (C,).
        features: the columns that it moves.
        rows: the rows whose classes it separates strictly; the others it leaves where they are.
        complete: all rows are separated; else some are (quasi-complete separation).
    """

    direction: np.ndarray
    intercept: np.ndarray
    features: list[int]
    rows: np.ndarray
    complete: bool


def separation(
    x_ND: Any,
    target: np.ndarray,
    weight: np.ndarray | None,
    coef: np.ndarray,
    intercept: np.ndarray,
    *,
    gap: float = 0.0,
    fit_intercept: bool = True,
) -> Separation | None:
    """The direction in which a fit without a penalty ran away, if it did.

    A fit within `gap` of the infimum of the loss leaves a row that can be separated a loss of at most `gap / w_i`. So
    only rows that the fit is nearly sure of can be, and only they are asked about; the others are constraints, added
    where a direction violates them. A fit that separates all rows is itself the direction.

    Args:
        x_ND: (N, D) array or CSR matrix. target: (N,) class indices or (N, C) probabilities. weight: (N,) or None.
        coef, intercept: (C, D) and (C,), or (1, D) and (1,) of two classes: where the fit ended.
        gap: what is known of its distance to the infimum, nats.
        fit_intercept: whether a direction may move the intercepts.

    Returns: None where there is no such direction, or the linear program is too large or too slow to tell.

    Source: Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models,
        Biometrika 71 (1984).

    >>> x, y = np.array([[0.0, 5.0], [0.0, 6.0], [0.0, 7.0], [1.0, 5.0], [1.0, 7.0]]), np.array([0, 1, 0, 1, 1])
    >>> found = separation(x, y, None, np.array([[15.0, 0.0]]), np.array([-0.7]), gap=1e-6)
    >>> found.features, found.rows, found.complete    # whoever has a 1 in column 0 is of class 1
    ([0], array([3, 4]), False)
    """
    binary = len(intercept) == 1
    coef_CD = np.vstack([np.zeros_like(coef), coef]) if binary else coef
    intercept_C = np.r_[0.0, intercept] if binary else np.asarray(intercept)
    C, target = len(coef_CD), np.asarray(target)
    w_N = np.ones(len(target)) if weight is None else np.asarray(weight, np.float64)
    w_N = w_N / w_N.sum()
    suspicious_N, least = np.zeros(len(target), dtype=bool), np.inf
    for start in range(0, len(target), ROWS):
        rows = slice(start, start + ROWS)
        possible = _possible(target[rows], C)
        z = np.asarray(x_ND[rows] @ coef_CD.T, np.float64) + intercept_C
        free = ~possible.all(axis=1) & (w_N[rows] > 0)
        inside = np.where(possible, z, -np.inf)
        # The largest logit of what is excluded against the rest: the log odds of it, up to log C.
        outside = np.where(possible, -np.inf, z).max(axis=1)
        excluded = outside - inside.max(axis=1)
        with np.errstate(divide="ignore"):
            suspicious_N[rows] = free & (excluded <= np.log(np.maximum(FLOOR, 2 * gap / w_N[rows])))
        if free.any():
            least = min(least, float((np.where(possible, z, np.inf).min(axis=1) - outside)[free].min()))
    if not suspicious_N.any():
        return None
    kept = np.flatnonzero(w_N > 0)
    if target.ndim == 1 and least > 0:
        size = np.abs(coef_CD * _spread(x_ND)).max()
        features = np.flatnonzero(np.abs(coef_CD).max(axis=0) > 0).tolist()
        return Separation(coef_CD.T / size, intercept_C / size, features, kept, True)
    return _ask(x_ND[kept], _possible(target[kept], C), suspicious_N[kept], kept, fit_intercept)


def _possible(target: np.ndarray, C: int) -> np.ndarray:
    return np.arange(C) == target[:, None] if target.ndim == 1 else target > 0


def _spread(x: Any) -> np.ndarray:
    if not scipy.sparse.issparse(x):
        spread = x.std(axis=0)
    else:
        mean = np.asarray(x.mean(axis=0)).ravel()
        spread = np.sqrt(np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2, 0))
    return np.where(spread > 0, spread, 1.0)


def _ask(
    x: Any, possible_NC: np.ndarray, suspicious_N: np.ndarray, kept: np.ndarray, fit_intercept: bool
) -> Separation | None:
    """The linear program with the suspicious rows, then with the rows that its answer gets wrong, until none is."""
    C, D = possible_NC.shape[1], x.shape[1]
    mean, spread = np.asarray(x.mean(axis=0)).ravel() * float(fit_intercept), _spread(x)
    R = D + 1

    def standard(rows: np.ndarray) -> np.ndarray:
        some = x[rows].toarray() if scipy.sparse.issparse(x) else x[rows]
        return np.hstack([(some - mean) / spread, np.full((len(rows), 1), float(fit_intercept))])

    def full(d: np.ndarray) -> np.ndarray:
        return np.hstack([np.zeros((R, 1)), d.reshape(C - 1, R).T])

    asked_N = suspicious_N.copy()
    for _ in range(MOST_ROUNDS):
        rows = np.flatnonzero(asked_N)
        if not len(rows) or 2 * len(rows) * (C - 1) * R > MOST_ENTRIES:
            return None
        free, tied = _gaps(standard(rows), possible_NC[rows])
        wanted = np.repeat(suspicious_N[rows], (~possible_NC[rows]).sum(axis=1))
        d = _widest(free, tied, wanted, len(rows))
        if d is None or (free @ d).max(initial=0.0) <= OPEN:
            return None
        z = _logits(x, full(d), mean, spread)
        worst_N = _worst_gap(z, possible_NC)
        wrong_N = (worst_N < -1e-6) & ~asked_N
        if not wrong_N.any():
            break
        # The worst first, so that the program grows no more than it has to.
        order = np.argsort(worst_N)[: max(200, len(rows))]
        asked_N[order[wrong_N[order]]] = True
    else:
        return None
    widest_N = _opens(z, possible_NC)
    complete = bool(_ahead(z, possible_NC)[~possible_NC.all(axis=1)].all())
    if not complete:
        # Rows that nobody suspected may stand in the way of fewer columns.
        for _ in range(MOST_ROUNDS):
            few = _sparsest(free, tied, d, np.tile(np.arange(R) == D, C - 1))
            z = _logits(x, full(few), mean, spread)
            worst_N = _worst_gap(z, possible_NC)
            if worst_N.min() >= -1e-6:
                widest_N |= _opens(z, possible_NC)
                d = few
                break
            wrong_N = (worst_N < -1e-6) & ~asked_N
            order = np.argsort(worst_N)[: max(200, len(rows))]
            asked_N[order[wrong_N[order]]] = True
            rows = np.flatnonzero(asked_N)
            if not wrong_N.any() or 2 * len(rows) * (C - 1) * R > MOST_ENTRIES:
                break
            free, tied = _gaps(standard(rows), possible_NC[rows])
    theta = full(d)
    theta /= np.abs(theta).max()
    direction = theta[:-1] / spread[:, None]
    features = np.flatnonzero(np.abs(theta[:-1]).max(axis=1) > 1e-6).tolist()
    return Separation(direction, theta[-1] - mean @ direction, features, kept[widest_N], complete)


def _logits(x: Any, theta: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    w = theta[:-1] / spread[:, None]
    return np.asarray(x @ w) + (theta[-1] - mean @ w)


def _worst_gap(z_NC: np.ndarray, possible_NC: np.ndarray) -> np.ndarray:
    """The largest violation of a row's conditions, as a negative number."""
    least = np.where(possible_NC, z_NC, np.inf).min(axis=1)
    most = np.where(possible_NC, z_NC, -np.inf).max(axis=1)
    return np.minimum(least - np.where(possible_NC, -np.inf, z_NC).max(axis=1), least - most)


def _ahead(z_NC: np.ndarray, possible_NC: np.ndarray) -> np.ndarray:
    """Rows every excluded class of which falls behind."""
    least = np.where(possible_NC, z_NC, np.inf).min(axis=1)
    return np.asarray(least - np.where(possible_NC, -np.inf, z_NC).max(axis=1) > OPEN)


def _opens(z_NC: np.ndarray, possible_NC: np.ndarray) -> np.ndarray:
    """Rows some excluded class of which falls behind."""
    least = np.where(possible_NC, z_NC, np.inf).min(axis=1)
    return np.asarray(least - np.where(possible_NC, np.inf, z_NC).min(axis=1) > OPEN)
