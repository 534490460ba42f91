"""Saved and loaded: folders of JSON and tensors, skops, ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import skops.io
from sklearn.base import clone

import likely
from likely import estimators
from likely.estimators import LogisticRegression, SoftmaxRegression
from likely.integrations.onnx import to_onnx
from tests.estimators.samples import overlapping, votes


def fitted() -> dict[str, tuple[Any, Any]]:
    """Models of every kind, with the rows they were fitted to."""
    x, y = overlapping()
    names = np.array(["α", 'b"<c>', ""])
    frame = pd.DataFrame(x, columns=["one", "two, three", "ß", "x/y"])
    two = x, (y == 1)
    soft, p = votes()
    return {
        "softmax": (SoftmaxRegression().fit(x, y), x),
        "names": (SoftmaxRegression(class_weight={"α": 2.0, "": 0.5}).fit(frame, names[y]), frame),
        "binary": (LogisticRegression(C=3.0, classes=[False, True]).fit(*two), x),
        "floats": (LogisticRegression().fit(x, np.where(y == 1, 2.0, -1.0)), x),
        "votes": (SoftmaxRegression(penalty_strength=0.1, tol=1e-6).fit(soft, p), soft),
        "no intercept": (SoftmaxRegression(fit_intercept=False).fit(x, y, covariance="none"), x),
    }


@pytest.mark.parametrize("name", fitted())
def test_a_folder_brings_the_estimator_back(name: str, tmp_path: Path) -> None:
    model, x = fitted()[name]
    model.save(tmp_path / "m")
    back = estimators.load(tmp_path / "m")
    assert type(back) is type(model)
    assert back.get_params() == model.get_params()
    assert back.classes_.tolist() == model.classes_.tolist()
    assert back.classes_.dtype == model.classes_.dtype
    assert (back.predict_proba(x) == model.predict_proba(x)).all()
    assert str(back.summary()) == str(model.summary())
    assert vars(back).keys() == vars(model).keys()
    assert back.n_features_in_ == 4
    clone(back).fit(x, model.predict(x))


@pytest.mark.parametrize("name", fitted())
def test_the_folder_is_a_model_too(name: str, tmp_path: Path) -> None:
    model, x = fitted()[name]
    model.save(tmp_path / "m")
    table = x if isinstance(x, pd.DataFrame) else pd.DataFrame(x, columns=model._feature_names())
    back = likely.load(tmp_path / "m")
    assert back.predict_proba(table) == pytest.approx(model.predict_proba(x), rel=1e-12)
    assert back.predict(table).tolist() == model.predict(x).tolist()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    x, y = overlapping()
    model = SoftmaxRegression().fit(x, y)
    model.save(tmp_path / "m")
    with pytest.raises(FileExistsError):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)
    odd = SoftmaxRegression().fit(x, np.array(["2020-01-01", "2021-01-01", "2022-01-01"], dtype="M8[D]")[y])
    with pytest.raises(ValueError, match="classes_: a date cannot be saved"):
        odd.save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("damage", ["truncated", "format", "estimator", "shape", "no file", "no folder"])
def test_a_damaged_folder_says_so(tmp_path: Path, damage: str) -> None:
    x, y = overlapping()
    SoftmaxRegression().fit(x, y).save(tmp_path / "m")
    at = tmp_path / "m" / "estimator.json"
    saved = json.loads(at.read_text())
    if damage == "truncated":
        at.write_text(at.read_text()[:100])
    elif damage == "no file":
        at.unlink()
    else:
        changes = {"format": {"format": 9}, "estimator": {"estimator": "os"}, "shape": {"features": ["a"]}}
        at.write_text(json.dumps(saved | changes.get(damage, {})))
    folder = tmp_path / ("nowhere" if damage == "no folder" else "m")
    with pytest.raises(FileNotFoundError if damage == "no folder" else ValueError, match=r"m: |nowhere: "):
        estimators.load(folder)


@pytest.mark.parametrize("name", fitted())
def test_skops(name: str) -> None:
    model, x = fitted()[name]
    dumped = skops.io.dumps(model)
    ours = f"{type(model).__module__}.{type(model).__name__}"
    assert skops.io.get_untrusted_types(data=dumped) == [ours]
    back = skops.io.loads(dumped, trusted=[ours])
    assert (back.predict_proba(x) == model.predict_proba(x)).all()
    assert str(back.summary()) == str(model.summary())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", fitted())
def test_onnx(name: str, dtype: Any, tmp_path: Path) -> None:
    model, x = fitted()[name]
    to_onnx(model, tmp_path / "m.onnx", dtype=dtype)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    label, q = session.run(None, {"X": np.asarray(x).astype(dtype)})
    assert q == pytest.approx(model.predict_proba(x), rel=1e-12 if dtype == np.float64 else 1e-4, abs=1e-7)
    assert label.tolist() == model.predict(x).tolist()
    with pytest.raises(FileExistsError):
        to_onnx(model, tmp_path / "m.onnx")


def test_onnx_has_no_such_label() -> None:
    x, y = overlapping(K=2)
    with pytest.raises(ValueError, match="neither text nor whole numbers"):
        to_onnx(LogisticRegression(classes=[0.25, 0.75]).fit(x, np.eye(2)[y]))
