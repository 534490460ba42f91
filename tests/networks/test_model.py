"""Models: saved, loaded, and used on whatever people have; and refused where they are damaged."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import likely
from likely.data import Encoder, write_table
from likely.networks.layers import Mlp, build
from likely.networks.model import Model, load

DATA: dict[str, Any] = {"age": [20.0, 30.0, 45.0, 50.0], "sex": ["f", "m", "m", "f"]}


def make(network: str, dtype: torch.dtype = torch.float64, classes: tuple[Any, ...] = ("a", "b", "c")) -> Model:
    encoder = Encoder.fit(DATA)
    module = build(network, 3, len(classes), generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return Model(encoder, network, module, classes, {"penalty": np.float64(0.5), "splits": np.arange(2)})


CASES = [("linear", ("a", "b", "c")), ("binary", (False, True)), ("mlp:8", (0, 1, 2)), ("mlp:1", (0.5, 1.0))]


@pytest.mark.parametrize(("network", "classes"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loading_gives_the_same_numbers(
    tmp_path: Path, network: str, classes: tuple[Any, ...], dtype: torch.dtype
) -> None:
    model = make(network, dtype, classes)
    model.save(tmp_path / "model")
    back = likely.load(tmp_path / "model")
    np.testing.assert_array_equal(back.predict_proba(DATA), model.predict_proba(DATA))
    assert back.dtype == dtype
    assert back.classes == classes
    assert [type(c) for c in back.classes] == [type(c) for c in classes]
    assert back.metadata == {"penalty": 0.5, "splits": [0, 1]}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [".likely", "model.json", "model.safetensors"]


@pytest.mark.parametrize(("network", "classes"), CASES)
def test_probabilities_are_distributions_and_agree_with_their_logarithms(
    network: str, classes: tuple[Any, ...]
) -> None:
    model = make(network, classes=classes)
    q = model.predict_proba(DATA)
    assert q.shape == (4, len(classes))
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(DATA)), q, atol=1e-15)
    assert model.predict(DATA).tolist() == [classes[j] for j in q.argmax(axis=1)]


def test_binary_is_the_logit_of_the_second_class() -> None:
    model = make("binary", classes=("no", "yes"))
    x = torch.from_numpy(model.encoder.transform(DATA))
    np.testing.assert_allclose(
        model.predict_proba(DATA)[:, 1], torch.sigmoid(model.module(x)[:, 0]).detach(), atol=1e-15
    )


def test_every_kind_of_input_gives_the_same(tmp_path: Path) -> None:
    model = make("linear")
    truth = model.predict_proba(DATA)
    write_table(tmp_path / "t.csv", DATA)
    for data in (pa.table(DATA), pd.DataFrame(DATA), tmp_path / "t.csv", str(tmp_path / "t.csv")):
        np.testing.assert_array_equal(model.predict_proba(data), truth)


def test_polars() -> None:
    polars = pytest.importorskip("polars")
    model = make("linear")
    np.testing.assert_array_equal(model.predict_proba(polars.DataFrame(DATA)), model.predict_proba(DATA))


def test_raw_features_as_an_array() -> None:
    encoder = Encoder.fit({"x": [1.0, 5.0], "y": [0.0, 2.0]})
    model = Model(encoder, "linear", build("linear", 2, 2), ("a", "b"))
    with torch.no_grad():
        model.module.weight.copy_(torch.eye(2))  # type: ignore[union-attr, operator]
    array = np.array([[1.0, 0.0], [5.0, 2.0], [2.0, 2.0]])
    truth = model.predict_proba({"x": array[:, 0], "y": array[:, 1]})
    for data in (array, array.tolist(), torch.from_numpy(array), array.astype(np.float32)):
        np.testing.assert_array_equal(model.predict_proba(data), truth)
    with pytest.raises(ValueError, match=r"data: has shape \(3, 1\); give \(N, 2\), one column for each of 'x', 'y'"):
        model.predict_proba(array[:, :1])
    with pytest.raises(ValueError, match="column 'y': row 1 is missing"):
        model.predict_proba(np.array([[1.0, 2.0], [1.0, np.nan]]))


def test_unseen_levels() -> None:
    model = make("linear")
    with pytest.raises(ValueError, match="column 'sex': row 0 has the level 'x'"):
        model.predict({"age": [1.0], "sex": ["x"]})
    assert model.predict_proba({"age": [1.0], "sex": ["x"]}, unseen="zero").shape == (1, 3)


def test_saving_does_not_overwrite_unasked(tmp_path: Path) -> None:
    make("linear").save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="exists already"):
        make("mlp:2").save(tmp_path / "model")
    assert load(tmp_path / "model").network == "linear"
    make("mlp:2").save(tmp_path / "model", overwrite=True)
    assert load(tmp_path / "model").network == "mlp:2"


def test_others_may_read_a_model_where_they_may_read_a_file(tmp_path: Path) -> None:
    make("linear").save(tmp_path / "model")
    (tmp_path / "usual").write_text("")
    modes = {stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "usual", *(tmp_path / "model").iterdir()]}
    assert len(modes) == 1


def damage(folder: Path, what: str) -> None:
    description = folder / "model.json"
    saved = json.loads(description.read_text())
    weights = folder / "model.safetensors"
    if what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif what == "truncated description":
        description.write_text(description.read_text()[:100])
    elif what == "another shape":
        description.write_text(json.dumps(saved | {"classes": ["a", "b"]}))
    elif what == "another network":
        description.write_text(json.dumps(saved | {"network": "transformer"}))
    elif what == "another format":
        description.write_text(json.dumps(saved | {"format": 99}))
    elif what == "no dictionary":
        description.write_text("[1, 2]")
    elif what == "no encoder":
        del saved["encoder"]
        description.write_text(json.dumps(saved))
    elif what == "no weights":
        weights.unlink()


DAMAGE = ["truncated weights", "truncated description", "another shape", "another network", "another format"]


@pytest.mark.parametrize("what", [*DAMAGE, "no dictionary", "no encoder", "no weights"])
def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    make("linear").save(tmp_path / "model")
    damage(tmp_path / "model", what)
    with pytest.raises(ValueError, match=r"model: (is no model|holds no)") as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_no_folder() -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load("nowhere")


def test_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        make("linear", torch.bfloat16)


def test_a_seed_fixes_a_network() -> None:
    before = torch.random.get_rng_state()
    one, two = (Mlp(3, 4, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert torch.equal(before, torch.random.get_rng_state())
    for parameter in one.parameters():
        assert 0 < float(parameter.abs().max().detach()) <= 4**-0.5 + 1 / 9


@pytest.mark.parametrize("network", ["mlp", "mlp:0", "mlp:-1", "mlp:x", "cnn", "", "mlp:²"])
def test_unknown_networks(network: str) -> None:
    with pytest.raises(ValueError, match="network: unknown"):
        build(network, 2, 2)


def test_sizes_of_networks() -> None:
    with pytest.raises(ValueError, match="'binary' has two classes, not 3"):
        build("binary", 2, 3)
    with pytest.raises(ValueError, match="classes: must be at least 1, got 0"):
        Mlp(2, 2, 0)
