"""How far a loss can be from its minimum: an upper bound in nats, from a point of the dual problem.

For any distributions p' with `Σ w (p' − q) = 0` (the condition of the intercept, which is not penalised) and λ > 0

    F(W, b) − min F  ≤  Σ w KL(p' ‖ p) + ‖R + λW‖² / (2λ),    R = X' D_w (p' − q).

Here p' is the one that a Newton step suggests: with `H S = G` and `s_i = S' x_i`,
`p'_ik = p_ik (1 − (s_ik − p_i · s_i))`. Where S solves the system, `R + λW = λS`; where it does not, the residual
stands inside the norm, and the bound holds all the same. Both terms are divergences or squares, so that nothing
cancels. For λ = 0 the first term alone is a bound where R = 0, and else up to `‖R‖ · ‖W − W*‖`. `docs/certificate.md`
derives all this.

Shapes: n rows, D features, K classes, M columns of parameters; θ, S and derivatives are (D + 1, M), in standardised
columns.

Source: Fenchel's duality as in Rockafellar, Convex Analysis (1970), section 31; Boyd and Vandenberghe, Convex
Optimization (2004), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from likely.solvers.passes import Value, assemble, evaluate, normalise, one_column
from likely.solvers.problem import Problem, over_rows, xt
from likely.solvers.rows import Block, reduce

ROUNDING = 1e-15
"""Masses that differ by no more are those of the target: they are sums of numbers that add up to one."""


@dataclass(frozen=True, eq=False)
class Gap:
    """A bound on F minus its minimum.

    Attributes:
        gap: nats; +inf where there is none.
        conditional: it holds up to `residual` times the distance to an optimum, in standardised columns.
        residual: ρ, the norm of the stationarity residual of the dual point, in standardised columns.
        kind: "newton" (the dual point of a Newton step), "gradient" (p' = p), "entropy" (F − Σ w H(q)).
    """

    gap: float
    conditional: bool
    residual: float
    kind: str


def gap(
    problem: Problem,
    coef: np.ndarray,
    intercept: np.ndarray,
    penalty: float,
    step: tuple[np.ndarray, np.ndarray] | None = None,
) -> Gap:
    """A bound on how far `F(coef, intercept)` is from the minimum of F, nats.

    Args:
        coef, intercept: (M, D) and (M,).
        penalty: λ ≥ 0.
        step: the Newton step (S_W, S_b) from there, as (M, D) and (M,), exact or not. By default it is computed, by a
            Cholesky factor.

    >>> x, y = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]), np.array([0, 0, 1, 0, 1, 1])
    >>> problem = Problem.make(x, y, classes=2, binary=True)
    >>> found = gap(problem, np.array([[1.3]]), np.array([-0.65]), penalty=0.0)
    >>> f"{found.gap:.3e}", found.conditional    # the truth is 2.078e-04
    ('2.078e-04', True)
    """
    from likely.solvers.newton import newton_step

    theta = problem.to_standard(coef, intercept)
    value = evaluate(problem, theta, penalty)
    s = newton_step(problem, theta, value, penalty) if step is None else problem.to_standard(*step)
    return certify(problem, theta, value, s, penalty)


def certify(
    problem: Problem, theta: np.ndarray, value: Value, s: np.ndarray, penalty: float, dual: Dual | None = None
) -> Gap:
    """The smallest of the bounds that exist at θ, where F and its derivative are `value`; `s` is a Newton step."""
    found = [Gap(max(0.0, value.loss - problem.entropy), False, float("nan"), "entropy")]
    dual, _ = (dual, None) if dual is not None else dual_point(problem, theta, s)
    if dual.largest <= 1:
        found.append(_bound(problem, theta, value, dual, s, penalty, "newton"))
    if penalty > 0:
        same = Dual(0.0, 0.0, value.moment, value.mass)
        found.append(_bound(problem, theta, value, same, np.zeros_like(s), penalty, "gradient"))
    return min(found, key=lambda one: one.gap)


@dataclass(frozen=True, eq=False)
class Dual:
    """Distributions p' by what the bound needs of them: `largest` δ (p' = p (1 − δ), they exist where it is at most 1),
    `divergence` = Σ w KL(p' ‖ p), `moment` = X' D_w P', `mass` = P'' w and, where it was summed, `normalisers` =
    Σ w p' A(z) of each column."""

    largest: float
    divergence: float
    moment: np.ndarray
    mass: np.ndarray
    normalisers: np.ndarray | None = None


def dual_point(
    problem: Problem, theta: np.ndarray, s: np.ndarray, forward: bool = False, penalty: float = 0.0
) -> tuple[Dual, Value | None]:
    """p' of a Newton step `s` at θ, in one pass; with `forward` also F and its derivative at θ − s."""
    if forward and problem.direct:
        return dual_point(problem, theta, s)[0], evaluate(problem, theta - s, penalty)
    M = problem.M
    (w, b), (s_w, s_b) = problem.raw(theta), problem.raw(s)
    both, both_b = np.hstack([w, s_w]), np.r_[b, s_b]
    ahead = theta - s
    column, step_column = one_column(w, b), one_column(s_w, s_b)

    def run(block: Block) -> tuple[Any, ...]:
        x = problem.features(block)
        rows = problem.compiled(block, x)
        if rows is not None:
            found = rows.dual(column, step_column)
            divergence = found.divergence if found.largest <= 1 else np.inf
            moments = np.stack([found.sums, found.ahead], axis=1)
            return (
                Largest(found.largest),
                divergence,
                moments[:-1],
                moments[-1],
                np.array([found.product]),
                found.normaliser,
            )
        u = np.asarray(x @ both, np.float64)
        u += both_b
        z, step = np.ascontiguousarray(u[:, :M]), u[:, M:]
        if block.offset is not None:
            z += block.offset.reshape(z.shape)
        there = z - step if forward else None
        a, p = normalise(z)
        if problem.binary:
            delta = np.hstack([(1 - p) * step, -p * step])
            full = np.hstack([p, 1 - p])
        else:
            delta = step - np.einsum("nk,nk->n", p, step)[:, None]
            full = p
        largest = float(delta.max())
        weighted = full * block.weight[:, None]
        divergence = float((weighted * _divergence(delta)).sum()) if largest <= 1 else np.inf
        p_dual = (weighted * (1 - delta))[:, :M]
        if there is None:
            return Largest(largest), divergence, xt(x, p_dual), over_rows(p_dual), a @ p_dual
        a_there, p_there = normalise(there)
        p_there *= block.weight[:, None]
        r = np.hstack([p_dual, p_there])
        return Largest(largest), divergence, xt(x, r), over_rows(r), a @ p_dual, float(block.weight @ a_there)

    largest, divergence, moment, mass, normalisers, *rest = reduce(problem.source, run, problem.threads)
    dual = Dual(largest.value, divergence, moment[:, :M], mass[:M], normalisers)
    if not forward:
        return dual, None
    return dual, assemble(problem, ahead, penalty, rest[0], moment[:, M:].copy(), mass[M:].copy())


@dataclass(frozen=True)
class Largest:
    """A number of which the sum is the largest."""

    value: float

    def __add__(self, other: Largest) -> Largest:
        return Largest(max(self.value, other.value))


def _divergence(delta: np.ndarray) -> np.ndarray:
    """`(1 − δ) log(1 − δ) + δ` ≥ 0 for δ ≤ 1; summed with p, of which the mean of δ is 0, it gives KL(p' ‖ p).

    Near 0 its terms cancel, and the series `δ²/2 + δ³/6 + δ⁴/12 + …` is used.
    """
    series = delta * delta * (1 / 2 + delta * (1 / 6 + delta * (1 / 12)))
    return np.where(np.abs(delta) < 1e-4, series, scipy.special.xlog1py(1 - delta, -delta) + delta)


def _bound(
    problem: Problem, theta: np.ndarray, value: Value, dual: Dual, s: np.ndarray, penalty: float, kind: str
) -> Gap:
    w, b = problem.raw(theta)
    t, m = problem.moments()
    residual = problem.standardise(np.vstack([dual.moment - t, dual.mass - m]))
    residual[:-1] += penalty * problem.inverse[:, None] * (w - problem.raw(s)[0])
    rho = float(np.linalg.norm(residual))
    if penalty == 0:
        return Gap(dual.divergence, True, rho, kind)
    moment, divergence = dual.moment, dual.divergence
    if problem.intercept:
        moment, divergence = _balance(problem, w, b, value, dual)
    out = moment - t + penalty * w
    return Gap(divergence + float((out * out).sum()) / (2 * penalty), False, rho, kind)


def _balance(problem: Problem, w: np.ndarray, b: np.ndarray, value: Value, dual: Dual) -> tuple[np.ndarray, float]:
    """The moment and the divergence of distributions near p' whose masses are those of the target to rounding."""
    known = dual.normalisers is not None and not problem.has_offset
    return (_transferred if known else _mixed)(problem, w, b, value, dual)


def _transferred(problem: Problem, w: np.ndarray, b: np.ndarray, value: Value, dual: Dual) -> tuple[np.ndarray, float]:
    """Those of `p'∘(1 − a) + f v`: what a class has too much, the share a of it, goes to those that have too little.

    Of row i it is `f_i = Σ_k a_k p'_ik`, of all rows E, and v says where it goes. With `c log(c/p)` convex in c the
    divergence is at most `Σ w KL(p' ‖ p) + Σ_k a_k (m_k(p) − (1 − a_k) m'_k) + Σ_i w_i f_i KL(v ‖ p_i)`, where
    `−c log(c/p) ≤ p − c` and `−(1 − f) log(1 − f) ≤ f` were used; the last sum follows from sums over the rows.
    """
    assert dual.normalisers is not None
    mass, there, target, moment, normalisers = dual.mass, value.mass, problem.masses, dual.moment, dual.normalisers
    if problem.binary:
        mass, there = np.r_[1 - mass, mass], np.r_[1 - there, there]
        moment = np.hstack([problem.first[:, None] - moment, moment])
        normalisers = np.r_[value.normaliser - normalisers, normalisers]
        w, b = np.hstack([np.zeros_like(w), w]), np.r_[0.0, b]
    over = np.maximum(mass - target, 0.0)
    moved, v = float(over.sum()), np.maximum(target - mass, 0.0)
    if moved <= ROUNDING * len(mass) or not v.any():
        return dual.moment, dual.divergence
    a, v = over / np.where(over > 0, mass, 1.0), v / v.sum()
    moment_f = moment @ a
    log_p = moment_f @ w + b * moved - float(normalisers @ a)
    extra = float(a @ (there - (1 - a) * mass)) + moved * float(scipy.special.xlogy(v, v).sum()) - float(v @ log_p)
    balanced = moment * (1 - a) + moment_f[:, None] * v
    return balanced[:, 1:] if problem.binary else balanced, dual.divergence + max(0.0, extra)


def _mixed(problem: Problem, w: np.ndarray, b: np.ndarray, value: Value, dual: Dual) -> tuple[np.ndarray, float]:
    """Those of `(1 − t) p' + t u`, where less is known.

    `u` is one distribution for all rows, `u = m' + (m − m')/t`, and t the smallest number for which it is one. The
    divergence is convex: at most `(1 − t) Σ w KL(p' ‖ p) + t Σ w KL(u ‖ p)`, and `Σ w log p` is known from sums.
    """
    if problem.binary:
        mass, m = np.array([1 - dual.mass[0], dual.mass[0]]), np.array([1 - problem.masses[1], problem.masses[1]])
        offset = np.array([0.0, problem.offset_mean])
        linear = np.array([0.0, float(problem.first @ w[:, 0] + b[0])])
    else:
        mass, m, offset, linear = dual.mass, problem.masses, problem.offset_mean, problem.first @ w + b
    over = np.divide(mass - m, mass, out=np.zeros_like(m), where=mass > m)
    t = float(over.max())
    if t <= 0 or np.abs(mass - m).max() <= ROUNDING:
        return dual.moment, dual.divergence
    u = np.maximum(mass + (m - mass) / t, 0.0)
    u /= u.sum()
    mean_log_p = linear + offset - value.normaliser
    extra = float((scipy.special.xlogy(u, u) - u * mean_log_p).sum())
    mixed = (1 - t) * dual.moment + t * problem.first[:, None] * (u[1:] if problem.binary else u)
    return mixed, (1 - t) * dual.divergence + t * extra
