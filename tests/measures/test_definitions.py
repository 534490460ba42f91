"""The definitions by hand, beside SciPy's and torch's, over kinds of array, dtypes, axes and bad input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch

from likely.measures import cross_entropy, entropy, kl_divergence, surprisal

LOG2 = math.log(2)
PAIRS: list[Callable[..., Any]] = [cross_entropy, kl_divergence]


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), size=shape[:-1])


# By hand --------------------------------


@pytest.mark.parametrize(
    ("p", "expected"),
    [([0.5, 0.5], LOG2), ([1.0, 0.0], 0.0), ([0.5, 0.25, 0.25], 1.5 * LOG2), ([0.125] * 8, 3 * LOG2), ([1.0], 0.0)],
)
def test_entropy_by_hand(p: list[float], expected: float) -> None:
    assert entropy(p) == pytest.approx(expected, rel=1e-15)
    assert entropy(p, base=2) == pytest.approx(expected / LOG2, rel=1e-15)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.5, 0.5], [0.25, 0.75], 1.5 * LOG2 - 0.5 * math.log(1.5)),
        ([1.0, 0.0], [0.25, 0.75], 2 * LOG2),
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], LOG2),
        ([0.5, 0.5], [1.0, 0.0], math.inf),
    ],
)
def test_cross_entropy_by_hand(p: list[float], q: list[float], expected: float) -> None:
    assert cross_entropy(p, q) == pytest.approx(expected, rel=1e-15)


def test_kl_by_hand() -> None:
    assert kl_divergence([0.75, 0.25], [0.5, 0.5]) == pytest.approx(0.75 * math.log(1.5) - 0.25 * LOG2, rel=1e-14)
    assert kl_divergence([0.5, 0.5], [0.75, 0.25]) == pytest.approx(LOG2 - 0.5 * math.log(1.5) - 0.5 * LOG2, rel=1e-14)
    assert kl_divergence([1.0, 0.0], [0.0, 1.0]) == math.inf
    assert kl_divergence([0.0, 1.0], [0.5, 0.5]) == pytest.approx(LOG2, rel=1e-15)


def test_surprisal_by_hand() -> None:
    np.testing.assert_allclose(surprisal([1.0, 0.5, 0.25], base=2), [0.0, 1.0, 2.0], rtol=1e-15)
    assert surprisal(0.0) == math.inf
    assert surprisal(-3.0, log_input=True) == 3.0
    assert surprisal(-math.inf, log_input=True) == math.inf


def test_a_certain_event_is_zero_and_not_minus_zero() -> None:
    for value in (
        surprisal(1.0),
        entropy([1.0, 0.0]),
        cross_entropy([1.0, 0.0], [1.0, 0.0]),
        kl_divergence([1.0], [1.0]),
    ):
        assert math.copysign(1.0, value) == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("log", [False, True])
def test_kl_of_p_from_itself_is_exactly_zero(dtype: torch.dtype, log: bool) -> None:
    p = torch.from_numpy(rows(0, 50, 17)).softmax(-1).to(dtype)
    p = p.double().log().to(dtype) if log else p
    value = kl_divergence(p, p, log_p=log, log_q=log, base=10, check=dtype.itemsize > 2)
    assert torch.equal(value, torch.zeros_like(value))


# Beside others --------------------------------


def test_scipy_agrees() -> None:
    p, q = rows(1, 200, 9), rows(2, 200, 9)
    p[:, 0] = 0
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(entropy(p), scipy.stats.entropy(p, axis=1), rtol=1e-13)
    np.testing.assert_allclose(entropy(p), scipy.special.entr(p).sum(1), rtol=1e-13)
    np.testing.assert_allclose(entropy(p, base=2), scipy.stats.entropy(p, axis=1, base=2), rtol=1e-13)
    np.testing.assert_allclose(kl_divergence(p, q), scipy.special.rel_entr(p, q).sum(1), rtol=1e-11)
    np.testing.assert_allclose(kl_divergence(p, q), scipy.stats.entropy(p, q, axis=1), rtol=1e-11)
    np.testing.assert_allclose(cross_entropy(p, q), -scipy.special.xlogy(p, q).sum(1), rtol=1e-13)


def test_torch_agrees() -> None:
    z, p = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 6))), torch.from_numpy(rows(4, 40, 6))
    log_q = z.log_softmax(-1)
    ce = torch.nn.functional.cross_entropy(z, p, reduction="none")
    kl = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    torch.testing.assert_close(cross_entropy(p, log_q, log_q=True), ce)
    torch.testing.assert_close(kl_divergence(p, log_q, log_q=True), kl)
    categorical = torch.distributions.Categorical(logits=z)
    torch.testing.assert_close(entropy(log_q, log_input=True), categorical.entropy())


# Probabilities and log-probabilities --------------------------------


@pytest.mark.parametrize("log_p", [False, True])
@pytest.mark.parametrize("log_q", [False, True])
def test_each_argument_may_be_logarithmic_by_itself(log_p: bool, log_q: bool) -> None:
    p, q = rows(5, 30, 5), rows(6, 30, 5)
    p[:, 1] = q[:, 1] = 0.0
    p[:, 2] = 0.0
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        given = np.log(p) if log_p else p, np.log(q) if log_q else q
    for measure in PAIRS:
        np.testing.assert_allclose(measure(*given, log_p=log_p, log_q=log_q), measure(p, q), rtol=1e-10)
    np.testing.assert_allclose(entropy(given[0], log_input=log_p), entropy(p), rtol=1e-12)
    np.testing.assert_allclose(surprisal(given[0], log_input=log_p), surprisal(p), rtol=1e-12)


@pytest.mark.parametrize("log_q", [False, True])
def test_impossible_costs_inf_where_it_happens_and_nothing_where_it_does_not(log_q: bool) -> None:
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        given = np.log(q) if log_q else q
    assert kl_divergence(p, given, log_q=log_q).tolist() == [math.inf, 0.0]
    assert cross_entropy(p, given, log_q=log_q).tolist() == [math.inf, 0.0]


def test_a_log_probability_that_underflows_is_a_mass_of_zero() -> None:
    log_p, log_q = np.array([0.0, -800.0]), np.array([0.0, -math.inf])
    assert kl_divergence(log_p, log_q, log_p=True, log_q=True) == 0.0
    assert cross_entropy(log_p, log_q, log_p=True, log_q=True) == 0.0
    assert entropy(log_p, log_input=True) == 0.0
    # But its own logarithm is not lost: a mass of 1 that meets it pays 800 nats.
    assert kl_divergence(np.array([0.0, 1.0]), log_p, log_q=True) == 800.0


# Kinds, dtypes, shapes --------------------------------


def test_the_kind_that_was_given_comes_back() -> None:
    p, q = rows(7, 4, 3), rows(8, 4, 3)
    for result in (entropy(p), kl_divergence(p, q), surprisal(p), entropy(p.tolist()), entropy(pd.DataFrame(p))):
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float64
    assert isinstance(entropy(p[0]), np.float64)
    assert isinstance(surprisal(0.5), np.float64)
    for tensors in [(torch.tensor(p), q), (p, torch.tensor(q)), (p.tolist(), torch.tensor(q))]:
        result = cross_entropy(*tensors)
        assert isinstance(result, torch.Tensor)
        np.testing.assert_array_equal(result.numpy(), cross_entropy(p, q))


@pytest.mark.parametrize(
    ("given", "computed"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtypes(given: str, computed: str) -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], dtype=getattr(torch, given))
    q = torch.tensor([0.25, 0.5, 0.25], dtype=getattr(torch, given))
    for result in (entropy(p), kl_divergence(p, q), cross_entropy(p, q), surprisal(p)):
        assert result.dtype == getattr(torch, computed)
    assert kl_divergence(p, q.double()).dtype == torch.float64
    if given != "bfloat16":
        for result in (entropy(p.numpy()), kl_divergence(p.numpy(), q.numpy()), surprisal(p.numpy())):
            assert result.dtype == np.dtype(computed)


def test_half_precision_is_computed_in_float32() -> None:
    p = torch.full((4096,), 2.0**-12, dtype=torch.bfloat16)
    assert float(entropy(p)) == pytest.approx(12 * LOG2, rel=1e-6)


def test_integers_are_probabilities_of_zero_and_one() -> None:
    one_hot = np.eye(3, dtype=np.int64)
    assert entropy(one_hot).tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(cross_entropy(one_hot, [0.5, 0.25, 0.25], base=2), [1.0, 2.0, 2.0])
    assert entropy(torch.eye(3, dtype=torch.int64)).dtype == torch.get_default_dtype()


def test_arrays_of_any_layout() -> None:
    p = rows(9, 6, 4)
    expected = entropy(p)
    frozen = p.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (np.asfortranarray(p), p[:, ::-1], p.astype(">f8"), frozen, torch.from_numpy(p).T.contiguous().T):
            np.testing.assert_allclose(np.asarray(entropy(same)), expected, rtol=1e-15)
    np.testing.assert_array_equal(frozen, p)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axes(axis: int) -> None:
    p, q = rows(10, 5, 3, 4), rows(11, 5, 3, 4)
    moved = [np.moveaxis(x, -1, axis) for x in (p, q)]
    np.testing.assert_allclose(entropy(moved[0], axis=axis), entropy(p), rtol=1e-14)
    for measure in PAIRS:
        np.testing.assert_allclose(measure(*moved, axis=axis), measure(p, q), rtol=1e-12, atol=1e-15)


def test_rows_broadcast_and_classes_do_not() -> None:
    p, q = rows(12, 5, 3), rows(13, 3)
    for measure in PAIRS:
        np.testing.assert_allclose(measure(p, q), [measure(row, q) for row in p])
        np.testing.assert_allclose(measure(q, p), [measure(q, row) for row in p])
        np.testing.assert_allclose(measure(p.T, q[:, None], axis=0), [measure(row, q) for row in p])
        assert measure(p[:, None], p[None]).shape == (5, 5)
        with pytest.raises(ValueError, match=r"p has shape \(5, 3\), q \(4,\): p and q need equally many classes"):
            measure(p, np.full(4, 0.25))
        with pytest.raises(ValueError, match="equally many classes"):
            measure(p, [[1.0]])
        with pytest.raises(ValueError, match="equally many classes along axis 0"):
            measure(rows(14, 3), np.eye(3), axis=0)  # one row of three against three columns
        with pytest.raises(ValueError, match="rows do not broadcast"):
            measure(p, rows(15, 4, 3))


def test_no_rows() -> None:
    nothing = np.zeros((0, 3))
    assert entropy(nothing).shape == (0,)
    assert kl_divergence(nothing, [0.5, 0.5, 0.0]).shape == (0,)
    assert surprisal(np.zeros(0)).shape == (0,)
    assert entropy(torch.zeros(0, 3)).shape == (0,)


def test_under_vmap_and_on_the_meta_device() -> None:
    p = torch.from_numpy(rows(16, 7, 4))
    torch.testing.assert_close(torch.func.vmap(entropy)(p), entropy(p))
    assert entropy(torch.zeros(2, 3, device="meta")).shape == (2,)


# Refusals --------------------------------


def bad(row: int, column: int, value: float) -> np.ndarray:
    p = np.full((20, 4), 0.25)
    p[row, column] = value
    return p


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (bad(17, 2, 0.5), "p: row 17 sums to 1.25, not 1; divide it by its sum, or say check=False"),
        (bad(3, 0, -0.25), "p: row 3 holds the negative value -0.25; for log-probabilities say log_"),
        (bad(5, 1, math.nan), "p: row 5 holds NaN or an infinite value"),
        (bad(6, 1, math.inf), "p: row 6 holds NaN or an infinite value"),
        (np.array([0.5, 0.25]), "p: sums to 0.75, not 1"),
        (np.array([0.5, 0.500002]), "p: sums to 1.000002, not 1"),
        (np.zeros((2, 0)), "p: has no classes along axis -1"),
        (np.array(0.5), "p: is a single number"),
        (bad(17, 2, 0.5).reshape(4, 5, 4), r"p: row (3, 2) sums to 1.25"),
    ],
)
def test_what_is_not_a_distribution_is_refused(p: np.ndarray, message: str) -> None:
    for kind in (p, torch.from_numpy(p)):
        for call in (lambda x: entropy(x), lambda x: cross_entropy(x, x), lambda x: kl_divergence(x, x)):
            with pytest.raises(ValueError) as caught:
                call(kind)
            assert str(caught.value).startswith(message)
            assert "\n" not in str(caught.value)


def test_the_worst_row_is_named() -> None:
    p = bad(3, 0, 0.3)
    p[11, 0] = 0.9
    with pytest.raises(ValueError, match=r"row 11 sums to 1\.65"):
        entropy(p)
    with pytest.raises(ValueError, match=r"row 11 sums to 1\.65"):
        entropy(p.T, axis=0)
    with pytest.raises(ValueError, match=r"q: row 11 sums to 1\.65"):
        kl_divergence([0.25] * 4, p)


def test_logarithms_that_are_not_of_a_distribution_are_refused() -> None:
    log_p = np.log(bad(17, 2, 0.5))
    with pytest.raises(ValueError, match=r"p: row 17 has exponentials sum to 1.25, not 1; subtract its logsumexp"):
        entropy(log_p, log_input=True)
    with pytest.raises(ValueError, match=r"q: row 17 has exponentials"):
        kl_divergence([0.25] * 4, log_p, log_q=True)
    with pytest.raises(ValueError, match=r"q: row 0 holds the negative value -1.38629; .* say log_q=True"):
        kl_divergence([0.25] * 4, np.log(np.full((2, 4), 0.25)))
    with pytest.raises(ValueError, match="NaN or an infinite"):
        entropy(np.array([0.0, math.nan]), log_input=True)


@pytest.mark.parametrize(
    ("p", "log", "message"),
    [
        ([0.5, 1.5], False, "p: entry 1 is 1.5; a probability lies between 0 and 1; if these are log"),
        ([[0.5], [-0.5]], False, r"p: entry (1, 0) is -0.5; a probability lies"),
        (2.0, False, "p: is 2; a probability"),
        ([math.nan], False, "p: entry 0 is nan"),
        ([0.0, 0.5], True, "p: entry 1 is 0.5; a log-probability is at most 0"),
        ([math.nan], True, "p: entry 0 is nan"),
    ],
)
def test_what_is_not_a_probability_has_no_surprisal(p: Any, log: bool, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        surprisal(p, log_input=log)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000, 50_257])
def test_a_softmax_is_a_distribution_in_any_dtype(dtype: torch.dtype, classes: int) -> None:
    z = torch.from_numpy(np.random.default_rng(classes).normal(size=(3, classes)) * 3)
    z[2] = 0.0  # the uniform: every logarithm is rounded the same way
    log_p = z.log_softmax(-1)
    # Not refused; and as near as the rounding of the input allows.
    truth = entropy(log_p, log_input=True)
    torch.testing.assert_close(entropy(log_p.to(dtype), log_input=True).double(), truth, rtol=0.1, atol=0.01)
    if dtype != torch.float16 or classes <= 1000:  # float16 has no digits left for 1/50257
        torch.testing.assert_close(entropy(z.softmax(-1).to(dtype)).double(), truth, rtol=0.02, atol=0.01)


def test_probabilities_from_a_float32_model_are_taken_in_float64() -> None:
    p = torch.randn(500, 10, generator=torch.Generator().manual_seed(0)).mul(4).softmax(-1)
    assert float((p.double().sum(-1) - 1).abs().max()) > 1e-8
    np.testing.assert_allclose(entropy(p.double()), entropy(p), rtol=1e-5)
    entropy(p.numpy().astype(float).tolist())


def test_unnormalised_on_request() -> None:
    mu, q = np.array([2.0, 1.0, 0.0]), np.array([0.5, 0.25, 0.25])
    assert entropy(mu, check=False) == pytest.approx(-2 * LOG2)
    assert cross_entropy(mu, q, check=False) == pytest.approx(4 * LOG2)
    assert kl_divergence(mu, q, check=False) == pytest.approx(6 * LOG2)
    assert surprisal([2.0], check=False)[0] == pytest.approx(-LOG2)
    assert cross_entropy([2.0, -1.0], [0.5, 0.5], check=False) == pytest.approx(LOG2)  # a signed measure


@pytest.mark.parametrize("base", [1.0, 0.5, 0.0, -2.0, math.inf, math.nan])
def test_bases_that_are_none(base: float) -> None:
    for call in (lambda: surprisal(0.5, base=base), lambda: entropy([1.0], base=base)):
        with pytest.raises(ValueError, match="base: "):
            call()


@pytest.mark.parametrize(
    "p", [["a", "b"], [[0.5], [0.25, 0.25]], np.array([1j]), np.array([object()]), torch.tensor([1j])]
)
def test_what_holds_no_numbers(p: Any) -> None:
    with pytest.raises(TypeError, match=r"p: (holds .*, not real numbers|cannot be read)"):
        entropy(p)


def test_axes_that_are_none() -> None:
    with pytest.raises(ValueError, match="axis: 2 is no axis of p, which has 1"):
        entropy([1.0], axis=2)
