"""A record on disk: recognisable Parquet, cut by its rows alone, whole or not there, refused where it is damaged."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from likely.heads import Logits
from likely.networks import Identity
from likely.teachers import store
from likely.teachers.keep import Keep, Rows, bytes_per_row, keep_rows
from likely.teachers.manifest import expand
from likely.teachers.store import Manifest, Writer, read_manifest, read_shard

KINDS = ["dense", "top:3", "top:3+tail", "samples:7", "hybrid:3+5"]
COUNTS = np.array([2, 0, 3, 1, 0, 4])
C = 12


def manifest(text: str = "hybrid:3+5", **changes: Any) -> Manifest:
    own: dict[str, Any] = {
        "teacher": Identity("entry", "m:f", "a" * 64),
        "temperature": 2.0,
        "data": "d" * 64,
        "seed": 3,
        "rounding": Keep.parse(text).rounding(),
    }
    return Manifest(**{"keep": Keep.parse(text), "classes": C, **own, **changes})


def rows(text: str, number: int = 10, first: int = 0) -> Rows:
    z_NC = torch.randn(10, C, generator=torch.Generator().manual_seed(5))[first : first + number]
    return keep_rows(Logits(z_NC), Keep.parse(text), first_row=first)


def write(folder: Path, text: str = "hybrid:3+5", **changes: Any) -> Manifest:
    writer = Writer(folder, manifest(text, **changes), COUNTS, shard_rows=4)
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    for shard in writer.unfinished:
        part = writer.examples(shard)
        writer.put(shard, rows(text, int(starts[part.stop] - starts[part.start]), int(starts[part.start])))
    return writer.finish()


@pytest.mark.parametrize("text", KINDS)
def test_what_is_written_is_read(tmp_path: Path, text: str) -> None:
    whole = write(tmp_path, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    read = read_manifest(tmp_path)
    assert read == whole
    assert expand(read.shards).tolist() == COUNTS.tolist()
    again = Rows.join([read_shard(tmp_path, shard, read.keep, C) for shard in read.shards])
    for name, column in vars(rows(text)).items():
        np.testing.assert_array_equal(getattr(again, name), column)
        assert column is None or getattr(again, name).dtype == column.dtype


@pytest.mark.parametrize("text", KINDS)
def test_the_columns_are_lists_of_each_example(tmp_path: Path, text: str) -> None:
    whole = write(tmp_path, text)
    table = pq.read_table(tmp_path / whole.shards[0].name)
    assert table.num_rows == 3
    assert set(table.column_names) == set(whole.keep.dtypes(C))
    assert [len(row) for row in table["entropy"].to_pylist()] == [2, 0, 3]
    if text == "hybrid:3+5":
        first = {name: table[name][0].as_py() for name in table.column_names}
        assert [len(p) for p in first["target_logprobs"]] == [3, 3]
        assert [sum(counts) for counts in first["target_counts"]] == [5, 5]
        lengths = [3 + len(counts) for counts in first["target_counts"]]
        assert [len(ids) for ids in first["target_token_ids"]] == lengths


def test_the_manifest_says_what_the_record_is(tmp_path: Path) -> None:
    write(tmp_path, "top:3")
    saved = json.loads((tmp_path / "manifest.json").read_text())
    assert saved["gradient"] == "biased"
    assert saved["teacher"] == {"kind": "entry", "name": "m:f", "sha256": "a" * 64, "tokenizer": None}
    assert (saved["data"]["examples"], saved["data"]["rows"]) == (6, 10)
    assert saved["dtypes"] == {"target_token_ids": "uint16", "target_logprobs": "float16", "entropy": "float32"}
    assert any("float16" in note for note in saved["rounding"])
    assert {"likely", "torch", "numpy", "pyarrow"} == set(saved["versions"])
    assert [shard["rows"] for shard in saved["shards"]] == [5, 5]
    assert all(len(shard["sha256"]) == 64 for shard in saved["shards"])


def test_names_of_classes_are_kept_with_their_hash() -> None:
    named = Manifest(Keep.parse("dense"), ("ä", "b"), Identity("onnx", "m.onnx", "0")).to_dict()
    other = Manifest(Keep.parse("dense"), ("b", "ä"), Identity("onnx", "m.onnx", "0")).to_dict()
    assert named["classes"]["names"] == ["ä", "b"]
    assert named["classes"]["sha256"] != other["classes"]["sha256"]


def test_shards_are_cut_by_rows_and_hold_whole_examples() -> None:
    cut = store._cut(np.array([5, 0, 0, 7, 1, 20, 0]), 8, 10)
    assert cut == [slice(0, 4), slice(4, 6), slice(6, 7)]
    many = np.full(100_000, 10)
    sizes = {part.stop - part.start for part in store._cut(many, None, 50)[:-1]}
    assert sizes == {1563}  # a 64th of a million rows
    assert len(store._cut(np.full(100, 10), None, 50)) == 1
    dense = store._cut(np.full(1000, 10), None, 4 * 49_152)
    assert max(part.stop - part.start for part in dense) * 10 * 4 * 49_152 < 2**25 * 1.2


@pytest.mark.parametrize(
    ("text", "classes", "at_most"),
    [
        ("samples:12", 32_000, 40),
        ("samples:12", 49_152, 40),
        ("top:12", 32_000, 60),
        ("top:12+tail", 49_152, 60),
        ("hybrid:8+4", 32_000, 60),
        ("hybrid:6+6", 49_152, 60),
    ],
)
def test_bytes_of_a_token_on_disk(text: str, classes: int, at_most: int) -> None:
    """Twelve entries of a flat teacher: whose classes are as hard to compress as classes can be."""
    N, keep = 4096, Keep.parse(text)
    random = np.random.default_rng(0)
    ids = random.integers(0, classes, (N, 12)).astype(keep.dtypes(classes)["target_token_ids"])
    kept = Rows(
        np.full(N, 12),
        ids=ids.reshape(-1),
        logprobs=-np.sort(random.exponential(4, (N, keep.top))).astype(np.float16) if keep.top else None,
        counts=np.ones(N * keep.draws, dtype=np.uint8) if keep.draws else None,
        tail=random.random(N).astype(np.float32) if keep.tail else None,
        entropy=random.exponential(2, N).astype(np.float32),
    )
    size = len(store.to_bytes(kept, np.full(N // 128, 128))) / N
    assert size <= at_most
    assert size <= bytes_per_row(keep, classes) + 1


# ---------------------------------------------------------------------------------------------------- interrupted


def test_an_unfinished_folder_is_no_record(tmp_path: Path) -> None:
    writer = Writer(tmp_path, manifest(), COUNTS, shard_rows=4)
    writer.put(0, rows("hybrid:3+5", 5))
    with pytest.raises(FileNotFoundError, match="not finished"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="1 shards are still to be written"):
        writer.finish()
    with pytest.raises(FileNotFoundError, match="holds no record"):
        read_manifest(tmp_path / "elsewhere")


def test_what_the_journal_does_not_say_is_written_again(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    write(whole)
    writer = Writer(other, manifest(), COUNTS, shard_rows=4)
    writer.put(0, rows("hybrid:3+5", 5))
    journal = other / store.JOURNAL
    text = journal.read_bytes()
    (other / ".part-00001.partial-00.parquet").write_bytes(b"half")
    for torn, done in ((text[:-9], []), (text + b'{"shard": 1, "na', [0]), (text, [0])):
        journal.write_bytes(torn)
        assert sorted(Writer(other, manifest(), COUNTS, shard_rows=4).done) == done
    journal.write_bytes(text + b'{"shard": 1, "na')
    Writer(other, manifest(), COUNTS, shard_rows=4).put(1, rows("hybrid:3+5", 5, 5))
    assert Writer(other, manifest(), COUNTS, shard_rows=4).unfinished == []
    journal.write_bytes(text)
    (other / "part-00000.parquet").write_bytes(b"short")
    assert Writer(other, manifest(), COUNTS, shard_rows=4).unfinished == [0, 1]
    write(other, teacher=Identity("entry", "m:renamed", "a" * 64), versions={"likely": "9"})
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}
    before = [path.stat().st_mtime_ns for path in sorted(other.iterdir())]
    write(other)  # whole already: nothing is done
    assert [path.stat().st_mtime_ns for path in sorted(other.iterdir())] == before


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 1.0}, "its temperature is 2.0, not 1.0"),
        ({"seed": 4}, "its seed is 3, not 4"),
        ({"data": "e" * 64}, "its data is d"),
        ({"tokenizer": "t"}, "its tokenizer is None, not t"),
        ({"classes": tuple("abcdefghijkl")}, "its classes is 12, not"),
        ({"keep": Keep.parse("hybrid:3+6")}, r"its keep is hybrid:3\+5, not hybrid:3\+6"),
        ({"teacher": Identity("entry", "m:g", "b" * 64)}, "its teacher is m:f aaaaaaaaaaaa, not m:g bbbbbbbbbbbb"),
    ],
)
def test_another_record_is_not_continued(tmp_path: Path, changes: dict[str, Any], named: str, finished: bool) -> None:
    if finished:
        write(tmp_path)
    else:
        Writer(tmp_path, manifest(), COUNTS, shard_rows=4).put(0, rows("hybrid:3+5", 5))
    other = Manifest(**{**vars(manifest()), **changes})
    with pytest.raises(ValueError, match=named):
        Writer(tmp_path, other, COUNTS, shard_rows=4)
    with pytest.raises(ValueError, match="rows of the examples differ"):
        Writer(tmp_path, manifest(), COUNTS[::-1], shard_rows=4)
    if not finished:
        with pytest.raises(ValueError, match="shard_rows differs"):
            Writer(tmp_path, manifest(), COUNTS, shard_rows=1)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        Writer(tmp_path, manifest(), COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_rows_that_are_not_what_the_manifest_promises_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path, manifest(), COUNTS, shard_rows=4)
    with pytest.raises(ValueError, match="4 of them where the examples have 5"):
        writer.put(0, rows("hybrid:3+5", 4))
    with pytest.raises(ValueError, match="counts holds None"):
        writer.put(0, rows("top:3", 5))


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_is_said_and_the_record_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whichever write it is that finds no room: the journal's start, a shard, the journal's line, or the manifest."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    write(whole)
    calls, real = iter(range(100)), store._flush
    refused = (0, 2, 4, 8)[at]

    def flush(descriptor: int) -> None:
        if next(calls) == refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(store, "_flush", flush)
    with pytest.raises(OSError, match=r"the disk is full: \d of 6 examples are recorded") as raised:
        write(full)
    assert raised.value.errno == errno.ENOSPC
    assert not (full / "manifest.json").exists()
    assert not list(full.glob("*.partial-*"))
    write(full)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in full.iterdir()}


# ---------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("byte", [0, 3, 100, -1, -9])
def test_a_flipped_byte_of_a_shard_is_found(tmp_path: Path, byte: int) -> None:
    whole = write(tmp_path)
    file = tmp_path / whole.shards[1].name
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"part-00001\.parquet: the shard is damaged"):
        read_shard(tmp_path, whole.shards[1], whole.keep, C)


def test_a_shard_cut_short_or_missing_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path)
    file = tmp_path / whole.shards[0].name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"part-00000\.parquet: the shard is damaged: it has \d+ bytes"):
        read_shard(tmp_path, whole.shards[0], whole.keep, C)
    file.unlink()
    with pytest.raises(ValueError, match=r"part-00000\.parquet is missing"):
        read_shard(tmp_path, whole.shards[0], whole.keep, C)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.json"
    text = path.read_text()
    for wrong in (text[:-30], text.replace('"seed": 3', '"seed": 2'), "[]", "{}", ""):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"manifest\.json: the manifest is damaged"):
            read_manifest(tmp_path)
