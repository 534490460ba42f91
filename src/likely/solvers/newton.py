"""Newton's method with a Cholesky factor of the Hessian.

Shapes: n rows, D features, K classes, M columns of parameters; θ, S and derivatives are (D + 1, M), in standardised
columns, the intercept last. The softmax is solved in the differences to its last class, and comes back with columns
that sum to zero over the classes.

Source: Nocedal and Wright, Numerical Optimization (2006), section 3.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from likely.solvers.conjugate import conjugate_gradients, kept_dtype, probabilities, product, residual_left, room_taken
from likely.solvers.descend import Aim, Direction, Path, descend
from likely.solvers.passes import Value, cheap_curvature, curvature
from likely.solvers.problem import Problem
from likely.solvers.rows import one_thread

FRESH = 0.1
"""What a product may leave of the square of the residual where the Hessian is that of the last point."""
SMALL_FACTOR = 1000
"""Up to so many parameters a factor is done before other threads have woken up."""


def hessian(problem: Problem, coef: np.ndarray, intercept: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    """The Hessian of F by the coefficients and intercepts, in the units of the columns.

    `H_kl = Σ w p_k (1[k = l] − p_l) (x, 1)(x, 1)' + λ 1[k = l] diag(1, …, 1, 0)`, class-major, each class's features
    before its intercept. For K classes it is singular: what is added to all classes changes nothing.

    Args:
        coef, intercept: (M, D) and (M,), with M = K, or 1 for a binary model.
        penalty: λ.

    Returns: (M·(D + 1), M·(D + 1)).

    Source: Böhning, Multinomial logistic regression algorithm (1992).

    >>> x, y = np.array([[0.0], [1.0]]), np.array([0, 1])
    >>> hessian(Problem.make(x, y, classes=2, binary=True), np.zeros((1, 1)), np.zeros(1))
    array([[0.125, 0.125],
           [0.125, 0.25 ]])
    """
    theta = problem.to_standard(coef, intercept)
    R = problem.D + 1
    h = curvature(problem, theta, problem.M, standard=False)
    blocks = h.reshape(problem.M, R, problem.M, R)
    if problem.shift is not None:
        blocks[:, :-1] += problem.shift[:, None, None] * blocks[:, -1:]
        blocks[..., :-1] += problem.shift * blocks[..., -1:]
    np.einsum("ii->i", h).reshape(problem.M, R)[:, :-1] += penalty
    return h


def newton_step(problem: Problem, theta: np.ndarray, value: Value, penalty: float) -> np.ndarray:
    """S with `H S = G` at θ; F falls along −S."""
    return with_common(problem, theta, factored(problem, theta, penalty)(value.gradient, refine=True), penalty)


Metric = Callable[..., np.ndarray]
"""G ↦ S, near that with `H S = G`; `refine=True` is worth a digit or two where H is nearly singular."""


def factored(
    problem: Problem,
    at: np.ndarray,
    penalty: float,
    rows: Problem | None = None,
    damping: float = 0.0,
    kept: dict[int, np.ndarray] | None = None,
) -> Metric:
    """The solver of `(H + μ) S = G` with the Hessian at a point, of some of the rows where they are given."""
    many = 1 if problem.binary else problem.K - 1
    return reduced(problem, curvature(rows or problem, at, many, kept=kept), penalty, damping)


@dataclass(eq=False)
class Lagged:
    """The Newton step by a factor of the Hessian, or by conjugate gradients with that of an earlier point.

    A product with the Hessian costs what a value costs, and a new Hessian about `price` times as much. So an old factor
    serves until a solve with it takes more than a third of that; one that takes all of it has been in vain. Without a
    penalty the last step is solved by a factor: there the certificate leaves no room for a residual.
    """

    problem: Problem
    penalty: float
    metric: Metric | None = None
    rate: float = 1.0
    """What a product leaves of the square of the residual, as far as is known."""
    _worn: bool = False

    @property
    def price(self) -> int:
        parameters = parameters_of(self.problem)
        return max(2, 1 + parameters // 20) if cheap_curvature(self.problem) else 2 + parameters // 10

    def __call__(self, theta: np.ndarray, value: Value, aim: Aim) -> Direction:
        problem, penalty, gradient = self.problem, self.penalty, value.gradient
        if self.metric is not None and not self._worn and self.pays(value, aim):
            p_of = probabilities(problem, theta, value.kept)
            apply = product(problem, p_of, penalty, np.float64, aim.damping)
            room = residual_left(problem, penalty, value, aim)
            s, count = conjugate_gradients(apply, gradient, self.metric, 0.1, self.price, room)
            self._worn, self.rate = count > self.price / 3, FRESH
            if count < self.price:
                return Direction(s)
        self.metric = factored(problem, theta, penalty, damping=aim.damping, kept=value.kept)
        self._worn, self.rate = False, FRESH
        s = self.metric(gradient, refine=True)
        return Direction(with_common(problem, theta, s, penalty), exact=True)

    def pays(self, value: Value, aim: Aim) -> bool:
        """Whether conjugate gradients are likely to leave a small enough residual for the price."""
        assert self.metric is not None
        if not aim.near(float((value.gradient * self.metric(value.gradient)).sum())):
            return True
        if self.penalty == 0:
            return False
        left = room_taken(self.problem, self.penalty, value.gradient) / (aim.tol / 8)
        return left <= self.rate**-self.price


def with_common(problem: Problem, theta: np.ndarray, s: np.ndarray, penalty: float) -> np.ndarray:
    """What the classes have in common only the penalty sees: a Newton step takes all of it away."""
    if penalty > 0 and not problem.binary:
        s[:-1] += theta[:-1].mean(axis=1, keepdims=True)
    return s


def newton_cholesky(
    problem: Problem, penalty: float, theta: np.ndarray, *, start: Metric | None = None, rate: float = 1.0, **how: Any
) -> Path:
    """Newton's method with the whole Hessian, formed anew where that pays.

    Args:
        start: what solves with a Hessian near that at θ. rate: as `Lagged` has it, for this.
    """
    alone = parameters_of(problem) <= SMALL_FACTOR
    keep = kept_dtype(problem, np.float64)
    with one_thread() if alone else contextlib.nullcontext():
        return descend(problem, penalty, theta, Lagged(problem, penalty, start, rate), keep=keep, **how)


def parameters_of(problem: Problem) -> int:
    """Those that are free: the columns of a softmax are determined up to what they have in common."""
    return (problem.D + 1) * max(1, problem.M - 1)


def reduced(problem: Problem, h: np.ndarray, penalty: float, damping: float = 0.0) -> Metric:
    """G ↦ S with the Hessian of `Σ w A` by all classes but the last, to which the penalty is added, and what keeps it
    regular.

    Of `‖W‖²` for W with columns that sum to zero, written in the differences to the last class, the Hessian is
    `(1[k = l] − 1/K) I`.
    """
    R = problem.D + 1
    many = h.shape[0] // R
    blocks = h.reshape(many, R, many, R)
    ridge = np.r_[penalty * problem.inverse**2, 0.0] + damping
    for k in range(many):
        for l in range(many):
            share = 1.0 if problem.binary else float(k == l) - 1 / problem.K
            np.einsum("ii->i", blocks[k, :, l])[:] += share * ridge
    # A column without a coefficient, and an intercept that is not there, keep a 1 on the diagonal.
    diagonal = np.einsum("ii->i", h)
    diagonal[diagonal <= 0] = 1.0
    inverse = positive(h)

    def apply(gradient: np.ndarray, refine: bool = False) -> np.ndarray:
        centred = gradient if problem.binary else gradient - gradient.mean(axis=1, keepdims=True)
        s = inverse(centred[:, :many].T.reshape(-1), refine).reshape(many, R).T
        if problem.binary:
            return s
        s = np.hstack([s, np.zeros((R, 1))])
        return np.asarray(s - s.mean(axis=1, keepdims=True))

    return apply


def positive(h: np.ndarray) -> Callable[[np.ndarray, bool], np.ndarray]:
    """`r ↦ h⁻¹ r` by Cholesky after scaling to a unit diagonal; with the least shift of it that makes that possible."""
    root = 1 / np.sqrt(np.einsum("ii->i", h))
    h *= root
    h *= root[:, None]
    for shift in (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0):
        shifted = h
        if shift:
            shifted = h.copy()
            np.einsum("ii->i", shifted)[:] += shift
        try:
            factor = scipy.linalg.cho_factor(shifted, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(factor[0]).all():
            return lambda rhs, refine: root * _solved(factor, shifted, root * rhs, refine)
    return lambda rhs, refine: rhs


def _solved(factor: Any, h: np.ndarray, rhs: np.ndarray, refine: bool) -> np.ndarray:
    s = scipy.linalg.cho_solve(factor, rhs, check_finite=False)
    return np.asarray(s + scipy.linalg.cho_solve(factor, rhs - h @ s, check_finite=False) if refine else s)
