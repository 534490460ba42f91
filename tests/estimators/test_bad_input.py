"""What cannot be used is refused, with the argument, the row and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch

import likely
from likely.estimators import LogisticRegression, SoftmaxRegression
from tests.estimators.samples import overlapping, votes

X, Y = overlapping()
P = votes()[1]


def changed(array: np.ndarray, at: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


def parts(*arrays: Any) -> list[tuple[Any, ...]]:
    return [tuple(a[i : i + 100] for a in arrays) for i in range(0, 300, 100)]


CSR = scipy.sparse.csr_array(changed(X, (7, 2), np.nan))
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "NaN": (SoftmaxRegression(), (changed(X, (7, 2), np.nan), Y), {}, r"X: row 7, column 2 holds NaN"),
    "inf": (SoftmaxRegression(), (changed(X, (7, 2), -np.inf), Y), {}, r"X: row 7, column 2 holds an infinite value"),
    "NaN in CSR": (SoftmaxRegression(), (CSR, Y), {}, r"X: row 7, column 2 holds NaN"),
    "NaN in a frame": (
        SoftmaxRegression(),
        (pd.DataFrame(changed(X, (7, 2), np.nan), columns=list("abcd")), Y),
        {},
        r"X: row 7, column 'c' holds NaN",
    ),
    "1-D X": (SoftmaxRegression(), (X[:, 0], Y), {}, r"Reshape your data"),
    "rows of y": (SoftmaxRegression(), (X, Y[:-1]), {}, r"y: has 299 rows where X has 300"),
    "sum": (SoftmaxRegression(), (X, changed(P, 5, [0.5, 0.5, 0.5])), {}, r"y: row 5 sums to 1.5, not 1"),
    "worst sum": (
        SoftmaxRegression(),
        (X, changed(changed(P, 5, [0.4, 0.4, 0.4]), 9, [0.9, 0.9, 0.9])),
        {},
        r"y: row 9 sums to 2.7",
    ),
    "negative": (
        SoftmaxRegression(),
        (X, changed(P, 5, [1.5, -0.5, 0])),
        {},
        r"y: row 5 holds the negative value -0.5",
    ),
    "NaN in y": (SoftmaxRegression(), (X, changed(P, (5, 0), np.nan)), {}, r"y: row 5 holds NaN"),
    "indicators": (SoftmaxRegression(), (X, np.ones((300, 3), int)), {}, r"y: row 0 sums to 3, .* read as prob"),
    "NaN label": (SoftmaxRegression(), (X, changed(Y.astype(float), 3, np.nan)), {}, r"[Ii]nput y contains NaN"),
    "missing label": (SoftmaxRegression(), (X, ["a", "b", None] * 100), {}, r"y: row 2 has no label"),
    "continuous": (SoftmaxRegression(), (X, X[:, 0]), {}, r"Unknown label type: continuous"),
    "one class": (SoftmaxRegression(), (X, np.zeros(300)), {}, r"y: holds one class only"),
    "one class with a weight": (SoftmaxRegression(), (X, Y, (Y == 1).astype(float)), {}, r"one class only"),
    "three for two": (LogisticRegression(), (X, Y), {}, r"Only binary classification is supported.*multiclass"),
    "three columns for two": (LogisticRegression(), (X, P), {}, r"Only binary.*probabilities, with 3 classes"),
    "empty class": (SoftmaxRegression(classes=[0, 1, 2, 3]), (X, Y), {}, r"y: the class .*3.* has no mass"),
    "empty column": (SoftmaxRegression(), (X, np.eye(4)[Y] * 0.5 + 0.5 * np.eye(4)[0]), {}, r"the class .*3.* no mass"),
    "unknown label": (SoftmaxRegression(classes=[0, 1]), (X, Y), {}, r"y: row \d+ holds .*2.*, which is no class"),
    "classes twice": (SoftmaxRegression(classes=[0, 0, 1]), (X, P), {}, r"classes: names a class twice"),
    "too few classes": (SoftmaxRegression(classes=[0, 1]), (X, P), {}, r"classes: names 2 where the target has 3"),
    "sparse y": (SoftmaxRegression(), (X, scipy.sparse.csr_array(P)), {}, r"y: is sparse"),
    "negative weight": (SoftmaxRegression(), (X, Y, changed(np.ones(300), 4, -1.0)), {}, r"sample_weight: row 4 is -1"),
    "NaN weight": (SoftmaxRegression(), (X, Y, changed(np.ones(300), 4, np.nan)), {}, r"sample_weight: row 4 is nan"),
    "zero weights": (SoftmaxRegression(), (X, Y, np.zeros(300)), {}, r"sample_weight: is zero in every row"),
    "weights of text": (SoftmaxRegression(), (X, Y, ["a"] * 300), {}, r"sample_weight: holds"),
    "rows of weights": (SoftmaxRegression(), (X, Y, np.ones(9)), {}, r"sample_weight: has 9 rows where X has 300"),
    "offset": (SoftmaxRegression(), (X, Y, None, np.ones(300)), {}, r"offset: has shape \(300,\); give \(300, 3\)"),
    "NaN offset": (
        SoftmaxRegression(),
        (X, Y, None, changed(np.ones((300, 3)), (8, 1), np.nan)),
        {},
        r"offset: row 8 is not finite",
    ),
    "bucket": (
        SoftmaxRegression(),
        (X, likely.top_k([[0]] * 300, [[0.5]] * 300, 3, tail="bucket")),
        {},
        r"y: a record with tail='bucket'",
    ),
    "signed": (SoftmaxRegression(), (X, likely.measure(torch.tensor([[2.0, -1.0, 0.0]] * 300))), {}, "row 0 has neg"),
    "covariance": (SoftmaxRegression(), (X, Y), {"covariance": "HC3"}, r"covariance: is 'HC3'; it is one of fisher"),
    "weights": (SoftmaxRegression(), (X, Y), {"weights": "analytic"}, r"weights: is 'analytic'"),
    "fisher of groups": (SoftmaxRegression(), (X, Y), {"covariance": "fisher", "groups": Y}, r"covariance: 'fisher'"),
    "rows of groups": (SoftmaxRegression(), (X, Y), {"groups": Y[:5]}, r"groups: has 5 rows where X has 300"),
    "one group": (SoftmaxRegression(), (X, Y), {"groups": ["a"] * 300}, r"groups: all rows are in one group"),
    "class_weight": (SoftmaxRegression(class_weight={7: 2.0}), (X, Y), {}, r"class_weight: 7 is no class"),
    "class_weight text": (SoftmaxRegression(class_weight="even"), (X, Y), {}, r"class_weight: is 'even'"),
    "negative class_weight": (SoftmaxRegression(class_weight={1: -2.0}), (X, Y), {}, r"class_weight: of 1 is -2"),
    "penalty": (SoftmaxRegression(penalty_strength=-1.0), (X, Y), {}, r"penalty_strength: is -1.0; .* at least 0"),
    "NaN penalty": (SoftmaxRegression(penalty_strength=float("nan")), (X, Y), {}, r"penalty_strength: is nan"),
    "C": (SoftmaxRegression(C=0.0), (X, Y), {}, r"C: is 0.0; it is a number, more than 0"),
    "both": (SoftmaxRegression(C=1.0, penalty_strength=1.0), (X, Y), {}, r"C: says the same as penalty_strength"),
    "smoothing": (SoftmaxRegression(label_smoothing=1.5), (X, Y), {}, r"label_smoothing: is 1.5"),
    "solver": (SoftmaxRegression(solver="sag"), (X, Y), {}, r"solver: is 'sag'; it is one of auto, newton-chol"),
    "tol": (SoftmaxRegression(tol=-1e-4), (X, Y), {}, r"tol: is -0.0001"),
    "max_iter": (SoftmaxRegression(max_iter=0), (X, Y), {}, r"max_iter: is 0; it is a whole number, at least 1"),
    "intercept": (SoftmaxRegression(fit_intercept="no"), (X, Y), {}, r"fit_intercept: is 'no'"),  # type: ignore[arg-type]
    "device": (SoftmaxRegression(device="cuda"), (X, Y), {}, r"device: is 'cuda'; these solvers compute on the CPU"),
    "nothing": (SoftmaxRegression(), (X, None), {}, r"requires y to be passed"),
    "once": (SoftmaxRegression(), (iter(parts(X, Y)),), {}, r"X: can be iterated only once"),
    "no stream": (SoftmaxRegression(), (3.0,), {}, r"X: a float is neither features nor a stream"),
    "stream and y": (SoftmaxRegression(), (lambda: iter(parts(X, Y)), Y), {}, r"y: a stream's blocks are"),
    "no pairs": (SoftmaxRegression(), (lambda: iter([X]),), {}, r"X: block 0 .* is no \(X, y"),
    "empty stream": (SoftmaxRegression(), (lambda: iter([]),), {}, r"X: the stream has no rows"),
    "width": (
        SoftmaxRegression(),
        ([*parts(X, Y), (X[:, :3], Y)],),
        {},
        r"X: block 3 \(from row 300\) has 3 columns where the blocks before have 4",
    ),
    "kind of target": (SoftmaxRegression(), ([*parts(X, P), (X, Y)],), {}, r"y: block 3 \(from row 300\) has shape"),
    "NaN in a stream": (SoftmaxRegression(), (parts(changed(X, (207, 2), np.nan), Y),), {}, r"X: row 207, column 2"),
    "sum in a stream": (
        SoftmaxRegression(),
        (parts(X, changed(P, 205, [1, 1, 1])),),
        {},
        r"y: row 5 .*row 0 is row 200",
    ),
    "weights of a stream": (
        SoftmaxRegression(),
        (parts(X, Y, changed(np.ones(300), 150, -1)),),
        {},
        r"sample_weight: row 150 is negative",
    ),
    "continuous stream": (SoftmaxRegression(), (parts(X, X[:, 0]),), {}, r"y: block 0 .* is continuous"),
    "no shards": (SoftmaxRegression(), ("nowhere/*.parquet", "y"), {}, r"X: no Parquet file is found"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    model, arguments, options, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.fit(*arguments, **options)
    assert not hasattr(model, "coef_")


def test_a_stream_that_changes_between_passes() -> None:
    passes: list[None] = []

    def shorter() -> Any:
        passes.append(None)
        return iter(parts(X, Y)[: 3 - (len(passes) > 2)])

    with pytest.raises(ValueError, match=r"gave 300 rows at first and 200 in a later pass"):
        SoftmaxRegression().fit(shorter)


def test_shards_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0], "t": ["x", "y"], "y": [0, 1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1.0, 2.0], "y": [0, 1]}), tmp_path / "2.parquet")
    for options, message in [
        ({}, r"y: name the column of labels"),
        ({"y": "label"}, r"y: there is no column 'label'"),
        ({"y": "y"}, r"X: column 't' of the shards holds string"),
        ({"y": "y", "sample_weight": "t"}, r"sample_weight: column 't' of the shards holds string"),
        ({"y": "t"}, r"X: 2.parquet lacks the column 't'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LogisticRegression().fit(tmp_path, **options)


def test_predictions_of_what_was_not_fitted() -> None:
    model = SoftmaxRegression().fit(X, Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but SoftmaxRegression is expecting 4"):
        model.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"X: row 7, column 2 holds NaN"):
        model.predict_proba(changed(X, (7, 2), np.nan))
    with pytest.raises(ValueError, match=r"y: row 3 holds .*9.*, which is no class"):
        model.cross_entropy(X, changed(Y, 3, 9))
    with pytest.raises(ValueError, match=r"y: has 5 rows where X has 300"):
        model.cross_entropy(X, Y[:5])
    with pytest.raises(ValueError, match=r"y: has 4 classes where the model has 3"):
        model.cross_entropy(X, likely.labels(Y, 4))
    with pytest.raises(ValueError, match=r"reference: 7 is no class"):
        model.summary(reference=7)
    with pytest.raises(ValueError, match=r"confidence: is 95"):
        model.summary(confidence=95)
    with pytest.raises(ValueError, match=r"strengths: are finite numbers"):
        model.path(X, Y, [-1.0])
    with pytest.raises(ValueError, match=r"folds: is 1; it is at least 2"):
        model.cv(X, Y, folds=1)
