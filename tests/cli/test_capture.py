"""`likely capture`: taking a record, taking it up, checking it, and making it of another tool's."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from likely.data.examples import Batch
from likely.data.loading import load_examples
from likely.heads import Linear
from likely.networks import Identity
from likely.teachers.inspect import readable
from likely.teachers.keep import bytes_per_row
from likely.teachers.record import Record
from tests.cli.conftest import Likely, Result

C, D = 50, 8
HERE = "tests.cli.test_capture"
TEACHER = f"{HERE}:teacher"
STOPS = "LIKELY_TEST_STOPS"
"""The signal that reaches the teacher at its thirtieth batch."""


def made(name: str, before: Any = None) -> Any:
    """A teacher of tokens: the next token's logits are a product of the token's row with a fixed weight."""
    generator = torch.Generator().manual_seed(0)
    embedding_CD, weight_CD = (torch.randn(C, D, generator=generator) for _ in range(2))

    def head(batch: Batch) -> Linear:
        assert batch.rows is not None
        x_ND = embedding_CD[batch.inputs["input_ids"].reshape(-1)[batch.rows]]
        return Linear(x_ND if before is None else before(x_ND), weight_CD)

    identity = Identity("entry", f"{HERE}:{name}", name.encode().hex().ljust(64, "0"))
    return SimpleNamespace(classes=C, max_length=None, module=None, identity=identity, head=head)


def teacher(examples: Any) -> Any:
    """It is stopped by a signal where the environment says so."""
    seen = []

    def count(x_ND: torch.Tensor) -> torch.Tensor:
        seen.append(len(x_ND))
        if len(seen) == 30 and STOPS in os.environ:
            os.kill(os.getpid(), int(os.environ[STOPS]))
        return x_ND

    return made("teacher", count)


def other_teacher(examples: Any) -> Any:
    return made("other_teacher")


def nan_teacher(examples: Any) -> Any:
    return made("nan_teacher", lambda x_ND: torch.full_like(x_ND, float("nan")))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, C, size=size).tolist() for size in rng.integers(30, 50, size=300)]


@pytest.fixture
def corpus(tmp_path: Path, texts: list[list[int]]) -> Path:
    """Some 12,000 tokens: three shards."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"input_ids": one}) + "\n" for one in texts))
    return path


@pytest.fixture
def take(tmp_path: Path, corpus: Path, likely_cli: Likely) -> Callable[..., Result]:
    """`likely capture` of the corpus into a folder; options that are given again win."""

    def run(*options: object, out: str | None = "record", **changed: object) -> Result:
        settings = {"--teacher": TEACHER, "--data": corpus, "--keep": "top:4+tail", "--out": out and tmp_path / out}
        settings |= {f"--{name}": value for name, value in changed.items()}
        flat = [part for name, value in settings.items() if value is not None for part in (name, value)]
        return likely_cli("capture", *flat, *options)

    return run


Take = Callable[..., Result]


def files(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


# ---------------------------------------------------------------------------------------------------------- capturing


@pytest.mark.parametrize("keep", ["dense", "top:4", "top:4+tail", "samples:4", "hybrid:3+2"])
def test_a_record_is_taken_and_what_it_costs_is_said_before(take: Take, tmp_path: Path, keep: str) -> None:
    done = take(keep=keep)
    assert done.status == 0, done.err
    rows = int(Record.open(tmp_path / "record").row_counts.sum())
    assert f"data: 300 examples, {rows:,} tokens" in done.err
    cost = bytes_per_row(keep, C)
    assert f"{keep}: at most {cost:,} bytes a token, {readable(cost * rows)} in all, before compression" in done.err
    assert ("gradient is biased" in done.err) == keep.startswith("top")
    size = sum(len(data) for name, data in files(tmp_path / "record").items() if name.endswith(".parquet"))
    assert f"{rows:,} tokens, {size / rows:.1f} bytes each on disk" in done.out
    assert f"likely capture --check {tmp_path / 'record'}" in done.out


def test_it_says_so_as_json(take: Take, tmp_path: Path) -> None:
    told = take("--json", "--seed", 3, keep="samples:5").json()
    assert (told["command"], told["keep"], told["gradient"], told["seed"]) == ("capture", "samples:5", "unbiased", 3)
    assert told["rows"] == int(Record.open(told["out"]).row_counts.sum())
    assert told["bytes_per_row"] == pytest.approx(told["bytes"] / told["rows"])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_capture_that_was_stopped_goes_on(
    take: Take, likely_cli: Likely, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    whole = take(out="whole")
    monkeypatch.setenv(STOPS, str(int(stop)))
    stopped = take()
    assert stopped.status == 128 + stop
    assert stopped.out == ""
    last = stopped.err.splitlines()[-1]
    assert last.startswith("likely: stopped at ")
    assert last.endswith("run the same command again and it goes on from there")
    assert "is not finished; run the capture again" in likely_cli("capture", "--check", tmp_path / "record").error()
    monkeypatch.delenv(STOPS)
    again = take()
    assert again.status == 0
    assert f"takes up the record in {tmp_path / 'record'}: " in again.err
    assert files(tmp_path / "record") == files(tmp_path / "whole")
    once_more = take()
    assert f"the record in {tmp_path / 'record'} is whole already" in once_more.err
    assert "recorded in" not in once_more.out
    assert whole.out.splitlines()[1] == once_more.out.splitlines()[0]


def test_the_time_left_is_said_once_it_is_known(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["likely.cli.capture"], "SURE", 0.0)  # its name in the package is the command's
    said = [line for line in take().err.splitlines() if "to go" in line]
    assert "tokens a second: about" in said[0]
    assert "% of the tokens; about" in said[1]
    assert len(said) <= 11


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher": None}, "--teacher, --check or --import: say which one is wanted (found none of them)"),
        ({"data": None}, "--data: is missing"),
        ({"keep": None}, "--keep: is missing"),
        ({"out": None}, "--out: is missing"),
        ({"keep": "best:4"}, "keep: is 'best:4'; it is 'dense', 'top:K'"),
        ({"keep": "top:0"}, "keep: is 'top:0'"),
        ({"keep": "top:51"}, "keep: top:51 of 50 classes"),
        ({"data": "none.jsonl"}, "none.jsonl"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"temperature": "0"}, "temperature: is 0.0; it is a positive number"),
        ({"teacher": f"{HERE}:nan_teacher"}, "NaN"),
        ({"check": "record"}, "say which one is wanted (found --teacher and --check)"),
    ],
)
def test_bad_input_is_one_line(take: Take, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    result = take(**changed)
    assert (result.status, result.out) == (1, "")
    assert message in result.err.splitlines()[-1]


def test_the_record_and_the_data_do_not_lie_in_each_other(likely_cli: Likely, tmp_path: Path, corpus: Path) -> None:
    common = ["capture", "-t", TEACHER, "-k", "top:2"]
    inside = likely_cli(*common, "-d", corpus, "-o", tmp_path).error()
    assert inside == f"--out: {corpus} lies in {tmp_path}, which would be replaced with it; choose another folder"
    inside = likely_cli(*common, "-d", tmp_path, "-o", tmp_path / "record").error()
    assert inside.startswith(f"--out: {tmp_path / 'record'} lies in the data")
    assert sorted(tmp_path.iterdir()) == [corpus]


def test_another_record_is_never_replaced_unasked(take: Take, tmp_path: Path) -> None:
    take()
    before = files(tmp_path / "record")
    for changed, named in (
        ({"keep": "top:3+tail"}, "its keep is top:4+tail, not top:3+tail"),
        ({"temperature": 2}, "its temperature is 1.0, not 2.0"),
        ({"teacher": f"{HERE}:other_teacher"}, "its teacher is"),
    ):
        assert named in take(**changed).err.splitlines()[-1]
        assert files(tmp_path / "record") == before
    for wrong in ({"keep": "top:51"}, {"temperature": 0}, {"teacher": "nowhere"}, {"data": "none.jsonl"}):
        assert take("--overwrite", **wrong).status == 1
        assert files(tmp_path / "record") == before
    assert take("--overwrite", keep="top:3+tail").status == 0
    assert str(Record.open(tmp_path / "record").manifest.keep) == "top:3+tail"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_a_folder_with_anything_else_is_left_alone(take: Take, tmp_path: Path) -> None:
    take()
    (tmp_path / "record" / "letter.txt").write_text("dear")
    before = files(tmp_path / "record")
    assert "letter.txt, which is no part of a record" in take("--overwrite", keep="top:3").error()
    assert files(tmp_path / "record") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "letter.txt" in take(out="mine").err.splitlines()[-1]
    assert "letter.txt" in take("--overwrite", out="mine").error()


# --------------------------------------------------------------------------------------------------------- inspection


def test_a_check_tells_what_is_in_it_and_draws_it(take: Take, likely_cli: Likely, tmp_path: Path) -> None:
    take()
    checked = likely_cli("capture", "--check", tmp_path / "record")
    assert checked.status == 0
    for told in (
        "top:4+tail, its gradient is biased",
        "all 3 shards are whole",
        "entropy, nats",
        "largest probability",
    ):
        assert told in checked.out
    page = tmp_path / "record-check.html"
    assert checked.out.endswith(f"written to {page}\n")
    assert "mass outside the stored classes" in page.read_text()
    again = likely_cli("capture", "--check", tmp_path / "record", "--json")
    assert f"{page} exists already (--overwrite replaces it)" in again.err
    assert again.json()["report"] is None
    assert again.json()["quantities"]["entropy"]["mean"] > 0
    assert likely_cli("capture", "--check", tmp_path / "record", "--overwrite").out.endswith(f"written to {page}\n")
    assert "exists already" in likely_cli("capture", "--check", tmp_path / "record", "-o", page).error()


def test_a_record_that_is_damaged(take: Take, likely_cli: Likely, tmp_path: Path) -> None:
    take()
    shard = tmp_path / "record" / "part-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "part-00001.parquet has" in likely_cli("capture", "--check", tmp_path / "record").error()
    flipped = bytearray(whole)
    flipped[1000] ^= 1
    shard.write_bytes(flipped)
    assert "part-00001.parquet" in likely_cli("capture", "--check", tmp_path / "record").error()
    shard.unlink()
    assert "part-00001.parquet is missing" in likely_cli("capture", "--check", tmp_path / "record").error()
    shard.write_bytes(whole)
    manifest = tmp_path / "record" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("top:4+tail", "top:5+tail"))
    assert "checksum is wrong" in likely_cli("capture", "--check", tmp_path / "record").error()
    assert "holds no record" in likely_cli("capture", "--check", tmp_path / "none").error()
    assert not (tmp_path / "record-check.html").exists()


# ---------------------------------------------------------------------------------------------------------- importing


def write_served(path: Path, texts: list[list[int]]) -> Path:
    said = [{"3": -0.5, "7": -1.5, "9": -4.0}]
    rows = [{"input_ids": one, "prompt_logprobs": [None, *said * (len(one) - 1)]} for one in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_record_of_another_tool(likely_cli: Likely, tmp_path: Path, texts: list[list[int]]) -> None:
    served = write_served(tmp_path / "served.jsonl", texts)
    arguments = ["capture", "--import", served, "--format", "axolotl", "--classes", C, "-o", tmp_path / "record"]
    done = likely_cli(*arguments)
    assert done.status == 0, done.err
    assert "entropy is not in the file" in done.err
    assert "top:3+tail, its gradient is biased" in done.out
    data = tmp_path / "record" / "examples.parquet"
    assert done.out.endswith(f"written to {tmp_path / 'record'}; train on {data}\n")
    Record.open(tmp_path / "record").require_matches(data=load_examples(data).fingerprint)
    served = write_served(tmp_path / "served.jsonl", texts[:7])
    assert "holds another record" in likely_cli(*arguments).error()
    told = likely_cli(*arguments, "--overwrite", "--json").json()
    assert (told["manifest"]["data"]["examples"], told["manifest"]["keep"]) == (7, "top:3+tail")


def test_what_cannot_be_imported_leaves_the_record_that_is_there(
    likely_cli: Likely, tmp_path: Path, texts: list[list[int]]
) -> None:
    served = write_served(tmp_path / "served.jsonl", texts[:7])
    arguments = ["capture", "--import", served, "-o", tmp_path / "record"]
    assert likely_cli(*arguments).error().startswith("--format: is missing")
    arguments += ["--format", "axolotl"]
    assert likely_cli(*arguments).error().startswith("classes: is missing")
    likely_cli(*arguments, "--classes", C)
    before = files(tmp_path / "record")
    assert "classes are 0 … 4" in likely_cli(*arguments, "--classes", 5, "--overwrite").error()
    assert files(tmp_path / "record") == before
