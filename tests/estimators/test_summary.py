"""The summary: what it says, and what it does not claim."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from likely.estimators import (
    CollinearityWarning,
    LogisticRegression,
    SeparationWarning,
    SoftmaxRegression,
    in_units,
)
from tests.estimators.samples import overlapping, spector, votes

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'single'"


def errors(model: Any, **options: Any) -> np.ndarray:
    return np.array([one.standard_error for one in model.summary(**options).coefficients])


def test_the_text() -> None:
    x, y = spector()
    text = str(LogisticRegression(tol=1e-12).fit(x, y).summary())
    assert text.startswith("Logistic regression: maximum likelihood\n")
    for line in [
        r"^rows +32 +log-likelihood +-12\.8896$",
        r"^covariance +Fisher information +McFadden's R² +0\.3740$",
        r"LR statistic +15\.4042 on 3 df, p = 0\.002$",
        r"^parameters +4 +AIC +33\.7793$",
        r"BIC +39\.6422$",
        r"^GPA +2\.8261 +1\.2629 +2\.238 +0\.025 +0\.3508 +5\.3014$",
        r"^\(intercept\) +-13\.0213 +4\.9313 +-2\.641 +0\.008 +-22\.6866 +-3\.3561$",
        r"^log odds of class 1\.0 against 0\.0$",
        r"^certified gap +[\d.]+e-\d+ nats",
    ]:
        assert re.search(line, text, re.MULTILINE), line
    assert max(len(line) for line in text.splitlines()) < 100


def test_a_reference_gives_differences() -> None:
    x, y = overlapping()
    model = SoftmaxRegression(tol=1e-14).fit(x, np.array(["a", "b", "c"])[y])
    whole, against = model.summary(), model.summary(reference="b")
    theta = np.column_stack([model.coef_, model.intercept_])
    assert [one.label for one in whole.coefficients] == [c for c in "abc" for _ in range(5)]
    assert [one.estimate for one in whole.coefficients] == pytest.approx(theta.ravel())
    assert [one.label for one in against.coefficients] == [c for c in "ac" for _ in range(5)]
    assert [one.estimate for one in against.coefficients] == pytest.approx((theta[[0, 2]] - theta[1]).ravel())
    assert "against b" in against.contrast
    # The variances are those of the numbers that are shown: of draws of labels at the fitted probabilities.
    generator, draws, q = np.random.default_rng(0), [], model.predict_proba(x)
    for _ in range(150):
        label = (np.log(q) + generator.gumbel(size=q.shape)).argmax(axis=1)
        one = SoftmaxRegression().fit(x, label, covariance="none")
        draws.append(np.column_stack([one.coef_, one.intercept_]))
    assert errors(model) == pytest.approx(np.std(draws, axis=0).ravel(), rel=0.2)
    assert errors(model, reference="b") == pytest.approx(
        np.std([d[[0, 2]] - d[1] for d in draws], axis=0).ravel(), rel=0.2
    )


def test_the_other_class_of_two() -> None:
    x, y = overlapping(K=2)
    model = LogisticRegression().fit(x, y)
    first, second = model.summary(reference=0), model.summary(reference=1)
    assert str(first) == str(model.summary())
    assert [-one.estimate for one in second.coefficients] == [one.estimate for one in first.coefficients]
    assert [one.standard_error for one in second.coefficients] == [one.standard_error for one in first.coefficients]


def test_intervals_have_their_level() -> None:
    x, y = overlapping(K=2)
    model = LogisticRegression().fit(x, y)
    for level, half in ((0.95, 1.959963984540054), (0.99, 2.5758293035489004)):
        for one in model.summary(confidence=level).coefficients:
            assert one.high - one.low == pytest.approx(2 * half * one.standard_error)
            assert one.z == pytest.approx(one.estimate / one.standard_error)


def test_distributions_have_quasi_likelihoods() -> None:
    x, p = votes()
    told = SoftmaxRegression().fit(x, p).summary()
    assert told.quasi
    assert told.likelihood_ratio_p is None
    assert told.covariance == "sandwich (robust)"
    assert told.cross_entropy == pytest.approx(told.entropy + told.kl)
    assert told.log_likelihood == pytest.approx(-300 * told.cross_entropy)
    text = str(told)
    for word in ("quasi-log-likelihood", "AIC (quasi)", "BIC (quasi)", "LR statistic (quasi)", "= entropy", "+ KL"):
        assert word in text
    assert "least cross-entropy" in text
    assert " p " not in next(line for line in text.splitlines() if "LR statistic" in line)
    assert all(np.isfinite(one.p) for one in told.coefficients)
    hard = SoftmaxRegression(label_smoothing=0.1).fit(x, p.argmax(axis=1)).summary()
    assert hard.quasi


def test_no_covariance_unless_it_is_cheap_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = overlapping()
    for options, shown in (({"covariance": "none"}, False), ({}, True)):
        told = SoftmaxRegression().fit(x, y, **options).summary()
        assert all(np.isfinite(one.standard_error) == shown for one in told.coefficients)
        assert ("There are no standard errors" in str(told)) != shown
        assert told.freedom == 10
        assert told.likelihood_ratio_p is not None
    monkeypatch.setattr("likely.estimators.inference.CHEAP", 1.0)
    assert np.isnan(errors(SoftmaxRegression().fit(x, y))).all()
    assert np.isfinite(errors(SoftmaxRegression().fit(x, y, covariance="fisher"))).all()
    assert np.isfinite(errors(SoftmaxRegression().fit(x, y, groups=np.arange(300) % 20))).all()


def test_html_shows_text_as_text() -> None:
    x, y = overlapping()
    frame = pd.DataFrame(x, columns=[HOSTILE, "b", "c", "d"])
    told = SoftmaxRegression().fit(frame, np.array([f"{HOSTILE} {k}" for k in range(3)])[y]).summary()
    page = told._repr_html_()
    assert page == told.to_html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in page
    assert page.count("<tr>") > 15
    assert page.count("<table") == page.count("</table>") == 2
    assert "and 5 more" in told.to_html(most=10)
    assert "and 5 more: see .coefficients" in told.text(most=10)


def test_plain_numbers_for_json() -> None:
    x, y = overlapping()
    x[:, 3] = x[:, 2]
    with pytest.warns(CollinearityWarning):
        told = SoftmaxRegression().fit(x, y).summary().to_dict()
    back = json.loads(json.dumps(told, allow_nan=False))
    assert back["n"] == 300
    assert back["coefficients"][2]["standard_error"] is None
    assert back["classes"] == [0, 1, 2]


def test_before_the_fit() -> None:
    for call in (LogisticRegression().summary, lambda: LogisticRegression().predict([[0.0]])):
        with pytest.raises(NotFittedError):
            call()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fit_to_standardised_columns_in_their_units(classes: int) -> None:
    x, y = overlapping(K=classes)
    x = np.column_stack([x * [1e-3, 1.0, 50.0, 1e3] + [5.0, -2.0, 0.0, 1e4], x[:, 0]])
    mean, scale = x.mean(axis=0), x.std(axis=0)
    for kind in (LogisticRegression, SoftmaxRegression)[classes > 2 :]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollinearityWarning)
            standard, raw = kind(tol=1e-14).fit((x - mean) / scale, y), kind(tol=1e-14).fit(x[:, :4], y)
        told = in_units(standard, mean, scale)
        assert told.predict_proba(x) == pytest.approx(raw.predict_proba(x[:, :4]), rel=1e-6)
        assert errors(told).reshape(-1, 6)[:, 1:4] == pytest.approx(errors(raw).reshape(-1, 5)[:, 1:4], rel=1e-6)
        assert np.isnan(errors(told).reshape(-1, 6)[:, [0, 4, 5]]).all()
        alone = kind(tol=1e-14).fit(((x - mean) / scale)[:, :4], y)
        whole = in_units(alone, mean[:4], scale[:4])
        assert errors(whole) == pytest.approx(errors(raw), rel=1e-6)
        assert whole.coef_ == pytest.approx(raw.coef_, rel=1e-6)
    for arguments, message in [((mean[:2], scale), "mean: has shape"), ((mean, 0 * scale), "scale: is positive")]:
        with pytest.raises(ValueError, match=message):
            in_units(standard, *arguments)


# ---------------------------------------------------------------------------- collinear columns, too few rows


@pytest.mark.parametrize("kind", [LogisticRegression, SoftmaxRegression])
def test_columns_that_repeat_others_are_named(kind: Any) -> None:
    x, y = overlapping(K=2 if kind is LogisticRegression else 3)
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["twin"] = 3 * frame["b"] + 1
    with pytest.warns(CollinearityWarning, match=r"'twin' is a linear combination of column 'b'"):
        model = kind(tol=1e-13).fit(frame, y)
    plain = kind(tol=1e-13).fit(x, y)
    assert model.loss_ == pytest.approx(plain.loss_, rel=1e-10)
    assert model.predict_proba(frame) == pytest.approx(plain.predict_proba(x), rel=1e-7)
    # Of all w_b + 3 w_twin = w the one of least norm.
    assert model.coef_[:, 4] == pytest.approx(3 * model.coef_[:, 1], rel=1e-6)
    told = {one.name: one.standard_error for one in model.summary().coefficients[:6]}
    assert np.isnan([told["b"], told["twin"], told["(intercept)"]]).all()
    same = {one.name: one.standard_error for one in plain.summary().coefficients[:5]}
    assert [told[n] for n in "acd"] == pytest.approx([same[f"x{j}"] for j in (0, 2, 3)], rel=1e-7)
    assert model.summary().freedom == plain.summary().freedom


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_columns_that_do_not_vary_are_named(scale: float) -> None:
    x, y = overlapping()
    frame = pd.DataFrame(np.column_stack([x * scale, np.full(len(x), 7.3)]), columns=[*"abcd", "always"])
    with pytest.warns(CollinearityWarning, match="'always'"):
        model = SoftmaxRegression(tol=1e-13).fit(frame, y)
    plain = SoftmaxRegression(tol=1e-13).fit(frame[list("abcd")], y)
    assert model.coef_[:, 4] == pytest.approx(0)
    assert model.coef_[:, :4] == pytest.approx(plain.coef_, rel=1e-7)
    told, same = errors(model).reshape(3, 6), errors(plain).reshape(3, 5)
    assert np.isnan(told[:, 4]).all()
    assert told[:, [0, 1, 2, 3, 5]] == pytest.approx(same, rel=1e-7)


def test_fewer_rows_than_columns_is_said() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 40)), np.arange(12) % 3
    with pytest.warns(SeparationWarning, match="complete separation"):
        model = SoftmaxRegression().fit(x, y)
    assert (model.predict(x) == y).all()
    assert np.isfinite(model.coef_).all()
    _, p = votes(n=12)
    with pytest.warns(CollinearityWarning, match=r"12 rows do not determine 40 columns") as caught:
        soft = SoftmaxRegression().fit(x, p)
    assert len(caught) == 1
    assert soft.kl_ == pytest.approx(0, abs=1e-7)
    assert np.isfinite(soft.coef_).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftmaxRegression(penalty_strength=1e-3).fit(x, y)


# ------------------------------------------------------------------------------------------------ separation


def test_complete_separation_of_two_classes() -> None:
    x, _ = overlapping()
    frame = pd.DataFrame(x, columns=["age", "dose", "c", "d"])
    y = np.where(x[:, 1] > 0.3, "ill", "well")
    model: Any
    with pytest.warns(SeparationWarning, match=r"complete separation: 'dose' .*penalty_strength, or label_smoothing"):
        model = LogisticRegression().fit(frame, y)
    assert model.separable_
    assert model.loss_ <= model.tol
    assert 0 <= model.gap_ <= model.tol
    assert model.converged_
    found = model.separation_
    assert found["complete"]
    assert "dose" in found["features"]
    step = x @ found["direction"][0]
    assert step[y == "well"].min() > step[y == "ill"].max()
    told = model.summary()
    assert "complete separation" in str(told)
    assert np.isnan(errors(model)).all()


def test_quasi_complete_separation_of_many_classes() -> None:
    x, y = overlapping()
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["only"] = np.where((y == 2) & (np.arange(len(y)) % 2 == 0), 1.0, 0.0)
    model: Any
    remedies: list[dict[str, Any]] = [{"penalty_strength": 1e-3}, {"label_smoothing": 0.01}]
    with pytest.warns(SeparationWarning, match=r"quasi-complete separation: 'only' \(\+.* for class 2\)"):
        model = SoftmaxRegression().fit(frame, y)
    assert model.separable_
    assert not model.separation_["complete"]
    assert model.separation_["features"] == ["only"]
    assert sorted(model.separation_["rows"]) == np.flatnonzero(frame["only"]).tolist()
    assert model.predict_proba(frame)[frame["only"] == 1][:, 2].min() > 0.99
    for remedy in remedies:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mended = SoftmaxRegression(**remedy).fit(frame, y)
        assert np.isfinite(errors(mended)).all()


def test_rows_of_a_separation_are_the_callers() -> None:
    x, y = overlapping()
    z = np.column_stack([x, (y == 2) & (np.arange(len(y)) % 2 == 0)]).astype(float)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    model: Any
    with pytest.warns(SeparationWarning):
        model = SoftmaxRegression().fit(z, y, sample_weight=weight)
    assert sorted(model.separation_["rows"]) == np.flatnonzero((z[:, 4] == 1) & (weight > 0)).tolist()


def test_votes_that_separate_nothing_do_not_warn() -> None:
    x, p = votes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftmaxRegression().fit(x, p)
        LogisticRegression().fit(x, p[:, :2] / p[:, :2].sum(axis=1, keepdims=True))


def test_a_fit_that_was_stopped_says_so() -> None:
    x, y = overlapping()
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        model = SoftmaxRegression(max_iter=1).fit(x, y)
    assert not model.converged_
    assert any("max_iter" in text for text in model.warnings_)
