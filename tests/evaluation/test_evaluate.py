"""What `evaluate` reports is what it says: against the definitions, scikit-learn, and sums written out by hand."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from likely import measures
from likely.evaluation import Evaluation, _rows, evaluate
from likely.measures import Estimate, estimate

N, C = 200, 5


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def q(rng: np.random.Generator) -> np.ndarray:
    return softmax(2 * rng.normal(size=(N, C)))


@pytest.fixture
def y(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(C, size=N)


@pytest.fixture
def p(rng: np.random.Generator) -> np.ndarray:
    return softmax(rng.normal(size=(N, C)))


def estimates(result: Evaluation) -> dict[str, Estimate]:
    found = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in found.items() if isinstance(value, Estimate)}


def test_labels_against_scikit_learn(q: np.ndarray, y: np.ndarray) -> None:
    result = evaluate(q, y)
    assert result.cross_entropy.mean == pytest.approx(log_loss(y, q, labels=range(C)), rel=1e-12)
    assert result.accuracy.mean == pytest.approx(accuracy_score(y, q.argmax(1)), rel=1e-12)
    one_hot = np.eye(C)[y]
    assert result.brier.mean == pytest.approx(((q - one_hot) ** 2).sum(1).mean(), rel=1e-12)
    assert (result.entropy.mean, result.n, result.classes, result.soft) == (0.0, N, C, False)
    assert result.kl == result.cross_entropy
    assert result.expected_brier == result.brier
    assert result.agreement == result.accuracy


def test_distributions_against_the_definitions(q: np.ndarray, p: np.ndarray) -> None:
    result = evaluate(q, p)
    rows = {
        "cross_entropy": measures.cross_entropy(p, q),
        "entropy": measures.entropy(p),
        "kl": measures.kl_divergence(p, q),
        "brier": ((p - q) ** 2).sum(1),
        "accuracy": p[np.arange(N), q.argmax(1)],
        "agreement": (p.argmax(1) == q.argmax(1)).astype(float),
    }
    for name, values in rows.items():
        expected, found = estimate(values), getattr(result, name)
        assert (found.mean, found.standard_error, found.low) == pytest.approx(
            (expected.mean, expected.standard_error, expected.low), rel=1e-12
        ), name
    assert result.soft


def test_one_hot_distributions_are_labels(q: np.ndarray, y: np.ndarray) -> None:
    soft, hard = estimates(evaluate(q, np.eye(C)[y])), estimates(evaluate(q, y))
    for name, value in hard.items():
        assert (soft[name].mean, soft[name].standard_error) == pytest.approx((value.mean, value.standard_error)), name


@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_entropy_plus_kl(q: np.ndarray, y: np.ndarray, p: np.ndarray, soft: bool) -> None:
    result = evaluate(q, p if soft else y)
    assert result.cross_entropy.mean == pytest.approx(result.entropy.mean + result.kl.mean, rel=1e-15)


def test_a_perfect_prediction_has_no_divergence(p: np.ndarray) -> None:
    result = evaluate(p, p)
    assert result.kl.mean == 0.0
    assert result.brier.mean == 0.0
    assert result.agreement.mean == pytest.approx(1.0)
    assert result.cross_entropy == result.entropy


def test_the_expected_brier_score_and_accuracy_are_those_of_labels_drawn_from_the_target(
    q: np.ndarray, p: np.ndarray
) -> None:
    result = evaluate(q, p)
    # Every label in turn, each row weighted by its probability: the expectation without a draw.
    every = [evaluate(q, np.full(N, c), weights=p[:, c]) for c in range(C)]
    shares = [p[:, c].sum() / N for c in range(C)]
    brier = sum(share * one.brier.mean for share, one in zip(shares, every))
    accuracy = sum(share * one.accuracy.mean for share, one in zip(shares, every))
    assert result.expected_brier.mean == pytest.approx(brier, rel=1e-12)
    assert result.accuracy.mean == pytest.approx(accuracy, rel=1e-12)


def test_the_brier_score_keeps_its_digits_near_certainty() -> None:
    q = np.array([[1e-12, 1 - 1e-12]])
    assert evaluate(q, [1]).brier.mean == pytest.approx(2e-24, rel=1e-3)


@pytest.mark.parametrize("soft", [False, True])
def test_log_probabilities(q: np.ndarray, y: np.ndarray, p: np.ndarray, soft: bool) -> None:
    target = p if soft else y
    plain, logs = estimates(evaluate(q, target)), estimates(evaluate(np.log(q), target, log_input=True))
    for name, value in plain.items():
        assert logs[name].mean == pytest.approx(value.mean, rel=1e-12), name


def test_log_probabilities_keep_what_probabilities_cannot_hold() -> None:
    log_q = np.array([[-1000.0, 0.0], [0.0, -2000.0]])
    assert evaluate(log_q, [0, 1], log_input=True).cross_entropy.mean == pytest.approx(1500.0)
    assert evaluate(np.exp(log_q), [0, 1]).cross_entropy.mean == math.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("log_input", [False, True])
def test_every_floating_dtype_and_torch(q: np.ndarray, y: np.ndarray, dtype: torch.dtype, log_input: bool) -> None:
    x = torch.from_numpy(np.log(q) if log_input else q).to(dtype).requires_grad_()
    result = evaluate(x, torch.from_numpy(y), log_input=log_input)
    exact = x.detach().double().numpy()
    expected = evaluate(_normalised(exact, log_input), y, log_input=log_input)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    assert result.cross_entropy.mean == pytest.approx(expected.cross_entropy.mean, rel=tolerance)


def _normalised(x: np.ndarray, log_input: bool) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True)) if log_input else x / x.sum(1, keepdims=True)


@pytest.mark.parametrize("soft", [False, True])
def test_the_size_of_a_block_changes_nothing(
    q: np.ndarray, y: np.ndarray, p: np.ndarray, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = p if soft else y
    whole = evaluate(q, target)
    for block in (1, 3 * C, 7 * C + 1):
        monkeypatch.setattr(_rows, "BLOCK", block)
        assert evaluate(q, target) == whole


def test_weights_repeat_rows_and_a_weight_of_zero_leaves_one_out(q: np.ndarray, y: np.ndarray) -> None:
    w = np.arange(N) % 3
    weighted, repeated = evaluate(q, y, weights=w), evaluate(np.repeat(q, w, axis=0), np.repeat(y, w))
    for name, value in estimates(repeated).items():
        assert getattr(weighted, name).mean == pytest.approx(value.mean), name
    assert weighted.n == (w > 0).sum()
    q[0] = [1, 0, 0, 0, 0]
    y[0] = 1
    assert math.isfinite(evaluate(q, y, weights=w).cross_entropy.mean)


def test_groups_widen_the_interval(q: np.ndarray, y: np.ndarray) -> None:
    copies = 6
    plain = evaluate(q, y)
    wrong = evaluate(np.tile(q, (copies, 1)), np.tile(y, copies))
    right = evaluate(np.tile(q, (copies, 1)), np.tile(y, copies), groups=[f"row {i}" for i in range(N)] * copies)
    for name, value in estimates(plain).items():
        if value.standard_error:
            assert getattr(right, name).standard_error == pytest.approx(value.standard_error), name
            assert getattr(wrong, name).standard_error < 0.5 * value.standard_error, name


def test_the_first_of_equal_classes_is_the_prediction() -> None:
    assert evaluate([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], [0, 1]).accuracy.mean == 1.0


def test_an_impossible_label_costs_infinity_and_the_dictionary_stays_json() -> None:
    result = evaluate([[1.0, 0.0], [0.5, 0.5]], [1, 0])
    assert result.cross_entropy.mean == math.inf
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["cross_entropy"]["mean"] == "inf"
    assert written["cross_entropy"]["standard_error"] is None
    assert written["accuracy"]["mean"] == 0.5
    assert float(written["kl"]["mean"]) == math.inf
    assert (written["n"], written["classes"], written["soft"]) == (2, 2, False)
    assert "inf" in str(result)


def test_a_single_row_has_no_spread() -> None:
    result = evaluate([[0.5, 0.5]], [1])
    assert result.cross_entropy.mean == pytest.approx(math.log(2))
    assert math.isnan(result.cross_entropy.standard_error)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_table_names_what_belongs_to_the_target(q: np.ndarray, y: np.ndarray, p: np.ndarray) -> None:
    hard, soft = str(evaluate(q, y)), str(evaluate(q, p))
    for name in ("cross-entropy (nats)", "= entropy", "+ KL", "Brier", "accuracy", "calibration error"):
        assert name in hard
        assert name in soft
    assert "agreement" in soft
    assert "agreement" not in hard
    assert "if calibrated" in hard
    assert "if calibrated" not in soft
    width = max(len(name) for name, _ in evaluate(q, p).rows()) + 2
    assert {line[width - 2 : width] for line in soft.splitlines()[1:]} == {"  "}
    assert all(line[width:].strip() == line[width:] for line in soft.splitlines()[1:])


def test_what_is_given_is_not_changed(q: np.ndarray, y: np.ndarray, p: np.ndarray) -> None:
    x, before = torch.from_numpy(q), q.copy()
    evaluate(x, torch.from_numpy(y))
    evaluate(x, p)
    assert (x.numpy() == before).all()
    q.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that it may not write
        evaluate(q, y)


@pytest.mark.parametrize(
    ("q", "target", "options", "error", "message"),
    [
        ([0.2, 0.8], [0, 1], {}, ValueError, r"probabilities: has shape \(2,\)"),
        (np.zeros((0, 2)), [], {}, ValueError, "probabilities: has no rows"),
        ([[1.0], [1.0]], [0, 0], {}, ValueError, "probabilities: has a single class"),
        ([[0, 1]], [0], {}, TypeError, "floating-point"),
        ([["a", "b"]], [0], {}, TypeError, "probabilities: holds <U1"),
        ([[0.5, 0.5], [0.5]], [0], {}, TypeError, "probabilities: cannot be read"),
        ([[0.5, 0.5], [0.5, 0.75]], [0, 0], {}, ValueError, "probabilities: row 1 sums to 1.25, not 1; divide"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], {}, ValueError, "probabilities: row 1 holds the negative value -0.5"),
        ([[-0.7, -0.7]], [0], {}, ValueError, "log_input=True"),
        ([[3.0, 1.0]], [0], {"log_input": True}, ValueError, "row 0 has exponentials that sum .* log_softmax"),
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 0], {}, ValueError, "probabilities: row 1 holds NaN"),
        ([[0.5, 0.5]], [2], {}, IndexError, "target: row 0 holds 2"),
        ([[0.5, 0.5]], [-1], {}, IndexError, "target: row 0 holds -1"),
        ([[0.5, 0.5]], [0, 1], {}, ValueError, "target: has 2 rows where probabilities has 1"),
        ([[0.5, 0.5]], [1.0], {}, TypeError, "target: labels are integers"),
        ([[0.5, 0.5]], [True], {}, TypeError, "target: labels are integers"),
        ([[0.5, 0.5]], ["cat"], {}, TypeError, "target: holds <U3"),
        ([[0.5, 0.5]], [[0.2, 0.3, 0.5]], {}, ValueError, r"target: has shape \(1, 3\)"),
        ([[0.5, 0.5]], [[0.2, 0.3]], {}, ValueError, "target: row 0 sums to 0.5"),
        ([[0.5, 0.5]], [[1, 0]], {}, TypeError, "target: distributions"),
        ([[0.5, 0.5]], [0], {"weights": [1, 2]}, ValueError, "weights: has 2 rows"),
        ([[0.5, 0.5]], [0], {"weights": [-1]}, ValueError, "weights: row 0 is -1"),
        ([[0.5, 0.5]], [0], {"weights": [0]}, ValueError, "weights: every row has weight 0"),
        ([[0.5, 0.5]], [0], {"groups": ["a", "b"]}, ValueError, "groups: has 2 rows"),
        ([[0.5, 0.5]], [0], {"bins": 0}, ValueError, "bins: 0"),
        ([[0.5, 0.5]], [0], {"confidence": 95}, ValueError, "confidence: 95"),
    ],
)
def test_bad_input_is_named(q: Any, target: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        evaluate(q, target, **options)
    assert "\n" not in str(caught.value)


def test_a_wrong_row_of_a_later_block_is_named_by_its_number(q: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "BLOCK", 4 * C)
    q[150, 2] += 0.5
    with pytest.raises(ValueError, match=r"row 150 sums to 1\.5"):
        evaluate(q, np.zeros(N, dtype=int))
    q[150, 2] = math.nan
    with pytest.raises(ValueError, match="row 150 holds NaN"):
        evaluate(q, np.zeros(N, dtype=int))
