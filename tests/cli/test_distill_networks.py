"""`likely distill` with networks: options, files, interruptions, what is written and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from likely.data.loading import load_examples
from likely.networks.load import load_network
from likely.teachers.capture import capture
from likely.training.settings import read_yaml
from tests.cli.conftest import Likely

CLASSES = ("ant", "bee", "cow")
QUICK = ("--epochs", 2, "--batch-size", 16, "--learning-rate-factors", "1,3")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """80 rows of 4 features, with labels of a linear rule, and a teacher's folder beside it."""
    make = np.random.default_rng(0)
    x = make.normal(size=(80, 4))
    y = (x @ make.normal(size=(4, 3)) + 0.5 * make.gumbel(size=(80, 3))).argmax(axis=1)
    lines = [",".join(["a", "b", "c", "d", "kind"])]
    lines += [",".join([*(f"{v:.6f}" for v in row), CLASSES[label]]) for row, label in zip(x, y)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def teacher(table: Path) -> Path:
    folder = table.parent / "teacher"
    folder.mkdir()
    network = load_network("mlp:8", examples=load_examples(table, label="kind"), trainable=True, seed=5)
    network.save(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_live_teacher(likely_cli: Likely, table: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ("distill", table, "-t", "kind", "--teacher", teacher, "--student", "linear", *QUICK, "-o", out)
    shown = likely_cli(*given, "--temperature", 2, "--save-every", 3)
    assert shown.status == 0, shown.err
    assert "loss = 0.5 · CE(labels) + 0.5 · T² · CE(teacher ‖ student at T = 2)" in shown.out
    assert "loss = 0.5 · CE(labels) + 0.5 · T² · CE(teacher ‖ student at T = 2)" in shown.err
    for words in ("labels only: learning rate", "the best of 2", "CE to teacher", "= entropy", "student", "written to"):
        assert words in shown.out
    assert {"student", "labels-only", "metrics.json", "report.html", "settings.yaml", "runs"} <= files(out)
    assert not list(out.glob("runs/*/checkpoints"))
    assert re.search(r'<th scope="row">row \d+</th>', (out / "report.html").read_text())  # which row of the table
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["command"] == "distill"
    assert metrics["examples"] == {"train": 64, "validation": 8, "test": 8}
    assert [one["learning_rate"] for one in metrics["tried"]["labels only"]] == pytest.approx([1e-3, 3e-3])
    for name, of in metrics["networks"].items():
        assert of["cross_entropy"]["mean"] == pytest.approx(of["entropy"]["mean"] + of["kl"]["mean"], abs=1e-9), name
    # What was chosen is what was best, and it is what was saved.
    student = load_network(out / "student")
    examples = load_examples(table, label="kind")
    assert student.classes == examples.classes
    again = likely_cli(*given, "--temperature", 2).error()
    assert "run/student exists already" in again
    replaced = likely_cli(*given, "--temperature", 2, "--save-every", 3, "--overwrite", "--json").json()
    assert replaced["networks"] == metrics["networks"]


@pytest.mark.parametrize("keep", ["samples:4", "top:2+tail"])
def test_a_record_of_the_whole_data(likely_cli: Likely, table: Path, teacher: Path, tmp_path: Path, keep: str) -> None:
    examples = load_examples(table, label="kind")
    capture(load_network(teacher, examples=examples), examples, keep, tmp_path / "record", temperature=1.5)
    given = ("distill", table, "-t", "kind", "--teacher", tmp_path / "record", "--student", "mlp:4", *QUICK)
    tail = ("--tail", "bucket") if keep.startswith("top") else ()
    if tail:
        assert "say how the missing mass is meant" in likely_cli(*given, "-o", tmp_path / "run").error()
        assert not (tmp_path / "run").exists()
    metrics = likely_cli(*given, *tail, "--no-baseline", "-o", tmp_path / "run", "--json").json()
    assert "at T = 1.5" in metrics["formula"]  # the record's
    assert set(metrics["networks"]) == {"student"}
    assert "labels-only" not in files(tmp_path / "run")
    wrong = likely_cli(*given, *tail, "--temperature", 1, "-o", tmp_path / "other").error()
    assert "temperature: the record" in wrong
    table.write_text(table.read_text().replace("0.1", "0.2"))
    assert "data: the record" in likely_cli(*given, *tail, "-o", tmp_path / "other").error()
    assert not (tmp_path / "other").exists()


def test_one_file_of_settings_and_the_command_line_wins(likely_cli: Likely, table: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    text = f"data: {table}\nstudent: linear\ntarget: kind\nsoft_weight: 0\nhard_weight: 1\nlearning_rate: 1e-2\n"
    config.write_text(
        text + f"epochs: 5\nlearning_rate_factors: [1]\nweight_decays: [0, 1e-1]\nout: {tmp_path / 'run'}\n"
    )
    metrics = likely_cli("distill", "--config", config, "--epochs", 2, "--json").json()
    assert metrics["settings"]["epochs"] == 2
    assert metrics["steps"] == 4
    assert [(one["learning_rate"], one["weight_decay"]) for one in metrics["tried"]["student"]] == [
        (0.01, 0.0),
        (0.01, 0.1),
    ]
    assert set(metrics["tried"]) == {"student"}  # of the labels alone already
    written = read_yaml(tmp_path / "run" / "settings.yaml")
    assert written == metrics["settings"]
    # What was written says the same again.
    again = likely_cli("distill", "--config", tmp_path / "run" / "settings.yaml", "--out", tmp_path / "again", "--json")
    assert again.json()["networks"] == metrics["networks"]
    config.write_text(text + "learning_rat: 1\n")
    assert (
        "there is no 'learning_rat'; the nearest name is 'learning_rate'"
        in likely_cli("distill", "--config", config).error()
    )


def test_a_terminated_command_goes_on(likely_cli: Likely, table: Path, teacher: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle of a candidate: status 143, and the same command ends where an uninterrupted one does."""
    given: list[object] = ["distill", table, "-t", "kind", "--teacher", teacher, "--student", "linear", "--epochs", 100]
    given += ["--batch-size", 16, "--learning-rate-factors", 1, "--no-baseline", "-o"]
    command = [sys.executable, "-c", "from likely.cli import main; main()", *map(str, given), str(tmp_path / "cut")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cut = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "cut" / "runs" / "student-lr0.001-wd0.01" / "metrics.jsonl"
    while cut.poll() is None and not (log.exists() and log.stat().st_size > 3000):
        time.sleep(0.005)
    cut.send_signal(signal.SIGTERM)
    out, err = cut.communicate(timeout=60)
    assert (cut.returncode, out) == (143, ""), err
    assert "stopped and saved at step" in err
    assert "student" not in files(tmp_path / "cut")
    torch.manual_seed(3)
    assert (
        "learning_rate is 0.5 where it was 0.001"
        in likely_cli(*given, tmp_path / "cut", "--learning-rate", 0.5).error()
    )
    again = likely_cli(*given, tmp_path / "cut", "--save-every", 50)
    assert again.status == 0, again.err
    assert "(from step" in again.err
    assert likely_cli(*given, tmp_path / "whole").status == 0
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut")]
    assert found[0]["networks"] == found[1]["networks"]
    assert found[0]["tried"] == found[1]["tried"]
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--splits", 3), "--splits: belongs to tables"),
        (("--soft-weight", 1), "soft_weight: is 1 and there is no teacher"),
        (("--epochs", 0, "--soft-weight", 0), "epochs: is 0; it is at least 1"),
        (("--learning-rate-factors", "1,x"), "learning_rate_factors: is 'x'; it is a number"),
        (("--teacher", "none"), "none: is no file or folder here"),
        (("--test-share", 0.9), "test_share: is 0.9; it is at most 0.5"),
        (("--limit", 4, "--soft-weight", 0), "data: has 4 documents, too few"),
    ],
)
def test_bad_input(likely_cli: Likely, table: Path, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    given = ("distill", table, "-t", "kind", "--student", "linear", *options, "-o", tmp_path / "run")
    assert message in likely_cli(*given).error()
    assert not (tmp_path / "run").exists()


def test_what_would_be_overwritten_is_refused_first(
    likely_cli: Likely, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likely.training.network_run.load", lambda *_: pytest.fail("was read"))
    given = ("distill", table, "-t", "kind", "--student", "linear", "--soft-weight", 0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis").write_text("precious")
    assert "exists already" in likely_cli(*given, "-o", tmp_path / "run").error()
    assert "was not written by likely" in likely_cli(*given, "-o", tmp_path / "run", "--overwrite").error()
    assert "which would be replaced with it" in likely_cli(*given, "-o", tmp_path).error()
    assert "belongs to networks; name the student" in likely_cli("distill", table, "--epochs", 3).error()
    assert (tmp_path / "run" / "thesis").read_text() == "precious"
