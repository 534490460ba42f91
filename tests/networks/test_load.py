"""Networks by their names: ONNX files, saved estimators, Python entries, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from likely.data.examples import Batch, Labelled
from likely.estimators import LogisticRegression, SoftmaxRegression
from likely.networks import require_same_classes
from likely.networks.load import load_network, read_classes
from likely.networks.onnx import OnnxNetwork
from likely.training.linear import regress

CLASSES = ("ant", "bee", "cow")


def table(D: int = 4, E: int = 30, features: tuple[str, ...] | None = None) -> Labelled:
    x = np.random.default_rng(0).normal(size=(E, D))
    read = lambda items: {"features": torch.from_numpy(np.stack(items))}  # noqa: E731
    return Labelled.of(list(x), read, [row.tobytes() for row in x], classes=CLASSES, features=features)


def onnx_file(
    path: Path, ending: str = "Softmax", metadata: dict[str, str] | None = None, D: int = 4
) -> tuple[Path, Any]:
    """A linear classifier of three classes; its weights (D, 3)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(1).normal(size=(D, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node(ending, ["z"], ["out"])]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", D])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path, weight


# ---------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("ending", ["Softmax", "Identity"])
def test_an_onnx_model_gives_its_logits_or_the_logarithm_of_its_probabilities(tmp_path: Path, ending: str) -> None:
    path, weight = onnx_file(tmp_path / "m.onnx", ending, {"classes": json.dumps(CLASSES)})
    examples = table()
    network = load_network(path, examples=examples)
    assert isinstance(network, OnnxNetwork)
    assert network.classes == CLASSES
    head = network.head(examples.batch([3, 4]))
    z = torch.from_numpy(np.stack(examples.items[3:5]).astype(np.float32) @ weight)
    torch.testing.assert_close(head.logits(), z.log_softmax(dim=1) if ending == "Softmax" else z, atol=1e-5, rtol=1e-5)
    assert network.output == ("probabilities" if ending == "Softmax" else "logits")
    assert network.identity.kind == "onnx"
    assert network.identity.sha256 == load_network(path).identity.sha256
    with pytest.raises(ValueError, match="can be a teacher, and cannot be trained"):
        load_network(path, trainable=True)


def test_a_probability_of_zero_is_an_impossible_class(tmp_path: Path) -> None:
    path, weight = onnx_file(tmp_path / "m.onnx")
    far = Labelled.of([weight.T[0] * 1e4], lambda items: {"x": torch.from_numpy(np.stack(items))}, [b""])
    z = load_network(path, examples=far).head(far.batch([0])).logits()
    assert float(z.max()) == 0
    assert bool((z == -torch.inf).any())
    assert not bool(z.isnan().any())


def test_what_an_onnx_model_gives_may_be_said(tmp_path: Path) -> None:
    path, _ = onnx_file(tmp_path / "m.onnx", "Softmax")
    kept = load_network(path, output="logits")
    assert kept.head(table().batch([0])).logits().sum().item() == pytest.approx(1)
    path, _ = onnx_file(tmp_path / "z.onnx", "Identity")
    with pytest.raises(ValueError, match="a row of this one is none"):
        load_network(path, output="probabilities").head(table().batch([0]))
    with pytest.raises(ValueError, match="output: is 'odds'"):
        load_network(path, output="odds")


def test_onnx_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, _ = onnx_file(tmp_path / "m.onnx")
    assert load_network(path).classes == 3
    with pytest.raises(ValueError, match=r"classes: are 2 where .*m.onnx gives 3"):
        load_network(path, classes=["a", "b"])
    with pytest.raises(ValueError, match="cannot run on the examples"):
        load_network(path, examples=table(D=5))
    two = Labelled.of([0], lambda items: {"a": torch.ones(1, 4), "b": torch.ones(1, 4)}, [b""])
    with pytest.raises(ValueError, match="takes x, and the examples hold a, b"):
        load_network(path, examples=two)
    assert OnnxNetwork(path, examples=two, prepare=lambda inputs: {"x": inputs["b"]}).head(two.batch([0])).rows == 1
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is no ONNX model that can be run"):
        load_network(tmp_path / "cut.onnx")


# ---------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("number", [2, 3])
def test_a_saved_estimator_gives_its_probabilities(tmp_path: Path, number: int) -> None:
    examples = table(features=("a", "b", "c", "d"))
    x = np.stack(examples.items)
    y = np.array(CLASSES)[np.arange(30) % number]
    model = (SoftmaxRegression if number > 2 else LogisticRegression)(C=1.0).fit(x, y)
    model.save(tmp_path / "model")
    network = load_network(tmp_path / "model", examples=examples)
    assert network.classes == CLASSES[:number]
    p = network.head(examples.batch([5, 6])).logits().softmax(dim=1)
    np.testing.assert_allclose(p, model.predict_proba(x[5:7]), atol=1e-12)
    assert network.identity.kind == "estimator"


def test_a_model_of_likely_fit_gives_its_probabilities(tmp_path: Path) -> None:
    examples = table(features=("a", "b", "c", "d"))
    columns = {name: np.stack(examples.items)[:, at] for at, name in enumerate("abcd")}
    fitted = regress({**columns, "y": list(np.array(CLASSES)[np.arange(30) % 3])}, "y", penalty_strength=0.1).model
    fitted.save(tmp_path / "model")
    network = load_network(tmp_path / "model", examples=examples)
    assert network.classes == CLASSES
    p = network.head(examples.batch([5, 6])).logits().softmax(dim=1)
    np.testing.assert_allclose(p, fitted.predict_proba(columns)[5:7], atol=1e-12)
    with pytest.raises(ValueError, match="its feature 1 is 'b', and that of the examples 'c'"):
        load_network(tmp_path / "model", examples=table(features=("a", "c", "b", "d")))


def test_a_skops_file_of_scikit_learns_own_types_is_read(tmp_path: Path) -> None:
    import pandas as pd
    import skops.io
    from sklearn.neighbors import KNeighborsClassifier

    names = ("a", "b", "c", "d")
    examples = table(features=names)
    x = np.stack(examples.items)
    model = KNeighborsClassifier(3, algorithm="brute").fit(pd.DataFrame(x, columns=names), np.arange(30) % 3)
    skops.io.dump(model, tmp_path / "m.skops")
    network = load_network(tmp_path / "m.skops", examples=examples)
    assert network.classes == ("0", "1", "2")
    z = network.head(examples.batch(range(30))).logits()
    np.testing.assert_allclose(z.exp(), model.predict_proba(pd.DataFrame(x, columns=names)), atol=1e-12)
    assert bool((z == -torch.inf).any())
    with pytest.raises(ValueError, match="its feature 1 is 'b', and that of the examples 'c'"):
        load_network(tmp_path / "m.skops", examples=table(features=("a", "c", "b", "d")))


def test_a_text_pipeline_reads_texts(tmp_path: Path) -> None:
    import skops.io
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression as Sklearns
    from sklearn.pipeline import make_pipeline

    items = ["red apple", "green pear", "red cherry", "green leaf"]
    model = make_pipeline(TfidfVectorizer(), Sklearns()).fit(items, ["r", "g", "r", "g"])
    skops.io.dump(model, tmp_path / "m.skops")
    examples = Labelled.of(items, lambda some: {"text": list(some)}, [item.encode() for item in items])
    network = load_network(tmp_path / "m.skops", examples=examples)
    np.testing.assert_allclose(
        network.head(examples.batch([0, 1])).logits().exp(), model.predict_proba(items[:2]), atol=1e-12
    )


class Strange:
    classes_ = np.array([0, 1])

    def predict_proba(self, x: Any) -> Any:
        return x


def test_a_skops_file_of_other_types_and_pickles_are_refused(tmp_path: Path) -> None:
    import skops.io
    from sklearn.cluster import KMeans

    skops.io.dump(Strange(), tmp_path / "m.skops")
    with pytest.raises(ValueError, match=r"Strange, which skops does not trust"):
        load_network(tmp_path / "m.skops")
    skops.io.dump(KMeans(2, n_init=1).fit(np.eye(4)), tmp_path / "k.skops")
    with pytest.raises(ValueError, match="holds a KMeans, which gives no probabilities"):
        load_network(tmp_path / "k.skops")
    (tmp_path / "cut.skops").write_bytes((tmp_path / "k.skops").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as skops"):
        load_network(tmp_path / "cut.skops")
    for suffix in (".pkl", ".joblib", ".pt", ".bin", ".pt2"):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(pickle.dumps(print))
        with pytest.raises(ValueError, match="is a pickle, which runs code when read"):
            load_network(path)


# -------------------------------------------------------------------------------------------------------- entries

ENTRIES = """
import torch
from likely.heads import Logits
from likely.networks import Identity

class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.weight = torch.nn.Parameter(torch.randn(4, 3))
    def forward(self, features):
        return self.drop(features.float()) @ self.weight

def module(examples):
    return Double()

class Own:
    classes, max_length, module = ("ant", "bee", "cow"), None, None
    identity = Identity("entry", "own", "0" * 64)
    def head(self, batch):
        return Logits(torch.zeros(len(batch.labels), 3))

def network(examples):
    return Own()

def busy(examples):
    own = Own()
    own.module = Double().train()
    return own

def wrong(examples):
    return 3
"""


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_entries.py").write_text(ENTRIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    monkeypatch.delitem(sys.modules, "own_entries", raising=False)
    return "own_entries"


def test_an_entry_gives_a_module_or_a_network(entries: str, tmp_path: Path) -> None:
    examples = table()
    network = load_network(f"{entries}:module", examples=examples, seed=3)
    assert network.module is not None
    assert not network.module.training
    assert not any(p.requires_grad for p in network.module.parameters())
    assert network.classes == CLASSES
    assert network.identity.name == "own_entries:module"
    weight = dict(network.module.named_parameters())["weight"]
    expected = torch.from_numpy(np.stack(examples.items[:2])).float() @ weight
    torch.testing.assert_close(network.head(examples.batch([0, 1])).logits(), expected)
    same = load_network(f"{entries}:module", examples=examples, seed=3, trainable=True)
    assert same.identity == network.identity
    assert same.module is not None
    assert all(p.requires_grad for p in same.module.parameters())
    busy = load_network(f"{entries}:busy", examples=examples)
    assert busy.module is not None
    assert not busy.module.training
    assert load_network(f"{entries}:network", examples=examples).head(examples.batch([0])).classes == 3
    assert load_network(f"{entries}:module", examples=examples.subset([0])).classes == CLASSES
    (tmp_path / "out").mkdir()
    network.save(tmp_path / "out")


def test_the_weights_of_an_entry_are_loaded_where_its_code_is_named(entries: str, tmp_path: Path) -> None:
    examples, name, folder = table(), f"{entries}:module", tmp_path / "out"
    folder.mkdir()
    network = load_network(name, examples=examples, seed=3)
    network.save(folder)
    said = f"{name!r}, which is only run where it is named; if it is yours, give package.module:function={folder}"
    with pytest.raises(ValueError, match=re.escape(said)):
        load_network(folder)
    again = load_network(f"{name}={folder}", examples=examples, seed=4)
    assert again.identity == network.identity != load_network(name, examples=examples, seed=4).identity
    assert again.module is not None
    assert not any(p.requires_grad for p in again.module.parameters())
    assert load_network(f"{name}={folder}", examples=examples, trainable=True).identity == network.identity
    unlabelled = replace(examples, classes=None)
    assert load_network(f"{name}={folder}", examples=unlabelled).classes == network.classes
    with pytest.raises(ValueError, match="was saved by 'own_entries:module', not by the entry 'own_entries:busy'"):
        load_network(f"{entries}:busy={folder}", examples=examples)
    with pytest.raises(FileNotFoundError, match=r"the folder holds no network\.json"):
        load_network(f"{name}={tmp_path / 'none'}", examples=examples)
    save_file({"weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="its weights do not fit own_entries:module"):
        load_network(f"{name}={folder}", examples=examples)
    (folder / "network.json").write_text("[")
    with pytest.raises(ValueError, match=r"its network\.json cannot be read"):
        load_network(f"{name}={folder}", examples=examples)


def test_entries_that_are_none_say_so(entries: str) -> None:
    with pytest.raises(ImportError, match="nowhere_at_all:f: No module named 'nowhere_at_all'"):
        load_network("nowhere_at_all:f")
    with pytest.raises(ImportError, match="own_entries has no function 'absent'"):
        load_network(f"{entries}:absent")
    with pytest.raises(TypeError, match="returned a int, which has no"):
        load_network(f"{entries}:wrong")
    with pytest.raises(ValueError, match="its classes are not known; name them, or give examples"):
        load_network(f"{entries}:module")
    with pytest.raises(ValueError, match="gives logits of 3 classes, where 2 are named"):
        load_network(f"{entries}:module", examples=table(), classes=["a", "b"])
    with pytest.raises(ValueError, match="cannot be trained"):
        load_network(f"{entries}:network", examples=table(), trainable=True)
    words = Labelled.of(["a"], lambda items: {"text": items}, [b"a"], classes=CLASSES)
    with pytest.raises(ValueError, match=r"its forward takes \['features'\], and the examples hold \['text'\]"):
        load_network(f"{entries}:module", examples=words)


def test_an_entry_of_sequences_gives_the_rows_of_the_batch(entries: str) -> None:
    from likely.networks.entry import ModuleNetwork

    class Echo(torch.nn.Module):
        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.nn.functional.one_hot(inputs["input_ids"], 9).float()}

    batch = Batch(
        {"input_ids": torch.arange(6).view(2, 3)}, torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1, 5])
    )
    network = ModuleNetwork(Echo(), "m:echo", tuple("abcdefghi"))
    assert network.head(batch).logits().argmax(dim=1).tolist() == [1, 5]


# --------------------------------------------------------------------------------------------------- names of all


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "is no file or folder here, and nothing is fetched"),
        ("org/model", "nothing is fetched"),
        ("mlp:", "is no file"),
    ],
)
def test_names_of_nothing_are_refused(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        load_network(name)
    with pytest.raises(ValueError, match="holds no network that is known here"):
        load_network(tmp_path)


def test_classes_are_read_from_files(tmp_path: Path) -> None:
    for name, text in {"a.json": '["x", "y"]', "b.json": '{"1": "y", "0": "x"}', "c.txt": "x\ny\n"}.items():
        (tmp_path / name).write_text(text)
        assert read_classes(tmp_path / name) == ("x", "y")
    (tmp_path / "d.json").write_text('{"x": 0}')
    with pytest.raises(ValueError, match="an object, and not of the numbers"):
        read_classes(tmp_path / "d.json")
    (tmp_path / "e.json").write_text('["x"')
    with pytest.raises(ValueError, match=r"e.json is no JSON"):
        read_classes(tmp_path / "e.json")
    with pytest.raises(ValueError, match="'x' stands twice"):
        read_classes(["x", "y", "x"])
    with pytest.raises(FileNotFoundError):
        read_classes(tmp_path / "absent.json")


def test_classes_that_differ_are_named() -> None:
    require_same_classes(CLASSES, 3)
    require_same_classes(CLASSES, CLASSES)
    with pytest.raises(ValueError, match="teacher: has 3 classes where the student has 4"):
        require_same_classes(CLASSES, 4)
    with pytest.raises(
        ValueError, match=r"teacher: class 1 is 'bee' where the data has 'cow' \(the same classes in an"
    ):
        require_same_classes(CLASSES, ("ant", "cow", "bee"), "teacher", "data")
    with pytest.raises(ValueError, match=r"class 2 is 'cow' where the student has 'dog'$"):
        require_same_classes(CLASSES, ("ant", "bee", "dog"))
