"""Tables in and out: one reader and one writer for CSV, Parquet, Arrow, JSON lines and NPZ, and columns by name.

Rows are counted from 0, the header of a CSV file not counted, here and in every message about a row.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from likely._checks import require
from likely._files import new_file

SUFFIXES = ".csv, .tsv, .parquet, .arrow, .feather, .jsonl, .ndjson or .npz"


def read_table(path: str | os.PathLike[str]) -> pa.Table:
    """The table in a file; its suffix says how to read it, and nothing in it is ever executed.

    `.csv` and `.tsv` are UTF-8 with a header; an empty field, `NA` and `null` are missing, unless quoted in a column
    of text. `.arrow` and `.feather` are Arrow's file or stream. `.jsonl` holds an object a line. In `.npz` a 1-D array
    is a column and a 2-D array `x` becomes the columns `x_0`, `x_1`, …; so does a column of lists of equal length in
    the other formats. Columns without a name, as pandas writes its index, are left out.

    Raises: FileNotFoundError; ValueError for a truncated or foreign file, an empty table, two columns of one name.
    Source: https://arrow.apache.org/docs/python/csv.html and its siblings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("x,y\\n1,a\\n2.5,b\\n")
    ...     read_table(path).to_pydict()
    {'x': [1.0, 2.5], 'y': ['a', 'b']}
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    require(path.is_file(), f"{path}: is a folder; give a file of the kind {SUFFIXES}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; a table is a file of the kind {SUFFIXES}")
    require(path.stat().st_size > 0, f"{path}: is empty")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path}: cannot be read as {path.suffix} ({reason}); is it cut short, or foreign?") from None
    return _tidy(table, str(path))


def as_table(data: Any, names: Sequence[str] | None = None) -> pa.Table:
    """A table from what people have: a path, a pyarrow table, a pandas or polars frame, a dict of columns, an array.

    A 2-D array of numbers (N, len(names)) takes its column names from `names`; without them an array is refused.

    Raises: ValueError naming what does not fit; whatever `read_table` raises for a path.

    >>> as_table({"x": [1.0, 2.0], "y": ["a", None]}).column_names
    ['x', 'y']
    """
    if isinstance(data, (str, os.PathLike)):
        return read_table(data)
    if isinstance(data, pa.Table):
        return _tidy(data, "data")
    if isinstance(data, Mapping):
        return _tidy(_from_columns(data), "data")
    if hasattr(data, "__dataframe__") or hasattr(data, "__arrow_c_stream__"):
        try:
            if type(data).__module__.partition(".")[0] == "pandas":
                table = pa.Table.from_pandas(data, preserve_index=False)
            else:
                table = pa.table(data)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"data: cannot be read as a table ({str(error).splitlines()[0]})") from None
        return _tidy(table, "data")
    array = np.asarray(data.detach().cpu() if hasattr(data, "detach") else data)
    require(names is not None, f"data: a {type(data).__name__} has no column names; give a table or a dict of columns")
    assert names is not None
    require(array.dtype.kind in "fiub", f"data: holds {array.dtype}, not numbers; give a table or a dict of columns")
    require(
        array.ndim == 2 and array.shape[1] == len(names),
        f"data: has shape {array.shape}; give (N, {len(names)}), one column for each of {listed(names)}",
    )
    require(len(array) > 0, "data: is empty; it has no row")
    return pa.table([pa.array(array[:, j]) for j in range(len(names))], names=list(names))


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Any] | pa.Table, overwrite: bool = False) -> None:
    """Write columns of equal length to a file, by its suffix; floats come back bit for bit from every format.

    The file appears whole or not at all. JSON knows no NaN and no infinity: they are written as null there.

    Raises: FileExistsError where `path` exists and `overwrite` was not asked for; ValueError for an unknown suffix.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.parquet"
    ...     write_table(path, {"x": [0.1, 0.2]})
    ...     read_table(path)["x"].to_pylist()
    [0.1, 0.2]
    """
    path = Path(path)
    writer = writable(path)
    table = columns if isinstance(columns, pa.Table) else _from_columns(columns)
    with new_file(path, overwrite) as temporary:
        writer(table, temporary)


def writable(path: Path) -> Callable[[pa.Table, Path], None]:
    """The writer for a file of this name: to be asked before work that takes long.

    Raises: ValueError for a suffix of no known kind.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; a table is a file of the kind {SUFFIXES}")
    return writer


def select_columns(table: pa.Table, wanted: str | Sequence[str], what: str = "columns") -> list[str]:
    """The names of the columns meant by `wanted`: names and globs, in a list or separated by commas.

    The columns of a glob come in natural order (`p_2` before `p_10`), names in the order given, each once. A column
    whose own name holds a comma or a bracket is found by its name.

    Raises: ValueError for a name or a glob without a column; the nearest names are given.

    >>> table = pa.table({"p_10": [1], "p_2": [1], "age": [1]})
    >>> select_columns(table, "age,p_*")
    ['age', 'p_2', 'p_10']
    """
    names = table.column_names
    if isinstance(wanted, str):
        whole = wanted.strip() in names
        wanted = [wanted.strip()] if whole else [part.strip() for part in wanted.split(",") if part.strip()]
    chosen: list[str] = []
    for pattern in wanted:
        if pattern in names:
            found = [pattern]
        elif any(sign in pattern for sign in "*?["):
            found = sorted(fnmatch.filter(names, pattern), key=natural_key)
            require(bool(found), f"{what}: no column matches {pattern!r}; the columns are {listed(names)}")
        else:
            lower = {name.lower(): name for name in names}
            near = [lower[name] for name in difflib.get_close_matches(pattern.lower(), lower, n=3, cutoff=0.5)]
            hint = f"the nearest are {listed(near)}" if near else f"the columns are {listed(names)}"
            raise ValueError(f"{what}: there is no column {pattern!r}; {hint}")
        chosen += [name for name in found if name not in chosen]
    require(bool(chosen), f"{what}: names no column")
    return chosen


def natural_key(text: str) -> tuple[Any, ...]:
    """A sort key under which numbers inside a text count as numbers: `p_2` before `p_10`.

    >>> sorted(["p_10", "p_2", "p_1"], key=natural_key)
    ['p_1', 'p_2', 'p_10']
    """
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part), text


def column(table: pa.Table, name: str) -> pa.Array:
    """One column as a single array, its dictionary decoded and its NaN turned into missing values."""
    array = table[name].combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # a table without chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_float16(array.type):
        array = pa.array(array.to_numpy(zero_copy_only=False).astype(np.float32))
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type is numeric (a bool is not)."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def keys(array: pa.Array, name: str) -> pa.Array:
    """The values of a column as text, by which a category or a class is known: `1` and `1.0` are both "1".

    Raises: ValueError for a column of another kind than text, numbers or booleans.
    """
    require(
        is_text(array.type) or is_number(array.type) or pa.types.is_boolean(array.type) or pa.types.is_null(array.type),
        f"column {name!r}: holds {array.type}; only text, numbers and booleans can be classes or categories",
    )
    if pa.types.is_floating(array.type):  # -0.0 is 0
        array = pc.add(array, pa.scalar(0.0, array.type))
    return array.cast(pa.string())


def first_row(mask: pa.Array | np.ndarray) -> int | None:
    """The first row at which a mask is true, or None."""
    mask_N = np.asarray(mask, dtype=bool)
    return int(mask_N.argmax()) if mask_N.any() else None


def listed(names: Iterable[str], most: int = 8) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


# ---------------------------------------------------------------------------------------------- the formats


def _tidy(table: pa.Table, source: str) -> pa.Table:
    """What every table is on entering: named columns, each once, lists spread out, at least one row."""
    keep = [j for j, name in enumerate(table.column_names) if name.strip() and not name.startswith("__index_level_")]
    table = _spread_lists(table.select(keep), source).replace_schema_metadata(None)
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    require(not twice, f"{source}: two columns are named {twice[0]!r}; rename one" if twice else "")
    require(table.num_columns > 0, f"{source}: is empty; it has no column with a name")
    require(table.num_rows > 0, f"{source}: is empty; it has {table.num_columns} columns but no row")
    for name, kind in zip(table.column_names, table.schema.types):
        require(not pa.types.is_binary(kind), f"{source}: column {name!r} is not UTF-8 text; save the file as UTF-8")
    return table


def _spread_lists(table: pa.Table, source: str) -> pa.Table:
    """Columns of lists of one length become a column for each element, as 2-D arrays do."""
    columns: list[tuple[str, Any]] = []
    for name, array in zip(table.column_names, table.columns):
        if (
            pa.types.is_list(array.type)
            or pa.types.is_large_list(array.type)
            or pa.types.is_fixed_size_list(array.type)
        ):
            require(array.null_count == 0, f"{source}: column {name!r} holds lists, and some are missing")
            sizes = pc.unique(pc.list_value_length(array))
            require(len(sizes) == 1, f"{source}: column {name!r} holds lists of differing lengths")
            columns += [(f"{name}_{j}", pc.list_element(array, j)) for j in range(sizes[0].as_py())]
        else:
            columns.append((name, array))
    return pa.table([array for _, array in columns], names=[name for name, _ in columns])


def _from_columns(columns: Mapping[str, Any]) -> pa.Table:
    """A table from arrays or lists by name; a 2-D array `x` becomes `x_0`, `x_1`, …"""
    arrays: list[tuple[str, pa.Array]] = []
    for name, values in columns.items():
        values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        if isinstance(values, np.ndarray) and values.ndim != 1:
            require(values.ndim == 2, f"column {name!r}: has shape {values.shape}; a column is (N,) or (N, columns)")
            parts = [(f"{name}_{j}", values[:, j]) for j in range(values.shape[1])]
        else:
            parts = [(str(name), values)]
        for part, one in parts:
            try:
                array = one if isinstance(one, (pa.Array, pa.ChunkedArray)) else pa.array(one)
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise ValueError(f"column {part!r}: cannot be read ({str(error).splitlines()[0]})") from None
            arrays.append((part, array))
    for name, array in arrays:
        require(
            len(array) == len(arrays[0][1]),
            f"columns: {name!r} has {len(array)} rows, {arrays[0][0]!r} has {len(arrays[0][1])}",
        )
    return pa.table([array for _, array in arrays], names=[name for name, _ in arrays])


def _read_csv(path: Path, delimiter: str = ",") -> pa.Table:
    import pyarrow.csv

    with path.open("rb") as file:
        require(b"\0" not in file.read(4096), "it holds NUL bytes, so it is no UTF-8 text")
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
    )


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, partitioning=None)


def _read_arrow(path: Path) -> pa.Table:
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    with pa.OSFile(str(path)) as source:
        return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()


def _read_jsonl(path: Path) -> pa.Table:
    import pyarrow.json

    return pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(newlines_in_values=False))


def _read_npz(path: Path) -> pa.Table:
    with path.open("rb") as file:
        require(file.read(2) == b"PK", "it is no archive of arrays")
    with np.load(path, allow_pickle=False) as arrays:
        return _from_columns({name: arrays[name] for name in arrays.files})


def _write_csv(table: pa.Table, path: Path, delimiter: str = ",") -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=delimiter))


def _write_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                tidy = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
                file.write(json.dumps(tidy, ensure_ascii=False) + "\n")


def _write_npz(table: pa.Table, path: Path) -> None:
    # Not np.savez, whose keyword arguments leave a column named `file` no place.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in table.column_names:
            array = table[name].combine_chunks()
            require(array.null_count == 0, f"column {name!r}: has missing values, which .npz cannot hold; use .parquet")
            values = np.array(array.to_pylist()) if is_text(array.type) else array.to_numpy(zero_copy_only=False)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _read_tsv(path: Path) -> pa.Table:
    return _read_csv(path, "\t")


def _write_tsv(table: pa.Table, path: Path) -> None:
    _write_csv(table, path, "\t")


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".npz": _read_npz,
}
_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".feather": _write_arrow,
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".npz": _write_npz,
}
