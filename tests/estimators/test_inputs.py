"""The same rows in every form give the same fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch

import likely
from likely.estimators import LogisticRegression, SoftmaxRegression
from tests.estimators.samples import overlapping, votes

TIGHT: dict[str, Any] = {"tol": 1e-14}
NAMES = ["a", "b", "c", "d"]

FEATURES: dict[str, Any] = {
    "list": lambda x: x.tolist(),
    "fortran": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "float32": lambda x: x.astype(np.float32),
    "big-endian": lambda x: x.astype(">f8"),
    "csr": scipy.sparse.csr_array,
    "csr-matrix": scipy.sparse.csr_matrix,
    "csr-float32": lambda x: scipy.sparse.csr_array(x.astype(np.float32)),
    "csc": scipy.sparse.csc_array,
    "pandas": lambda x: pd.DataFrame(x, columns=NAMES),
    "polars": lambda x: pl.DataFrame(x, schema=NAMES),
    "torch": torch.from_numpy,
    "torch-float32": lambda x: torch.from_numpy(x).float(),
    "torch-grad": lambda x: torch.from_numpy(x).requires_grad_(),
}
LABELS: dict[str, Any] = {
    "list": lambda y: y.tolist(),
    "int32": lambda y: y.astype(np.int32),
    "float": lambda y: y.astype(np.float64),
    "column": lambda y: y[:, None],
    "torch": torch.from_numpy,
    "pandas": pd.Series,
    "polars": lambda y: pl.Series(y),
    "one-hot": lambda y: np.eye(3)[y],
    "one-hot-int": lambda y: np.eye(3, dtype=int)[y],
    "target": lambda y: likely.labels(y, 3),
    "target-of-probabilities": lambda y: likely.probabilities(np.eye(3)[y]),
}


@pytest.mark.parametrize("form", FEATURES)
def test_features(form: str) -> None:
    x, y = overlapping()
    x = x.astype(np.float32).astype(np.float64)
    x[np.abs(x) < 0.5] = 0
    first = SoftmaxRegression(**TIGHT).fit(x, y)
    given = FEATURES[form](x)
    model = SoftmaxRegression(**TIGHT).fit(given, y)
    assert model.coef_ == pytest.approx(first.coef_, rel=1e-8)
    assert model.predict_proba(given) == pytest.approx(first.predict_proba(x), rel=1e-7)
    assert (model.predict(given) == first.predict(x)).all()
    assert model.n_features_in_ == 4
    named = form in ("pandas", "polars")
    assert list(getattr(model, "feature_names_in_", [])) == (NAMES if named else [])


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_labels(form: str) -> None:
    x, y = overlapping()
    first = SoftmaxRegression(**TIGHT).fit(x, y)
    model = SoftmaxRegression(**TIGHT).fit(x, LABELS[form](y))
    assert model.coef_ == pytest.approx(first.coef_, rel=1e-9)
    assert model.score(x, LABELS[form](y)) == pytest.approx(first.score(x, y))
    assert "quasi" not in str(model.summary()).lower()


@pytest.mark.parametrize(
    ("names", "dtype"),
    [(["x", "y", "z"], None), (["x", "y", "z"], object), ([2.0, 5.0, 9.0], None), ([-3, 0, 7], np.int8)],
)
def test_labels_keep_their_type(names: list[Any], dtype: Any) -> None:
    x, y = overlapping()
    label = np.array(names, dtype=dtype)[y]
    model = SoftmaxRegression().fit(x, label)
    assert model.classes_.tolist() == names
    assert model.predict(x).dtype == label.dtype
    assert set(model.predict(x).tolist()) <= set(names)


def test_booleans_are_two_classes() -> None:
    x, y = overlapping(K=2)
    model = LogisticRegression().fit(x, y == 1)
    assert model.predict(x).dtype == bool


def test_classes_give_the_order() -> None:
    x, p = votes()
    model = SoftmaxRegression(classes=["low", "mid", "high"]).fit(x, p)
    assert model.classes_.tolist() == ["low", "mid", "high"]
    assert SoftmaxRegression().fit(x, p).classes_.tolist() == [0, 1, 2]
    y = np.array(["low", "mid", "high"])[p.argmax(axis=1)]
    declared = SoftmaxRegression(classes=["low", "mid", "high"], **TIGHT).fit(x, y)
    free = SoftmaxRegression(**TIGHT).fit(x, y)
    assert free.classes_.tolist() == ["high", "low", "mid"]
    assert declared.coef_[[2, 0, 1]] == pytest.approx(free.coef_, rel=1e-8)
    assert (declared.predict(x) == free.predict(x)).all()


def test_probabilities_in_every_dtype_and_shape() -> None:
    x, p = votes()
    first = SoftmaxRegression(**TIGHT).fit(x, p)
    for q in (p.astype(np.float32), torch.from_numpy(p), pd.DataFrame(p), pl.DataFrame(p), p.tolist(), p[::1, :]):
        model = SoftmaxRegression(**TIGHT).fit(x, q)
        assert model.coef_ == pytest.approx(first.coef_, rel=1e-5)
    # Rows that sum to one but for the rounding of single precision are divided by their sums.
    rounded = (p * np.linspace(1 - 5e-5, 1 + 5e-5, len(p))[:, None]).astype(np.float32)
    wide = rounded.astype(np.float64)
    given, exact = SoftmaxRegression(**TIGHT).fit(x, rounded), SoftmaxRegression(**TIGHT)
    exact.fit(x, wide / wide.sum(axis=1, keepdims=True))
    assert given.coef_ == pytest.approx(exact.coef_, rel=1e-10)
    assert given.entropy_ == pytest.approx(exact.entropy_, rel=1e-12)
    assert first.score(x, p) == pytest.approx(p[np.arange(len(p)), first.predict(x)].mean())


def test_targets_of_every_kind() -> None:
    x, p = votes(K=4)
    z = torch.from_numpy(np.log(p))
    first = SoftmaxRegression(**TIGHT).fit(x, p)
    teacher = SoftmaxRegression(**TIGHT).fit(x, likely.teacher(z))
    assert teacher.coef_ == pytest.approx(first.coef_, rel=1e-8)
    top, index = torch.from_numpy(p).topk(2)
    spread = SoftmaxRegression(**TIGHT).fit(x, likely.top_k(index, top, 4, tail="uniform"))
    by_hand = np.repeat(((1 - top.sum(dim=1)) / 2).numpy()[:, None], 4, axis=1)
    np.put_along_axis(by_hand, index.numpy(), top.numpy(), axis=1)
    assert spread.coef_ == pytest.approx(SoftmaxRegression(**TIGHT).fit(x, by_hand).coef_, rel=1e-8)
    y = p.argmax(axis=1)
    weight, per_class = np.random.default_rng(0).uniform(0, 2, len(y)), [1.0, 2.0, 3.0, 0.5]
    target = likely.labels(y, 4, class_weight=per_class, weight=torch.from_numpy(weight))
    by_hand_fit = SoftmaxRegression(class_weight=dict(enumerate(per_class)), penalty_strength=0.1, **TIGHT)
    by_hand_fit.fit(x, y, sample_weight=weight)
    assert SoftmaxRegression(penalty_strength=0.1, **TIGHT).fit(x, target).coef_ == pytest.approx(
        by_hand_fit.coef_, rel=1e-6
    )
    ignored = torch.from_numpy(np.where(np.arange(len(y)) % 3 == 0, -100, y))
    kept = np.arange(len(y)) % 3 != 0
    assert SoftmaxRegression(**TIGHT).fit(x, likely.labels(ignored, 4)).coef_ == pytest.approx(
        SoftmaxRegression(**TIGHT).fit(x[kept], y[kept]).coef_, rel=1e-8
    )


# ------------------------------------------------------------------------------------------------------- streams


def cut(x: Any, *others: Any, size: int = 64) -> list[tuple[Any, ...]]:
    return [(x[i : i + size], *(o[i : i + size] for o in others)) for i in range(0, x.shape[0], size)]


class Loader(torch.utils.data.IterableDataset):
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def __iter__(self) -> Iterator[Any]:
        yield from cut(self.x, self.y)


def test_streams_of_every_kind() -> None:
    x, y = overlapping()
    first = SoftmaxRegression(**TIGHT).fit(x, y)
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    streams: list[Any] = [
        cut(x, y),
        lambda: iter(cut(x, y)),
        Loader(x, y),
        torch.utils.data.DataLoader(data, batch_size=50),
        cut(scipy.sparse.csr_array(x), y),
    ]
    for stream in streams:
        model = SoftmaxRegression(**TIGHT).fit(stream)
        assert model.coef_ == pytest.approx(first.coef_, rel=1e-8)
        assert model.n_features_in_ == 4
        told, whole = model.summary(), first.summary()
        assert [c.standard_error for c in told.coefficients] == pytest.approx(
            [c.standard_error for c in whole.coefficients], rel=1e-7
        )
        assert told.null_log_likelihood == pytest.approx(whole.null_log_likelihood, rel=1e-10)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"b": 2.0}])
def test_streams_with_weights_and_offsets(class_weight: Any) -> None:
    x, index = overlapping()
    y = np.array(["a", "b", "c"])[index]
    generator = np.random.default_rng(0)
    weight, offset = generator.integers(0, 3, len(y)).astype(float), generator.normal(size=(len(y), 3))
    options = {"class_weight": class_weight, "penalty_strength": 0.01, "label_smoothing": 0.05, **TIGHT}
    first = SoftmaxRegression(**options).fit(x, y, weight, offset)
    model = SoftmaxRegression(**options).fit(cut(x, y, weight, offset))
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.coef_ == pytest.approx(first.coef_, rel=1e-8)
    assert model.loss_ == pytest.approx(first.loss_, rel=1e-12)
    assert model.summary().null_log_likelihood == pytest.approx(first.summary().null_log_likelihood, rel=1e-8)


def test_streams_of_probabilities_and_of_two_classes() -> None:
    x, p = votes()
    assert SoftmaxRegression(**TIGHT).fit(cut(x, p)).coef_ == pytest.approx(
        SoftmaxRegression(**TIGHT).fit(x, p).coef_, rel=1e-8
    )
    x, y = overlapping(K=2)
    add = np.random.default_rng(0).normal(size=len(y))
    assert LogisticRegression(**TIGHT).fit(cut(x, y, np.ones(len(y)), add)).coef_ == pytest.approx(
        LogisticRegression(**TIGHT).fit(x, y, offset=add).coef_, rel=1e-8
    )


@pytest.mark.parametrize("soft", [False, True])
def test_parquet_shards(tmp_path: Path, soft: bool) -> None:
    x, p = votes()
    label = np.array(["no", "yes", "well"])[p.argmax(axis=1)]
    columns = {name: x[:, j] for j, name in enumerate(NAMES)} | {"w": np.arange(1.0, len(x) + 1)}
    columns |= {f"p_{c}": p[:, k] for k, c in enumerate(("no", "yes", "well"))} if soft else {"label": label}
    for i in range(3):
        part = slice(100 * i, 100 * (i + 1))
        pq.write_table(pa.table({k: v[part] for k, v in columns.items()}), tmp_path / f"part-{i}.parquet")
    y: Any = p if soft else label
    first = SoftmaxRegression(**TIGHT).fit(x, y, sample_weight=columns["w"])
    wanted = "p_*" if soft else "label"
    for place in (tmp_path, str(tmp_path / "*.parquet"), sorted(tmp_path.glob("*.parquet"))):
        model = SoftmaxRegression(**TIGHT).fit(place, wanted, "w")
        order = [model.classes_.tolist().index(c) for c in (["no", "yes", "well"] if soft else first.classes_)]
        assert model.coef_[order] == pytest.approx(first.coef_, rel=1e-8)
        assert list(model.feature_names_in_) == NAMES


# ------------------------------------------------------------------------------------------------- predictions


def test_predictions_agree_with_each_other() -> None:
    for K, kind in ((2, LogisticRegression), (2, SoftmaxRegression), (3, SoftmaxRegression)):
        x, y = overlapping(K=K)
        model = kind().fit(x, y)
        z, q, log_q = model.decision_function(x), model.predict_proba(x), model.predict_log_proba(x)
        assert z.shape == ((len(x),) if K == 2 else (len(x), K))
        assert q.sum(axis=1) == pytest.approx(1)
        assert np.exp(log_q) == pytest.approx(q)
        assert (model.classes_[q.argmax(axis=1)] == model.predict(x)).all()
        score = model.cross_entropy(x, y).mean()
        assert float(score.cross_entropy) == pytest.approx(model.cross_entropy_, rel=1e-12)
        assert float(score.cross_entropy) == pytest.approx(-log_q[np.arange(len(y)), y].mean(), rel=1e-12)
    huge = LogisticRegression().fit(x, y == 1)
    far = huge.predict_log_proba(1e5 * x)
    assert np.isfinite(far).all()
    assert far.min() < -1000


def test_cross_entropy_takes_every_target() -> None:
    x, p = votes()
    model = SoftmaxRegression().fit(x, p)
    weight = np.random.default_rng(0).uniform(size=len(p))
    first = model.cross_entropy(x, p, sample_weight=weight).mean()
    same = model.cross_entropy(x, likely.probabilities(p, weight=weight)).mean()
    assert float(first.kl) == pytest.approx(float(same.kl))
    assert float(model.cross_entropy(x, p).mean().kl) == pytest.approx(model.kl_, rel=1e-9)
    assert float(model.cross_entropy(x, p).mean().entropy) == pytest.approx(model.entropy_, rel=1e-12)
    binary = LogisticRegression().fit(x, p[:, :2] / p[:, :2].sum(axis=1, keepdims=True))
    assert binary.cross_entropy(x, np.ones(len(x), dtype=int)).cross_entropy.shape == (len(x),)


def test_a_warm_start_begins_where_the_last_fit_ended() -> None:
    x, y = overlapping(n=2000)
    model = SoftmaxRegression(warm_start=True, solver="newton-cholesky").fit(x, y)
    first = model.n_iter_
    again = model.fit(x, y)
    assert again.n_iter_ < first
    model.fit(x[:, :2], y)  # of another width: from zero
    assert model.coef_.shape == (3, 2)


def test_progress_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = overlapping()
    SoftmaxRegression(verbose=1).fit(x, y)
    said = capsys.readouterr()
    assert said.out == ""
    assert "certified gap" in said.err
    assert "\r" in said.err
