"""Bad input: one clear line on stderr, a status that is not 0, and nothing written, changed or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from likely.data import write_table
from tests.cli.conftest import Likely

GOOD: dict[str, Any] = {
    "x": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    "c": ["u", "v", "v", "u", "u", "v"],
    "y": ["a", "b", "a", "b", "a", "b"],
    "p_a": [0.6, 0.5, 0.5, 0.5, 0.5, 0.4],
    "p_b": [0.4, 0.5, 0.5, 0.5, 0.5, 0.6],
    "w": [1.0] * 6,
}


def changed(name: str, row: int, value: Any) -> dict[str, Any]:
    column = list(GOOD[name])
    column[row] = value
    return {**GOOD, name: column}


LABELS = ("--target", "y", "--features", "x,c")
SOFT = ("--target", "p_*", "--features", "x,c")
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "NaN feature": (changed("x", 2, float("nan")), LABELS, "column 'x': row 2 is missing (empty or NaN)"),
    "missing feature": (changed("c", 3, None), LABELS, "column 'c': row 3 is missing"),
    "infinite feature": (changed("x", 4, float("inf")), LABELS, "column 'x': row 4 is infinite"),
    "missing label": (changed("y", 1, None), LABELS, "target 'y': row 1 is missing"),
    "negative probability": (changed("p_a", 5, -0.1), SOFT, "target: row 5 holds the negative value -0.1"),
    "no distribution": (
        {**GOOD, "p_a": [0.6, 0.5, 0.9, 0.55, 0.5, 0.4]},
        SOFT,
        "target: row 2 sums to 1.4, not 1; divide every row by its sum",
    ),
    "probability that is text": ({**GOOD, "p_a": ["x"] * 6}, SOFT, "target: column 'p_a' holds string"),
    "a single class": ({**GOOD, "y": ["a"] * 6}, LABELS, "target 'y': every row is 'a'"),
    "a class without mass": (
        {**GOOD, "p_c": [0.0] * 6},
        SOFT,
        "target: the class 'c' has probability 0 in every row; leave its column out",
    ),
    "a missing target": (GOOD, ("--target", "z"), "target: there is no column 'z'"),
    "a missing feature": (
        GOOD,
        ("--target", "y", "--features", "x,cc"),
        "there is no column 'cc'; the nearest are 'c'",
    ),
    "a missing weight": (GOOD, (*LABELS, "--weight", "weight"), "weight: there is no column 'weight'"),
    "a negative weight": (changed("w", 1, -1.0), (*LABELS, "--weight", "w"), "weight: column 'w': row 1 is -1.0"),
    "the target as a feature": (GOOD, ("--target", "y", "--features", "x,y"), "features: column 'y' is the target"),
    "an unknown way to impute": (GOOD, (*LABELS, "--impute", "zero"), "impute: is 'zero'; it is 'mean' or 'median'"),
    "smoothed probabilities": (GOOD, (*SOFT, "--label-smoothing", "0.1"), "label_smoothing: is for labels"),
}


@pytest.mark.parametrize("case", CASES)
def test_fit_refuses(likely_cli: Likely, tmp_path: Path, case: str) -> None:
    columns, options, message = CASES[case]
    write_table(tmp_path / "t.parquet", columns)
    assert message in likely_cli("fit", tmp_path / "t.parquet", *options, "--out", tmp_path / "m").error()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_the_same_input_without_its_fault_is_accepted(likely_cli: Likely, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", GOOD)
    for number, options in enumerate((LABELS, SOFT, (*LABELS, "--weight", "w"))):
        assert likely_cli("fit", tmp_path / "t.parquet", *options, "--out", tmp_path / f"m{number}").status == 0


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow", ".jsonl", ".npz"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0", b"PK\x03\x04\0\0\0\0"])
def test_empty_and_foreign_files(likely_cli: Likely, tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    for arguments in (("fit", path, "-t", "y", "-o", tmp_path / "m"), ("evaluate", path)):
        assert f"t{suffix}: " in likely_cli(*arguments).error()
    assert list(tmp_path.iterdir()) == [path]


def test_truncated_file(likely_cli: Likely, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", GOOD)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:-20])
    assert "cut short" in likely_cli("fit", tmp_path / "t.parquet", *LABELS, "-o", tmp_path / "m").error()


def test_empty_table_and_no_file(likely_cli: Likely, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n")
    assert "t.csv: is empty" in likely_cli("fit", tmp_path / "t.csv", "-t", "y", "-o", tmp_path / "m").error()
    assert "no such file" in likely_cli("fit", tmp_path / "nothing.csv", "-t", "y", "-o", tmp_path / "m").error()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"p_a": [0.5, 0.5], "p_b": [0.5, 0.6], "y": ["a", "b"]}, (), "probabilities: row 1 sums to 1.1, not 1"),
        ({"p_a": [0.5, -0.5], "p_b": [0.5, 1.5], "y": ["a", "b"]}, (), "probabilities: row 1 holds the negative value"),
        ({"p_a": [0.5, 0.5], "p_b": [0.5, 0.5], "y": ["a", "z"]}, (), "target 'y': row 1 is 'z', which is no class"),
        ({"p_a": [0.5, 0.5], "p_b": [0.5, 0.5]}, (), "target: there is no column for it"),
        ({"p_a": [1.0, 1.0], "y": ["a", "b"]}, (), "probabilities: 'p_*' is one column, 'p_a'"),
        ({"q_a": [0.5], "q_b": [0.5], "y": ["a"]}, (), "probabilities: no column matches 'p_*'; the columns are 'q_a'"),
        ({"p_a": [0.5], "p_b": [0.5], "y": ["a"]}, ("-t", "t_*"), "target: no column matches 't_*'"),
        (
            {"p_a": [0.5], "p_b": [0.5], "t_a": [1.0], "t_c": [0.0]},
            ("-t", "t_*"),
            "target: column 't_c' is of no class",
        ),
    ],
)
def test_evaluate_refuses(
    likely_cli: Likely, tmp_path: Path, columns: dict[str, Any], options: tuple[str, ...], message: str
) -> None:
    write_table(tmp_path / "p.parquet", columns)
    assert message in likely_cli("evaluate", tmp_path / "p.parquet", *options, "-o", tmp_path / "e").error()
    assert not (tmp_path / "e").exists()


@pytest.fixture
def model(likely_cli: Likely, tmp_path: Path) -> Path:
    write_table(tmp_path / "t.csv", GOOD)
    assert likely_cli("fit", tmp_path / "t.csv", *LABELS, "-o", tmp_path / "m").status == 0
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0]}, "features: there is no column 'c'"),
        ({"x": ["high"], "c": ["u"]}, "column 'x': holds text, as 'high', where numbers were expected"),
        ({"x": [1.0], "c": ["new"]}, "column 'c': row 0 has the level 'new'"),
        ({"x": [1.0, float("nan")], "c": ["u", "u"]}, "column 'x': row 1 is missing"),
        ({"x": [float("-inf")], "c": ["u"]}, "column 'x': row 0 is infinite"),
    ],
)
def test_predict_refuses(
    likely_cli: Likely, tmp_path: Path, model: Path, columns: dict[str, Any], message: str
) -> None:
    write_table(tmp_path / "new.parquet", columns)
    out = tmp_path / "p.csv"
    assert message in likely_cli("predict", model, tmp_path / "new.parquet", "-o", out).error()
    assert not out.exists()


def test_predict_refuses_what_is_no_model_and_no_output(likely_cli: Likely, tmp_path: Path, model: Path) -> None:
    data, out = tmp_path / "t.csv", tmp_path / "p.csv"
    assert "no such folder" in likely_cli("predict", tmp_path / "none", data, "-o", out).error()
    assert "holds no model.json" in likely_cli("predict", tmp_path, data, "-o", out).error()
    assert "unknown suffix '.xlsx'" in likely_cli("predict", model, data, "-o", tmp_path / "p.xlsx").error()
    (model / "model.safetensors").write_bytes(b"junk")
    assert "is no model that can be read" in likely_cli("predict", model, data, "-o", out).error()
    assert "is the table that is read" in likely_cli("predict", model, data, "-o", data, "--overwrite").error()
    out.write_text("precious")
    assert "exists already" in likely_cli("predict", model, data, "-o", out).error()
    assert out.read_text() == "precious"


def test_an_output_that_exists_is_kept(likely_cli: Likely, tmp_path: Path, model: Path) -> None:
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    assert "exists already" in likely_cli("fit", tmp_path / "t.csv", *SOFT, "-o", model).error()
    failing = ("fit", tmp_path / "t.csv", "-t", "z", "-o", model, "--overwrite")
    assert "no column 'z'" in likely_cli(*failing).error()
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    assert likely_cli("fit", tmp_path / "t.csv", *SOFT, "-o", model, "--overwrite").status == 0
    assert {p.name: p.read_bytes() for p in model.iterdir()} != before


def test_a_folder_of_the_users_is_never_overwritten(likely_cli: Likely, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", GOOD)
    assert (
        "not written by likely" in likely_cli("fit", tmp_path / "t.csv", *LABELS, "-o", tmp_path, "--overwrite").error()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_an_input_is_not_overwritten_with_its_folder(likely_cli: Likely, tmp_path: Path, model: Path) -> None:
    predictions = model / "predictions.csv"
    assert likely_cli("predict", model, tmp_path / "t.csv", "-o", predictions).status == 0
    assert "which would be replaced with it" in likely_cli("evaluate", predictions, "-o", model, "--overwrite").error()
    assert (model / "model.json").exists()


def test_what_users_write_is_shown_and_not_obeyed(likely_cli: Likely, tmp_path: Path) -> None:
    columns = {"[red]x[/red]": GOOD["x"], "\x1b[31mz": GOOD["x"][::-1], "y": ["[/]", "[b]"] * 3}
    write_table(tmp_path / "t.parquet", {**columns, "\x1b[31mz": [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]})
    shown = likely_cli("fit", tmp_path / "t.parquet", "-t", "y", "-o", tmp_path / "[m]")
    assert shown.status == 0
    assert "[red]x[/red]" in shown.out
    assert r"\x1b[31mz" in shown.out
    assert "\x1b" not in shown.out
    assert "[b]" in shown.out
    assert (tmp_path / "[m]").is_dir()
    assert "\x1b" not in likely_cli("fit", tmp_path / "t.parquet", "-t", "\x1b[31m", "-o", tmp_path / "m").error()


RUN = """
    import sys, time
    from likely.cli import main
    from likely.networks.model import Model
    whole = Model.write_into
    def write_into(model, folder):
        whole(model, folder)
        print("writing", flush=True)
        time.sleep(60)
    Model.write_into = write_into
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_it_writes_leaves_no_half_result(
    tmp_path: Path, model: Path, how: signal.Signals
) -> None:
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for out in (tmp_path / "new", model):
        command = [sys.executable, "-c", textwrap.dedent(RUN), "fit", tmp_path / "t.csv", *LABELS, "-o", out]
        pipe, arguments = subprocess.PIPE, [*map(str, command), "--overwrite"]
        processes.append(subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=environment))
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(how)
        _, errors = process.communicate()
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
        assert "Traceback" not in errors
    assert not (tmp_path / "new").exists()
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert bool(left) == (how == signal.SIGKILL), "only a kill that cannot be heard leaves its unfinished folder"
