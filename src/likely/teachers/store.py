"""A record on disk: shards in Parquet, a journal while it is being written, and a manifest once it is whole.

    part-00000.parquet …   one Parquet row for each example, its rows as lists:
        target_token_ids   list<list<uint16 or uint32>>   the classes kept of each row
        target_logprobs    list<list<float16 or float32>> of the first K of them (of all classes, in a dense record)
        target_counts      list<list<uint8 or uint16>>    how often each of the others was drawn
        tail_mass          list<float>                    the mass outside the K classes
        entropy            list<float>                    of the teacher's whole distribution, in nats
    journal.jsonl          what is being recorded, and each shard that is whole; gone when all of them are
    manifest.json          what was recorded, and the shards with their checksums; there when all of them are

Legend: E examples, N rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from likely._checks import require
from likely._files import new_file
from likely.teachers.keep import Keep, Rows, bytes_per_row
from likely.teachers.manifest import JOURNAL, MANIFEST, Manifest, Shard, digest, expand, read_manifest

__all__ = ["Manifest", "Shard", "Writer", "read_manifest", "read_shard"]

_SHARD_BYTES, _SHARD_ROWS = 2**25, (2**12, 2**16)


def to_bytes(rows: Rows, row_counts: ArrayLike) -> memoryview:
    """The rows of some examples as a Parquet file."""
    per_example = np.asarray(row_counts, dtype=np.int64)
    top = 0 if rows.logprobs is None else rows.logprobs.shape[1]
    drawn = None if rows.counts is None else rows.entries - top

    def lists(flat: NDArray[Any] | None, lengths: NDArray[np.int64] | None) -> pa.Array | None:
        if flat is None:
            return None
        values = pa.array(flat.reshape(-1))
        for lengths_of in [per_example] if lengths is None else [lengths, per_example]:
            offsets = np.concatenate([[0], np.cumsum(lengths_of)])
            values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
        return values

    columns = {
        "target_token_ids": lists(rows.ids, rows.entries),
        "target_logprobs": lists(rows.logprobs, np.full(len(rows), top)),
        "target_counts": lists(rows.counts, drawn),
        "tail_mass": lists(rows.tail, None),
        "entropy": lists(rows.entropy, None),
    }
    sink = pa.BufferOutputStream()
    # Small numbers in wide Parquet types, and the exponents of floats: bytes of one place compress well together.  All
    # classes' log-probabilities have little else to compress, and are many.
    pq.write_table(
        pa.table({name: column for name, column in columns.items() if column is not None}),
        sink,
        **({"compression": "lz4"} if rows.ids is None else {"compression": "zstd", "compression_level": 1}),
        use_dictionary=False,
        use_byte_stream_split=True,
        write_statistics=False,
        row_group_size=max(1, len(per_example)),
    )
    return memoryview(sink.getvalue())


def from_bytes(data: bytes | memoryview, shard: Shard, keep: Keep, classes: int) -> Rows:
    """The rows of a shard, which must be whole and what the manifest says.

    Raises:
        ValueError: the shard is damaged, or holds other rows; it is named.
    """
    damaged = f"{shard.name}: the shard is damaged"
    require(
        len(data) == shard.bytes,
        f"{damaged}: it has {len(data)} bytes, {shard.bytes} were written; take the record again",
    )
    require(
        hashlib.sha256(data).hexdigest() == shard.sha256,
        f"{damaged}: its checksum is wrong; take the record again",
    )
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    dtypes, top = keep.dtypes(classes), keep.logprobs(classes)
    flat: dict[str, Any] = {}
    entries = np.full(shard.rows, top)
    for name, column in zip(table.column_names, table.combine_chunks().columns):
        values = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        require(len(values) == shard.examples, f"{damaged}: it holds {len(values)} examples, not {shard.examples}")
        values = values.flatten()
        require(len(values) == shard.rows, f"{damaged}: its {name} holds {len(values)} rows, not {shard.rows}")
        if name == "target_token_ids":
            entries = np.diff(values.offsets.to_numpy()).astype(np.int64)
        while pa.types.is_list(values.type):
            values = values.flatten()
        flat[name] = values.to_numpy().astype(dtypes[name], copy=False)
    logprobs = flat.get("target_logprobs")
    return Rows(
        entries,
        ids=flat.get("target_token_ids"),
        logprobs=None if logprobs is None else logprobs.reshape(shard.rows, top),
        counts=flat.get("target_counts"),
        tail=flat.get("tail_mass"),
        entropy=flat.get("entropy"),
    )


def read_shard(folder: Path, shard: Shard, keep: Keep, classes: int) -> Rows:
    """The rows of a shard of a record.

    Raises:
        ValueError: the shard is missing or damaged; it is named.
    """
    try:
        return from_bytes((folder / shard.name).read_bytes(), shard, keep, classes)
    except FileNotFoundError:
        raise ValueError(f"{folder}: the shard {shard.name} is missing; take the record again") from None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {error}") from None


# ------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Writes a record shard by shard, so that it can be killed at any moment and goes on from the last whole shard.

    A shard is written under a hidden name, flushed to the disk and renamed; then the journal says so. What the journal
    does not say is written again. Shards are cut by the rows of the examples alone, so that a record that was
    interrupted is the same, to the bit, as one that was not.

    Args:
        folder: where the record goes; a new or empty folder, or one that holds the beginning of the same record.
        manifest: what is recorded, without shards.
        row_counts: (E,), the rows of each example.
        shard_rows: a shard ends with the example that brings it to so many rows. By default about a 64th of all of
            them, between 4096 and 65,536, and at most 32 MiB.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds a record of something else, or the beginning of one; the difference is named.
        OSError: the disk is full; what is whole stays, and the same call goes on from there.

    Example:
        >>> import tempfile
        >>> from likely.networks import Identity
        >>> from likely.teachers.record import Record
        >>> manifest = Manifest(Keep.parse("samples:2"), 9, Identity("entry", "m:f", "00"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = Writer(Path(folder), manifest, [1, 1])
        ...     for shard in writer.unfinished:
        ...         writer.put(shard, Rows(np.array([1, 2]), ids=np.array([7, 3, 8]), counts=np.array([2, 1, 1])))
        ...     whole = writer.finish()
        ...     Record.open(folder).manifest.rows
        2
    """

    def __init__(
        self, folder: Path, manifest: Manifest, row_counts: ArrayLike, *, shard_rows: int | None = None
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self.row_counts = np.asarray(row_counts, dtype=np.int64)
        manifest.keep.require_fits(manifest.number)
        require(len(self.row_counts) > 0 and bool((self.row_counts >= 0).all()), "row_counts: every example has some")
        self.slices = _cut(self.row_counts, shard_rows, bytes_per_row(manifest.keep, manifest.number))
        self.done: dict[int, Shard] = {}
        self.finished = (folder / MANIFEST).is_file()
        about = {
            **manifest.to_dict(),
            "cut": [part.stop for part in self.slices],
            "row_counts": digest(self.row_counts.tolist()),
        }
        if self.finished:
            self._take_up_finished()
        elif (folder / JOURNAL).is_file():
            self._take_up(about)
        else:
            self._start(about)

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the shards that are still to be written, in order."""
        return [number for number in range(len(self.slices)) if number not in self.done]

    def examples(self, number: int) -> slice:
        """The examples of a shard."""
        return self.slices[number]

    def put(self, number: int, rows: Rows) -> None:
        """Write a shard: all rows of its examples."""
        row_counts = self.row_counts[self.slices[number]]
        _require_rows(rows, int(row_counts.sum()), self.manifest)
        name = f"part-{number:05d}.parquet"
        data = to_bytes(rows, row_counts)
        shard = Shard(name, _runs(row_counts), len(data), hashlib.sha256(data).hexdigest())
        line = json.dumps({"shard": number, **shard.to_dict()}) + "\n"
        try:
            _write(self.folder / name, data)
            with open(self.folder / JOURNAL, "ab", buffering=0) as journal:
                journal.write(line.encode())
                _flush(journal.fileno())
        except OSError as error:
            raise self._full(error) from error
        self.done[number] = shard

    def finish(self) -> Manifest:
        """Write the manifest, with which the record is whole, and remove the journal."""
        require(not self.unfinished, f"finish: {len(self.unfinished)} shards are still to be written")
        whole = replace(self.manifest, shards=tuple(self.done[number] for number in range(len(self.slices))))
        saved = whole.to_dict()
        try:
            if not self.finished:
                _write(self.folder / MANIFEST, (json.dumps({**saved, "sha256": digest(saved)}, indent=1)).encode())
        except OSError as error:
            raise self._full(error) from error
        (self.folder / JOURNAL).unlink(missing_ok=True)
        for leftover in self.folder.glob(".*.partial-*"):  # of runs that were killed
            leftover.unlink(missing_ok=True)
        return whole

    def _start(self, about: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in self.folder.iterdir() if not path.name.startswith(f".{Path(JOURNAL).stem}.")]
        if foreign:
            raise FileExistsError(f"{self.folder} holds {min(foreign)} and no record; give a new folder")
        try:
            _write(self.folder / JOURNAL, (json.dumps(about) + "\n").encode())
        except OSError as error:
            raise self._full(error) from error

    def _take_up(self, about: Mapping[str, Any]) -> None:
        path = self.folder / JOURNAL
        first, *lines = path.read_bytes().split(b"\n")
        try:
            saved = json.loads(first)
            begun = Manifest.from_dict(saved)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: the journal is damaged ({error}); remove {self.folder} and begin anew") from None
        self._require_same(begun, f"{self.folder} holds the beginning of another record")
        same = json.loads(json.dumps(about))
        for key, what in (("row_counts", "the rows of the examples differ"), ("cut", "shard_rows differs")):
            require(saved[key] == same[key], f"{self.folder} holds the beginning of another record: {what}")
        self.manifest = begun  # with the name and the versions it was begun with
        whole = len(first) + 1
        for line in lines:
            try:
                entry = json.loads(line)
                number, shard = int(entry["shard"]), Shard.from_dict(entry)
            except (ValueError, KeyError, TypeError):
                break  # the last line, which was being written
            whole += len(line) + 1
            file = self.folder / shard.name
            if file.is_file() and file.stat().st_size == shard.bytes:
                self.done[number] = shard
        if whole < path.stat().st_size:
            os.truncate(path, whole)

    def _take_up_finished(self) -> None:
        begun = read_manifest(self.folder)
        self._require_same(begun, f"{self.folder} holds another record")
        counts = expand(begun.shards)
        require(
            np.array_equal(counts, self.row_counts),
            f"{self.folder} holds another record: the rows of the examples differ",
        )
        ends = np.cumsum([shard.examples for shard in begun.shards])
        self.slices = [slice(int(end) - shard.examples, int(end)) for end, shard in zip(ends, begun.shards)]
        self.manifest, self.done = replace(begun, shards=()), dict(enumerate(begun.shards))

    def _require_same(self, begun: Manifest, message: str) -> None:
        """The record begun in the folder is the one that is asked for; else its first difference is named."""
        for name in ("keep", "temperature", "seed", "classes", "tokenizer", "data"):
            was, now = getattr(begun, name), getattr(self.manifest, name)
            require(was == now, f"{message}: its {name} is {_short(was)}, not {_short(now)}; give another folder")
        was, now = begun.teacher, self.manifest.teacher
        same = (was.kind, was.sha256, was.tokenizer) == (now.kind, now.sha256, now.tokenizer)
        require(
            same,
            f"{message}: its teacher is {was.name} {was.sha256[:12]}, not {now.name} {now.sha256[:12]}; "
            "give another folder",
        )

    def _full(self, error: OSError) -> OSError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        examples = sum(shard.examples for shard in self.done.values())
        return OSError(
            error.errno,
            f"the disk is full: {examples} of {len(self.row_counts)} examples are recorded and stay; make room and "
            "run the same capture again, it goes on from there",
            str(self.folder),
        )


def _runs(row_counts: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    starts = np.flatnonzero(np.diff(row_counts, prepend=-1))
    lengths = np.diff(np.append(starts, len(row_counts)))
    return tuple((int(row_counts[start]), int(length)) for start, length in zip(starts, lengths))


def _cut(row_counts: NDArray[np.int64], shard_rows: int | None, row_bytes: int) -> list[slice]:
    """The examples of each shard."""
    total = np.cumsum(row_counts)
    if shard_rows is None:
        least, most = _SHARD_ROWS
        shard_rows = min(max(least, int(total[-1]) // 64), most, max(1, _SHARD_BYTES // row_bytes))
    require(shard_rows > 0, f"shard_rows: is {shard_rows}; it is at least 1")
    cuts = [0]
    while cuts[-1] < len(total):
        before = int(total[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(min(int(np.searchsorted(total, before + shard_rows)) + 1, len(total)))
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _require_rows(rows: Rows, expected: int, manifest: Manifest) -> None:
    """What is given to be written is what the manifest promises."""
    keep, entries = manifest.keep, int(rows.entries.sum())
    require(len(rows) == expected, f"rows: {len(rows)} of them where the examples have {expected}")
    top = keep.logprobs(manifest.number)
    for name, column, size in (
        ("ids", rows.ids, None if keep.kind == "dense" else entries),
        ("logprobs", rows.logprobs, expected * top if top else None),
        ("counts", rows.counts, entries - expected * top if keep.draws else None),
        ("tail", rows.tail, expected if keep.tail else None),
    ):
        found = None if column is None else np.size(column)
        require(found == size, f"rows: {name} holds {found} numbers where {keep} has {size}")
    require(rows.entropy is None or len(rows.entropy) == expected, "rows: entropy is one number for each row")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole or not at all, even after a loss of power."""
    with new_file(path, overwrite=True) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        _flush(file.fileno())
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _flush(folder)
        finally:
            os.close(folder)
