"""The diagonal metric for columns that are unrelated, and the way back from it. D features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from likely.solvers import conjugate
from likely.solvers.problem import Problem
from likely.solvers.solve import solve

D = 300


def columns(kind: str, rng: np.random.Generator, n: int = 1200) -> np.ndarray:
    x = rng.standard_normal((n, D))
    if kind == "scaled and moved":
        return x * np.logspace(-3, 3, D) + np.linspace(-2, 2, D)
    if kind == "one factor":
        return x + rng.standard_normal((n, 1))
    if kind == "decaying":
        return np.asarray(x * np.logspace(0, -2, D) @ np.linalg.qr(rng.standard_normal((D, D)))[0])
    if kind == "twins":
        x[:, 1::2] = x[:, ::2] + 1e-3 * x[:, 1::2]
    return x


@pytest.mark.parametrize(
    ("kind", "unrelated"),
    [("independent", True), ("scaled and moved", True), ("one factor", False), ("decaying", False), ("twins", False)],
)
def test_columns_are_told_apart_by_the_spread_of_their_eigenvalues(kind: str, unrelated: bool) -> None:
    rng = np.random.default_rng(0)
    x = columns(kind, rng)
    problem = Problem.make(x, rng.integers(0, 2, len(x)), classes=2, binary=True)
    assert conjugate.columns_unrelated(problem, rng) == unrelated


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("kind", ["independent", "decaying"])
def test_both_metrics_lead_to_one_optimum(kind: str, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the diagonal is the wrong one: there the Gram matrix takes over."""
    made = {"diagonal": 0, "gram": 0}

    def counted(name: str, make: Any) -> Any:
        def call(*given: Any) -> Any:
            made[name] += 1
            return make(*given)

        return call

    monkeypatch.setattr(conjugate, "diagonal_metric", counted("diagonal", conjugate.diagonal_metric))
    monkeypatch.setattr(conjugate, "gram_metric", counted("gram", conjugate.gram_metric))
    rng = np.random.default_rng(1)
    x = columns(kind, rng)
    y = (x[:, :K] / x[:, :K].std() + rng.gumbel(size=(len(x), K))).argmax(axis=1)
    problem = Problem.make(x, y, classes=K, binary=K == 2)
    found = []
    for unrelated in (False, True):
        monkeypatch.setattr(conjugate, "columns_unrelated", lambda problem, rng, answer=unrelated: answer)
        before = dict(made)
        found.append(solve(problem, 1e-4 if kind == "decaying" else 1e-1, solver="newton-cg", tol=1e-11))
        used = {name: made[name] > before[name] for name in made}
        assert used["diagonal"] == unrelated
        assert used["gram"] == (not unrelated or kind == "decaying")
    assert all(one.converged for one in found)
    assert found[0].loss == pytest.approx(found[1].loss, abs=1e-11)
    np.testing.assert_allclose(found[0].coef, found[1].coef, atol=1e-3 * np.abs(found[0].coef).max())
