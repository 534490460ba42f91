"""The statistics of a target, and the passes over rows: each equals what is written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from likely.solvers.newton import hessian
from likely.solvers.passes import curvature, evaluate, gram, normalise
from likely.solvers.problem import Problem
from tests.solvers.plain import Case, random_case

SEEDS = range(8)


def numerical(case: Case, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    gradient, h = case.derivatives(theta)
    return case.loss(theta), gradient, h


def at(case: Case, seed: int) -> np.ndarray:
    theta = np.random.default_rng(seed).normal(size=(case.columns, case.x.shape[1] + 1))
    theta[:, -1] *= case.intercept
    return theta


@pytest.mark.parametrize("seed", SEEDS)
def test_value_gradient_and_hessian_are_those_of_the_definition(seed: int) -> None:
    case = random_case(seed)
    theta = at(case, seed)
    loss, gradient, h = numerical(case, theta)
    for block_rows in (7, None):
        problem = case.problem(block_rows=block_rows)
        standard = problem.to_standard(theta[:, :-1], theta[:, -1])
        value = evaluate(problem, standard, case.penalty)
        assert value.loss == pytest.approx(loss, rel=1e-12)
        inverse = np.r_[problem.inverse, 1.0]
        wanted = gradient.T.copy()
        if case.intercept:
            wanted[:-1] -= problem.centre[:, None] * wanted[-1]
        np.testing.assert_allclose(value.gradient, wanted * inverse[:, None], atol=1e-12)
        got = hessian(problem, theta[:, :-1], theta[:, -1], case.penalty)
        free = np.ones(h.shape[0], dtype=bool)
        if not case.intercept:  # then its rows are of no use
            free[case.x.shape[1] :: case.x.shape[1] + 1] = False
        np.testing.assert_allclose(got[np.ix_(free, free)], h[np.ix_(free, free)], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_there_and_back(seed: int) -> None:
    case = random_case(seed)
    theta, problem = at(case, seed), case.problem()
    coef, intercept = problem.from_standard(problem.to_standard(theta[:, :-1], theta[:, -1]))
    np.testing.assert_allclose(coef, theta[:, :-1], rtol=1e-12)
    np.testing.assert_allclose(intercept, theta[:, -1], rtol=1e-12, atol=1e-12)


def forms(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> Iterator[tuple[str, Problem]]:
    def stream() -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(x), 11):
            rows = slice(start, start + 11)
            yield x[rows], y[rows], w[rows]

    K = int(y.max()) + 1
    yield "labels", Problem.make(x, y, w, classes=K)
    yield "distributions", Problem.make(x, np.eye(K)[y], w, classes=K)
    yield "sparse", Problem.make(scipy.sparse.csr_matrix(x), y, w, classes=K)
    yield "columns first", Problem.make(scipy.sparse.csc_matrix(x), y, w, classes=K)
    yield "fortran", Problem.make(np.asfortranarray(x), y, w, classes=K)
    yield "blocks", Problem.make(x, y, w, classes=K, block_rows=5)
    yield "stream", Problem.make(stream, classes=K)
    repeated = np.repeat(np.arange(len(x)), w.astype(int))
    yield "repeated rows", Problem.make(x[repeated], y[repeated], classes=K)


def test_every_form_is_the_same_problem() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(50, 3)).round(2) + 1, rng.integers(0, 3, 50), rng.integers(1, 4, 50).astype(float)
    one = Problem.make(x, y, w, classes=3)
    theta = rng.normal(size=(4, 3))
    value, h = evaluate(one, theta, 0.1), curvature(one, theta, 2)
    metric = gram(one, lambda block: block.weight)
    np.testing.assert_allclose(np.diag(metric), 1, atol=1e-12)
    for name, other in forms(x, y, w):
        np.testing.assert_allclose(other.statistic, one.statistic, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(other.masses, one.masses, atol=1e-13, err_msg=name)
        assert (other.n >= one.n, other.total) == (True, w.sum()), name
        again = evaluate(other, theta, 0.1)
        assert again.loss == pytest.approx(value.loss, rel=1e-13), name
        np.testing.assert_allclose(again.gradient, value.gradient, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(curvature(other, theta, 2), h, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(gram(other, lambda block: block.weight), metric, atol=1e-12, err_msg=name)
    low = Problem.make(x.astype(np.float32), y, w, classes=3)
    assert evaluate(low, theta, 0.1).loss == pytest.approx(value.loss, rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_smoothing_is_affine(eps: float) -> None:
    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(20, 2)), rng.dirichlet(np.ones(3), 20)
    mixed = (1 - eps) * q + eps / 3
    one, other = Problem.make(x, q, classes=3, label_smoothing=eps), Problem.make(x, mixed, classes=3)
    np.testing.assert_allclose(one.statistic, other.statistic, atol=1e-14)
    np.testing.assert_allclose(one.masses, other.masses, atol=1e-14)
    assert one.entropy == pytest.approx(other.entropy, rel=1e-13)
    y = rng.integers(0, 3, 20)
    smooth = Problem.make(x, y, classes=3, label_smoothing=eps)
    assert smooth.entropy == pytest.approx(
        Problem.make(x, (1 - eps) * np.eye(3)[y] + eps / 3, classes=3).entropy, abs=1e-14
    )


def test_means_far_from_zero_cost_no_digits() -> None:
    """Seconds since 1970 that differ by an hour: x and x − 1.7e9 are one problem."""
    rng = np.random.default_rng(2)
    hours, y = rng.normal(size=(200, 1)).round(3), rng.integers(0, 2, 200)
    near = Problem.make(hours * 2.0**12, y, classes=2, binary=True)
    far = Problem.make(hours * 2.0**12 + 2.0**31, y, classes=2, binary=True)
    theta = np.array([[0.7], [0.1]])
    np.testing.assert_allclose(far.scale, near.scale, rtol=1e-6)
    assert float(far.mean[0]) == pytest.approx(2.0**31 + float(near.mean[0]), rel=1e-12)
    assert evaluate(far, theta, 0.0).loss == pytest.approx(evaluate(near, theta, 0.0).loss, rel=1e-6)
    np.testing.assert_allclose(evaluate(far, theta, 0.0).gradient, evaluate(near, theta, 0.0).gradient, atol=1e-6)
    h = hessian(far, np.zeros((1, 1)), np.zeros(1))
    assert h[0, 0] == pytest.approx(0.25 * np.mean((hours * 2.0**12 + 2.0**31) ** 2), rel=1e-9)


@pytest.mark.parametrize("columns", [1, 3])
def test_nothing_overflows_and_small_probabilities_keep_their_digits(columns: int) -> None:
    z = np.array([-1e30, -800.0, -40.0, 0.0, 40.0, 800.0, 1e30])[:, None] * np.r_[1.0, np.zeros(columns - 1)]
    a, p = normalise(z.copy())
    others = max(columns - 1, 1)
    assert np.isfinite(a).all()
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p[2, 0], np.exp(-40) / (others + np.exp(-40)), rtol=1e-13)
    np.testing.assert_allclose(a[2], np.log(others) + np.log1p(np.exp(-40) / others), rtol=1e-13)
    assert a[-1] == 1e30


def test_what_does_not_fit_is_named() -> None:
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="row 2 holds 7, which is no class"):
        Problem.make(x, np.array([0, 1, 7, 1]), classes=2)
    with pytest.raises(ValueError, match="target: has 3 rows where X has 4"):
        Problem.make(x, y[:3], classes=2)
    with pytest.raises(ValueError, match="row 1 holds -1"):
        Problem.make(x, y, np.array([1.0, -1, 1, 1]), classes=2)
    with pytest.raises(ValueError, match="weight: sums to 0"):
        Problem.make(x, y, np.zeros(4), classes=2)
    with pytest.raises(ValueError, match="row 3, column 1 holds nan"):
        Problem.make(np.where(np.arange(8).reshape(4, 2) == 7, np.nan, x), y, classes=2)
    with pytest.raises(ValueError, match="binary: the target has 3 classes"):
        Problem.make(x, y, classes=3, binary=True)
    with pytest.raises(ValueError, match="offset: has shape"):
        Problem.make(x, y, classes=2, offset=np.zeros(4))
    with pytest.raises(ValueError, match=r"block 1 \(row 4\) has 3 columns"):
        Problem.make(lambda: iter([(x, y), (np.ones((4, 3)), y)]), classes=2)
    with pytest.raises(ValueError, match="X: has no rows"):
        Problem.make(lambda: iter(()), classes=2)
    many = iter([2, 2, 1])  # the first look is at the first block alone
    shrinking = Problem.make(lambda: iter([(x, y)] * next(many)), classes=2)
    with pytest.raises(ValueError, match="8 rows at first and 4 in a later pass"):
        evaluate(shrinking, np.ones((3, 2)), 0.0)
