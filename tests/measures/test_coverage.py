"""What the estimates promise, by simulation with a fixed seed: the interval covers, the error shrinks as 1/√n.

Each simulation draws R samples. A coverage of 0.95 then has the standard error sqrt(0.95 · 0.05 / R); the tests allow
four of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from likely.measures import Estimate, estimate, estimate_kl, kl_divergence

R = 2000
SLACK = 4 * math.sqrt(0.95 * 0.05 / R)


def coverage(truth: float, draw: Callable[[np.random.Generator], Estimate], seed: int) -> float:
    rng = np.random.default_rng(seed)
    estimates = [draw(rng) for _ in range(R)]
    return sum(e.low <= truth <= e.high for e in estimates) / R


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_the_interval_of_normal_rows_covers_exactly_as_often_as_it_says(n: int) -> None:
    found = coverage(1.0, lambda rng: estimate(rng.normal(1.0, 2.0, size=n)), seed=n)
    assert found == pytest.approx(0.95, abs=SLACK)


@pytest.mark.parametrize("confidence", [0.5, 0.8])
def test_other_confidences(confidence: float) -> None:
    found = coverage(0.0, lambda rng: estimate(rng.normal(size=8), confidence=confidence), seed=1)
    assert found == pytest.approx(confidence, abs=4 * math.sqrt(0.25 / R))


def test_the_interval_of_losses_covers() -> None:
    # Exponential, as skew as the losses of a classifier; many rows, so that the mean is nearly normal.
    assert coverage(1.0, lambda rng: estimate(rng.exponential(size=400)), seed=2) == pytest.approx(0.95, abs=SLACK)


def documents(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Forty documents of about fifteen tokens; half of a token's variance is its document's."""
    sizes = 1 + rng.poisson(14, size=40)
    groups = np.repeat(np.arange(40), sizes)
    return rng.normal(size=40)[groups] + rng.normal(size=len(groups)), groups


def test_clustered_rows_need_their_groups() -> None:
    naive = coverage(0.0, lambda rng: estimate(documents(rng)[0]), seed=3)
    clustered = coverage(0.0, lambda rng: estimate(*(lambda d: (d[0], None, d[1]))(documents(rng))), seed=3)
    assert naive < 0.6  # the interval is too narrow by sqrt(1 + 14 · 0.5), nearly 3
    assert clustered == pytest.approx(0.95, abs=SLACK + 0.015)


def test_groups_of_independent_rows_cost_little() -> None:
    def draw(rng: np.random.Generator) -> Estimate:
        return estimate(rng.normal(size=300), groups=np.arange(300) // 10)

    assert coverage(0.0, draw, seed=4) == pytest.approx(0.95, abs=SLACK)


def test_weighted_rows_cover() -> None:
    """Weights that depend on the value: the ratio mean is that of the tilted distribution, here E[x²]/E[x] = 2."""

    def draw(rng: np.random.Generator) -> Estimate:
        x = rng.exponential(size=500)
        return estimate(x, weights=x)

    assert coverage(2.0, draw, seed=5) == pytest.approx(0.95, abs=SLACK + 0.015)


# The law of large numbers --------------------------------


def test_kl_from_samples_converges_at_the_rate_of_the_square_root() -> None:
    rng = np.random.default_rng(6)
    p, q = rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10))
    truth, ratio = float(kl_divergence(p, q)), np.log(p) - np.log(q)
    spread = math.sqrt(float(p @ (ratio - truth) ** 2))
    sizes = np.array([100, 1000, 10_000])
    rms = []
    for n in sizes:
        # A sample of n is a table of counts: its mean log ratio is estimated from the counts as weights.
        counts = rng.multinomial(n, p, size=400)
        means = [estimate_kl(np.log(p), np.log(q), weights=row).mean for row in counts]
        rms.append(math.sqrt(np.mean((np.array(means) - truth) ** 2)))
    np.testing.assert_allclose(rms, spread / np.sqrt(sizes), rtol=0.15)
    slope = np.polyfit(np.log(sizes), np.log(rms), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)


def test_kl_from_samples_covers_and_its_error_is_the_true_one() -> None:
    rng = np.random.default_rng(7)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    truth = float(kl_divergence(p, q))
    log_p, log_q = np.log(p), np.log(q)
    found, errors = [], []
    for _ in range(R):
        x = rng.choice(5, size=500, p=p)
        e = estimate_kl(log_p[x], log_q[x])
        found.append(e)
        errors.append(e.mean - truth)
    assert np.mean([e.low <= truth <= e.high for e in found]) == pytest.approx(0.95, abs=SLACK + 0.005)
    assert np.mean(errors) == pytest.approx(0.0, abs=4 * float(np.std(errors)) / math.sqrt(R))  # unbiased
    assert np.mean([e.standard_error for e in found]) == pytest.approx(np.std(errors), rel=0.06)


def test_the_law_fails_where_the_rows_are_not_independent() -> None:
    """A thousand copies of one document are one document: the mean does not converge, and only groups say so."""
    rng = np.random.default_rng(8)
    value = rng.normal(size=5)
    copies, groups = np.repeat(value, 1000), np.repeat(np.arange(5), 1000)
    assert estimate(copies).standard_error < 0.05 * estimate(value).standard_error
    assert estimate(copies, groups=groups).standard_error == pytest.approx(estimate(value).standard_error, rel=1e-12)
