"""What others record of a teacher of tokens, brought to one form, and the files that it lies in.

Shapes: L tokens of an example, n of them with a target, K stored classes, S stored entries of an example.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from likely._checks import require
from likely.data.examples import IGNORED
from likely.data.tables import natural_key

SUFFIXES = (".parquet", ".arrow", ".jsonl")


@dataclass(frozen=True, eq=False)
class Taught:
    """An example and what a teacher said of its tokens, however the file numbers its rows.

    Args:
        where: the file and the row it was read from, for messages.
        token: (L,) int64.
        position: (n,), the tokens that have a target, ascending; the first of all has none, since nothing predicts it.
        entries: (n,), how many classes are stored of each, at least one.
        ids: (S,), the stored classes, target after target, the most probable first.
        logprobs: (S,) float64, their log-probabilities.
        misfits: how many entries the file's own mask keeps for tokens that do not exist or have no label.
    """

    where: str
    token: NDArray[np.int64]
    position: NDArray[np.int64]
    entries: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    misfits: int = 0

    @classmethod
    def of(
        cls,
        where: str,
        token: NDArray[np.int64],
        position: NDArray[np.int64],
        entries: NDArray[np.int64],
        ids: NDArray[np.int64],
        logprobs: NDArray[np.float64],
        misfits: int = 0,
    ) -> Taught:
        """With the entries of each target put in order.

        Raises: ValueError for a target that holds NaN or an infinite number, or a class twice; the token is named.
        """
        target = np.repeat(np.arange(len(position)), entries)
        wrong = ~np.isfinite(logprobs)
        if wrong.any():
            at = position[target[int(wrong.argmax())]]
            raise ValueError(f"{where}: the target of token {at} holds NaN or an infinite number")
        by_class = np.lexsort((ids, target))
        twice = (np.diff(ids[by_class]) == 0) & (np.diff(target[by_class]) == 0)
        if twice.any():
            entry = by_class[int(twice.argmax())]
            raise ValueError(f"{where}: the target of token {position[target[entry]]} holds class {ids[entry]} twice")
        order = np.lexsort((-logprobs, target))
        return cls(where, token, position, entries, ids[order], logprobs[order], misfits)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(n,), where the entries of each target begin."""
        return np.cumsum(self.entries) - self.entries

    @property
    def mass(self) -> NDArray[np.float64]:
        """(n,), the stored probability of each target."""
        if not len(self.position):
            return np.zeros(0)
        with np.errstate(over="ignore"):
            return np.add.reduceat(np.exp(self.logprobs), self.starts)

    def leading(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(n, count), the most probable classes and their log-probabilities."""
        at_nK = self.starts[:, None] + np.arange(count)
        return self.ids[at_nK], self.logprobs[at_nK]


Reader = Callable[[], Iterator[Taught]]


def labelled(row: Mapping[str, Any], token: NDArray[np.int64], where: str) -> NDArray[np.bool_]:
    """(L,), which tokens are to be predicted: all but the first, and those that `labels` leaves out.

    Raises: ValueError for labels that are not the tokens, as shifted ones are not.
    """
    kept = np.ones(len(token), dtype=bool)
    if row.get("labels") is not None:
        labels = numbers_of(row["labels"], f"{where}: labels")
        require(len(labels) == len(token), f"{where}: labels has {len(labels)} entries for {len(token)} tokens")
        kept = labels != IGNORED
        other = kept & (labels != token)
        if other.any():
            at = int(other.argmax())
            raise ValueError(
                f"{where}: the label at position {at} is {labels[at]} where the token is {token[at]}; labels are the "
                f"tokens themselves, or {IGNORED}: were they shifted?"
            )
    kept[:1] = False
    return kept


# ------------------------------------------------------------------------------------------------------------ files


def files_of(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their numbers.

    Raises: FileNotFoundError; ValueError where none is of a kind that is read.
    """
    require(path.exists(), f"{path}: no such file or folder", FileNotFoundError)
    found = [path]
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    known = bool(found) and all(file.suffix in SUFFIXES for file in found)
    require(known, f"{path}: holds no file of the kind {', '.join(SUFFIXES)}")
    return sorted(found, key=lambda file: natural_key(file.name))


def columns_of(path: Path) -> list[str]:
    """The columns of the first file."""
    file = files_of(path)[0]
    if file.suffix == ".jsonl":
        return next((list(row) for _, row in _lines(file)), [])
    return next((list(batch.schema.names) for batch in _batches(file)), [])


def rows_of(path: Path, wanted: Sequence[str], extras: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of all files in order, each with where it stands; lists of numbers are Arrow arrays or Python's lists.

    Raises: ValueError for a file that is damaged, or a row without what is wanted.
    """
    for file in files_of(path):
        rows = _lines(file) if file.suffix == ".jsonl" else _table_rows(file, (*wanted, *extras))
        for number, row in rows:
            where = f"{file.name}, row {number}"
            missing = [name for name in wanted if row.get(name) is None]
            require(not missing, f"{where}: has no {', '.join(missing)}")
            yield where, row


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(line for line in lines if line.strip()):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file.name}, row {number}: is no JSON ({error}); is the file cut short?") from None
            require(isinstance(row, dict), f"{file.name}, row {number}: is no JSON object")
            yield number, row


def _table_rows(file: Path, names: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    for batch in _batches(file):
        columns = {name: batch.column(name) for name in names if name in batch.schema.names}
        for i in range(batch.num_rows):
            yield number, {name: _value(column[i]) for name, column in columns.items() if column[i].is_valid}
            number += 1


def _value(value: pa.Scalar) -> Any:
    """A list of numbers, or of lists of numbers, as it is, so that no Python object is made of each; else Python's."""
    kind, values = value.type, getattr(value, "values", None)
    for _ in range(2):
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return values if numeric and values is not None and values.null_count == 0 else value.as_py()


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=64)
            return
        with pa.memory_map(str(file)) as source:
            try:
                yield from pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                source.seek(0)
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{file}: cannot be read ({reason}); is it cut short, or foreign?") from None


def numbers_of(value: Any, name: str) -> NDArray[np.int64]:
    """(L,) whole numbers from an Arrow array or a list."""
    array = value.to_numpy(zero_copy_only=False) if isinstance(value, pa.Array) else np.asarray(value)
    whole = array.ndim == 1 and (array.dtype.kind in "iu" or len(array) == 0)
    require(whole, f"{name}: is no list of whole numbers")
    return array.astype(np.int64)


def lists_of(value: Any, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All numbers of a list of lists, and the length of each list; null stands for an empty one."""
    if isinstance(value, pa.Array):
        require(pa.types.is_list(value.type) or pa.types.is_large_list(value.type), f"{name}: is no list of lists")
        flat = value.flatten()
        require(flat.null_count == 0, f"{name}: holds null")
        return flat.to_numpy(zero_copy_only=False), value.value_lengths().to_numpy(zero_copy_only=False).astype(
            np.int64
        )
    require(isinstance(value, Sequence), f"{name}: is no list of lists")
    rows = [list(one or ()) for one in value]
    numbers = [number for one in rows for number in one]
    numeric = all(isinstance(number, (int, float)) for number in numbers)
    require(numeric, f"{name}: holds what is no number")
    return np.array(numbers), np.array([len(one) for one in rows], dtype=np.int64)
