"""Estimates from samples: by hand, beside statsmodels and SciPy, at the edges, and their printing."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.measures import Estimate, estimate, estimate_kl, kl_divergence

RNG_SEED = 7


def sample(n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, weights (some of them 0) and groups of very different sizes."""
    rng = np.random.default_rng(RNG_SEED)
    groups = rng.choice(25, size=n, p=rng.dirichlet(np.ones(25)))
    values = rng.normal(size=n) + rng.normal(size=25)[groups]
    weights = rng.gamma(1.0, size=n) * (rng.random(n) > 0.2)
    return values, weights, groups


def same(a: Estimate, b: Estimate, rel: float = 1e-12) -> None:
    assert (a.n, a.groups, a.confidence) == (b.n, b.groups, b.confidence)
    for field in ("mean", "standard_error", "low", "high"):
        assert getattr(a, field) == pytest.approx(getattr(b, field), rel=rel, nan_ok=True), field


# By hand --------------------------------


def test_by_hand() -> None:
    e = estimate([1.0, 2.0, 3.0, 4.0])
    assert e.mean == 2.5
    assert e.standard_error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert e.high - e.mean == pytest.approx(3.182446305 * e.standard_error)  # t with 3 degrees of freedom
    assert e.low == pytest.approx(2 * e.mean - e.high)
    assert (e.n, e.groups, e.confidence) == (4, None, 0.95)


def test_weighted_by_hand() -> None:
    # m = (1·1 + 3·2)/4 = 7/4; residuals 1·(−3/4)/4 and 3·(1/4)/4; variance 2/1 · 2 · (3/16)²
    e = estimate([1.0, 2.0], [1.0, 3.0])
    assert e.mean == 1.75
    assert e.standard_error == pytest.approx(float(2 * Fraction(3, 16)))


def test_clustered_by_hand() -> None:
    # Two groups of means 1.5 and 3.5, equally large: as if each group were one row.
    same(estimate([1, 2, 3, 4], groups=["a", "a", "b", "b"]), Estimate(2.5, 1.0, *interval(2.5, 1.0, 1), 4, 0.95, 2))
    by_rows, by_groups = estimate([1, 2, 3, 4]), estimate([1, 2, 3, 4], groups=[10, 20, 30, 40])
    assert by_rows.standard_error == pytest.approx(by_groups.standard_error)
    assert by_groups.groups == 4


def interval(mean: float, error: float, freedom: int, confidence: float = 0.95) -> tuple[float, float]:
    low, high = scipy.stats.t.interval(confidence, freedom, loc=mean, scale=error)
    return float(low), float(high)


# Beside others --------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_scipy_agrees(confidence: float) -> None:
    values, _, _ = sample()
    e = estimate(values, confidence=confidence)
    assert e.mean == pytest.approx(values.mean(), rel=1e-12)
    assert e.standard_error == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    assert (e.low, e.high) == pytest.approx(
        interval(values.mean(), scipy.stats.sem(values), 199, confidence), rel=1e-10
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_statsmodels_agrees(weighted: bool, clustered: bool) -> None:
    """A mean is a regression on a constant; its sandwich is HC1, or the cluster-robust one."""
    values, weights, groups = sample()
    kept = weights > 0 if weighted else np.ones(len(values), bool)
    model = sm.WLS(values[kept], np.ones(kept.sum()), weights=weights[kept] if weighted else 1.0)
    if clustered:
        codes = np.unique(groups[kept], return_inverse=True)[1]
        fit = model.fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    else:
        fit = model.fit(cov_type="HC1", use_t=True)
    e = estimate(values, weights if weighted else None, groups if clustered else None)
    assert e.mean == pytest.approx(fit.params[0], rel=1e-12)
    assert e.standard_error == pytest.approx(fit.bse[0], rel=1e-12)
    assert (e.low, e.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-10)
    assert e.n == kept.sum()
    assert e.groups == (len(np.unique(groups[kept])) if clustered else None)


# Laws --------------------------------


def test_weights_have_no_scale() -> None:
    values, weights, groups = sample()
    for factor in (1e-300, 1e-5, 3.0, 1e300):
        same(estimate(values, weights * factor, groups), estimate(values, weights, groups))


def test_equal_weights_are_no_weights() -> None:
    values, _, groups = sample()
    same(estimate(values, np.full(200, 0.3)), estimate(values))
    same(estimate(values, np.full(200, 0.3), groups), estimate(values, groups=groups))


def test_rows_of_weight_zero_are_not_there() -> None:
    values, weights, groups = sample()
    kept = weights > 0
    same(estimate(values, weights, groups), estimate(values[kept], weights[kept], groups[kept]))
    values[~kept] = np.resize([math.nan, math.inf, -math.inf], (~kept).sum())
    same(estimate(values, weights, groups), estimate(values[kept], weights[kept], groups[kept]))
    # A group of which nothing is left does not count as one.
    for gone in range(3):
        assert estimate([1, 2, 3], np.arange(3) != gone, ["a", "b", "c"]).groups == 2


def test_rows_have_no_order() -> None:
    values, weights, groups = sample()
    order = np.random.default_rng(0).permutation(len(values))
    same(estimate(values[order], weights[order], groups[order]), estimate(values, weights, groups))


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(0.1, 100))
def test_shift_and_scale(shift: float, scale: float) -> None:
    values, weights, groups = sample()
    e, moved = estimate(values, weights, groups), estimate(scale * values + shift, weights, groups)
    assert moved.mean == pytest.approx(scale * e.mean + shift, rel=1e-9, abs=1e-9)
    assert moved.standard_error == pytest.approx(scale * e.standard_error, rel=1e-9)
    assert moved.high == pytest.approx(scale * e.high + shift, rel=1e-9, abs=1e-9)


def test_more_confidence_is_a_wider_interval() -> None:
    widths = [(lambda e: e.high - e.low)(estimate(sample()[0], confidence=c)) for c in (0.1, 0.5, 0.9, 0.99, 0.9999)]
    assert widths == sorted(widths)


# Kinds --------------------------------


def test_tensors_arrays_lists_and_series() -> None:
    values, weights, groups = sample()
    expected = estimate(values, weights, groups)
    tensor = torch.from_numpy(values).requires_grad_()
    same(estimate(tensor * 1.0, torch.from_numpy(weights), torch.from_numpy(groups)), expected)
    same(estimate(values.tolist(), weights.tolist(), groups.tolist()), expected)
    odd = pd.RangeIndex(5, 205)
    same(estimate(pd.Series(values, odd), pd.Series(weights, odd), pd.Series(groups, odd)), expected)
    same(estimate(torch.from_numpy(values).bfloat16()), estimate(torch.from_numpy(values).bfloat16().double()))
    assert estimate(np.array([True, False, True, True])).mean == 0.75
    assert estimate([1, 2]).mean == 1.5
    for field in ("mean", "standard_error", "low", "high"):
        assert type(getattr(expected, field)) is float
    assert type(expected.n) is int
    assert type(expected.groups) is int


@pytest.mark.parametrize(
    "label",
    [str, lambda g: (g, "doc"), lambda g: f"{g}.txt" if g % 2 else g, lambda g: None if g == 3 else g, float, bytes],
)
def test_groups_of_any_hashable_kind(label: Any) -> None:
    values, weights, groups = sample()
    labels = [label(g) for g in groups.tolist()]
    same(estimate(values, weights, labels), estimate(values, weights, groups))
    same(estimate(values, weights, iter(labels)), estimate(values, weights, groups))


def test_groups_in_a_string_array() -> None:
    values, weights, groups = sample()
    same(estimate(values, weights, groups.astype(str)), estimate(values, weights, groups))
    same(estimate(values, weights, groups.astype(str).astype(object)), estimate(values, weights, groups))


def test_computed_in_float64() -> None:
    values = torch.full((100_000,), 0.1) + torch.arange(100_000) % 2 * 1e-3
    assert estimate(values).mean == pytest.approx(float(values.double().mean()), rel=1e-14)
    with torch.no_grad():
        assert estimate(1e8 + np.array([0.0, 1.0, 2.0])).standard_error == pytest.approx(1 / math.sqrt(3), rel=1e-6)


# Edges --------------------------------


@pytest.mark.parametrize("groups", [None, ["only"] * 3])
def test_of_one_row_or_one_group_the_error_is_unknown(groups: list[str] | None) -> None:
    e = estimate([2.0], groups=["only"]) if groups is None else estimate([1.0, 2.0, 3.0], groups=groups)
    assert e.mean == 2.0
    assert all(math.isnan(x) for x in (e.standard_error, e.low, e.high))
    assert math.isnan(estimate([2.0]).standard_error)
    assert math.isnan(estimate([2.0, 9.0], [1.0, 0.0]).standard_error)


@pytest.mark.parametrize("weights", [None, [0.0, 0.0]])
def test_the_mean_over_nothing_is_unknown(weights: list[float] | None) -> None:
    e = estimate([] if weights is None else [1.0, 2.0], weights)
    assert (e.n, e.groups) == (0, None)
    assert all(math.isnan(x) for x in (e.mean, e.standard_error, e.low, e.high))
    assert estimate([], groups=[]).groups == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1.0, math.inf], math.inf),
        ([1.0, -math.inf, 3.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([1e308, -1e308, 1.7e308], 1.7e308 / 3),
    ],
)
def test_values_that_are_not_finite(values: list[float], mean: float) -> None:
    for groups in (None, range(len(values))):
        e = estimate(values, groups=groups)
        assert e.mean == pytest.approx(mean, nan_ok=True)
        assert all(math.isnan(x) for x in (e.standard_error, e.low, e.high))
        str(e)


def test_equal_values_have_no_error() -> None:
    e = estimate([0.25] * 64)
    assert (e.mean, e.standard_error, e.low, e.high) == (0.25, 0.0, 0.25, 0.25)
    assert estimate([0.1] * 1000).standard_error < 1e-17


# Refusals --------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [[1.0], [2.0]]}, "values: has shape (2, 1); give one number a row"),
        ({"values": 1.0}, "values: has shape ()"),
        ({"values": ["a"]}, "values: holds <U1, not real numbers"),
        ({"weights": [1.0, 2.0]}, "weights: has 2 rows where values has 3"),
        ({"weights": [1.0, 2.0, -1.0]}, "weights: row 2 is -1; a weight is finite and at least 0"),
        ({"weights": [1.0, math.nan, 1.0]}, "weights: row 1 is nan"),
        ({"weights": [1.0, 1.0, math.inf]}, "weights: row 2 is inf"),
        ({"groups": [1, 2]}, "groups: has 2 rows where values has 3"),
        ({"groups": "ab"}, "groups: has 2 rows"),
        ({"groups": [[1], [2], [3]]}, "groups: give one hashable label a row"),
        ({"groups": np.zeros((3, 1))}, "groups: give one hashable label a row"),
        ({"groups": 3}, "groups: give one hashable label a row"),
        ({"groups": [1.0, math.nan, 2.0]}, "groups: a label is NaN"),
        ({"groups": pd.Series([1, 2, None])}, "groups: a label is NaN"),
        ({"groups": pd.array([1, 2, None], dtype="Int64")}, "groups: "),
        ({"confidence": 95}, "confidence: 95 is not between 0 and 1"),
        ({"confidence": 0.0}, "confidence: 0.0"),
        ({"confidence": 1.0}, "confidence: 1.0"),
        ({"confidence": math.nan}, "confidence: nan"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        estimate(**({"values": [1.0, 2.0, 3.0]} | arguments))
    assert str(caught.value).startswith(message)


# Printing --------------------------------


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.41234, 0.01311, "0.412 ± 0.013"),
        (0.41234, 0.0996, "0.41 ± 0.10"),
        (0.41234, 0.09949, "0.412 ± 0.099"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (-12.345, 3.21, "-12.3 ± 3.2"),
        (12345.6, 123.4, "12346 ± 123"),
        (2.5e-9, 3e-10, "2.5e-09 ± 3e-10"),
        (0.25, 0.0, "0.25 ± 0"),
        (0.25, math.nan, "0.25 ± nan"),
        (math.inf, math.nan, "inf ± nan"),
        (math.nan, math.nan, "nan ± nan"),
    ],
)
def test_printing(mean: float, error: float, text: str) -> None:
    assert str(Estimate(mean, error, 0.0, 1.0, 10, 0.95)) == text


def test_an_estimate_is_a_value() -> None:
    e = estimate([1.0, 2.0])
    assert e == estimate([1.0, 2.0])
    assert hash(e) == hash(estimate([1.0, 2.0]))
    with pytest.raises(FrozenInstanceError):
        e.mean = 0.0  # type: ignore[misc]


# KL from samples --------------------------------


def test_kl_is_the_mean_log_ratio() -> None:
    log_p, log_q = np.log([0.5, 0.25, 0.5]), np.log([0.25, 0.5, 0.25])
    same(estimate_kl(log_p, log_q), estimate(np.log([2, 0.5, 2])))
    same(estimate_kl(torch.tensor(log_p), log_q), estimate(np.log([2, 0.5, 2])))
    weighted = estimate_kl(log_p, log_q, weights=[1, 2, 1], groups=["a", "b", "a"], confidence=0.9)
    same(weighted, estimate(np.log([2, 0.5, 2]), [1, 2, 1], ["a", "b", "a"], 0.9))
    assert estimate_kl(log_p, log_p).mean == 0.0
    # Every row counted as often as P says: no longer an estimate.
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    assert estimate_kl(np.log(p), np.log(q), weights=p).mean == pytest.approx(kl_divergence(p, q), rel=1e-14)


def test_kl_is_infinite_where_q_holds_a_sample_impossible() -> None:
    e = estimate_kl([-1.0, -1.0], [-1.0, -math.inf])
    assert e.mean == math.inf
    assert math.isnan(e.standard_error)


def test_log_densities_are_welcome() -> None:
    x = np.random.default_rng(0).normal(0.5, 1.0, size=4000)
    e = estimate_kl(scipy.stats.norm.logpdf(x, 0.5, 1.0), scipy.stats.norm.logpdf(x, 0.0, 1.0))
    assert e.low < 0.125 < e.high  # KL(N(μ, 1) ‖ N(0, 1)) = μ²/2


@pytest.mark.parametrize(
    ("log_p", "log_q", "message"),
    [
        ([-1.0, -math.inf], [-1.0, -1.0], "log_p: row 1 is -inf; a sample drawn from P has a finite log-probability"),
        ([math.nan, -1.0], [-1.0, -1.0], "log_p: row 0 is nan"),
        ([-1.0, -1.0], [-1.0, math.nan], "log_q: row 1 is nan"),
        ([-1.0, -1.0], [math.inf, -1.0], "log_q: row 0 is inf; it must be below +inf"),
        ([-1.0, -1.0], [-1.0], "log_q: has 1 rows where log_p has 2"),
        ([[-1.0]], [[-1.0]], "log_p: has shape (1, 1)"),
    ],
)
def test_bad_samples(log_p: Any, log_q: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        estimate_kl(log_p, log_q)
    assert str(caught.value).startswith(message)
