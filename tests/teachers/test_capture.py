"""A capture shows every example once, ends in the same bits however it was interrupted, and refuses the impossible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from likely.data.examples import Batch
from likely.heads import Head, Linear
from likely.measures import entropy
from likely.teachers import capture as capturing
from likely.teachers.capture import capture
from likely.teachers.record import Record
from tests.teachers.teaching import Pieces, Teacher

ROOT = Path(__file__).resolve().parents[2]
COUNTS = np.array([3, 0, 2, 5, 1, 0, 4, 1, 1])
KINDS = ["dense", "top:3", "top:3+tail", "samples:7", "hybrid:3+5"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("text", KINDS)
def test_every_row_of_every_example_is_recorded_once(tmp_path: Path, text: str) -> None:
    teacher, examples = Teacher(), Pieces(COUNTS)
    record = capture(teacher, examples, text, tmp_path, temperature=1.5, batch_size=2, shard_rows=4)
    assert record.row_counts.tolist() == COUNTS.tolist()
    expected = entropy(teacher.probabilities(examples, 1.5))
    np.testing.assert_allclose(record.entropy(range(len(COUNTS))), expected, rtol=1e-5)
    assert examples.shown == np.flatnonzero(COUNTS).tolist(), "an example without rows is not shown"
    assert record.manifest.data == examples.fingerprint
    assert record.manifest.teacher == teacher.identity
    record.verify()


def test_the_batch_size_does_not_reach_the_draws(tmp_path: Path) -> None:
    teacher = Teacher(dtype=torch.float64)
    written = [
        files(capture(teacher, Pieces(COUNTS), "samples:9", tmp_path / str(size), batch_size=size, seed=2).folder)
        for size in (1, 2, 5, 100)
    ]
    assert all(one == written[0] for one in written)
    other = capture(teacher, Pieces(COUNTS), "samples:9", tmp_path / "other", seed=3).folder
    assert files(other)["part-00000.parquet"] != written[0]["part-00000.parquet"]


def test_examples_without_rows_make_a_shard_of_their_own(tmp_path: Path) -> None:
    counts = np.array([2, 0, 0])
    record = capture(Teacher(), Pieces(counts), "hybrid:2+2", tmp_path, shard_rows=1)
    assert [shard.rows for shard in record.manifest.shards] == [2, 0]
    assert record.target([1, 2]).rows == 0
    record.verify()


def test_progress_starts_where_the_capture_does(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    capture(Teacher(), Pieces(COUNTS), "top:2", tmp_path, batch_size=3, progress=lambda *at: seen.append(at))
    assert seen == [(0, 0), (4, 10), (8, 16), (9, 17), (9, 17)]
    seen.clear()
    capture(Teacher(), Pieces(COUNTS), "top:2", tmp_path, progress=lambda *at: seen.append(at))
    assert seen == [(9, 17)], "a whole record is returned as it is"


def test_killed_twenty_times_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    """At random moments, in the middle of a shard, and before each of the flushes that make a shard last."""
    command = [sys.executable, "-m", "tests.teachers.killing", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["ends"] == [-signal.SIGKILL] * 20
    assert said["last"] == [0, 0]
    shards = len(Record.open(tmp_path / "whole").manifest.shards)
    assert 0 < said["shards_before_the_last_run"] < shards, "the kills must fall before the end"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    Record.open(tmp_path / "killed").verify()


def test_an_error_keeps_what_is_whole(tmp_path: Path) -> None:
    whole = capture(Teacher(), Pieces(COUNTS), "hybrid:2+3", tmp_path / "whole", batch_size=1, shard_rows=4)

    def stop(examples: int, rows: int) -> None:
        if examples > 4:
            raise KeyboardInterrupt

    examples = Pieces(COUNTS)
    with pytest.raises(KeyboardInterrupt):
        capture(Teacher(), examples, "hybrid:2+3", tmp_path / "b", batch_size=1, shard_rows=4, progress=stop)
    examples.shown.clear()
    capture(Teacher(), examples, "hybrid:2+3", tmp_path / "b", batch_size=1, shard_rows=4)
    assert 0 not in examples.shown
    assert files(tmp_path / "b") == files(whole.folder)


def test_another_teacher_or_data_does_not_go_on(tmp_path: Path) -> None:
    capture(Teacher(), Pieces(COUNTS), "top:2", tmp_path)
    with pytest.raises(ValueError, match="its teacher is tests:teacher aaaaaaaaaaaa, not tests:teacher bbbbbbbbbbbb"):
        capture(Teacher(sha256="b" * 64), Pieces(COUNTS), "top:2", tmp_path)
    with pytest.raises(ValueError, match="its data is dddd"):
        capture(Teacher(), Pieces(COUNTS, fingerprint="e" * 64), "top:2", tmp_path)
    with pytest.raises(ValueError, match="its keep is top:2, not top:3"):
        capture(Teacher(), Pieces(COUNTS), "top:3", tmp_path)


def test_the_teacher_is_at_rest_and_is_left_as_it_was(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Dropout(0.5))
    module[1].eval()

    class Trained(Teacher):
        def head(self, batch: Batch) -> Head:
            assert self.module is not None
            assert not self.module.training
            assert not torch.is_grad_enabled()
            return Linear(self.module(batch.inputs["features"]), torch.eye(40))

    capture(Trained(module=module), Pieces(COUNTS), "top:2", tmp_path)
    assert [part.training for part in module.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_teacher_that_gives_nan_is_refused_with_the_row(tmp_path: Path, wrong: float) -> None:
    examples = Pieces(COUNTS)
    examples.x_ND[examples.starts[3] + 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinite logits at example 3, row 2 of it"):
        capture(Teacher(), examples, "samples:3", tmp_path, batch_size=4)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Record.open(tmp_path)


def test_an_example_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number 3 has 5 tokens where the network reads 4"):
        capture(Teacher(max_length=4), Pieces(COUNTS), "top:2", tmp_path / "a")
    assert not (tmp_path / "a").exists()

    class Tokens(Pieces):
        def batch(self, indices):  # type: ignore[no-untyped-def]
            batch = super().batch(indices)
            ids = torch.zeros(len(indices), 9, dtype=torch.long)
            mask = torch.tensor([[i < 5 + 4 * (at == 4) for i in range(9)] for at in indices])
            return Batch({**batch.inputs, "input_ids": ids, "attention_mask": mask}, batch.labels, batch.example)

    with pytest.raises(ValueError, match="number 4 has 9 tokens where the network reads 8"):
        capture(Teacher(max_length=8), Tokens(COUNTS), "top:2", tmp_path / "b")
    capture(Teacher(max_length=9), Tokens(COUNTS), "top:2", tmp_path / "b")


def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="hold no row"):
        capture(Teacher(), Pieces(np.array([0, 0])), "top:2", out)
    with pytest.raises(ValueError, match="at most 40"):
        capture(Teacher(), Pieces(COUNTS), "top:41", out)
    for name, value in (("temperature", 0.0), ("temperature", float("nan")), ("batch_size", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name}: is"):
            capture(Teacher(), Pieces(COUNTS), "top:2", out, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard_rows: is 0"):
        capture(Teacher(), Pieces(COUNTS), "top:2", out, shard_rows=0)
    with pytest.raises(ValueError, match="tokens are of a tokenizer of SHA-256 aa…, and the teacher's is bb…"):
        capture(Teacher(tokenizer="bb"), Pieces(COUNTS, tokenizer="aa"), "top:2", out)
    assert not out.exists()


def test_a_teacher_and_examples_that_disagree_on_the_rows_are_refused(tmp_path: Path) -> None:
    class Short(Teacher):
        def head(self, batch: Batch) -> Head:
            return Linear(batch.inputs["features"][1:], self.weight_CD[1:])

    with pytest.raises(ValueError, match="gives 16 rows of 39 classes for examples 0 … 8, where 17 rows of 40"):
        capture(Short(), Pieces(COUNTS), "top:2", tmp_path)


def test_bytes_per_row_is_found_beside_capture() -> None:
    assert capturing.bytes_per_row("samples:12", 32_000) == 40
