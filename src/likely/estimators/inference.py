"""How sure the coefficients are: information, robust and clustered covariance, likelihoods.

Shapes: n rows, D features, K classes, b rows of a block; P = D + 1 parameters a class (D without an intercept), the
intercept last; k = 1 for a binary model and K − 1 otherwise: class 0 is the reference here, φ_c = θ_c − θ_0; p = k·P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.special

from likely._checks import require, require_rows
from likely.estimators.rows import Rows
from likely.solvers.problem import Problem
from likely.solvers.solve import Solution, solve

COVARIANCES, WEIGHTS = ("fisher", "sandwich", "none"), ("frequency", "sampling")
# Without a word from the caller the covariance is computed where it takes so many multiplications at most.
CHEAP = 3e8


def check_request(covariance: str | None, weights: str, groups: Any) -> None:
    """Raise ValueError for a covariance that is none, or that the weights or the groups rule out."""
    require(
        covariance is None or covariance in COVARIANCES,
        f"covariance: is {covariance!r}; it is one of {', '.join(COVARIANCES)}",
    )
    require(weights in WEIGHTS, f"weights: is {weights!r}; it is one of {', '.join(WEIGHTS)}")
    require(
        covariance != "fisher" or (weights == "frequency" and groups is None),
        "covariance: 'fisher' takes rows as independent and weights as counts; with groups or sampling weights it is "
        "'sandwich'",
    )


def infer(
    data: Rows,
    problem: Problem,
    found: Solution,
    penalty: float,
    *,
    group_n: np.ndarray | None = None,
    covariance: str | None = None,
    weights: str = "frequency",
) -> dict[str, Any]:
    """What `summary()` needs and the data are needed for: plain numbers, text and arrays.

    Args:
        group_n: what `read_groups` returned. covariance, weights: as in `fit`.

    Returns: `log_likelihood`, `null_log_likelihood`, `n`, `total`, `soft`, `weights`, `covariance` (its kind, "none"
        where it was not asked for), and with one `matrix` (p, p), that of φ; `directions` (p, m), along which the
        likelihood is flat, against `size` (p,); `rank`; `freedom`, the effective number of parameters; `clusters`.
    """
    cross_entropy = found.loss - penalty / 2 * float((found.coef**2).sum())
    k, P = max(1, len(found.coef) - 1), data.D + problem.intercept
    facts: dict[str, Any] = {
        "n": data.n,
        "total": data.total,
        "soft": data.soft,
        "weighted": data.weighted,
        "weights": weights,
        "log_likelihood": -data.total * cross_entropy,
        "null_log_likelihood": -data.total * null_cross_entropy(data, problem),
        "offset": data.shifted,
        "covariance": "none",
        "clusters": 0 if group_n is None else int(group_n.max()) + 1,
        "intercept": bool(problem.intercept),
    }
    robust = data.soft or group_n is not None or weights == "sampling"
    kind = covariance or ("sandwich" if robust else "fisher")
    dear = data.n * float(k * P) ** 2 > CHEAP and group_n is None
    if kind == "none" or found.separable or (covariance is None and dear):
        return facts
    return facts | _covariance(data, problem, found, penalty, kind, weights, group_n)


def null_cross_entropy(data: Rows, problem: Problem) -> float:
    """The mean cross-entropy of the best model without features: the frequencies, where there is no offset."""
    if not data.shifted:
        if not problem.intercept:
            return float(np.log(data.K))
        return float(scipy.special.entr(problem.masses).sum())
    options: dict[str, Any] = {"binary": problem.binary, "intercept": problem.intercept}
    options |= {"classes": data.K, "label_smoothing": data.smoothing}
    if callable(data.X):
        source = data.X

        def factory() -> Any:
            for x, *rest in source():
                yield np.zeros((x.shape[0], 1)), *rest

        null = Problem.make(factory, **options)
    else:
        null = Problem.make(np.zeros((data.n, 1)), data.target, data.weight, offset=data.offset, **options)
    return float(solve(null, 0.0, tol=1e-14).loss)


def read_groups(groups: Any, data: Rows) -> np.ndarray | None:
    """The group of each row that the fit sees, as numbers 0 … G − 1; None without groups.

    Raises: ValueError where there are more or fewer than rows, and where all are one.
    """
    if groups is None:
        return None
    values = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    seen = data.n if data.kept is None else len(data.kept)
    require_rows("groups", len(values), seen, "X")
    numbers: dict[Any, int] = {}
    kept = range(len(values)) if data.kept is None else np.flatnonzero(data.kept)
    index = np.array([numbers.setdefault(values[i], len(numbers)) for i in kept], dtype=np.int64)
    require(len(numbers) > 1, "groups: all rows are in one group; clustered standard errors need two or more")
    return index


def _covariance(
    data: Rows,
    problem: Problem,
    found: Solution,
    penalty: float,
    kind: str,
    weights: str,
    group_n: np.ndarray | None,
) -> dict[str, Any]:
    """The covariance of φ, `B⁻¹ M B⁻¹`, with the bread B the curvature of the whole objective.

    With s the weights as given, `B = Σ s_i ∂²A/∂φ² + Σs · λ ∂²(‖W‖²/2)/∂φ²`. The meat M is the first term (Fisher);
    or, of the rows' scores `ψ_i = (p_i − q_i) ⊗ x_i + λ W`, `Σ s ψψ'` (frequency weights) or `Σ s² ψψ'` (sampling
    weights); or, clustered, the sum over the groups of the squares of `Σ s ψ`, times G/(G−1) · (n−1)/(n−p).

    Source: White, Maximum likelihood estimation of misspecified models (1982); Liang and Zeger (1986);
    Binder, On the variances of asymptotically normal estimators from complex surveys (1983).
    """
    moments = _moments(data, problem, found, penalty, kind, weights, group_n)
    return _solve_covariance(moments, kind)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over the rows, for φ in standardised columns, and how to come back to the units of the columns."""

    information: np.ndarray  # (p, p)
    penalty: np.ndarray  # (p, p)
    meat: np.ndarray | None  # (p, p)
    back: np.ndarray  # (P, P)
    factor: float


def _moments(
    data: Rows,
    problem: Problem,
    found: Solution,
    penalty: float,
    kind: str,
    weights: str,
    group_n: np.ndarray | None,
) -> _Moments:
    intercept, K = int(problem.intercept), len(found.coef)
    k, D = max(1, K - 1), data.D
    P = D + intercept
    p = k * P
    mean = np.asarray(problem.mean, np.float64) if intercept else np.zeros(D)
    # A column that does not vary has no coefficient; what is left of it is rounding, and goes.
    scale = np.where(problem.constant, np.inf, problem.scale)
    information, meat = np.zeros((p, p)), np.zeros((p, p))
    clustered = np.zeros((int(group_n.max()) + 1, p)) if group_n is not None else None
    # λ ∂(‖W‖²/2)/∂φ, the same for every row; the coefficients are centred over the classes.
    shift = np.zeros((k, P))
    shift[:, :D] = penalty * (found.coef if K == 1 else found.coef[1:]) / scale
    for rows, x, target, weight, offset in data.blocks(p + data.K):
        z = _standardised(x, mean, scale, intercept)
        q = _probabilities(x, found, offset)
        for a in range(k):
            for b in range(a, k):
                curve = weight * q[:, a] * ((1 - q[:, a]) if a == b else -q[:, b])
                part = z.T @ (z * curve[:, None])
                information[a * P : (a + 1) * P, b * P : (b + 1) * P] += part
                if a != b:
                    information[b * P : (b + 1) * P, a * P : (a + 1) * P] += part.T
        if kind == "sandwich":
            residual = q - _target(target, data.K, data.smoothing)[:, data.K - k :]
            score = ((residual[:, :, None] * z[:, None, :]) + shift).reshape(len(z), p)
            if clustered is not None and group_n is not None:
                np.add.at(clustered, group_n[rows], score * weight[:, None])
            else:
                score *= (np.sqrt(weight) if weights == "frequency" else weight)[:, None]
                meat += score.T @ score
    factor = 1.0
    if clustered is not None:
        meat = clustered.T @ clustered
        n = data.total if weights == "frequency" else data.n
        factor = len(clustered) / (len(clustered) - 1) * ((n - 1) / (n - p) if n > p else np.nan)
    curvature = np.diag(np.r_[1 / scale**2, np.zeros(intercept)])
    across = np.eye(1) if K == 1 else np.eye(k) - 1 / K
    back = np.diag(np.r_[1 / np.where(problem.constant, 1.0, scale), np.ones(intercept)])
    if intercept:
        back[-1, :D] = -mean / scale
    return _Moments(
        information,
        data.total * penalty * np.kron(across, curvature),
        meat if kind == "sandwich" else None,
        back,
        factor,
    )


def _solve_covariance(m: _Moments, kind: str) -> dict[str, Any]:
    p, P = len(m.information), len(m.back)
    bread = m.information + m.penalty
    # Scaled to a unit diagonal, so that what is flat is told from what is merely small.
    size = np.sqrt(np.diag(bread))
    safe = np.where(size > 0, size, 1.0)
    value, vector = scipy.linalg.eigh(bread / np.outer(safe, safe))
    flat = value <= 64 * p * np.finfo(np.float64).eps * max(value[-1], 1.0)
    inverse = (vector[:, ~flat] / value[~flat]) @ vector[:, ~flat].T / np.outer(safe, safe)
    back = np.kron(np.eye(p // P), m.back)
    if kind == "fisher" and not m.penalty.any():
        matrix = inverse
    else:
        matrix = inverse @ (m.information if m.meat is None else m.meat) @ inverse * m.factor
    unit = back / safe
    return {
        "covariance": kind,
        "matrix": back @ matrix @ back.T,
        "directions": unit @ vector[:, flat],
        "size": np.linalg.norm(unit, axis=1),
        "rank": int((~flat).sum()),
        "freedom": float(np.trace(inverse @ m.information)),
    }


def _standardised(x: Any, mean: np.ndarray, scale: np.ndarray, intercept: int) -> np.ndarray:
    dense = x.toarray() if scipy.sparse.issparse(x) else x
    z = np.ones((dense.shape[0], dense.shape[1] + intercept))
    z[:, : dense.shape[1]] = (dense - mean) / scale
    return z


def _probabilities(x: Any, found: Solution, offset: np.ndarray | None) -> np.ndarray:
    """(b, k) probabilities of the classes but the first."""
    x = x if scipy.sparse.issparse(x) else x.astype(np.float64, copy=False)
    z = np.asarray(x @ found.coef.T) + found.intercept
    if offset is not None:
        z = z + offset.reshape(z.shape)
    return scipy.special.expit(z) if z.shape[1] == 1 else scipy.special.softmax(z, axis=1)[:, 1:]


def _target(target: np.ndarray, K: int, smoothing: float) -> np.ndarray:
    q = np.eye(K)[target] if target.ndim == 1 else target
    return (1 - smoothing) * q + smoothing / K if smoothing else q
