"""Whether there is a maximum likelihood estimate, asked outright and found out by a fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from likely.solvers.problem import Problem
from likely.solvers.separation import separable
from likely.solvers.solve import solve


def told_by_a_fit(x: np.ndarray, y: np.ndarray) -> bool:
    classes = int(y.max()) + 1
    return solve(Problem.make(x, y, classes=classes, binary=classes == 2)).separable


def spector() -> Any:
    data = sm.datasets.spector.load()
    return data.exog.to_numpy(), data.endog.to_numpy().astype(int)


def anes96() -> Any:
    data = sm.datasets.anes96.load()
    return data.exog.to_numpy(), data.endog.to_numpy().astype(int)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
def test_the_classics_are_separable(load: Any) -> None:
    x, y = load(return_X_y=True)
    assert separable(x, np.eye(y.max() + 1, dtype=bool)[y]) is True
    assert told_by_a_fit(x, y)


def test_real_data_that_are_not_separable() -> None:
    flowers, kind = load_iris(return_X_y=True)
    for x, y in ((flowers[kind > 0], kind[kind > 0] - 1), spector(), anes96()):
        assert separable(x, np.eye(y.max() + 1, dtype=bool)[y]) is False
        assert not told_by_a_fit(x, y)


def test_a_level_that_knows_its_class_is_quasi_complete_separation() -> None:
    x = np.array([[0.0], [0.0], [0.0], [1.0], [1.0]])
    y = np.array([0, 1, 0, 1, 1])
    assert separable(x, np.eye(2, dtype=bool)[y]) is True
    assert told_by_a_fit(x, y)


def test_probabilities_separate_only_what_they_exclude() -> None:
    x = np.array([[0.0], [1.0], [2.0]])
    assert separable(x, np.ones((3, 2), dtype=bool)) is False
    # Rows 0 and 1 may be a or b, row 2 is c: a direction separates c and leaves a and b level.
    assert separable(x, np.array([[True, True, False], [True, True, False], [False, False, True]])) is True
    # In the middle c is excluded and at both ends it is the only one: no line does that.
    assert separable(x, np.array([[False, False, True], [True, True, False], [False, False, True]])) is False


def test_a_question_too_large_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likely.solvers.separation.MOST_ENTRIES", 10)
    x, y = load_digits(return_X_y=True)
    assert separable(x, np.eye(10, dtype=bool)[y]) is None
