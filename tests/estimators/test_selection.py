"""Paths of penalties and cross-validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.model_selection import StratifiedKFold

from likely.estimators import LogisticRegression, SoftmaxRegression
from tests.estimators.samples import overlapping, votes


@pytest.mark.parametrize("kind", [LogisticRegression, SoftmaxRegression])
def test_a_path_is_its_fits_one_by_one(kind: Any) -> None:
    x, y = overlapping(K=2 if kind is LogisticRegression else 3)
    weight = np.random.default_rng(0).uniform(size=len(y))
    model = kind(tol=1e-13)
    found = model.path(x, y, [1e-3, 10.0, 0.1], sample_weight=weight)
    assert found.strengths.tolist() == [10.0, 0.1, 1e-3]
    for i, strength in enumerate(found.strengths):
        alone = kind(penalty_strength=strength, tol=1e-13).fit(x, y, sample_weight=weight)
        assert found.coef[i] == pytest.approx(alone.coef_, rel=1e-6, abs=1e-9)
        assert found.loss[i] == pytest.approx(alone.loss_, rel=1e-12)
        assert found.models[i].get_params() == alone.get_params()
    assert (np.diff(found.cross_entropy) < 0).all()
    assert (np.diff(np.abs(found.coef).sum(axis=(1, 2))) > 0).all()
    # Each began where the one before it ended.
    for before, after in zip(found.models, found.models[1:]):
        here = before.cross_entropy_ + after.penalty_ / 2 * (before.coef_**2).sum()
        assert after.history_[0, 1] == pytest.approx(here, rel=1e-9)
    assert model.penalty_strength == 0
    assert not hasattr(model, "coef_")


def test_a_path_of_a_stream() -> None:
    x, y = overlapping()
    stream = [(x[i : i + 50], y[i : i + 50]) for i in range(0, len(y), 50)]
    direct = SoftmaxRegression(tol=1e-12).path(x, y, [1.0, 0.01])
    assert SoftmaxRegression(tol=1e-12).path(stream, None, [1.0, 0.01]).coef == pytest.approx(direct.coef, rel=1e-6)


@pytest.mark.parametrize("form", ["numpy", "csr", "pandas", "torch"])
def test_cross_validation_by_hand(form: str) -> None:
    x, y = overlapping(n=120)
    given: Any = {"numpy": np.asarray, "csr": scipy.sparse.csr_array, "pandas": pd.DataFrame, "torch": torch.tensor}
    strengths = [1.0, 0.1, 0.03, 0.02, 0.01]
    found = SoftmaxRegression().cv(given[form](x), y, strengths, folds=4)
    loss = np.empty((5, len(y)))
    for train, test in StratifiedKFold(4, shuffle=True, random_state=0).split(x, y):
        for s, strength in enumerate(strengths):
            model = SoftmaxRegression(penalty_strength=strength).fit(x[train], y[train])
            loss[s, test] = -model.predict_log_proba(x[test])[np.arange(len(test)), y[test]]
    assert found.rows == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert [one.mean for one in found.estimates] == pytest.approx(loss.mean(axis=1), rel=1e-4)
    assert found.best == found.strengths[loss.mean(axis=1).argmin()]
    worse = loss - loss[loss.mean(axis=1).argmin()]
    close = worse.mean(axis=1) <= worse.std(axis=1, ddof=1) / np.sqrt(len(y))
    assert found.one_standard_error == found.strengths[close.argmax()]
    assert found.model.penalty_strength == found.best
    assert found.model.summary().penalty == found.best
    assert "best" in str(found)


def test_groups_stay_together_and_weights_count() -> None:
    x, y = overlapping(n=120)
    group = np.arange(120) // 6
    twins = np.repeat(np.arange(20), 6)
    found = SoftmaxRegression().cv(x, y, [0.1, 0.01], groups=group, folds=3)
    assert found.estimates[0].groups == 20
    assert (group == twins).all()
    weight = np.random.default_rng(0).integers(0, 3, 120).astype(float)
    weighted = SoftmaxRegression().cv(x, y, [0.1], sample_weight=weight)
    mean = np.average(weighted.rows[0], weights=weight)
    assert weighted.estimates[0].mean == pytest.approx(mean)


def test_distributions_and_given_folds() -> None:
    x, p = votes(n=90)
    folds = [(np.arange(30, 90), np.arange(30)), (np.arange(60), np.arange(60, 90))]
    found = SoftmaxRegression().cv(x, p, [0.1, 0.001], folds=folds)
    assert np.isnan(found.rows[:, 30:60]).all()
    assert found.estimates[0].n == 60
    assert SoftmaxRegression().cv(x, p, [0.1]).best == 0.1


def test_a_strong_penalty_wins_where_there_is_nothing_to_learn() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 20)), generator.integers(0, 2, 60)
    found = LogisticRegression().cv(x, y)
    assert found.best >= 0.1
    assert len(found.strengths) == 8
