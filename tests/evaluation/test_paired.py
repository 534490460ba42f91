"""The paired difference: Student's on disjoint test sets, corrected where the splits overlap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from likely.evaluation import paired_difference

A = [0.166, 0.171, 0.150, 0.182, 0.164]
B = [0.055, 0.061, 0.049, 0.070, 0.058]


def test_disjoint_folds_are_the_ordinary_paired_t() -> None:
    found = paired_difference(A, B)
    expected = stats.ttest_rel(A, B)
    interval = expected.confidence_interval(0.95)
    assert found.mean / found.standard_error == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.n == 5


def test_overlapping_splits_have_the_variance_of_nadeau_and_bengio() -> None:
    found = paired_difference(A, B, test_train_ratio=0.25, confidence=0.9)
    d = np.subtract(A, B)
    error = math.sqrt((1 / 5 + 0.25) * d.var(ddof=1))
    half = error * stats.t.ppf(0.95, 4)
    assert (found.mean, found.standard_error) == pytest.approx((d.mean(), error))
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert (found.n, found.confidence) == (5, 0.9)


def test_the_order_of_the_arguments_is_the_sign() -> None:
    for ratio in (None, 0.25):
        ab, ba = paired_difference(A, B, test_train_ratio=ratio), paired_difference(B, A, test_train_ratio=ratio)
        assert ab.mean == -ba.mean
        assert (ab.low, ab.high) == (-ba.high, -ba.low)


def differences(rng: np.random.Generator, rows: int, test: int, splits: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The errors on held-out rows of two classifiers that are alike by symmetry: their true difference is 0.

    Each thresholds one of two features, exchangeable given the label, half-way between the two class means of its
    training rows. With `splits` the test sets are drawn again and again from the same rows; without, they are folds.
    """
    y = rng.integers(2, size=rows)
    x = rng.normal(size=(rows, 2)) + y[:, None]
    if splits is None:
        tests = list(rng.permutation(rows).reshape(-1, test))
    else:
        tests = [rng.permutation(rows)[:test] for _ in range(splits)]
    errors = []
    for held in tests:
        train = np.ones(rows, dtype=bool)
        train[held] = False
        cut = (x[train & (y == 0)].mean(axis=0) + x[train & (y == 1)].mean(axis=0)) / 2
        errors.append(((x[held] > cut) != y[held][:, None]).mean(axis=0))
    a, b = np.array(errors).T
    return a, b


def covered(splits: int | None, ratio: float | None, repeats: int = 1000) -> float:
    """How often the 95 % interval holds the true difference 0."""
    rng = np.random.default_rng(0)
    found = [paired_difference(*differences(rng, 100, 20, splits), test_train_ratio=ratio) for _ in range(repeats)]
    return sum(e.low <= 0.0 <= e.high for e in found) / repeats


def test_on_overlapping_splits_the_naive_interval_is_too_narrow_and_the_corrected_one_is_not() -> None:
    naive, corrected = covered(splits=15, ratio=None), covered(splits=15, ratio=0.25)
    assert naive < 0.8
    assert 0.92 < corrected < 0.98


def test_on_disjoint_folds_the_ordinary_interval_covers() -> None:
    assert 0.92 < covered(splits=None, ratio=None) < 0.99


def test_no_difference_at_all_has_no_spread() -> None:
    found = paired_difference(A, A, test_train_ratio=0.25)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_an_infinite_value_is_reported_and_its_spread_is_unknown(ratio: float | None) -> None:
    found = paired_difference([math.inf, 1.0], [0.0, 0.0], test_train_ratio=ratio)
    assert found.mean == math.inf
    assert math.isnan(found.standard_error)
    both = paired_difference([math.inf, 1.0], [math.inf, 0.0], test_train_ratio=ratio)
    assert math.isnan(both.mean)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1.0], [2.0], {}, "a: has 1 split"),
        ([1.0, 2.0], [1.0], {}, "b: has 1 rows where a has 2"),
        ([[1.0, 2.0]], [1.0, 2.0], {}, r"a: has shape \(1, 2\)"),
        ([1.0, math.nan], [1.0, 2.0], {}, "a: split 1 is NaN"),
        ([1.0, 2.0], [math.nan, 2.0], {}, "b: split 0 is NaN"),
        ([1.0, 2.0], [1.0, 2.0], {"test_train_ratio": 0.0}, "test_train_ratio: 0.0"),
        ([1.0, 2.0], [1.0, 2.0], {"test_train_ratio": math.nan}, "test_train_ratio: nan"),
        ([1.0, 2.0], [1.0, 2.0], {"confidence": 1.0}, "confidence: 1.0"),
    ],
)
def test_bad_input_is_named(a: Any, b: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, **options)
