"""Regression on the columns of a table: statsmodels' coefficients, in the units of the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from likely.training.linear import regress


@pytest.fixture(scope="module")
def fair() -> Any:
    frame = sm.datasets.fair.load_pandas().data
    frame["affair"] = np.where(frame.affairs > 0, "yes", "no")
    frame["occupation"] = "job " + frame.occupation.astype(int).astype(str)
    return frame.drop(columns=["affairs", "occupation_husb"])


@pytest.mark.parametrize("standardise", [True, False])
def test_logistic_regression_with_categories_is_statsmodels(fair: Any, standardise: bool) -> None:
    fitted = regress(fair, "affair", standardise=standardise)
    classes, weight, bias = fitted.coefficients()
    assert classes == ["yes"]
    formula = "y ~ rate_marriage + age + yrs_married + children + religious + educ + occupation"
    truth = smf.logit(formula, fair.assign(y=(fair.affair == "yes").astype(int))).fit(disp=0, tol=1e-10).params
    ours = dict(zip(fitted.model.encoder.feature_names, weight[0]))
    assert abs(bias[0] - truth["Intercept"]) < 1e-6
    for name, value in ours.items():
        column, _, level = name.partition("=")
        assert abs(value - truth[f"{column}[T.{level}]" if level else column]) < 1e-6, name


def test_softmax_regression_is_statsmodels() -> None:
    data = sm.datasets.anes96.load_pandas()
    fitted = regress(data.data, "PID", features=list(data.exog.columns))
    classes, weight, bias = fitted.coefficients()
    truth = sm.MNLogit(data.endog, sm.add_constant(data.exog)).fit(disp=0, method="newton", tol=1e-14).params
    assert classes == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    np.testing.assert_allclose(np.column_stack([bias, weight]), truth.to_numpy().T, atol=1e-6)


def test_aggregated_counts_as_probabilities_are_statsmodels_binomial_model() -> None:
    data = sm.datasets.star98.load_pandas()
    counts = data.endog.to_numpy(float)
    names = list(data.exog.columns[:6])
    table = data.exog[names].assign(p_above=counts[:, 0], p_below=counts[:, 1], total=counts.sum(axis=1))
    table[["p_above", "p_below"]] /= counts.sum(axis=1, keepdims=True)
    fitted = regress(table, "p_*", weight="total")
    _, weight, bias = fitted.coefficients()
    truth = (
        sm.GLM(counts[:, ::-1], sm.add_constant(data.exog[names]), family=sm.families.Binomial()).fit(tol=1e-14).params
    )
    np.testing.assert_allclose([*bias, *weight[0]], truth, atol=1e-6)


def test_a_penalty_weighs_standardised_columns() -> None:
    data = sm.datasets.spector.load_pandas().data
    scaled = data.assign(GPA=data.GPA * 1000)
    one, other = (regress(frame, "GRADE", penalty=0.1).model.predict_proba(frame) for frame in (data, scaled))
    np.testing.assert_allclose(one, other, atol=1e-6)
    raw, other = (
        regress(frame, "GRADE", penalty=0.1, standardise=False).model.predict_proba(frame) for frame in (data, scaled)
    )
    assert np.abs(raw - other).max() > 0.01


def test_rows_of_weight_zero_do_not_matter() -> None:
    data = sm.datasets.spector.load_pandas().data.assign(w=1.0)
    more = data.assign(w=0.0, GRADE=1 - data.GRADE, GPA=3.0)
    both = regress({name: [*data[name], *more[name]] for name in data}, "GRADE", weight="w", standardise=False)
    alone = regress(data, "GRADE", weight="w", standardise=False)
    np.testing.assert_allclose(both.fit.weight, alone.fit.weight, atol=1e-6)


SEPARABLE = {"x": [0.0, 1.0, 2.0, 3.0], "y": ["a", "a", "b", "b"]}


def test_separable_classes_are_refused_without_a_penalty() -> None:
    with pytest.raises(ValueError, match="look separable: no maximum likelihood estimate exists; use --penalty"):
        regress(SEPARABLE, "y")
    assert regress(SEPARABLE, "y", penalty=0.01).fit.converged
    assert regress(SEPARABLE, "y", label_smoothing=0.1).fit.converged


def test_a_separating_level_is_found() -> None:
    data = {"c": ["u", "u", "u", "v", "v", "v"], "y": [0, 1, 0, 1, 1, 1]}
    with pytest.raises(ValueError, match="look separable"):
        regress(data, "y")


def test_a_fit_that_has_not_converged_is_an_error_and_with_a_penalty_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from likely.solvers import lbfgs

    data = sm.datasets.spector.load_pandas().data
    impatient = lambda x, target, **settings: lbfgs.fit_linear(x, target, **settings, max_iterations=2)  # noqa: E731
    monkeypatch.setattr("likely.training.linear.fit_linear", impatient)
    with pytest.raises(ValueError, match="has not converged"):
        regress(data, "GRADE")
    with pytest.warns(RuntimeWarning, match="has not converged"):
        assert not regress(data, "GRADE", penalty=1e-3).fit.converged


def test_features_are_what_is_left() -> None:
    data = {"x": [0.0, 1.0, 0.0, 1.0], "z": [1.0, 1.0, 0.0, 0.0], "y": [0, 1, 1, 0], "w": [1.0, 1.0, 1.0, 1.0]}
    assert regress(data, "y", weight="w").model.encoder.names == ["x", "z"]
    assert regress(data, "y", exclude="z,w").model.encoder.names == ["x"]
    assert regress(data, "y", features="*", exclude="y,w").model.encoder.names == ["x", "z"]


def test_what_cannot_be_a_feature() -> None:
    data = {"x": [0.0, 1.0, 0.0, 1.0], "y": [0, 1, 1, 0]}
    with pytest.raises(ValueError, match="features: column 'y' is the target"):
        regress(data, "y", features="x,y")
    with pytest.raises(ValueError, match="no column is left"):
        regress(data, "y", exclude="x")
    soft = {"x": [0.0, 1.0], "p_a": [0.5, 0.4], "p_b": [0.5, 0.6], "p_c": [0.0, 0.0]}
    with pytest.raises(ValueError, match="the class 'c' has probability 0 in every row"):
        regress(soft, "p_*", penalty=1.0)
