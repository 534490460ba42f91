"""Newton's method with a Cholesky factor of the Hessian.

Shapes: n rows, D features, K classes, M columns of parameters; θ, S and derivatives are (D + 1, M), in standardised
columns, the intercept last. The softmax is solved in the differences to its last class, and comes back with columns
that sum to zero over the classes.

Source: Nocedal and Wright, Numerical Optimization (2006), section 3.3.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import scipy.linalg

from likely.solvers.descend import Direction, Path, descend
from likely.solvers.passes import Value, curvature
from likely.solvers.problem import Problem
from likely.solvers.rows import one_thread

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
    many = 1 if problem.binary else problem.K - 1
    h = curvature(problem, theta, many)
    s = solve_reduced(problem, h, value.gradient, penalty)
    if penalty > 0 and not problem.binary:
        # What the classes have in common only the penalty sees: a Newton step takes all of it away.
        s[:-1] += theta[:-1].mean(axis=1, keepdims=True)
    return s


def newton_cholesky(problem: Problem, penalty: float, theta: np.ndarray, **how: Any) -> Path:
    """Newton's method with the whole Hessian at each step."""

    def direct(theta: np.ndarray, value: Value, tol: float) -> Direction:
        return Direction(newton_step(problem, theta, value, penalty), exact=True)

    alone = parameters_of(problem) <= SMALL_FACTOR
    with one_thread() if alone else contextlib.nullcontext():
        return descend(problem, penalty, theta, direct, **how)


def parameters_of(problem: Problem) -> int:
    """Those that are free: the columns of a softmax are determined up to what they have in common."""
    return (problem.D + 1) * max(1, problem.M - 1)


def solve_reduced(problem: Problem, h: np.ndarray, gradient: np.ndarray, penalty: float) -> np.ndarray:
    """S from the Hessian of `Σ w A` by all classes but the last; the penalty and what keeps it regular are added here.

    Of `‖W‖²` for W with columns that sum to zero, written in the differences to the last class, the Hessian is
    `(1[k = l] − 1/K) I`.
    """
    R = problem.D + 1
    many = h.shape[0] // R
    blocks = h.reshape(many, R, many, R)
    ridge = np.r_[penalty * problem.inverse**2, 0.0]
    for k in range(many):
        for l in range(many):
            share = 1.0 if problem.binary else float(k == l) - 1 / problem.K
            np.einsum("ii->i", blocks[k, :, l])[:] += share * ridge
    # A column without a coefficient, and an intercept that is not there, keep a 1 on the diagonal.
    diagonal = np.einsum("ii->i", h)
    diagonal[diagonal <= 0] = 1.0
    centred = gradient if problem.binary else gradient - gradient.mean(axis=1, keepdims=True)
    rhs = centred[:, :many].T.reshape(-1)
    s = solve_positive(h, rhs).reshape(many, R).T
    if problem.binary:
        return s
    s = np.hstack([s, np.zeros((R, 1))])
    return s - s.mean(axis=1, keepdims=True)


def solve_positive(h: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """`h⁻¹ rhs` by Cholesky after scaling to a unit diagonal; with the least shift of it that makes that possible."""
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
        s = scipy.linalg.cho_solve(factor, root * rhs, check_finite=False)
        # One step of refinement; where the matrix is nearly singular it is worth a digit or two.
        s += scipy.linalg.cho_solve(factor, root * rhs - shifted @ s, check_finite=False)
        if np.isfinite(s).all():
            return np.asarray(root * s)
    return np.asarray(rhs)
