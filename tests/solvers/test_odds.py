"""The compiled passes of a binary model, in every instruction set that this processor has, against their definition."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import expit, xlog1py

from likely.kernels import native
from likely.kernels.native import odds
from likely.kernels.native.odds import Rows, padded
from likely.solvers import certificate
from likely.solvers.problem import Problem
from likely.solvers.solve import solve

SETS = [name for name in native.available() if name != "plain"]
SHAPES = [(1, 1), (3, 5), (64, 7), (65, 8), (77, 15), (130, 17), (200, 30), (90, 160)]

pytestmark = pytest.mark.skipif(not SETS, reason="the passes were not built: no C++ compiler was found")


@pytest.fixture(params=SETS, autouse=True)
def row_pass(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


class Given:
    """Rows with weights, offsets, labels and parameters whose log odds are as large as `size`."""

    def __init__(self, n: int, D: int, size: float = 2.0, step: float = 0.3, seed: int = 0) -> None:
        rng = np.random.default_rng((n, D, seed))
        self.x, self.offset = rng.standard_normal((n, D)), rng.standard_normal(n)
        self.w = rng.random(n) / n
        self.y = rng.integers(0, 2, n)
        self.theta = size * rng.standard_normal(D + 1) / np.sqrt(D + 1)
        self.s = step * rng.standard_normal(D + 1) / np.sqrt(D + 1)
        self.rows = Rows(self.x, self.w, self.offset)
        self.design = np.hstack([self.x, np.ones((n, 1))])
        self.z, self.step = self.design @ self.theta + self.offset, self.design @ self.s
        self.p, self.rest = expit(self.z), expit(-self.z)


def same(found: object, wanted: object, digits: float = 1e-13) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=digits, atol=digits * np.abs(wanted).max())


@pytest.mark.parametrize(("n", "D"), SHAPES)
@pytest.mark.parametrize("size", [0.1, 3.0, 200.0])
def test_each_pass_is_its_definition(n: int, D: int, size: float) -> None:
    g = Given(n, D, size)
    first, t, squares = g.rows.moments(g.w * g.y)
    same(first, g.design.T @ g.w)
    same(t, g.design.T @ (g.w * g.y))
    same(squares, (g.x**2).T @ g.w)

    softplus = np.logaddexp(0, g.z)
    _, normaliser, sums, p = g.rows.value(padded(g.theta), want_p=True)
    same(normaliser, g.w @ softplus)
    same(sums, g.design.T @ (g.w * g.p))
    same(p, np.minimum(g.p, g.rest))

    loss, normaliser, sums, p = g.rows.value(padded(g.theta), g.y)
    same(loss, g.w @ np.logaddexp(0, np.where(g.y == 1, -g.z, g.z)))
    same(normaliser, g.w @ softplus)
    same(sums, g.design.T @ (g.w * np.where(g.y == 1, -g.rest, g.p)))
    assert p is None

    h = g.p * g.rest
    same(g.rows.product(padded(g.s), h), g.design.T @ (g.w * h * g.step))
    same(g.rows.curvature(padded(g.theta)), g.design.T @ ((g.w * h)[:, None] * g.design))
    same(g.rows.curvature(padded(g.theta), np.minimum(g.p, g.rest)), g.design.T @ ((g.w * h)[:, None] * g.design))

    same(g.rows.gram(), g.design.T @ (g.w[:, None] * g.design))

    found = g.rows.dual(padded(g.theta), padded(g.s))
    up, down = g.rest * g.step, -g.p * g.step
    same(found.largest, max(up.max(), down.max()))
    each = g.p * (xlog1py(1 - up, -up) + up) + g.rest * (xlog1py(1 - down, -down) + down)
    same(found.divergence, g.w @ each, 1e-12)
    same(found.sums, g.design.T @ (g.w * g.p * (1 - up)))
    same(found.product, (g.w * g.p * (1 - up)) @ softplus)
    there = g.z - g.step
    same(found.ahead, g.design.T @ (g.w * expit(there)))
    same(found.normaliser, g.w @ np.logaddexp(0, there))


@pytest.mark.parametrize("delta", [0.0, 1e-12, -1e-9, 1e-6, -1e-3, 0.1, -0.4, 0.5, -0.7, 0.99, 1 - 1e-12, -30.0])
def test_the_divergence_keeps_its_digits(delta: float) -> None:
    """(1 − δ) log(1 − δ) + δ of one row whose p is 1/2, where δ of the other class is −δ."""
    import mpmath

    dual = Rows(np.ones((1, 1)), np.ones(1)).dual(padded(np.zeros(2)), padded(np.array([2 * delta, 0.0])))
    with mpmath.workdps(60):
        parts = [(1 - d) * mpmath.log(1 - d) + d for d in (mpmath.mpf(delta), -mpmath.mpf(delta)) if d < 1]
        wanted = float(sum(parts) / 2)
    if abs(delta) < 1:
        assert dual.divergence == pytest.approx(wanted, rel=1e-14, abs=0)
    assert dual.largest == abs(delta)


@pytest.mark.parametrize("z", [0.0, 1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 40.0, 300.0, 700.0])
def test_softplus_keeps_its_digits(z: float) -> None:
    _, found, sums, p = Rows(np.ones((1, 1)), np.ones(1)).value(padded(np.array([-z, 0.0])), want_p=True)
    assert found == pytest.approx(np.log1p(np.exp(-z)), rel=1e-15, abs=0)
    assert sums[0] == pytest.approx(expit(-z), rel=1e-15, abs=0)
    assert p is not None
    assert p[0] == sums[0]


def test_a_class_that_is_given_up_costs_its_whole_probability() -> None:
    dual = Rows(np.ones((1, 1)), np.ones(1)).dual(padded(np.zeros(2)), padded(np.array([2.0, 0.0])))
    assert dual.largest == 1
    assert dual.divergence == pytest.approx(np.log(2), rel=1e-15, abs=0)


def test_no_row_overflows_and_nan_stays() -> None:
    x = np.array([[800.0], [-800.0], [1e5], [-1e5], [0.0]])
    loss, normaliser, _, p = Rows(x, np.ones(5)).value(
        padded(np.array([1.0, 0.0])), np.array([0, 1, 1, 0, 0]), want_p=True
    )
    assert p is not None
    np.testing.assert_array_equal(p, [0, 0, 0, 0, 0.5])
    same(loss, 1600 + np.log(2))
    same(normaliser, 800 + 1e5 + np.log(2))
    loss, normaliser, sums, p = Rows(np.array([[np.nan], [1.0]]), np.ones(2)).value(padded(np.ones(2)), want_p=True)
    assert np.isnan([normaliser, *sums]).all()
    assert p is not None
    np.testing.assert_allclose(p, [np.nan, expit(-2.0)], rtol=1e-15)


def test_rows_of_a_wider_array_are_served_and_others_are_not() -> None:
    wide = np.random.default_rng(1).standard_normal((50, 20))
    x, w = wide[:, 3:12], np.full(50, 0.02)
    assert odds.serves(x)
    theta = padded(np.linspace(-1, 1, 10))
    for found, wanted in zip(Rows(x, w).value(theta)[1:3], Rows(x.copy(), w).value(theta)[1:3]):
        same(found, wanted, 1e-15)
    no_features, reversed_rows = np.zeros((3, 0)), wide[::-1]
    for other in (np.asfortranarray(wide), wide.astype(np.float32), wide[:, ::2], no_features, reversed_rows):
        assert not odds.serves(other)
    with native.using("plain"):
        assert not odds.serves(x)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("solver", ["newton-cholesky", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_a_fit_is_what_it_is_without_them(soft: bool, solver: str, penalty: float) -> None:
    rng = np.random.default_rng(7)
    n, D = 3000, 12
    x = rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) * np.logspace(-3, 3, D)
    q = expit((x / x.std(axis=0)) @ rng.standard_normal(D) + 0.5)
    target = np.stack([1 - q, q], axis=1) if soft else (rng.random(n) < q).astype(int)
    offset, weight = 0.3 * rng.standard_normal(n), rng.random(n)

    def fit() -> np.ndarray:
        problem = Problem.make(x, target, weight, classes=2, binary=True, offset=offset, block_rows=700)
        found = solve(problem, penalty, solver=solver, tol=1e-12)
        assert found.converged
        return np.append(found.coef[0] * problem.scale, found.intercept)

    compiled = fit()
    with native.using("plain"):
        np.testing.assert_allclose(compiled, fit(), rtol=1e-6, atol=1e-7)


def test_certificates_are_what_they_are_without_them() -> None:
    g = Given(400, 9, 1.5)
    problem = Problem.make(g.x, g.y, g.w, classes=2, binary=True)
    coef, intercept = np.linspace(-0.4, 0.6, 9)[None], np.array([0.1])
    for penalty in (0.0, 0.02):
        found = certificate.gap(problem, coef, intercept, penalty)
        with native.using("plain"):
            plain = certificate.gap(problem, coef, intercept, penalty)
        assert found.kind == plain.kind == "newton"
        assert found.gap == pytest.approx(plain.gap, rel=1e-10)
