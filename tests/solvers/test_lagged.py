"""Old Hessians, bounds that are asked for a step early, and sums: what makes the solvers fast without moving them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from likely.solvers import descend, limited, newton
from likely.solvers import solve as module
from likely.solvers.conjugate import conjugate_gradients, conjugate_of
from likely.solvers.descend import Aim
from likely.solvers.limited import Limited
from likely.solvers.problem import Problem, over_rows
from likely.solvers.solve import solve
from tests.solvers.plain import random_case


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The problems whose Hessian was formed."""
    made: list[Any] = []
    whole = newton.curvature

    def curvature(problem: Problem, *given: Any, **named: Any) -> np.ndarray:
        made.append(problem)
        return whole(problem, *given, **named)

    monkeypatch.setattr(newton, "curvature", curvature)
    return made


@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_an_old_hessian_serves_for_several_steps(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    q = 0.7 * np.eye(10)[y] + 0.3 * rng.dirichlet(np.ones(10), len(y))
    problem = Problem.make(x[:, 10:40], q, classes=10)
    found = solve(problem, penalty, solver="newton-cholesky", tol=1e-12)
    assert found.converged
    assert 0 < len(made) < found.n_iter / 2
    other = solve(problem, penalty, solver="newton-cg", tol=1e-12)
    assert abs(found.loss - other.loss) < 2e-12
    np.testing.assert_allclose(found.coef, other.coef, atol=1e-5 * np.abs(other.coef).max())


@pytest.mark.parametrize("solver", ["newton-cholesky", "newton-cg"])
def test_steps_that_are_far_too_long_are_damped(solver: str) -> None:
    """Columns that are 0 but in a few rows, no penalty, and targets that no row of theirs may be sure of."""
    x, y = load_digits(return_X_y=True)
    q = 0.7 * np.eye(10)[y] + 0.3 * np.random.default_rng(0).dirichlet(np.ones(10), len(y))
    problem = Problem.make(x[:, 10:40], q, classes=10)
    found = solve(problem, solver=solver, tol=1e-12)
    assert found.converged
    assert found.loss == pytest.approx(1.44526561254490, abs=1e-12)
    assert found.n_iter <= 20


@pytest.mark.parametrize("block_rows", [None, 7])
@pytest.mark.parametrize("seed", range(6))
def test_without_coefficients_no_pass_is_needed(seed: int, block_rows: int | None) -> None:
    case = random_case(seed, penalty=0.1)
    target = case.q if seed % 2 else case.q.argmax(axis=1)
    problem = Problem.make(case.x, target, case.w, classes=case.q.shape[1], binary=case.binary, block_rows=block_rows)
    theta = np.zeros((problem.D + 1, problem.M))
    theta[-1] = np.linspace(-1, 2, problem.M)
    nearly = theta.copy()
    nearly[0, 0] = 1e-200
    found, passed = (descend.evaluate(problem, at, 0.1, np.float64) for at in (theta, nearly))
    assert found.loss == pytest.approx(passed.loss, rel=1e-13)
    np.testing.assert_allclose(found.gradient, passed.gradient, atol=1e-14)
    np.testing.assert_allclose(found.moment, passed.moment, atol=1e-14 * np.abs(passed.moment).max())
    np.testing.assert_allclose(found.mass, passed.mass, rtol=1e-13)
    assert found.normaliser == pytest.approx(passed.normaliser, rel=1e-13)
    assert found.kept is not None
    assert passed.kept is not None
    assert found.kept.keys() == passed.kept.keys()
    for start, p in passed.kept.items():
        np.testing.assert_allclose(found.kept[start], p, rtol=1e-14)


@pytest.mark.parametrize(
    ("classes", "rows", "penalty", "name"),
    [
        (2, 1300, 1e-3, "lbfgs"),
        (2, 1100, 1e-3, "newton-cg"),
        (2, 1300, 0.0, "newton-cholesky"),
        (3, 1300, 1e-3, "newton-cg"),
    ],
)
def test_the_shape_chooses(classes: int, rows: int, penalty: float, name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 300)), rng.integers(0, classes, rows)
    found = solve(Problem.make(x, y, classes=classes, binary=classes == 2), penalty, tol=1e-7)
    assert found.solver == name
    assert found.converged


def test_lbfgs_that_gets_nowhere_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "MOST", 3)
    x, y = load_digits(return_X_y=True)
    found = solve(Problem.make(x, y, classes=10), 1e-3, solver="lbfgs", tol=1e-10)
    assert found.converged
    assert 3 < found.n_iter < 20


def test_a_damped_step_is_newtons() -> None:
    """Where L-BFGS got nowhere, its direction would be the same again."""
    case = random_case(3, penalty=1e-3)
    problem = case.problem()
    keeper, _ = conjugate_of(problem, case.penalty, np.random.default_rng(0))
    theta = np.zeros((problem.D + 1, problem.M))
    value = descend.evaluate(problem, theta, case.penalty)
    plain, damped = (Limited(keeper)(theta, value, Aim(1e-30, damping=mu)) for mu in (0.0, 0.1))
    assert not plain.certifies
    assert damped.certifies


def test_without_a_penalty_the_last_step_is_solved_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    x, y = load_digits(return_X_y=True)
    problem = Problem.make(x[:, 10:40], 0.9 * np.eye(10)[y] + 0.01, classes=10)
    found = solve(problem, solver="newton-cholesky", tol=1e-8)
    assert found.conditional
    assert found.residual < 1e-13
    assert not found.separable
    assert len(made) >= 2


def test_a_factor_that_does_not_serve_is_replaced() -> None:
    """Conjugate gradients with a metric that is far from the Hessian cost what a Hessian costs, and no more."""
    x = np.random.default_rng(0).normal(size=(500, 40)) * np.logspace(-3, 3, 40)
    y = (x[:, 20] + np.random.default_rng(1).logistic(size=500) > 0).astype(int)
    problem = Problem.make(x, y, classes=2, binary=True)
    theta = np.zeros((41, 1))
    wrong = newton.Lagged(problem, 1e-3, lambda r, refine=False: r * np.logspace(-6, 6, 41)[:, None])
    value = descend.evaluate(problem, theta, 1e-3)
    direction = wrong(theta, value, Aim(1e-10))
    assert direction.exact
    np.testing.assert_allclose(direction.step, newton.newton_step(problem, theta, value, 1e-3), rtol=1e-9)


def test_the_hessian_of_some_rows_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows have their Hessian formed for the certificate alone, where a fit to a few of them has come near."""
    made = counted(monkeypatch)
    monkeypatch.setattr(module, "FEW_ROWS", 2000)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40_000, 4)) * [1e-3, 1, 1, 1e3]
    y = (x[:, 1] + rng.logistic(size=len(x)) > 0.5).astype(int)
    problem = Problem.make(x, y, classes=2, binary=True)
    found = solve(problem, tol=1e-9)
    assert found.converged
    assert sum(one.n == len(x) for one in made) <= 2  # the last two steps at most
    assert any(one.n < len(x) and one.centre is problem.centre for one in made)  # of few rows, in the units of all
    monkeypatch.setattr(module, "_few", lambda problem, rng: None)
    np.testing.assert_allclose(found.coef, solve(problem, tol=1e-13).coef, rtol=1e-7)


@pytest.mark.parametrize("seed", range(40))
def test_a_bound_a_step_early_is_a_bound(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where passes cost something the fit stops as soon as the bound after the step is small enough."""
    case = random_case(seed, penalty=10.0 ** -(seed % 4 + 1))
    _, least = case.minimum()
    tol = 10.0 ** -(4 + seed % 5)
    late = solve(case.problem(), case.penalty, tol=tol)
    monkeypatch.setattr(descend, "CHEAP", -1)
    early = solve(case.problem(), case.penalty, tol=tol)
    assert early.converged
    assert early.gap <= tol
    assert early.gap >= early.loss - least - 5e-15
    assert early.n_iter <= late.n_iter
    assert early.history[-1].gap == early.gap
    assert early.history[-1].loss == early.loss


def test_a_step_early_saves_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [solve(c.problem(), c.penalty, tol=1e-6).n_iter for c in (random_case(s, penalty=1e-2) for s in range(20))]
    monkeypatch.setattr(descend, "CHEAP", -1)
    early = [solve(c.problem(), c.penalty, tol=1e-6).n_iter for c in (random_case(s, penalty=1e-2) for s in range(20))]
    assert sum(early) < sum(late)


@pytest.mark.parametrize(
    ("aim", "decrement", "near"),
    [
        (Aim(1e-6), 6e-6, True),
        (Aim(1e-6), 7e-6, False),
        (Aim(1e-6, bend=1.0), 7e-4, True),
        (Aim(1e-6, bend=1.0), 8e-4, False),
        (Aim(1e-6, bend=1e9), 7e-6, False),
    ],
)
def test_when_a_bound_may_be_small_enough(aim: Aim, decrement: float, near: bool) -> None:
    assert aim.near(decrement) == near


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 1), (1000, 2), (33, 10)])
def test_sums_over_rows(shape: tuple[int, int], dtype: Any) -> None:
    r = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = over_rows(r)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, r.sum(axis=0), rtol=1e-4 if dtype == np.float32 else 1e-10, atol=1e-4)


def test_conjugate_gradients_end_where_they_are_told() -> None:
    h = np.diag(np.arange(1.0, 30.0))
    g = np.ones((29, 1))
    s, count = conjugate_gradients(lambda v: h @ v, g, lambda r: r, 0.1, 5, lambda s, r: False)
    assert count == 5
    s, count = conjugate_gradients(lambda v: h @ v, g, lambda r: r, 1e-12, 100, lambda s, r: True)
    np.testing.assert_allclose(h @ s, g, atol=1e-9)
    assert count <= 29
