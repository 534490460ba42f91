"""What one pass over the rows gives: value and derivative, curvature, products with the curvature.

Shapes: n rows, D features, K classes, M columns of parameters; θ and derivatives are (D + 1, M), in standardised
columns, the intercept last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse

from likely.kernels.native import odds
from likely.solvers.problem import Problem, as_dense, over_rows, xt, xw
from likely.solvers.rows import Block, Memory, reduce

NARROW_GRAM = 250
"""Below so many columns the compiled sums of squares are faster than the matrix product of BLAS."""
SHORT_GRAM = 400_000
"""Up to so many products the call costs more than it saves."""


@dataclass(frozen=True, eq=False)
class Value:
    """F, its derivative by θ, and what they are made of: Σ w A(z), X' D_w P and P' w; `kept`: P of each block, of a
    binary model p or 1 − p."""

    loss: float
    gradient: np.ndarray
    normaliser: float
    moment: np.ndarray
    mass: np.ndarray
    kept: dict[int, np.ndarray] | None = None


def normalise(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`A(z)` and the probabilities: of (n, 1) log odds the softplus and the sigmoid, else logsumexp and softmax.

    `z` is overwritten. The largest logit is subtracted first, so that nothing overflows.
    """
    if z.shape[1] == 1:
        e = np.exp(-np.abs(z))
        a = np.log1p(e)
        a += np.maximum(z, 0)
        p = np.where(z < 0, e, 1.0)
        e += 1
        p /= e
        return a[:, 0], p
    top = z.max(axis=1, keepdims=True)
    z -= top
    p = np.exp(z, out=z)
    total = p @ np.ones((p.shape[1], 1), p.dtype)
    p /= total
    return (top + np.log(total))[:, 0], p


def logits(block: Block, x: Any, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    z = np.asarray(xw(x, w), np.float64)
    z += b
    if block.offset is not None:
        z += block.offset.reshape(z.shape)
    return z


def one_column(w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(W, b) of a binary model as the compiled passes take it."""
    return odds.padded(np.r_[w[:, 0], b])


def evaluate(problem: Problem, theta: np.ndarray, penalty: float, keep: Any = None) -> Value:
    """F and its derivative at θ, in float64; P is kept in the dtype `keep`, where one is given."""
    w, b = problem.raw(theta)
    kept: dict[int, np.ndarray] | None = None if keep is None else {}

    if not theta[:-1].any() and not problem.has_offset:
        return _of_intercepts(problem, theta, penalty, keep)
    if problem.direct:
        return _directly(problem, w, b, penalty, keep)
    column = one_column(w, b)

    def run(block: Block) -> tuple[float, np.ndarray, np.ndarray]:
        x = problem.features(block)
        rows = problem.compiled(block, x)
        if rows is not None:
            _, normaliser, g, p_n = rows.value(column, want_p=keep is not None)
            if kept is not None and p_n is not None:
                kept[block.start] = p_n[:, None].astype(keep, copy=False)
            return normaliser, g[:-1, None], g[-1:]
        a, p = normalise(logits(block, x, w, b))
        if kept is not None:
            kept[block.start] = p.astype(keep)
        p *= block.weight[:, None]
        return float(block.weight @ a), xt(x, p), over_rows(p)

    normaliser, g, g_b = reduce(problem.source, run, problem.threads)
    return replace(assemble(problem, theta, penalty, normaliser, g, g_b), kept=kept)


def _of_intercepts(problem: Problem, theta: np.ndarray, penalty: float, keep: Any) -> Value:
    """The same without coefficients: all rows have one distribution, and no pass is needed."""
    a, p = normalise(theta[-1:].copy())
    kept = None
    if keep is not None:
        assert isinstance(problem.source, Memory)
        n, size = problem.n, problem.source.block_rows
        row = p.astype(keep)
        kept = {start: np.broadcast_to(row, (min(size, n - start), problem.M)) for start in range(0, n, size)}
    value = assemble(problem, theta, penalty, float(a[0]), problem.first[:, None] * p, p[0].copy())
    return replace(value, kept=kept)


def _directly(problem: Problem, w: np.ndarray, b: np.ndarray, penalty: float, keep: Any) -> Value:
    """The same for labels from `A(z) − z_y = log(1 + Σ exp(z_k − z_y))` and `p − q`, which keep digits as p → q."""
    kept: dict[int, np.ndarray] | None = None if keep is None else {}
    column = one_column(w, b)

    def run(block: Block) -> tuple[float, float, np.ndarray, np.ndarray]:
        x, y = problem.features(block), block.target
        assert y is not None
        compiled = problem.compiled(block, x)
        if compiled is not None:
            total, normaliser, r_x, p_n = compiled.value(column, y, want_p=keep is not None)
            if kept is not None and p_n is not None:
                kept[block.start] = p_n[:, None].astype(keep, copy=False)
            return total, normaliser, r_x[:-1, None], r_x[-1:]
        z = logits(block, x, w, b)
        rows = np.arange(len(y))
        if problem.binary:
            sign = np.where(y == 1, -1.0, 1.0)[:, None]
            a = normalise(z.copy())[0]
            loss, r = normalise(z * sign)
            r *= sign
            p = np.where(y[:, None] == 1, 1 + r, r)
        else:
            others = z - z[rows, y][:, None]
            others[rows, y] = -np.inf
            top = np.maximum(others.max(axis=1), 0.0)
            rest = np.exp(others - top[:, None]).sum(axis=1)
            loss = np.where(top > 0, top + np.log(np.exp(-top) + rest), np.log1p(rest))
            a, p = normalise(z)
            r = p.copy()
            r[rows, y] = 0
            r[rows, y] = -r.sum(axis=1)
        if kept is not None:
            kept[block.start] = p.astype(keep)
        r *= block.weight[:, None]
        return float(block.weight @ loss), float(block.weight @ a), xt(x, r), over_rows(r)

    loss, normaliser, g, g_b = reduce(problem.source, run, problem.threads)
    t, m = problem.moments()
    moment, mass = g + t, g_b + m
    gradient = problem.standardise(np.vstack([g, g_b]))
    gradient[:-1] += penalty * problem.inverse[:, None] * w
    return Value(loss + penalty / 2 * float((w * w).sum()), gradient, normaliser, moment, mass, kept)


def assemble(
    problem: Problem, theta: np.ndarray, penalty: float, normaliser: float, g: np.ndarray, g_b: np.ndarray
) -> Value:
    """F and its derivative from Σ w A(z), X' D_w P and P' w."""
    t, m = problem.moments()
    w, b = problem.raw(theta)
    linear = float((w * t).sum()) + float(b @ m) + problem.offset_dot
    gradient = problem.standardise(np.vstack([g - t, g_b - m]))
    gradient[:-1] += penalty * problem.inverse[:, None] * w
    return Value(normaliser - linear + penalty / 2 * float((w * w).sum()), gradient, normaliser, g, g_b)


def gram(problem: Problem, row_weight: Any, dtype: Any = np.float64) -> np.ndarray:
    """`(X, 1)' diag(h) (X, 1)` in standardised columns, (D + 1, D + 1); `row_weight(block)` gives h ≥ 0."""
    D = problem.D

    def run(block: Block) -> tuple[np.ndarray]:
        return (_square(problem.features(block), np.sqrt(row_weight(block)), dtype),)

    (full,) = reduce(problem.source, run, problem.threads)
    return standard_form(problem, full.reshape(1, D + 1, 1, D + 1)).reshape(D + 1, D + 1)


def _square(x: Any, root: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """`(X, 1)' diag(root²) (X, 1)` of a block."""
    D = x.shape[1]
    if scipy.sparse.issparse(x):
        scaled = x.multiply(root[:, None]).tocsr()
        full = np.empty((D + 1, D + 1))
        full[:D, :D] = as_dense(scaled.T @ scaled)
        full[:D, D] = full[D, :D] = xt(scaled, root)
        full[D, D] = root @ root
        return full
    if dtype == np.float64 and D < NARROW_GRAM and x.size * D > SHORT_GRAM and odds.serves(x):
        return odds.Rows(x, root * root).gram()
    y = np.empty((len(root), D + 1), dtype)
    np.multiply(x, root[:, None], out=y[:, :D], casting="same_kind")
    y[:, D] = root
    return np.asarray(y.T @ y, np.float64)


def standard_form(problem: Problem, h: np.ndarray) -> np.ndarray:
    """A quadratic form (R, D + 1, S, D + 1) in (W, b) as one in θ; in place."""
    if problem.intercept:
        h[:, :-1] -= problem.centre[:, None, None] * h[:, -1:]
        h[..., :-1] -= problem.centre * h[..., -1:]
    else:
        h[:, -1] = 0
        h[..., -1] = 0
    h[:, :-1] *= problem.inverse[:, None, None]
    h[..., :-1] *= problem.inverse
    return h


def cheap_curvature(problem: Problem) -> bool:
    """Whether `curvature` is the compiled one."""
    if not problem.binary or problem.D >= NARROW_GRAM or not isinstance(problem.source, Memory):
        return False
    return odds.serves(problem.source.x[:1])


def curvature(
    problem: Problem,
    theta: np.ndarray,
    classes: int,
    standard: bool = True,
    kept: dict[int, np.ndarray] | None = None,
) -> np.ndarray:
    """The Hessian of `Σ w A(z)` by the parameters of the first `classes` columns, (classes·(D+1), classes·(D+1)).

    `H_kl = −X' diag(w p_k p_l) X` for k ≠ l, and `H_kk = −Σ_l H_kl` over the other classes: a Gram matrix for each
    pair, in blocks of rows. Nothing cancels where a probability comes near 1, as it would in `p_k − p_k²`. What was
    `kept` at θ of a binary model spares the logits.
    """
    R = problem.D + 1
    w, b = problem.raw(theta)
    column = one_column(w, b)

    def run(block: Block) -> tuple[np.ndarray]:
        features = problem.features(block)
        rows = problem.compiled(block, features) if problem.D < NARROW_GRAM else None
        if rows is not None:
            p = None if kept is None else kept[block.start][:, 0]
            return (rows.curvature(column, p).reshape(1, R, 1, R),)
        z = logits(block, features, w, b)
        total = np.zeros((classes, R, classes, R))
        if problem.binary:
            e = np.exp(-np.abs(z[:, 0]))
            total[0, :, 0] = _square(features, np.sqrt(block.weight * e) / (1 + e))
            return (total,)
        p = normalise(z)[1]
        root = np.sqrt(p)
        root *= np.sqrt(np.sqrt(block.weight))[:, None]
        for k in range(classes):
            for l in range(k + 1, problem.K):
                pair = _square(features, root[:, k] * root[:, l])
                total[k, :, k] += pair
                if l < classes:
                    total[l, :, l] += pair
                    total[k, :, l] -= pair
                    total[l, :, k] -= pair
        return (total,)

    threads = problem.threads if classes * R <= 512 else 1
    (h,) = reduce(problem.source, run, threads)
    return (standard_form(problem, h) if standard else h).reshape(classes * R, classes * R)
