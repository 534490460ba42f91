"""L-BFGS on the objective: it finds what statsmodels finds, and says when it has not found anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression

import likely
from likely.solvers.lbfgs import fit_linear, minimise
from likely.solvers.separation import looks_separable, separable


def spector() -> tuple[np.ndarray, np.ndarray]:
    data = sm.datasets.spector.load_pandas()
    return data.exog.to_numpy(float), data.endog.to_numpy(int)


def anes96() -> tuple[np.ndarray, np.ndarray]:
    data = sm.datasets.anes96.load_pandas()
    return data.exog.to_numpy(float), data.endog.to_numpy(int)


def test_binary_is_statsmodels_logit() -> None:
    x, y = spector()
    truth = sm.Logit(y, sm.add_constant(x)).fit(disp=0, method="newton", tol=1e-14).params
    fit = fit_linear(x, likely.labels(y, 2), binary=True)
    assert fit.converged
    np.testing.assert_allclose([fit.bias[0], *fit.weight[0]], truth, atol=1e-6)


def test_softmax_is_statsmodels_mnlogit() -> None:
    x, y = anes96()
    truth = sm.MNLogit(y, sm.add_constant(x)).fit(disp=0, method="newton", tol=1e-14).params
    fit = fit_linear(x, likely.labels(y, 7))
    assert fit.converged
    ours = np.vstack([fit.bias[1:] - fit.bias[0], (fit.weight[1:] - fit.weight[0]).T])
    np.testing.assert_allclose(ours, truth, atol=1e-6)
    np.testing.assert_allclose(fit.weight.sum(axis=0), 0, atol=1e-9)


def test_binary_is_softmax_with_two_classes() -> None:
    x, y = spector()
    one, two = fit_linear(x, likely.labels(y, 2), binary=True), fit_linear(x, likely.labels(y, 2))
    np.testing.assert_allclose(two.weight[1] - two.weight[0], one.weight[0], atol=1e-6)
    np.testing.assert_allclose(one.logits(x)[:, 1] - one.logits(x)[:, 0], two.logits(x) @ [-1, 1], atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_penalty_is_scikit_learns(penalty: float) -> None:
    x, y = load_iris(return_X_y=True)
    truth = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-12, max_iter=100_000, solver="newton-cg").fit(x, y)
    fit = fit_linear(x, likely.labels(y, 3), penalty=penalty)
    assert fit.converged
    np.testing.assert_allclose(fit.weight, truth.coef_, atol=2e-5)


def test_units_do_not_matter() -> None:
    x, y = spector()
    units = np.array([1e8, 1e-8, 1.0])
    fit, other = (
        fit_linear(x, likely.labels(y, 2), binary=True),
        fit_linear(x * units, likely.labels(y, 2), binary=True),
    )
    assert other.converged
    np.testing.assert_allclose(other.weight * units, fit.weight, rtol=1e-6)


def test_weights_are_repetitions() -> None:
    x, y = spector()
    w = np.arange(len(y)) % 3 + 1.0
    one = fit_linear(x, likely.labels(y, 2, weight=w), binary=True)
    again = np.repeat(np.arange(len(y)), w.astype(int))
    many = fit_linear(x[again], likely.labels(y[again], 2), binary=True)
    np.testing.assert_allclose(one.weight, many.weight, atol=1e-6)


def test_probabilities_are_labels_drawn_often() -> None:
    x, y = spector()
    p = np.where(np.eye(2)[y] > 0, 0.75, 0.25)
    soft = fit_linear(x, likely.probabilities(p), binary=True)
    hard = fit_linear(np.vstack([x] * 4), likely.labels(np.concatenate([y, y, y, 1 - y]), 2), binary=True)
    np.testing.assert_allclose(soft.weight, hard.weight, atol=1e-6)


def test_too_few_iterations_are_owned_up_to() -> None:
    x, y = anes96()
    fit = fit_linear(x, likely.labels(y, 7), max_iterations=3)
    assert not fit.converged
    assert fit.minimum.gradient > 1e-8


def test_what_does_not_fit() -> None:
    x, y = spector()
    with pytest.raises(ValueError, match="x: has 31 rows where target has 32"):
        fit_linear(x[1:], likely.labels(y, 2))
    with pytest.raises(ValueError, match="binary: the target has 3 classes"):
        fit_linear(x, likely.labels(y, 3), binary=True)
    with pytest.raises(ValueError, match="penalty: is -1"):
        fit_linear(x, likely.labels(y, 2), penalty=-1)
    with pytest.raises(ValueError, match="not finite where it starts"):
        minimise(lambda x: (float("nan"), x), np.zeros(2))


@pytest.mark.parametrize(("load", "answer"), [(load_iris, True), (load_wine, True), (load_breast_cancer, True)])
def test_the_classics_are_separable(load: Any, answer: bool) -> None:
    x, y = load(return_X_y=True)
    assert separable(x, np.eye(y.max() + 1, dtype=bool)[y]) is answer


def test_real_data_that_are_not_separable() -> None:
    x, y = load_iris(return_X_y=True)
    assert separable(x[y > 0], np.eye(2, dtype=bool)[y[y > 0] - 1]) is False
    for x, y in (spector(), anes96()):
        assert separable(x, np.eye(y.max() + 1, dtype=bool)[y]) is False


def test_a_level_that_knows_its_class_is_quasi_complete_separation() -> None:
    x = np.array([[0.0], [0.0], [0.0], [1.0], [1.0]])
    y = np.array([0, 1, 0, 1, 1])
    assert separable(x, np.eye(2, dtype=bool)[y]) is True
    fit = fit_linear(x, likely.labels(y, 2), binary=True)
    assert looks_separable(x, np.eye(2)[y], fit.logits(x), fit.converged)


def test_probabilities_separate_only_what_they_exclude() -> None:
    x = np.array([[0.0], [1.0], [2.0]])
    assert separable(x, np.ones((3, 2), dtype=bool)) is False
    # Rows 0 and 1 may be a or b, row 2 is c: a direction separates c and leaves a and b level.
    assert separable(x, np.array([[True, True, False], [True, True, False], [False, False, True]])) is True
    # In the middle c is excluded and at both ends it is the only one: no line does that.
    assert separable(x, np.array([[False, False, True], [True, True, False], [False, False, True]])) is False


def test_a_question_too_large_is_left_open_and_judged_by_the_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likely.solvers.separation.MOST_ENTRIES", 10)
    x, y = load_digits(return_X_y=True)
    p = np.eye(10)[y]
    assert separable(x, p > 0) is None
    assert looks_separable(x, p, 100 * p, converged=False)
    assert not looks_separable(x, p, 100 * p, converged=True)


def test_the_question_is_not_asked_of_a_tame_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likely.solvers.separation.separable", lambda *_: pytest.fail("was asked"))
    x, y = spector()
    fit = fit_linear(x, likely.labels(y, 2), binary=True)
    tame = np.where(np.eye(2)[y] > 0, 1.0, 0.0)
    assert not looks_separable(x, tame, fit.logits(x) / 3, converged=True)
