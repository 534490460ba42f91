"""What the definitions must obey whatever the distributions: identities, inequalities, and mpmath's digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from likely.measures import cross_entropy, entropy, kl_divergence, surprisal

CLASSES = st.integers(1, 12)
timeless = settings(deadline=None)  # a busy machine is no failure


@st.composite
def distributions(draw: st.DrawFn, count: int = 1) -> tuple[np.ndarray, ...]:
    """Distributions over the same classes: some classes impossible, some of mass 1e-300."""
    classes = draw(CLASSES)
    found = []
    for _ in range(count):
        entry = st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.sampled_from([1e-300, 1e-30, 1e-9]))
        mass = draw(arrays(np.float64, classes, elements=entry))
        mass[draw(st.integers(0, classes - 1))] += 1.0
        found.append(mass / mass.sum())
    return tuple(found)


@timeless
@given(distributions(2))
def test_kl_is_never_negative(pq: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pq
    assert kl_divergence(p, q) >= -1e-14
    assert kl_divergence(p, p) == 0.0
    if 0.5 * np.abs(p - q).sum() > 1e-6:  # Pinsker: KL >= 2 TV²
        assert kl_divergence(p, q) >= 2 * (0.5 * np.abs(p - q).sum()) ** 2 * (1 - 1e-3) - 1e-14


@timeless
@given(distributions(2))
def test_cross_entropy_is_entropy_plus_kl(pq: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pq
    assert cross_entropy(p, q) == pytest.approx(entropy(p) + kl_divergence(p, q), rel=1e-12, abs=1e-13)
    assert cross_entropy(p, p) == pytest.approx(entropy(p), rel=1e-13)
    assert not math.isnan(cross_entropy(p, q))
    assert math.isinf(kl_divergence(p, q)) == bool(((p > 0) & (q == 0)).any())


@timeless
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_surprisals_of_independent_events_add(p: float, q: float) -> None:
    if p * q >= 1e-300 or 0.0 in (p, q):  # below, the product loses its digits
        assert surprisal(p * q) == pytest.approx(surprisal(p) + surprisal(q), rel=1e-12, abs=1e-15)


@timeless
@given(distributions(2), distributions(2))
def test_independent_distributions_add(pq: tuple[np.ndarray, ...], rs: tuple[np.ndarray, ...]) -> None:
    (p, q), (r, s) = pq, rs
    joint_p, joint_q = np.outer(p, r).ravel(), np.outer(q, s).ravel()
    assert entropy(joint_p) == pytest.approx(entropy(p) + entropy(r), rel=1e-11, abs=1e-13)
    if (joint_q[np.outer(q > 0, s > 0).ravel()] > 1e-290).all():
        expected = kl_divergence(p, q) + kl_divergence(r, s)
        assert kl_divergence(joint_p, joint_q) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@timeless
@given(st.integers(1, 2000))
def test_the_uniform_has_the_most_entropy(n: int) -> None:
    assert entropy(np.full(n, 1 / n)) == pytest.approx(math.log(n), rel=1e-13)
    assert entropy(np.full(n, 1 / n), base=2) == pytest.approx(math.log2(n), rel=1e-13)


@timeless
@given(distributions())
def test_entropy_is_log_n_less_the_divergence_from_the_uniform(ps: tuple[np.ndarray]) -> None:
    n = len(ps[0])
    assert 0 <= entropy(ps[0]) <= math.log(n) + 1e-14
    expected = math.log(n) - kl_divergence(ps[0], np.full(n, 1 / n))
    assert entropy(ps[0]) == pytest.approx(expected, rel=1e-11, abs=1e-14)


@timeless
@given(distributions(2), st.floats(1.1, 100.0))
def test_a_base_only_changes_the_unit(pq: tuple[np.ndarray, np.ndarray], base: float) -> None:
    p, q = pq
    for nats, units in [
        (entropy(p), entropy(p, base=base)),
        (cross_entropy(p, q), cross_entropy(p, q, base=base)),
        (kl_divergence(p, q), kl_divergence(p, q, base=base)),
        (surprisal(p).max(), surprisal(p, base=base).max()),
    ]:
        assert units * math.log(base) == pytest.approx(nats, rel=1e-14)


@timeless
@given(distributions(2), st.randoms(use_true_random=False))
def test_classes_have_no_order(pq: tuple[np.ndarray, np.ndarray], random: object) -> None:
    order = list(range(len(pq[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert kl_divergence(pq[0][order], pq[1][order]) == pytest.approx(kl_divergence(*pq), rel=1e-11, abs=1e-14)


@timeless
@given(distributions(2))
def test_torch_and_numpy_are_the_same(pq: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pq
    tensors = torch.from_numpy(p), torch.from_numpy(q)
    assert entropy(tensors[0]).item() == entropy(p)
    assert cross_entropy(*tensors).item() == cross_entropy(p, q)
    assert kl_divergence(*tensors).item() == kl_divergence(p, q)
    np.testing.assert_array_equal(surprisal(tensors[0]).numpy(), surprisal(p))


@timeless
@given(distributions(2))
def test_digits_are_those_of_mpmath(pq: tuple[np.ndarray, np.ndarray]) -> None:
    """Each sum within a few ulp of the sum of the magnitudes of its terms."""
    p, q = pq
    with mpmath.workdps(60):
        terms_h, terms_ce, terms_kl = [], [], []
        for a, b in zip(map(mpmath.mpf, map(float, p)), map(mpmath.mpf, map(float, q))):
            if a == 0:
                continue
            terms_h.append(-a * mpmath.log(a))
            terms_ce.append(mpmath.inf if b == 0 else -a * mpmath.log(b))
            terms_kl.append(mpmath.inf if b == 0 else a * mpmath.log(a / b))
        for value, terms in [(entropy(p), terms_h), (cross_entropy(p, q), terms_ce), (kl_divergence(p, q), terms_kl)]:
            truth = mpmath.fsum(terms)
            if truth == mpmath.inf:
                assert value == math.inf
            else:
                # The logarithms of p and q, not of p/q, set the error of KL: their sizes are those of H and CE.
                scale = float(mpmath.fsum(map(abs, [*terms_h, *terms_ce]))) + 1e-300
                assert abs(float(value - truth)) <= 8 * np.finfo(float).eps * scale


def test_chain_rule() -> None:
    """KL of a joint is the expectation over x of the conditional KL, where both share P(x)."""
    rng = np.random.default_rng(0)
    p_x, p_yx, q_yx = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(3), size=5), rng.dirichlet(np.ones(3), size=5)
    joint = kl_divergence((p_x[:, None] * p_yx).ravel(), (p_x[:, None] * q_yx).ravel())
    assert joint == pytest.approx(p_x @ kl_divergence(p_yx, q_yx), rel=1e-13)
