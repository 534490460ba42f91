"""Running the command line as a user does, in this process for speed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import statsmodels.api as sm
from sklearn.datasets import load_iris

from likely.cli import main


@dataclass
class Result:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as one JSON object, which it must be and nothing else."""
        assert self.status == 0, self.err
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def error(self) -> str:
        """The one line that a failed command leaves, and nothing on standard output."""
        assert self.status == 1, (self.status, self.out, self.err)
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("likely: error: ")
        return lines[0].removeprefix("likely: error: ")


Likely = Callable[..., Result]


@pytest.fixture
def likely_cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Likely]:
    """`likely_cli("fit", path, "--target", "y")` as `likely fit PATH --target y`."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(int(caught.value.code or 0), printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def spector(tmp_path: Path) -> Path:
    path = tmp_path / "spector.csv"
    sm.datasets.spector.load_pandas().data.to_csv(path, index=False)
    return path


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    path = tmp_path / "iris.parquet"
    frame = load_iris(as_frame=True).frame
    frame["species"] = frame.pop("target").map(dict(enumerate(["setosa", "versicolor", "virginica"])))
    frame.to_parquet(path)
    return path
