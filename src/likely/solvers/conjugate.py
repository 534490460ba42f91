"""The Newton step by conjugate gradients, from products with the Hessian that never form it.

    U = X V,   R = P ∘ (U − (P ∘ U) 1 1'),   H V = X' D_w R + λ V

Shapes: n rows, D features, K classes, M columns of parameters; θ, V and derivatives are (D + 1, M), in standardised
columns, the intercept last.

Source: Nocedal and Wright, Numerical Optimization (2006), section 7.1; Böhning (1992) for the form of the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from likely.solvers.certificate import dual_point
from likely.solvers.descend import Aim, Direction, Path, descend
from likely.solvers.passes import Value, gram, logits, normalise, one_column
from likely.solvers.problem import Problem, over_rows, squares, xt, xw
from likely.solvers.rows import Block, Memory, chain, one_thread, random_rows, reduce

Product = Callable[[np.ndarray], np.ndarray]
MOST_GRAM = 3000
"""Up to so many features the metric is a Gram matrix, beyond it a diagonal."""
WORN = 6
"""Products of one solve above which a metric is worn out."""
LARGE = 0.5
"""A step whose largest δ on some of the rows is above this is not expected to have none above 1 on all of them."""
FAR = 0.01
"""The decrement of a step above which some row's dual point is likely to be no distribution."""
KEPT = 512_000_000
"""Bytes of probabilities that are kept in any case."""
CHEAP_GRAM, UNRELATED, TOO_MANY = 256, 1.25, 15
"""Beyond the first number of features a Gram matrix is not made where the columns are unrelated: where the mean square
of the eigenvalues of their correlations is at most the second. It is made after all if a solve takes more products than
the third."""


def probabilities(problem: Problem, theta: np.ndarray, kept: dict[int, np.ndarray] | None) -> Callable[[Block], Any]:
    """A function that gives a block's (rows, M) probabilities: those that were kept, or new ones."""
    if kept is not None:
        return lambda block: kept[block.start]
    w, b = problem.raw(theta)
    return lambda block: normalise(logits(block, problem.features(block), w, b))[1]


def product(
    problem: Problem, p_of: Callable[[Block], np.ndarray], penalty: float, dtype: Any, damping: float = 0.0
) -> Product:
    """V ↦ (H + μ) V; the products in `dtype`, their sum over blocks in float64."""

    def apply(v: np.ndarray) -> np.ndarray:
        w, b = problem.raw(v)
        w_low, b_low, column = w.astype(dtype), b.astype(dtype), one_column(w, b)

        def run(block: Block) -> tuple[np.ndarray, np.ndarray]:
            x = problem.features(block)
            rows = problem.compiled(block, x)
            if rows is not None:
                p = p_of(block)[:, 0]
                out = rows.product(column, p * (1 - p))
                return out[:-1, None], out[-1:]
            x = x.astype(dtype, copy=False)
            p = p_of(block).astype(dtype, copy=False)
            u = xw(x, w_low)
            u += b_low
            if problem.binary:
                u *= p * (1 - p)
            else:
                u -= np.einsum("nk,nk->n", p, u)[:, None]
                u *= p
            u *= block.weight[:, None].astype(dtype)
            return xt(x, u).astype(np.float64), over_rows(u).astype(np.float64)

        g, g_b = reduce(problem.source, run, problem.threads)
        out = problem.standardise(np.vstack([g, g_b]))
        out[:-1] += penalty * problem.inverse[:, None] ** 2 * v[:-1]
        if damping:
            out += damping * v
        return out

    return apply


def gram_metric(
    problem: Problem, p_of: Callable[[Block], np.ndarray], penalty: float, dtype: Any = np.float64
) -> Product:
    """R ↦ M⁻¹ R with the Gram matrix of the weights `h_i = Σ_k p_ik (1 − p_ik) / (K − 1)`, centred over the classes.

    With p the same in all rows the Hessian is `(diag p − p p') ⊗ X'D_w X`, of which the inverse on columns that sum to
    zero divides by p and centres.
    """

    def row_weight(block: Block) -> np.ndarray:
        p = p_of(block).astype(np.float64, copy=False)
        h = (p * (1 - p)).sum(axis=1) / max(1, problem.M - 1)
        return h * block.weight

    m = gram(problem, row_weight, dtype)
    # A class's own curvature is above or below that of the mean; between the two lies what serves best.
    own = np.ones(1) if problem.binary else np.sqrt(_curvature_of_classes(problem, p_of))
    diagonal = np.einsum("ii->i", m)
    diagonal[:-1] += penalty * problem.inverse**2
    diagonal[diagonal <= 0] = 1.0
    floor = 1e-7 if dtype == np.float32 else 1e-12
    factor = None
    while factor is None:
        try:
            shifted = m.copy()
            np.einsum("ii->i", shifted)[:] += floor * diagonal
            factor = scipy.linalg.cho_factor(shifted.T, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            floor *= 100

    def apply(r: np.ndarray) -> np.ndarray:
        z = scipy.linalg.cho_solve(factor, r / own, check_finite=False)
        return np.asarray(z if problem.binary else z - z.mean(axis=1, keepdims=True))

    return apply


def _curvature_of_classes(problem: Problem, p_of: Callable[[Block], np.ndarray]) -> np.ndarray:
    """Σ w p (1 − p) of each class over its mean."""

    def run(block: Block) -> tuple[np.ndarray]:
        p = p_of(block)
        return (block.weight @ (p * (1 - p)).astype(np.float64, copy=False),)

    (own,) = reduce(problem.source, run, problem.threads)
    own = np.maximum(own, 1e-6 * own.max())
    return np.asarray(own / own.mean()) if own.max() > 0 else np.ones(problem.M)


def diagonal_metric(problem: Problem, p_of: Callable[[Block], np.ndarray], penalty: float) -> Product:
    """R ↦ M⁻¹ R with the diagonal of the Hessian, centred over the classes."""

    def run(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p = p_of(block).astype(np.float64, copy=False)
        h = p * (1 - p) * block.weight[:, None]
        x = problem.features(block)
        return squares(x, h), xt(x, h), over_rows(h)

    second, first, total = reduce(problem.source, run, problem.threads)
    c, inverse = problem.centre[:, None], problem.inverse[:, None]
    m = np.vstack([(second - 2 * c * first + c * c * total + penalty) * inverse**2, total])
    m[m <= 1e-30 * m.max()] = 1.0

    def apply(r: np.ndarray) -> np.ndarray:
        z = r / m
        # The inverse of the form on columns that sum to zero, as long as each row of m is nearly constant.
        return np.asarray(z if problem.binary else z - z.mean(axis=1, keepdims=True))

    return apply


Enough = Callable[[np.ndarray, np.ndarray], bool]


def conjugate_gradients(
    apply: Product, gradient: np.ndarray, metric: Product, tolerance: float, most: int, enough: Enough
) -> tuple[np.ndarray, int]:
    """S with `H S ≈ G`, and the number of products.

    Args:
        tolerance: on the residual's norm relative to that of G, both in the inverse of the metric.
        most: products.
        enough: of S and the residual; asked for once the tolerance is reached.
    """
    s, r = np.zeros_like(gradient), gradient.copy()
    z = metric(r)
    d = z.copy()
    rz = float((r * z).sum())
    target, count = tolerance**2 * rz, 0
    while count < most and rz > 0 and not (rz <= target and enough(s, r)):
        hd = apply(d)
        count += 1
        bend = float((d * hd).sum())
        if not bend > 0:
            break
        s += (rz / bend) * d
        r -= (rz / bend) * hd
        z = metric(r)
        new = float((r * z).sum())
        d *= new / rz
        d += z
        rz = new
    return (s if count and np.any(s) else z), count


def residual_left(
    problem: Problem, penalty: float, value: Value, aim: Aim, valid: Callable[[np.ndarray], bool] = lambda s: True
) -> Enough:
    """Whether `G − H S` leaves room for the certificate; it does where none is in sight or S is not `valid`."""

    def enough(s: np.ndarray, r: np.ndarray) -> bool:
        if not aim.near(float((value.gradient * s).sum())) or not valid(s):
            return True
        if penalty == 0:
            return float(np.linalg.norm(r) * np.linalg.norm(s)) <= aim.tol / 4
        return room_taken(problem, penalty, r) <= aim.tol / 8 and np.abs(r[-1]).sum() <= aim.tol / 30

    return enough


def room_taken(problem: Problem, penalty: float, residual: np.ndarray) -> float:
    """What a residual adds to the bound, `‖R_W‖² / (2λ)` in the units of the columns."""
    scale = np.divide(1, problem.inverse, where=problem.inverse > 0, out=np.zeros(problem.D))
    return float(np.square(residual[:-1] * scale[:, None]).sum()) / (2 * penalty)


@dataclass(eq=False)
class Conjugate:
    """The Newton step by conjugate gradients, with a metric that is refreshed when it has grown old."""

    problem: Problem
    penalty: float
    dtype: Any
    sample: Problem | None = None
    """The rows that the Gram matrix is made of."""
    most: int = 250
    unrelated: bool = False
    """The columns are, as far as is known, so that a diagonal serves as well as a Gram matrix of a sample."""
    current: Product | None = None
    """The metric that serves now."""
    _fresh: float = 0
    _last: int = 0

    def __call__(self, theta: np.ndarray, value: Value, aim: Aim, metric: Product | None = None) -> Direction:
        problem = self.problem
        p_of = probabilities(problem, theta, value.kept)
        apply = product(problem, p_of, self.penalty, self.dtype, aim.damping)
        metric = self.kept_metric(theta, p_of) if metric is None else metric
        certifies: list[bool] = []

        def valid(s: np.ndarray) -> bool:
            """Whether the dual point of S will be one, as far as a part of the rows tells, or else the decrement."""
            if not certifies and self.sample is not None:
                certifies.append(dual_point(self.sample, theta, s)[0].largest <= LARGE)
            elif not certifies:
                certifies.append(float((value.gradient * s).sum()) <= FAR)
            return certifies[0]

        enough = residual_left(problem, self.penalty, value, aim, valid)
        s, count = conjugate_gradients(apply, value.gradient, metric, 0.1, self.most, enough)
        self._fresh += count
        self._last = count
        if self.unrelated and count > TOO_MANY:
            self.unrelated, self.current = False, None
        if count >= self.most and self.dtype != np.float64:
            self.dtype, self.current = np.float64, None
        return Direction(s, certifies=all(certifies))

    def kept_metric(self, theta: np.ndarray, p_of: Callable[[Block], np.ndarray]) -> Product:
        """The metric, made anew at θ where it is worn out."""
        worn = self._last > WORN and self._fresh >= self.patience()
        if self.current is None or worn:
            self.current, self._fresh = self.metric(theta, p_of), 0
        return self.current

    def patience(self) -> float:
        """Products that cost as much as a new metric: a matrix times itself against thin, memory-bound products."""
        problem = self.problem
        if problem.D > MOST_GRAM or self.unrelated:
            return 0
        rows = problem.n if self.sample is None else self.sample.n
        return rows * problem.D / (problem.n * 8 * (problem.M + 4))

    def metric(self, theta: np.ndarray, p_of: Callable[[Block], np.ndarray]) -> Product:
        problem = self.problem
        if problem.D > MOST_GRAM:
            return diagonal_metric(problem, p_of, self.penalty)
        sample = self.sample
        if sample is not None:
            problem, p_of = sample, probabilities(sample, theta, None)
        if self.unrelated:
            return diagonal_metric(problem, p_of, self.penalty)
        return gram_metric(problem, p_of, self.penalty, self.dtype)


def conjugate_of(problem: Problem, penalty: float, rng: np.random.Generator) -> tuple[Conjugate, Any]:
    """The direction, and the dtype in which probabilities are kept: if they take no more than the data do."""
    dtype = np.float32 if not problem.sparse and low_precision(problem) else np.float64
    source = problem.source
    keep = sample = None
    unrelated = False
    if isinstance(source, Memory):
        keep = kept_dtype(problem, dtype)
        many = max(8 * (problem.D + 1), 4096)
        if problem.D <= MOST_GRAM and problem.n >= 2 * many:
            sample = problem.sample(random_rows(problem.n, many, rng))
        unrelated = CHEAP_GRAM < problem.D <= MOST_GRAM and not problem.sparse and columns_unrelated(problem, rng)
    return Conjugate(problem, penalty, dtype, sample, unrelated=unrelated), keep


def kept_dtype(problem: Problem, dtype: Any) -> Any:
    """The dtype in which a point's probabilities are kept; None where they take more than the data do and than KEPT."""
    source = problem.source
    if not isinstance(source, Memory):
        return None
    size = source.x.data.nbytes + source.x.indices.nbytes if problem.sparse else source.x.nbytes
    return dtype if problem.n * problem.M * np.dtype(dtype).itemsize <= max(size, KEPT) else None


def columns_unrelated(problem: Problem, rng: np.random.Generator) -> bool:
    """Whether the mean square of the eigenvalues of the columns' correlations, whose mean is 1, is near 1 too.

    Of two rows in standardised columns the expected square of their product is the sum of the squared eigenvalues, and
    pairs of few rows estimate it without the noise that the correlations of few rows have.
    """
    rows = random_rows(problem.n, min(problem.n, 512), rng)
    some = problem.sample(rows)
    x = np.vstack([some.features(block) for block in chain(some.source)])
    x = (x - problem.centre) * problem.inverse
    products = x @ x.T
    np.einsum("ii->i", products)[:] = 0.0
    pairs, used = len(x) * (len(x) - 1), int(np.count_nonzero(problem.inverse))
    return float(np.square(products).sum()) <= UNRELATED * pairs * max(1, used)


def newton_cg(problem: Problem, penalty: float, theta: np.ndarray, rng: np.random.Generator, **how: Any) -> Path:
    """Newton's method with `Conjugate` as its direction."""
    with one_thread():
        direct, keep = conjugate_of(problem, penalty, rng)
        return descend(problem, penalty, theta, direct, keep=keep, **how)


def low_precision(problem: Problem) -> bool:
    """Whether products in float32 keep enough digits: no mean is far above its column's spread, nor is that extreme."""
    size = problem.scale[~problem.constant]
    if not len(size):
        return False
    far = np.abs(problem.centre) * problem.inverse
    return bool(far.max() <= 30 and size.max() < 1e12 and size.min() > 1e-12)
