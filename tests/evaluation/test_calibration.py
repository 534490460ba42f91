"""The calibration error is the field's, its standard error is right where it claims to be, its floor is its floor."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from likely.evaluation import calibration_error, evaluate, reliability


def drawn(
    rng: np.random.Generator, n: int, sharpen: float = 1.0, classes: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels drawn from p, and predictions q ∝ p^sharpen: calibrated where `sharpen` is 1, too sure above it."""
    p = rng.dirichlet(np.ones(classes), size=n)
    y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    q = p**sharpen
    return q / q.sum(axis=1, keepdims=True), y, p


def by_hand(q: np.ndarray, y: np.ndarray, bins: int) -> float:
    """The published algorithm, a loop over bins (lower, upper]."""
    confidence, right = q.max(1), q.argmax(1) == y
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 10, 15, 100])
@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_it_is_the_usual_expected_calibration_error(bins: int, sharpen: float) -> None:
    q, y, _ = drawn(np.random.default_rng(bins), 500, sharpen)
    assert calibration_error(q, y, bins=bins).mean == pytest.approx(by_hand(q, y, bins), rel=1e-12)
    assert evaluate(q, y, bins=bins).calibration_error == calibration_error(q, y, bins=bins)


def test_the_standard_error_is_the_spread_over_samples_where_a_model_is_miscalibrated() -> None:
    rng = np.random.default_rng(1)
    found = [calibration_error(*drawn(rng, 1000, sharpen=4.0)[:2]) for _ in range(300)]
    spread = np.std([e.mean for e in found])
    # The spread of 300 draws is itself known to 1/sqrt(600) = 4 %.
    assert np.mean([e.standard_error for e in found]) == pytest.approx(spread, rel=0.12)


def test_the_standard_error_is_not_too_small_where_a_model_is_calibrated() -> None:
    rng = np.random.default_rng(2)
    found = [calibration_error(*drawn(rng, 1000)[:2]) for _ in range(200)]
    assert np.mean([e.standard_error for e in found]) >= np.std([e.mean for e in found])


@pytest.mark.parametrize("n", [60, 1000])
def test_the_floor_is_the_mean_error_of_a_calibrated_model(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [reliability(*drawn(rng, n)[:2]) for _ in range(300)]
    errors = np.array([r.error.mean for r in found])
    floors = np.array([r.floor for r in found])
    assert floors.mean() == pytest.approx(errors.mean(), rel=0.05)


def test_the_floor_of_one_bin_is_the_mean_deviation_of_a_binomial() -> None:
    n, p = 7, 0.6
    q = np.tile([p, 1 - p], (n, 1))
    expected = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * abs(k / n - p) for k in range(n + 1))
    assert reliability(q, [0] * n).floor == pytest.approx(expected, rel=1e-12)


def test_certainty_has_no_floor() -> None:
    assert reliability([[1.0, 0.0]] * 4, [0, 0, 0, 1]).floor == 0.0


def test_the_squared_error_is_freed_of_its_bias() -> None:
    rng = np.random.default_rng(3)
    calibrated = [reliability(*drawn(rng, 400)[:2], bins=10) for _ in range(300)]
    debiased = np.array([r.debiased_squared_error for r in calibrated])
    plain = np.array([(r.share * np.nan_to_num(r.gap) ** 2).sum() for r in calibrated])
    error = debiased.std() / math.sqrt(len(debiased))
    assert abs(debiased.mean()) < 4 * error
    assert plain.mean() > 10 * error


def test_of_a_distribution_its_mass_at_the_prediction_came_true() -> None:
    q, _, p = drawn(np.random.default_rng(4), 300, sharpen=2.0)
    r = reliability(q, p, bins=1)
    mass = p[np.arange(300), q.argmax(1)]
    assert r.accuracy[0] == pytest.approx(mass.mean())
    assert r.error.mean == pytest.approx(abs(mass.mean() - q.max(1).mean()))
    assert r.floor is None
    assert reliability(p, p).error.mean == 0.0


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_the_bins_hold_every_row_once(binning: Literal["width", "mass"]) -> None:
    q, y, _ = drawn(np.random.default_rng(5), 301)
    r = reliability(q, y, bins=7, binning=binning)
    assert r.count.sum() == 301
    assert r.share.sum() == pytest.approx(1.0)
    held = r.count > 0
    assert (r.share[held] * r.confidence[held]).sum() == pytest.approx(q.max(1).mean())
    assert (r.share[held] * r.accuracy[held]).sum() == pytest.approx((q.argmax(1) == y).mean())
    assert (r.low[held] <= r.accuracy[held]).all()
    assert (r.accuracy[held] <= r.high[held]).all()
    assert np.isnan(r.gap[~held]).all()
    if binning == "mass":
        assert r.count.max() - r.count.min() <= 2


def test_equal_confidences_share_a_bin_of_equal_mass() -> None:
    r = reliability([[0.75, 0.25]] * 8, [0, 0, 0, 0, 0, 0, 1, 1], bins=4, binning="mass")
    assert r.count.max() == 8
    assert r.error.mean == pytest.approx(0.0)


def test_wilsons_interval_has_a_width_where_all_are_right() -> None:
    r = reliability([[0.9, 0.1]] * 10, [0] * 10, bins=1)
    # 10 of 10: the lower end of Wilson's 95 % interval is n / (n + z²).
    assert (r.low[0], r.high[0]) == (pytest.approx(10 / (10 + 1.959964**2), rel=1e-6), 1.0)


def test_weights_are_repetitions() -> None:
    q, y, _ = drawn(np.random.default_rng(6), 90, sharpen=2.0)
    w = np.arange(90) % 4
    weighted, repeated = reliability(q, y, weights=w), reliability(np.repeat(q, w, axis=0), np.repeat(y, w))
    assert weighted.error.mean == pytest.approx(repeated.error.mean)
    np.testing.assert_allclose(weighted.confidence, repeated.confidence)
    np.testing.assert_allclose(weighted.accuracy, repeated.accuracy)
    np.testing.assert_allclose(weighted.share, repeated.share)


def test_groups_reach_into_the_bins() -> None:
    q, y, _ = drawn(np.random.default_rng(8), 200)
    once = reliability(q, y, bins=5)
    four_times = reliability(np.tile(q, (4, 1)), np.tile(y, 4), bins=5, groups=np.tile(np.arange(200), 4))
    np.testing.assert_allclose(four_times.standard_error, once.standard_error)
    assert four_times.error.standard_error == pytest.approx(once.error.standard_error)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    assert reliability([[0.75, 0.25]] * 3, [0, 0, 1], bins=4).count.tolist() == [0, 0, 3, 0]
    assert reliability([[1.0, 0.0]] * 3, [0, 0, 1], bins=4).count.tolist() == [0, 0, 0, 3]


def test_the_interval_does_not_go_below_zero() -> None:
    q, y, _ = drawn(np.random.default_rng(7), 50)
    error = calibration_error(q, y, confidence=0.999999)
    assert error.low == 0.0
    assert error.high > error.mean


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="binning: 'equal'"):
        reliability([[0.5, 0.5]], [0], binning="equal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bins: 0"):
        reliability([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(ValueError, match="groups: has 2 rows"):
        reliability([[0.5, 0.5]], [0], groups=["a", "b"])
