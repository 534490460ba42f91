"""The solvers: they find the optimum of every kind of problem, certify it, and say what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import statsmodels.api as sm
from sklearn.datasets import load_digits, load_iris

from likely.solvers import conjugate
from likely.solvers import solve as module
from likely.solvers.newton import hessian
from likely.solvers.problem import Problem
from likely.solvers.solve import SOLVERS, Step, solve
from tests.solvers.plain import random_case

SPECTOR = [2.82611297201, 0.0951576702557, 2.37868772835, -13.0213483201]
SPECTOR_ERRORS = [1.26294114526, 0.141554207662, 1.06456430165, 4.93132462871]
SPECTOR_LIKELIHOOD = -12.8896334653335


def spector() -> tuple[np.ndarray, np.ndarray]:
    """GPA as Stata's file has it, in float32."""
    data = sm.datasets.spector.load_pandas()
    x = data.exog[["GPA", "TUCE", "PSI"]].to_numpy(float)
    x[:, 0] = x[:, 0].astype(np.float32)
    return x, data.endog.to_numpy(int)


@pytest.mark.parametrize("solver", SOLVERS)
def test_spector(solver: str) -> None:
    x, y = spector()
    problem = Problem.make(x, y, classes=2, binary=True)
    found = solve(problem, solver=solver, tol=1e-14)
    assert found.converged
    assert not found.warnings
    np.testing.assert_allclose(
        np.r_[found.coef[0], found.intercept], SPECTOR, rtol=2e-10 if solver in SOLVERS[:2] else 1e-7
    )
    assert -32 * found.loss == pytest.approx(SPECTOR_LIKELIHOOD, rel=1e-12)
    errors = np.sqrt(np.diag(np.linalg.inv(32 * hessian(problem, found.coef, found.intercept))))
    np.testing.assert_allclose(errors, SPECTOR_ERRORS, rtol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(10))
def test_the_optimum_of_any_problem(seed: int, solver: str) -> None:
    case = random_case(seed, penalty=None if seed % 3 else 1e-2)
    _, least = case.minimum()
    found = solve(case.problem(), case.penalty, solver=solver, tol=1e-12)
    assert found.converged
    assert found.loss == pytest.approx(least, abs=1e-11)
    assert found.gap >= found.loss - least - 5e-15
    assert not found.conditional
    theta = np.hstack([found.coef, found.intercept[:, None]])
    assert case.loss(theta) == pytest.approx(found.loss, rel=1e-12)
    if not case.binary:
        np.testing.assert_allclose(found.coef.sum(axis=0), 0, atol=1e-9)


def test_mnlogit() -> None:
    data = sm.datasets.anes96.load_pandas()
    x, y = data.exog.to_numpy(float), data.endog.to_numpy(int)
    truth = sm.MNLogit(y, sm.add_constant(x)).fit(disp=0, method="newton", tol=1e-14)
    steps: list[Step] = []
    found = solve(Problem.make(x, y, classes=7), callback=steps.append)
    ours = np.vstack([found.intercept[1:] - found.intercept[0], (found.coef[1:] - found.coef[0]).T])
    np.testing.assert_allclose(ours, truth.params, atol=1e-8)
    assert found.conditional
    assert found.residual < 1e-10
    assert steps == found.history
    losses, gaps = [step.loss for step in steps], [step.gap for step in steps]
    assert losses == sorted(losses, reverse=True)
    assert gaps[-1] <= 1e-8
    assert all(gap >= loss - found.loss - 1e-14 for gap, loss in zip(gaps, losses))
    assert found.kl_lower_bound == pytest.approx(found.loss, abs=1e-8)


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + 1
    y = (x[:, 0] + rng.logistic(size=300) > 1).astype(int)
    units = 10.0 ** np.array([-4, -2, 0, 2, 4])
    for solver in SOLVERS:
        one = solve(Problem.make(x, y, classes=2, binary=True), solver=solver, tol=1e-13)
        other = solve(Problem.make(x * units, y, classes=2, binary=True), solver=solver, tol=1e-13)
        np.testing.assert_allclose(other.coef * units, one.coef, rtol=1e-6)
        assert abs(other.n_iter - one.n_iter) <= 1


def test_a_constant_model_gives_the_frequencies() -> None:
    y = np.array([0, 1, 1, 2, 2, 2])
    found = solve(Problem.make(np.zeros((6, 1)), y, classes=3))
    q = np.exp(found.intercept) / np.exp(found.intercept).sum()
    np.testing.assert_allclose(q, [1 / 6, 2 / 6, 3 / 6], rtol=1e-12)
    assert found.constant == [0]


def test_distributions_are_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    x, q, w = rng.normal(size=(80, 3)), rng.dirichlet(np.ones(4), 80), rng.random(80)
    soft = solve(Problem.make(x, q, w, classes=4), 1e-3, tol=1e-14)
    again = Problem.make(np.repeat(x, 4, axis=0), np.tile(np.arange(4), 80), (w[:, None] * q).ravel(), classes=4)
    hard = solve(again, 1e-3, tol=1e-14)
    np.testing.assert_allclose(soft.coef, hard.coef, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", [0.0, 1e-4])
def test_every_storage_gives_the_same_fit(solver: str, penalty: float) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 6)) * (rng.random((200, 6)) < 0.5)
    y = (x @ rng.normal(size=(6, 3)) + rng.gumbel(size=(200, 3))).argmax(axis=1)

    def stream() -> Iterator[tuple[Any, ...]]:
        yield from ((x[i : i + 30], y[i : i + 30]) for i in range(0, 200, 30))

    one = solve(Problem.make(x, y, classes=3), penalty, solver=solver, tol=1e-13)
    assert one.converged
    for other in (
        Problem.make(scipy.sparse.csr_matrix(x), y, classes=3),
        Problem.make(x.astype(np.float32).astype(float), np.eye(3)[y], classes=3, block_rows=13),
        Problem.make(stream, classes=3),
    ):
        found = solve(other, penalty, solver=solver, tol=1e-13)
        np.testing.assert_allclose(found.coef, one.coef, atol=1e-5)
        assert found.converged


def test_first_on_some_rows_then_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the order of their classes, and the same fit from any rows that one begins with."""
    monkeypatch.setattr(module, "FEW_ROWS", 300)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6000, 3))
    y = (x[:, 0] + rng.logistic(size=6000) > 0).astype(int)
    order = np.lexsort((x[:, 0], y))
    problem = Problem.make(x[order], y[order], classes=2, binary=True)
    found = [solve(problem, tol=1e-13, random_state=seed) for seed in (0, 0, 1)]
    assert np.array_equal(found[0].coef, found[1].coef)
    assert not np.array_equal(found[0].coef, found[2].coef)
    np.testing.assert_allclose(found[0].coef, found[2].coef, rtol=1e-9)
    assert found[0].n_iter <= 4


@pytest.mark.parametrize("solver", SOLVERS)
def test_separable_classes_stop_at_a_loss_below_tol_and_are_told(solver: str) -> None:
    x, y = load_iris(return_X_y=True)
    some = y < 2
    for binary in (True, False):
        found = solve(Problem.make(x[some], y[some], classes=2, binary=binary), solver=solver, tol=1e-8)
        assert found.converged
        assert found.separable
        assert found.loss <= 1e-8
        assert found.gap == pytest.approx(found.loss)
        assert not found.conditional
        assert found.separation is not None
        assert found.separation.complete
        assert any("completely separated" in one and "no maximum likelihood estimate" in one for one in found.warnings)
    found = solve(Problem.make(x, y, classes=3), solver=solver)  # setosa only is, but so that one is quasi-complete
    assert found.separable
    with_penalty = solve(Problem.make(x, y, classes=3), 1e-3, solver=solver)
    assert with_penalty.converged
    assert not with_penalty.separable
    assert not with_penalty.warnings


def test_a_level_that_knows_its_class_is_named() -> None:
    rng = np.random.default_rng(6)
    x = np.hstack([rng.normal(size=(60, 2)), (np.arange(60) < 10)[:, None]])
    y = np.where(np.arange(60) < 10, 1, rng.integers(0, 2, 60))
    found = solve(Problem.make(x, y, classes=2, binary=True))
    assert found.separable
    assert found.converged
    assert found.separation is not None
    assert found.separation.features == [2]
    assert found.separation.rows.tolist() == list(range(10))
    assert any("10 rows are separated (quasi-completely) by column 2" in one for one in found.warnings)
    others = solve(Problem.make(x[10:, :2], y[10:], classes=2, binary=True))
    np.testing.assert_allclose(found.coef[0, :2], others.coef[0], atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_columns_that_repeat_others_are_named_and_the_norm_is_least(solver: str) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(100, 3)) * [1, 10, 0.1]
    y = (x[:, 0] + rng.logistic(size=100) > 0).astype(int)
    wide = np.column_stack([x, x[:, 1], np.full(100, 3.0), x[:, 0] - 2 * x[:, 2] + 5])
    for binary in (True, False):
        found = solve(Problem.make(wide, y, classes=2, binary=binary), solver=solver, tol=1e-13)
        one = solve(Problem.make(x, y, classes=2, binary=binary), solver=solver, tol=1e-13)
        assert found.constant == [4]
        assert len(found.collinear) == 2
        assert any("column 3 is a linear combination of column 1" in text for text in found.warnings)
        assert any("column 4: without variation" in text for text in found.warnings)
        assert found.loss == pytest.approx(one.loss, abs=1e-12)
        # The least norm is the limit of a penalty that vanishes.
        limit = solve(Problem.make(wide, y, classes=2, binary=binary), 1e-9, solver="newton-cholesky", tol=1e-16)
        np.testing.assert_allclose(found.coef, limit.coef, atol=1e-5)
        np.testing.assert_allclose(found.coef[:, 1], found.coef[:, 3], atol=1e-9)


def test_fewer_rows_than_columns_are_said() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(10, 30)), np.arange(10) % 2
    found = solve(Problem.make(x, y, classes=2, binary=True))
    assert found.separable
    assert found.loss <= 1e-8
    assert any("10 rows do not determine 30 columns" in one for one in found.warnings)
    soft = solve(Problem.make(x, rng.dirichlet(np.ones(2), 10), classes=2, binary=True))
    assert soft.converged
    assert not soft.separable
    # The solution of least norm lies in the span of the rows.
    basis = np.linalg.svd(x - x.mean(axis=0))[2][9:]
    np.testing.assert_allclose(basis @ soft.coef[0], 0, atol=1e-8)


def test_classes_without_mass() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 2, 60) * 2
    for penalty in (0.0, 1e-2):
        found = solve(Problem.make(x, y, classes=4), penalty)
        two = solve(Problem.make(x, y // 2, classes=2), penalty)
        np.testing.assert_allclose(found.coef[[0, 2]], two.coef, atol=1e-12)
        assert found.loss == pytest.approx(two.loss)
        z = x @ found.coef.T + found.intercept
        p = np.exp(z - z.max(axis=1, keepdims=True))
        assert (p[:, [1, 3]] < 1e-15).all()
        assert any("classes 1, 3 without mass" in one for one in found.warnings)


def test_near_separable_data_from_zero() -> None:
    """One row stands in the way of separation, far out."""
    x = np.r_[np.linspace(-5, -1, 50), np.linspace(1, 5, 50), 4.9][:, None]
    y = np.r_[np.zeros(50, int), np.ones(50, int), 0]
    for solver in SOLVERS:
        found = solve(Problem.make(x, y, classes=2, binary=True), solver=solver)
        assert found.converged
        assert not found.separable


def test_digits_are_certified() -> None:
    x, y = load_digits(return_X_y=True)
    for solver in SOLVERS:
        found = solve(Problem.make(x, y, classes=10), 1e-2, solver=solver, tol=1e-7)
        assert found.converged
        assert found.gap <= 1e-7


def test_too_few_iterations_are_owned_up_to() -> None:
    x, y = spector()
    found = solve(Problem.make(x, y, classes=2, binary=True), max_iter=1, tol=1e-12)
    assert not found.converged
    assert any("stopped after 1 iterations" in one for one in found.warnings)
    assert found.gap > 1e-12


def test_a_warm_start_arrives_at_once() -> None:
    x, y = spector()
    problem = Problem.make(x, y, classes=2, binary=True)
    found = solve(problem, 1e-2, tol=1e-12)
    again = solve(problem, 1e-2, tol=1e-10, start=(found.coef, found.intercept))
    assert again.n_iter == 1
    np.testing.assert_allclose(again.coef, found.coef, atol=1e-8)


def test_wrong_options() -> None:
    x, y = spector()
    problem = Problem.make(x, y, classes=2, binary=True)
    with pytest.raises(ValueError, match="solver: is 'sag'"):
        solve(problem, solver="sag")
    with pytest.raises(ValueError, match="penalty: is -1"):
        solve(problem, -1)


def test_the_hessian_product_is_the_hessians() -> None:
    case = random_case(2)
    problem = case.problem(block_rows=9)
    rng = np.random.default_rng(0)
    theta, v = rng.normal(size=(2, problem.D + 1, problem.M))
    p_of = conjugate.probabilities(problem, theta, None)
    got = conjugate.product(problem, p_of, 0.0, np.float64)(v)
    coef, intercept = problem.from_standard(theta)
    h = hessian(problem, coef, intercept)
    w, b = problem.raw(v)
    wanted = (h @ np.vstack([w, b]).T.ravel()).reshape(problem.M, -1).T
    np.testing.assert_allclose(got, problem.standardise(wanted), atol=1e-12)
