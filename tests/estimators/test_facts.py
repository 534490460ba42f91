"""Numbers that others have published or compute, and identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LogisticRegression as Peer

from likely.estimators import LogisticRegression, SoftmaxRegression
from tests.estimators.samples import anes96, overlapping, spector, votes

TIGHT: dict[str, Any] = {"tol": 1e-15}


def errors(model: Any, **options: Any) -> np.ndarray:
    return np.array([one.standard_error for one in model.summary(**options).coefficients])


def estimates(model: Any, **options: Any) -> np.ndarray:
    return np.array([one.estimate for one in model.summary(**options).coefficients])


def test_spector() -> None:
    x, y = spector()
    model = LogisticRegression(**TIGHT).fit(x, y)
    told = model.summary()
    assert model.coef_[0] == pytest.approx([2.82611297201, 0.0951576702557, 2.37868772835], rel=5e-12)
    assert model.intercept_ == pytest.approx([-13.0213483201], rel=2e-12)
    assert errors(model) == pytest.approx([1.26294114526, 0.141554207662, 1.06456430165, 4.93132462871], rel=5e-12)
    assert told.log_likelihood == pytest.approx(-12.8896334653335, rel=1e-14)
    assert told.null_log_likelihood == pytest.approx(-20.5917296966173, rel=1e-14)
    assert told.likelihood_ratio_df == 3
    assert told.likelihood_ratio_p == pytest.approx(0.00150187761112892, rel=1e-9)
    assert [one.name for one in told.coefficients] == ["GPA", "TUCE", "PSI", "(intercept)"]
    assert 0 <= model.gap_ < 1e-12


def test_spector_as_the_file_has_it() -> None:
    x, y = spector()
    x["GPA"] = sm.datasets.spector.load_pandas().data["GPA"]
    assert LogisticRegression(**TIGHT).fit(x, y).summary().log_likelihood == pytest.approx(-12.8896342221, abs=2e-10)


def test_anes96_as_statsmodels_has_it() -> None:
    x, y = anes96()
    peer = sm.MNLogit(y, sm.add_constant(x, prepend=False)).fit(method="newton", disp=0, tol=1e-12)
    model = SoftmaxRegression(**TIGHT).fit(x, y)
    told = model.summary(reference=0)
    assert estimates(model, reference=0) == pytest.approx(np.asarray(peer.params).T.ravel(), rel=1e-8)
    assert errors(model, reference=0) == pytest.approx(np.asarray(peer.bse).T.ravel(), rel=1e-8)
    assert told.log_likelihood == pytest.approx(peer.llf, rel=1e-12)
    assert told.null_log_likelihood == pytest.approx(peer.llnull, abs=1e-6)  # theirs is searched for
    assert told.mcfadden_r2 == pytest.approx(peer.prsquared, rel=1e-8)
    assert (told.aic, told.bic) == pytest.approx((peer.aic, peer.bic), rel=1e-12)
    assert told.likelihood_ratio_p == pytest.approx(peer.llr_pvalue, rel=1e-6)
    low_high = np.array([[one.low, one.high] for one in told.coefficients])
    assert low_high == pytest.approx(np.asarray(peer.conf_int()).reshape(-1, 2), rel=1e-7, abs=1e-8)
    assert np.abs(model.coef_.sum(axis=0)).max() < 1e-10
    assert np.abs(model.intercept_.sum()) < 1e-9


@pytest.mark.parametrize("kind", ["HC0", "cluster"])
@pytest.mark.parametrize("classes", [2, 3])
def test_robust_standard_errors_as_statsmodels_has_them(kind: str, classes: int) -> None:
    x, y = overlapping(K=classes)
    group = np.arange(len(y)) // 7
    peer: Any = sm.Logit if classes == 2 else sm.MNLogit
    how: dict[str, Any] = {"cov_kwds": {"groups": group}} if kind == "cluster" else {}
    fitted = peer(y, sm.add_constant(x, prepend=False)).fit(method="newton", disp=0, tol=1e-12, cov_type=kind, **how)
    ours = (LogisticRegression if classes == 2 else SoftmaxRegression)(**TIGHT)
    ours.fit(x, y, covariance="sandwich", groups=group if kind == "cluster" else None)
    assert errors(ours, reference=0) == pytest.approx(np.asarray(fitted.bse).T.ravel(), rel=1e-7)
    assert ("43 clusters" in ours.summary().covariance) == (kind == "cluster")


@pytest.mark.parametrize("classes", [2, 4])
def test_a_constant_model_predicts_the_frequencies(classes: int) -> None:
    _, y = overlapping(K=classes)
    weight = np.random.default_rng(1).uniform(0.1, 3, len(y))
    share = np.bincount(y, weights=weight) / weight.sum()
    for kind in (LogisticRegression, SoftmaxRegression)[classes > 2 :]:
        model = kind(**TIGHT).fit(np.zeros((len(y), 1)), y, sample_weight=weight)
        assert model.predict_proba(np.zeros((1, 1)))[0] == pytest.approx(share, rel=1e-10)
        assert model.cross_entropy_ == pytest.approx(-(share * np.log(share)).sum(), rel=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 0.01])
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_rows_repeated_with_weights(classes: int, penalty: float) -> None:
    x, p = votes(K=classes)
    n = len(x)
    options = {"penalty_strength": penalty, **TIGHT}
    for kind in (LogisticRegression, SoftmaxRegression)[classes > 2 :]:
        soft = kind(**options).fit(x, p)
        hard = kind(**options).fit(np.repeat(x, classes, axis=0), np.tile(np.arange(classes), n), p.ravel())
        assert soft.coef_ == pytest.approx(hard.coef_, rel=1e-9, abs=1e-10)
        assert soft.intercept_ == pytest.approx(hard.intercept_, rel=1e-9, abs=1e-10)
        assert soft.loss_ == pytest.approx(hard.loss_, rel=1e-12)
        assert soft.entropy_ > 0
        assert hard.entropy_ == 0


def test_two_softmax_columns_are_penalised_half_as_much_as_one() -> None:
    x, y = overlapping(K=2)
    one = LogisticRegression(penalty_strength=0.05, **TIGHT).fit(x, y)
    two = SoftmaxRegression(penalty_strength=0.10, **TIGHT).fit(x, y)
    same = SoftmaxRegression(penalty_strength=0.05, **TIGHT).fit(x, y)
    assert two.coef_[1] - two.coef_[0] == pytest.approx(one.coef_[0], rel=1e-8)
    assert two.loss_ == pytest.approx(one.loss_, rel=1e-12)
    assert np.linalg.norm(same.coef_[1] - same.coef_[0]) > 1.02 * np.linalg.norm(one.coef_)
    assert errors(two, reference=0) == pytest.approx(errors(one), rel=1e-7)


@pytest.mark.parametrize("kind", [LogisticRegression, SoftmaxRegression])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("intercept", [True, False])
def test_c_is_scikit_learns(kind: Any, class_weight: Any, intercept: bool) -> None:
    x, y = overlapping(K=2 if kind is LogisticRegression else 3)
    weight = np.random.default_rng(2).uniform(0.5, 2, len(y))
    options = {"C": 0.7, "class_weight": class_weight, "fit_intercept": intercept}
    peer = Peer(**options, solver="newton-cholesky", tol=1e-12).fit(x, y, sample_weight=weight)
    ours = kind(**options, **TIGHT).fit(x, y, sample_weight=weight)
    assert ours.coef_ == pytest.approx(peer.coef_, rel=1e-7, abs=1e-9)
    assert np.broadcast_to(ours.intercept_, len(ours.coef_)) == pytest.approx(
        np.broadcast_to(peer.intercept_, len(ours.coef_)), abs=1e-8
    )


def test_weights_are_repeated_rows_or_sampling_weights() -> None:
    x, y = overlapping()
    times = np.random.default_rng(3).integers(0, 4, len(y))
    repeated = SoftmaxRegression(**TIGHT).fit(np.repeat(x, times, axis=0), np.repeat(y, times))
    counted = SoftmaxRegression(**TIGHT).fit(x, y, sample_weight=times)
    assert counted.coef_ == pytest.approx(repeated.coef_, rel=1e-9)
    assert errors(counted) == pytest.approx(errors(repeated), rel=1e-9)
    assert counted.summary().log_likelihood == pytest.approx(repeated.summary().log_likelihood, rel=1e-12)
    assert counted.summary().bic == pytest.approx(repeated.summary().bic, rel=1e-12)
    assert counted.summary().n == (times > 0).sum()
    counted.fit(x, y, sample_weight=times, covariance="sandwich")
    repeated.fit(np.repeat(x, times, axis=0), np.repeat(y, times), covariance="sandwich")
    assert errors(counted) == pytest.approx(errors(repeated), rel=1e-9)
    one = SoftmaxRegression(**TIGHT).fit(x, y, sample_weight=times, weights="sampling")
    ten = SoftmaxRegression(**TIGHT).fit(x, y, sample_weight=10 * times, weights="sampling")
    assert errors(ten) == pytest.approx(errors(one), rel=1e-9)
    assert "no p-value" in str(one.summary())


def test_sampling_weights_by_the_definition() -> None:
    x, y = overlapping(K=2)
    w = np.random.default_rng(4).uniform(0.2, 4, len(y))
    model = LogisticRegression(**TIGHT).fit(x, y, sample_weight=w, weights="sampling")
    z = np.column_stack([x, np.ones(len(x))])
    q = model.predict_proba(x)[:, 1]
    bread = np.linalg.inv(z.T @ (z * (w * q * (1 - q))[:, None]))
    meat = z.T @ (z * (w**2 * (q - y) ** 2)[:, None])
    assert errors(model) == pytest.approx(np.sqrt(np.diag(bread @ meat @ bread)), rel=1e-9)
    model.fit(x, y, sample_weight=w, covariance="sandwich")
    meat = z.T @ (z * (w * (q - y) ** 2)[:, None])
    assert errors(model) == pytest.approx(np.sqrt(np.diag(bread @ meat @ bread)), rel=1e-9)


def test_offsets() -> None:
    x, y = overlapping(K=2)
    peer = sm.GLM(y, sm.add_constant(x[:, 1:], prepend=False), family=sm.families.Binomial(), offset=2 * x[:, 0])
    fitted = peer.fit(tol=1e-14)
    one = LogisticRegression(**TIGHT).fit(x[:, 1:], y, offset=2 * x[:, 0])
    two = SoftmaxRegression(**TIGHT).fit(x[:, 1:], y, offset=np.outer(2 * x[:, 0], [-0.5, 0.5]))
    for model in (one, two):
        assert estimates(model, reference=0) == pytest.approx(np.asarray(fitted.params), rel=1e-8)
        assert errors(model, reference=0) == pytest.approx(np.asarray(fitted.bse), rel=1e-8)
    null = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=2 * x[:, 0]).fit()
    assert one.summary().null_log_likelihood == pytest.approx(null.llf, rel=1e-9)
    assert two.summary().null_log_likelihood == pytest.approx(null.llf, rel=1e-9)
    assert one.predict_proba(x[:, 1:], offset=2 * x[:, 0])[:, 1] == pytest.approx(fitted.fittedvalues, rel=1e-8)


def test_smoothing_is_a_mixed_target() -> None:
    x, y = overlapping()
    mixed = 0.9 * np.eye(3)[y] + 0.1 / 3
    smooth = SoftmaxRegression(label_smoothing=0.1, **TIGHT).fit(x, y)
    given = SoftmaxRegression(**TIGHT).fit(x, mixed)
    assert smooth.coef_ == pytest.approx(given.coef_, rel=1e-9)
    assert smooth.entropy_ == pytest.approx(given.entropy_, rel=1e-12)
    assert errors(smooth) == pytest.approx(errors(given), rel=1e-8)
    weight = {0: 1.0, 1: 2.0, 2: 0.5}
    w = np.array([1.0, 2.0, 0.5])
    mu = mixed * w
    weighted = SoftmaxRegression(label_smoothing=0.1, class_weight=weight, **TIGHT).fit(x, y)
    given = SoftmaxRegression(**TIGHT).fit(x, mu / mu.sum(axis=1, keepdims=True), sample_weight=mu.sum(axis=1))
    assert weighted.coef_ == pytest.approx(given.coef_, rel=1e-9)


def test_a_penalty_conditions_the_inference() -> None:
    x, y = overlapping(K=2)
    lam, n = 0.1, len(y)
    model = LogisticRegression(penalty_strength=lam, **TIGHT).fit(x, y)
    z = np.column_stack([x, np.ones(n)])
    q = model.predict_proba(x)[:, 1]
    information = z.T @ (z * (q * (1 - q))[:, None])
    bread = np.linalg.inv(information + n * lam * np.diag([1, 1, 1, 1, 0]))
    assert errors(model) == pytest.approx(np.sqrt(np.diag(bread @ information @ bread)), rel=1e-9)
    told = model.summary()
    assert told.freedom == pytest.approx(np.trace(bread @ information), rel=1e-9)
    assert told.likelihood_ratio_p is None
    assert "Conditional on the penalty λ = 0.1" in str(told)
    score = z * (q - y)[:, None] + lam * np.r_[model.coef_[0], 0]
    model.fit(x, y, covariance="sandwich")
    assert errors(model) == pytest.approx(np.sqrt(np.diag(bread @ (score.T @ score) @ bread)), rel=1e-9)
