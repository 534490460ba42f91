"""The certificate: never below the true gap, close to it near the optimum, and silent where it does not exist."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import scipy.special
import statsmodels.api as sm

from likely.solvers.certificate import _transferred, certify, dual_point, gap
from likely.solvers.passes import evaluate
from likely.solvers.problem import Problem
from likely.solvers.solve import solve
from tests.solvers.plain import random_case


@pytest.mark.parametrize("hundred", range(3))
def test_the_bound_is_never_below_the_true_gap(hundred: int) -> None:
    """At random points, on the way to the optimum and beside it, from exact, inexact and senseless steps."""
    kinds, slack = set(), 5e-15
    for seed in range(100 * hundred, 100 * hundred + 100):
        case, rng = random_case(seed), np.random.default_rng(seed)
        best, least = case.minimum(25)
        problem = case.problem()
        away = rng.normal(size=best.shape) / np.r_[case.x.std(axis=0), 1.0]
        for size, noise in itertools.product([0.0, 1e-7, 1e-3, 0.1, 3.0], [0.0, 1e-3, 1.0]):
            theta = best + size * away
            theta[:, -1] *= case.intercept
            step = case.step(theta) * (1 + noise * rng.normal(size=best.shape))
            found = gap(problem, theta[:, :-1], theta[:, -1], case.penalty, (step[:, :-1], step[:, -1]))
            truth = case.loss(theta) - least
            kinds.add(found.kind)
            assert not found.conditional
            assert found.gap >= truth - slack * (1 + abs(least)), (seed, size, noise, found, truth)
    assert kinds == {"newton", "gradient", "entropy"}


@pytest.mark.parametrize("seed", range(12))
def test_near_the_optimum_the_bound_is_the_gap(seed: int) -> None:
    case = random_case(seed, penalty=1e-3 if seed % 2 else 0.0)
    best, least = case.minimum()
    theta = best + 1e-5 * np.random.default_rng(seed).normal(size=best.shape) / np.r_[case.x.std(axis=0), 1.0]
    theta[:, -1] *= case.intercept
    found = gap(case.problem(), theta[:, :-1], theta[:, -1], case.penalty)
    assert found.kind == "newton"
    assert found.conditional == (case.penalty == 0)
    assert found.gap == pytest.approx(case.loss(theta) - least, rel=5e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_against_fifty_digits(binary: bool) -> None:
    """Where float64 sees no gap any more, the bound still is one: nothing cancels in it."""
    x, y, penalty = np.array([[0.0], [1.0], [2.0], [4.0]]), np.array([0, 1, 0, 1]), 0.01
    problem = Problem.make(x, y, classes=2, binary=binary)

    def loss(w: mpmath.mpf, b: mpmath.mpf) -> mpmath.mpf:
        terms = (mpmath.log(1 + mpmath.exp(-(2 * t - 1) * (w * float(v) + b))) for v, t in zip(x[:, 0], y))
        # Two columns of a softmax carry half the difference each.
        return sum(terms) / 4 + mpmath.mpf(penalty) / (2 if binary else 4) * w**2

    found = solve(problem, penalty, tol=1e-14)
    w, b = (
        (found.coef[0, 0], found.intercept[0])
        if binary
        else (np.diff(found.coef[:, 0])[0], np.diff(found.intercept)[0])
    )
    with mpmath.workdps(50):
        root = mpmath.findroot(
            lambda u, v: [mpmath.diff(loss, (u, v), (1, 0)), mpmath.diff(loss, (u, v), (0, 1))], (w, b)
        )
        for away in (1e-5, 1e-7):
            half = np.array([[away]]) if binary else np.array([[-away / 2], [away / 2]])
            at = gap(problem, found.coef + half, found.intercept, penalty)
            truth = float(loss(mpmath.mpf(float(w)) + away, mpmath.mpf(float(b))) - loss(*root))
            assert truth * (1 - 1e-6) <= at.gap <= truth * 1.01


def test_it_tracks_the_truth_on_real_data() -> None:
    data = sm.datasets.anes96.load_pandas()
    x, y = data.exog.to_numpy(float), data.endog.to_numpy(int)
    problem = Problem.make(x, y, classes=7)
    best = solve(problem, tol=1e-15).loss
    theta = np.zeros((problem.D + 1, 7))
    from likely.solvers.newton import newton_step

    told = []
    for _ in range(5):
        value = evaluate(problem, theta, 0.0)
        step = newton_step(problem, theta, value, 0.0)
        told.append((certify(problem, theta, value, step, 0.0).gap, value.loss - best))
        theta = theta - step
    assert told[3][0] == pytest.approx(told[3][1], rel=1e-4)
    assert told[2][0] == pytest.approx(told[2][1], rel=1e-2)


def test_where_the_step_leaves_the_simplex_there_is_no_dual_point() -> None:
    case = random_case(3, penalty=0.0)
    problem = case.problem()
    theta = np.zeros((problem.D + 1, problem.M))
    far = np.full_like(theta, 50.0) * np.arange(1, problem.M + 1)
    dual, _ = dual_point(problem, theta, far)
    assert dual.largest > 1
    assert certify(problem, theta, evaluate(problem, theta, 0.0), far, 0.0).kind == "entropy"


def test_value_ahead_is_the_value_there() -> None:
    case = random_case(4)
    problem = case.problem(block_rows=7)
    rng = np.random.default_rng(0)
    theta, s = rng.normal(size=(2, problem.D + 1, problem.M))
    _, ahead = dual_point(problem, theta, s, forward=True, penalty=0.3)
    there = evaluate(problem, theta - s, 0.3)
    assert ahead is not None
    assert ahead.loss == pytest.approx(there.loss, rel=1e-13)
    np.testing.assert_allclose(ahead.gradient, there.gradient, atol=1e-12)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_distributions_are_moved_to_the_masses_of_the_target(seed: int, binary: bool) -> None:
    """What is told of them from sums, against the distributions themselves, row by row."""
    rng = np.random.default_rng(seed)
    n, D, K = 60, 3, 2 if binary else 6
    x, w = rng.normal(size=(n, D)) * [1e-2, 1, 30], rng.uniform(0.5, 2, n)
    q = rng.dirichlet(np.ones(K), n)
    problem = Problem.make(x, q, w, classes=K, binary=binary)
    M = problem.M
    theta, s = rng.normal(size=(D + 1, M)), 0.05 * rng.normal(size=(D + 1, M))
    value = evaluate(problem, theta, 0.1)
    dual, _ = dual_point(problem, theta, s)
    assert dual.largest <= 1
    moment, divergence = _transferred(problem, *problem.raw(theta), value, dual)
    (a, b), (c, d) = problem.raw(theta), problem.raw(s)
    z, step = x @ a + b, x @ c + d
    if binary:
        z, step = np.hstack([0 * z, z]), np.hstack([0 * step, step])
    p = scipy.special.softmax(z, axis=1)
    near = p * (1 - step + (p * step).sum(axis=1, keepdims=True))
    share = w / w.sum()
    mass, wanted = share @ near, share @ q
    over, under = np.maximum(mass - wanted, 0) / mass, np.maximum(wanted - mass, 0)
    moved = near * (1 - over) + (near @ over)[:, None] * under / under.sum()
    np.testing.assert_allclose(moved.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(share @ moved, wanted, rtol=1e-12)
    whole = (x * share[:, None]).T @ moved
    np.testing.assert_allclose(moment, whole[:, 1:] if binary else whole, rtol=1e-9, atol=1e-12)
    exact = share @ (moved * np.log(moved / p)).sum(axis=1)
    assert exact <= divergence * (1 + 1e-12)
    assert divergence < exact + 0.2 * np.abs(mass - wanted).sum() * (1 + np.abs(np.log(p)).max())
