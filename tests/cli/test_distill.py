"""distill as a command: a user's table and teacher in, a model that predict and evaluate use out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import likely
from likely.data import read_table, write_table
from tests.cli.conftest import Likely

SMALL = ("--splits", 2, "--labelled", 20, "--hidden", 4)


@pytest.fixture
def cancer(tmp_path: Path) -> Path:
    """Breast cancer, with the probabilities of a made-up teacher that is mostly right."""
    data = load_breast_cancer()
    p = np.where(data.target == 1, 0.9, 0.2)
    columns = {name.replace(" ", "_"): column for name, column in zip(data.feature_names[:6], data.data.T)}
    labels = np.where(data.target == 1, "benign", "malignant")
    write_table(tmp_path / "t.parquet", {**columns, "p_benign": p, "p_malignant": 1 - p, "y": labels})
    np.save(tmp_path / "logits.npy", np.log(np.column_stack([p, 1 - p])) - 3.0)
    return tmp_path / "t.parquet"


@pytest.mark.parametrize("teacher", ["p_*", "logits.npy", "builtin"])
def test_a_users_table_from_distilling_to_evaluating(
    likely_cli: Likely, cancer: Path, tmp_path: Path, teacher: str
) -> None:
    out = tmp_path / "run"
    given = str(tmp_path / teacher) if teacher.endswith("npy") else teacher
    features = () if teacher == "p_*" else ("--features", "mean*")
    arguments = ("distill", cancer, "-t", "y", "--teacher", given, *features, *SMALL, "-o", out, "--json")
    metrics = likely_cli(*arguments).json()
    assert metrics["command"] == "distill"
    assert metrics["class_names"] == ["benign", "malignant"]
    assert {"report.html", "metrics.json", "predictions.csv", "student"} <= {p.name for p in out.iterdir()}
    for student in metrics["students"].values():
        total = student["entropy"]["mean"] + student["kl"]["mean"]
        assert student["cross_entropy"]["mean"] == pytest.approx(total, abs=1e-9)
    if teacher != "builtin":
        entropy = metrics["students"]["the teacher"]["entropy"]["mean"]
        assert 0.3 < entropy < 0.51  # between H(0.9) and H(0.2), also where it came as logits
    assert likely_cli("predict", out / "student", cancer, "-o", tmp_path / "q.csv").status == 0
    q = np.column_stack([read_table(tmp_path / "q.csv")[f"p_{name}"].to_numpy() for name in ("benign", "malignant")])
    np.testing.assert_array_equal(q, likely.load(out / "student").predict_proba(cancer))
    for table in (tmp_path / "q.csv", out / "predictions.csv"):
        assert likely_cli("evaluate", table, "--json").json()["accuracy"]["mean"] > 0.7


def test_the_tables_are_shown(likely_cli: Likely, cancer: Path, tmp_path: Path) -> None:
    shown = likely_cli("distill", cancer, "-t", "y", "--teacher", "p_*", *SMALL, "-o", tmp_path / "run")
    assert shown.status == 0
    for text in ("hard labels", "= entropy", "+ KL", "agreement %", "Δ NLL, nats", "written to"):
        assert text in shown.out


def test_the_seed_decides(likely_cli: Likely, cancer: Path, tmp_path: Path) -> None:
    def students(name: str, seed: int) -> object:
        arguments = ("distill", cancer, "-t", "y", *SMALL, "-o", tmp_path / name, "--seed", seed, "--json")
        return likely_cli(*arguments).json()["students"]

    first = students("a", 1)
    assert students("b", 1) == first
    assert students("c", 2) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "target: is missing"),
        (("-t", "z"), "target: there is no column 'z'"),
        (("-t", "y", "--teacher", "q_*"), "teacher: no column matches 'q_*'"),
        (("-t", "y", "--teacher", "p_benign"), "teacher: 'p_benign' is one column"),
        (("-t", "y", "--teacher", "none.npy"), "none.npy"),
        (("-t", "y", "--labelled", 5000), "labelled"),
        (("-t", "y", "--temperature", 0), "temperature: is 0"),
        (("-t", "y", "--leave-out", "x"), "'x' is no class"),
        (("-t", "y", "--features", "y"), "features: no column is left"),
    ],
)
def test_bad_input(likely_cli: Likely, cancer: Path, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    assert message in likely_cli("distill", cancer, *options, "-o", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_exists_is_refused_before_anything_is_trained(
    likely_cli: Likely, cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likely.training.distill.experiment", lambda *_, **__: pytest.fail("was trained"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis").write_text("precious")
    assert "exists already" in likely_cli("distill", cancer, "-t", "y", "-o", tmp_path / "run").error()
