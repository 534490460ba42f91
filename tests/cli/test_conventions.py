"""What every command has: help with an example, JSON for machines, and exit statuses."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Likely

COMMANDS = ["fit", "predict", "evaluate", "capture", "distill", "check"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_common_options(likely_cli: Likely, command: str) -> None:
    shown = likely_cli(command, "--help")
    assert shown.status == 0
    assert f"  likely {command}" in shown.out.partition("Example")[2]
    for option in (
        "--json",
        "--seed",
        *(("--out", "--overwrite") if command != "check" else ()),
    ):  # which writes nothing
        assert option in shown.out


def test_help_and_version(likely_cli: Likely) -> None:
    shown = likely_cli("--help")
    assert shown.status == 0
    assert all(command in shown.out for command in COMMANDS)
    version = importlib.metadata.version("likely")
    assert likely_cli("--version").out.startswith(f"likely {version} (row pass: ")
    assert likely_cli().status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense' (see likely --help)"),
        (["fit"], "(see likely fit --help)"),
        (["fit", "t.csv", "--target", "y"], "'--out'"),
        (["fit", "t.csv", "--target", "y", "--out", "m", "--penalty", "-1"], "'--penalty'"),
        (["fit", "t.csv", "--target", "y", "--out", "m", "--penalty", "nan"], "penalty"),
        (["fit", "t.csv", "--targt", "y"], "--targt"),
    ],
)
def test_a_command_that_is_not_understood(likely_cli: Likely, arguments: list[str], message: str) -> None:
    result = likely_cli(*arguments)
    assert result.status in (1, 2)
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert message in result.err


def test_help_needs_nothing_heavy() -> None:
    """The commands import torch and the tables only when they run (the package itself imports torch)."""
    code = "import sys, likely.cli; print([m for m in ('pyarrow', 'pandas', 'sklearn', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_debugging_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from likely.cli import main; main()", "evaluate", str(tmp_path / "none.csv")]
    done = subprocess.run(command, capture_output=True, text=True, env={"LIKELY_DEBUG": "1"}, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_news(likely_cli: Likely, spector: Path, tmp_path: Path, unbuffered: str) -> None:
    likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m")
    likely = f"{sys.executable} -c 'from likely.cli import main; main()'"
    script = f"{likely} predict {tmp_path / 'm'} {spector} -o {tmp_path / 'p.csv'} | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert (tmp_path / "p.csv").exists()
