"""The estimators are scikit-learn's: its checks, its tools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from likely.estimators import LogisticRegression, SoftmaxRegression


@parametrize_with_checks([LogisticRegression(), SoftmaxRegression(), SoftmaxRegression(penalty_strength=0.01)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("kind", [LogisticRegression, SoftmaxRegression])
def test_scikit_learns_tools(kind: Any) -> None:
    x, y = load_iris(return_X_y=True, as_frame=True)
    x, y = (x[y > 0], y[y > 0]) if kind is LogisticRegression else (x, y)
    pipe = make_pipeline(StandardScaler(), kind(penalty_strength=1e-3)).set_output(transform="pandas").fit(x, y)
    assert list(pipe[-1].feature_names_in_) == list(x.columns)
    assert pipe.score(x, y) > 0.9
    held = cross_val_predict(pipe, x, y, method="predict_proba", cv=3)
    assert log_loss(y, held) < 0.3
    search = GridSearchCV(kind(), {"C": [0.01, 1.0, 100.0]}, scoring="neg_log_loss", cv=3).fit(x, y)
    assert search.best_params_["C"] > 0.01
    calibrated = CalibratedClassifierCV(kind(penalty_strength=0.1), cv=3).fit(x, y)
    assert calibrated.predict_proba(x).shape == (len(x), y.nunique())
    again = clone(pipe[-1])
    assert not hasattr(again, "coef_")
    assert again.get_params() == pipe[-1].get_params()


def test_the_voters_of_an_ensemble_and_one_against_the_rest() -> None:
    x, y = load_iris(return_X_y=True)
    three = OneVsRestClassifier(LogisticRegression(penalty_strength=1e-3)).fit(x, y)
    assert three.score(x, y) > 0.9
    voters = VotingClassifier([("a", SoftmaxRegression(C=1.0)), ("b", SoftmaxRegression(C=10.0))], voting="soft")
    assert voters.fit(x, y).score(x, y) > 0.9


def test_weights_are_routed() -> None:
    x, y = load_iris(return_X_y=True)
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    with config_context(enable_metadata_routing=True):
        model = SoftmaxRegression(penalty_strength=0.01).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=True), model)
        direct = StandardScaler().fit(x, sample_weight=weight)
        fitted = pipe.fit(x, y, sample_weight=weight)
        expected = SoftmaxRegression(penalty_strength=0.01).fit(direct.transform(x), y, sample_weight=weight)
        assert fitted[-1].coef_ == pytest.approx(expected.coef_, rel=1e-9)
        search = GridSearchCV(model, {"penalty_strength": [1e-3, 1e-1]}, cv=GroupKFold(3))
        search.fit(x, y, sample_weight=weight + 1, groups=np.arange(len(y)) % 7)
        assert search.best_score_ > 0.9
