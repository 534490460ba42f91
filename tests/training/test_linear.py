"""Regression on the columns of a table: statsmodels' coefficients, in the units of the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from sklearn.exceptions import ConvergenceWarning

from likely.estimators import CollinearityWarning
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
    one, other = (regress(frame, "GRADE", penalty_strength=0.1).model.predict_proba(frame) for frame in (data, scaled))
    np.testing.assert_allclose(one, other, atol=1e-6)
    raw, other = (
        regress(frame, "GRADE", penalty_strength=0.1, standardise=False).model.predict_proba(frame)
        for frame in (data, scaled)
    )
    assert np.abs(raw - other).max() > 0.01


def test_rows_of_weight_zero_do_not_matter() -> None:
    data = sm.datasets.spector.load_pandas().data.assign(w=1.0)
    more = data.assign(w=0.0, GRADE=1 - data.GRADE, GPA=3.0)
    both = regress({name: [*data[name], *more[name]] for name in data}, "GRADE", weight="w", standardise=False)
    alone = regress(data, "GRADE", weight="w", standardise=False)
    np.testing.assert_allclose(both.estimator.coef_, alone.estimator.coef_, atol=1e-6)


SEPARABLE = {"x": [0.0, 1.0, 2.0, 3.0], "y": ["a", "a", "b", "b"]}


def test_separable_classes_are_refused_without_a_penalty() -> None:
    with pytest.raises(ValueError, match=r"^complete separation: 'x' \(\+.* for class 'b'\) .* use --penalty-strength"):
        regress(SEPARABLE, "y")
    assert regress(SEPARABLE, "y", penalty_strength=0.01).estimator.converged_
    assert regress(SEPARABLE, "y", label_smoothing=0.1).estimator.converged_


def test_a_separating_level_is_found() -> None:
    data = {"c": ["u", "u", "u", "v", "v", "v"], "y": [0, 1, 0, 1, 1, 1]}
    with pytest.raises(ValueError, match=r"^quasi-complete separation: .* the classes of 3 rows apart"):
        regress(data, "y")


def test_the_direction_of_a_separation_is_in_the_units_of_the_columns() -> None:
    said = []
    for unit in (1.0, 1000.0):
        with pytest.raises(ValueError, match="complete separation") as caught:
            regress({"x": [0.0, unit, 2 * unit, 3 * unit], "y": SEPARABLE["y"]}, "y")
        said.append(float(str(caught.value).partition("(")[2].partition(" for")[0]))
    assert said[0] == pytest.approx(1000 * said[1], rel=1e-2)


def test_probabilities_that_separate_are_not_offered_smoothing() -> None:
    data = {"x": [0.0, 1.0, 2.0, 3.0], "p_a": [1.0, 1.0, 0.0, 0.0], "p_b": [0.0, 0.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match=r"use --penalty-strength 0\.001, say$"):
        regress(data, "p_*")


def test_a_fit_that_has_not_converged_is_an_error_and_with_a_penalty_a_warning() -> None:
    data = sm.datasets.spector.load_pandas().data
    with pytest.raises(ValueError, match=r"has not converged: after 2 iterations .* raise --max-iter or --tol"):
        regress(data, "GRADE", max_iter=2)
    with pytest.warns(ConvergenceWarning, match="not converged"):
        fitted = regress(data, "GRADE", penalty_strength=1e-3, max_iter=2)
    assert not fitted.model.metadata["converged"]


def test_columns_that_repeat_others_are_named() -> None:
    data = sm.datasets.spector.load_pandas().data
    with pytest.warns(CollinearityWarning, match="'twice' is a linear combination of column 'GPA'"):
        fitted = regress(data.assign(twice=2 * data.GPA), "GRADE")
    plain = regress(data, "GRADE")
    twice = data.assign(twice=2 * data.GPA)
    np.testing.assert_allclose(fitted.model.predict_proba(twice), plain.model.predict_proba(data), atol=1e-6)


def test_standard_errors_are_statsmodels(fair: Any) -> None:
    """In the units of the columns, with categories, clustered or not."""
    frame = fair.assign(pair=np.arange(len(fair)) // 3, y=(fair.affair == "yes").astype(int))
    formula = "y ~ rate_marriage + age + yrs_married + children + religious + educ + occupation"
    for groups, options in ((None, {}), ("pair", {"cov_type": "cluster", "cov_kwds": {"groups": frame.pair}})):
        fitted = regress(frame.drop(columns="y"), "affair", exclude="pair", groups=groups, tol=1e-12)
        truth = smf.logit(formula, frame).fit(disp=0, tol=1e-10, **options).bse
        for one in fitted.estimator.summary().coefficients:
            name, _, level = one.name.partition("=")
            key = "Intercept" if one.name == "(intercept)" else f"{name}[T.{level}]" if level else name
            assert one.standard_error == pytest.approx(truth[key], rel=1e-5), (groups, one.name)


def test_the_estimator_and_the_model_say_the_same(fair: Any) -> None:
    fitted = regress(fair, "affair", penalty_strength=0.01)
    np.testing.assert_allclose(
        fitted.estimator.predict_proba(fitted.features(fair)), fitted.model.predict_proba(fair), atol=1e-12
    )
    assert fitted.features(fair).column_names == fitted.model.encoder.feature_names
    np.testing.assert_allclose(fitted.features(fair)["age"].to_numpy(), fair["age"], rtol=1e-12)


def test_class_weights_are_weights_of_rows() -> None:
    data = sm.datasets.spector.load_pandas().data
    one = regress(data, "GRADE", class_weight={"1": 3.0}, tol=1e-14)
    other = regress(data.assign(w=1 + 2 * data.GRADE), "GRADE", weight="w", tol=1e-14)
    for fitted in (one, other):
        assert fitted.model.classes == (0.0, 1.0)
    np.testing.assert_allclose(one.model.predict_proba(data), other.model.predict_proba(data.assign(w=1.0)), atol=1e-6)


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
        regress(soft, "p_*", penalty_strength=1.0)
    with pytest.raises(ValueError, match="column 'x' is the target, the weight or the groups"):
        regress(data, "y", features="x", groups="x")
    twins = {"c=v": [0.0, 1.0, 0.0, 1.0], "c": ["u", "v", "v", "u"], "y": [0, 1, 1, 0]}
    with pytest.raises(ValueError, match="two features have the name 'c=v'"):
        regress(twins, "y")
