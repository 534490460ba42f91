"""Examples from files: texts, conversations, tokens, pictures, bytes and tables.

Legend: E examples, D features.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from likely._checks import require
from likely.data.encoder import NumericColumn, sorted_keys
from likely.data.examples import IGNORED, Examples, Labelled
from likely.data.files import PICTURES, by_folder, byte_examples, files_below, listed_files, picture_examples
from likely.data.tables import column, is_number, keys, listed, read_table
from likely.data.texts import (
    LONGEST,
    Document,
    Tokens,
    load_tokenizer,
    plain_documents,
    tokenizer_hash,
    utf8,
)
from likely.data.tuning import tuning_document

KINDS = ("language", "text", "files", "images", "table")
TUNING = ("input_ids", "messages", "prompt")
"""Columns by which data for supervised fine-tuning is known."""


def load_examples(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    text: str | None = None,
    label: str | None = None,
    group: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> Examples:
    """The examples in a file or a folder, in a fixed order.

    ============  =====================================================================================================
    kind          what is read
    ============  =====================================================================================================
    `language`    documents for a causal language model: a table's column of texts, a `.txt` file, every file of a
                  folder or of a glob (`"lib/**/*.py"`), or a table of `input_ids`, `messages`, or `prompt` and
                  `completion` (see `likely.data.tuning.tuning_document`). The tokens are the tokenizer's.
    `text`        a table's column of texts to be classified; each network reads them with its own tokenizer.
    `files`       the bytes of files: a folder with a folder for each class, or a table with their names.
    `images`      pictures, likewise.
    `table`       the columns of numbers of a table, as they are.
    ============  =====================================================================================================

    Without `kind`: what has a column of tokens, messages or prompts is `language`, a text with a tokenizer and no label
    too; a folder is `language` with a tokenizer, `images` where every file is a picture, and else `files`; a table with
    a column of texts is `text`, any other `table`.

    Args:
        path: .jsonl, .parquet, .csv and the other tables, .txt, a folder, or a glob.
        kind: one of those above.
        text: the column of texts, or of the files' names; by default "text", or "path".
        label: the column of labels; a missing one is no error, its example has no label.
        group: the column that says which rows belong together (a document, a person); by default none do.
        tokenizer: of `language`: a folder, a `tokenizer.json`, a GGUF file, or one of `transformers`.
        max_length: tokens of a stretch (at most 1,024 and what the tokenizer allows, by default); bytes of a file.
        classes: the names of the classes in a network's order; by default those that occur. Whole-number labels that
            are none of the names are numbers of them.
        size: height and width of the pictures.
        limit: read so many documents, rows or files at most.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what cannot be read, naming the row or the file; an empty text to classify; a label that is no
            class; nothing left to predict.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mood.jsonl"
        ...     _ = path.write_text('{"text": "fine", "mood": "good"}\\n{"text": "awful", "mood": "bad"}\\n')
        ...     examples = load_examples(path, label="mood")
        >>> examples.classes, examples.batch([0, 1]).labels.tolist()
        (('bad', 'good'), [1, 0])
    """
    require(kind is None or kind in KINDS, f"kind: is {kind!r}; it is one of {', '.join(KINDS)}")
    require(limit is None or limit > 0, f"limit: is {limit}; it is at least 1")
    given = None if classes is None else tuple(classes)
    path = Path(path)
    if path.is_dir() or any(sign in str(path) for sign in "*?["):
        return _from_folder(path, kind, tokenizer, max_length, given, size, limit)
    require(path.exists(), f"{path}: does not exist", FileNotFoundError)
    if path.suffix.lower() == ".txt":
        require(kind in (None, "language"), f"{path}: a text file is of the kind language; {kind} is read from a table")
        return _language_texts([path], path.parent, tokenizer, max_length)
    table = _read(path, limit)
    names = table.column_names
    if kind is None:
        texts = text is not None or "text" in names
        tuning = text is None and any(name in names for name in TUNING)
        kind = "language" if tuning or (texts and label is None and tokenizer is not None) else "table"
        kind = "text" if texts and kind == "table" else kind
    if kind == "language" and text is None and any(name in names for name in TUNING):
        return _tuning(table, tokenizer, max_length)
    if kind == "language":
        return _language(_texts(table, text or "text"), tokenizer, max_length)
    labels, found = _labels(table, label, given)
    more = {"labels": labels, "classes": found, "groups": _groups(table, group)}
    if kind == "text":
        return _classified_texts(table, text or "text", more)
    if kind == "table":
        return _features(table, [name for name in (label, group) if name is not None], more)
    paths = column(table, _present(table, text or "path")).to_pylist()
    files = listed_files(paths, path.parent)
    if kind == "images":
        return picture_examples(files, [str(p) for p in paths], size, **more)
    return byte_examples(files, [str(p) for p in paths], max_length, **more)


# ----------------------------------------------------------------------------------------------------- from folders


def _from_folder(
    path: Path,
    kind: str | None,
    tokenizer: Any,
    max_length: int | None,
    classes: tuple[str, ...] | None,
    size: int | None,
    limit: int | None,
) -> Examples:
    if path.is_dir():
        files, root = files_below(path), path
    else:
        matches = [Path(one) for one in glob.glob(str(path), recursive=True)]
        files = sorted(one for one in matches if one.is_file())
        require(bool(files), f"{path}: matches no file", FileNotFoundError)
        root = Path(os.path.commonpath([one.parent for one in files]))
    if kind is None:
        pictures = all(one.suffix.lower() in PICTURES for one in files)
        kind = "language" if tokenizer is not None else "images" if pictures else "files"
    if kind == "language":
        return _language_texts(files[:limit], root, tokenizer, max_length)
    require(
        kind in ("files", "images") and path.is_dir(),
        f"{path}: {kind} is read from a table, or from a folder with one for each class",
    )
    files, labels, found = by_folder(path, classes)
    files, more = files[:limit], {"labels": labels[:limit], "classes": found}
    names = [one.relative_to(path).as_posix() for one in files]
    if kind == "images":
        return picture_examples(files, names, size, **more)
    return byte_examples(files, names, max_length, **more)


def _language_texts(files: Sequence[Path], root: Path, tokenizer: Any, max_length: int | None) -> Tokens:
    def texts() -> Iterator[tuple[str, str]]:
        for file in files:
            try:
                yield file.relative_to(root).as_posix(), file.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 (byte {error.start}); leave it out, or name the texts by a glob, '**/*.txt'"
                raise ValueError(f"{file}: {reason}") from None

    return _language(texts(), tokenizer, max_length)


def _language(texts: Iterator[tuple[str, str]], tokenizer: Any, max_length: int | None) -> Tokens:
    require(tokenizer is not None, "tokenizer: is missing; a language model's texts need its tokenizer (--tokenizer)")
    reader = load_tokenizer(tokenizer)
    return Tokens.of(
        plain_documents(texts, reader), max_length=_length(max_length, reader), tokenizer=tokenizer_hash(reader)
    )


def _tuning(table: pa.Table, tokenizer: Any, max_length: int | None) -> Tokens:
    reader = None if tokenizer is None else load_tokenizer(tokenizer)

    def documents() -> Iterator[Document]:
        for row, values in enumerate(_rows(table)):
            yield tuning_document(values, reader, f"row {row}")

    return Tokens.of(
        documents(),
        max_length=_length(max_length, reader),
        tokenizer=None if reader is None else tokenizer_hash(reader),
    )


def _length(asked: int | None, tokenizer: Any) -> int:
    own = getattr(tokenizer, "model_max_length", None) or LONGEST
    return min(LONGEST, int(own)) if asked is None else asked


# ------------------------------------------------------------------------------------------------------ from tables


def _read(path: Path, limit: int | None) -> pa.Table:
    """A table, whose columns may hold lists and messages where the format has them."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: cannot be read as .parquet ({error})") from None
        require(table.num_rows > 0, f"{path}: is empty; it has no row")
        return table.slice(0, limit)
    if suffix in (".jsonl", ".ndjson"):
        return _read_lines(path, limit)
    return read_table(path).slice(0, limit)


def _read_lines(path: Path, limit: int | None) -> pa.Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error}); is the file cut short?") from None
            require(isinstance(row, dict), f"{path}: line {number} is no object")
            rows.append(row)
    require(bool(rows), f"{path}: is empty; it has no row")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return pa.table({name: pa.array(values) for name, values in columns.items()})
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise ValueError(f"{path}: a column holds values of different kinds, or what is no text ({error})") from None


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def _present(table: pa.Table, name: str) -> str:
    require(name in table.column_names, f"there is no column {name!r}; the columns are {listed(table.column_names)}")
    return name


def _texts(table: pa.Table, name: str) -> Iterator[tuple[str, str]]:
    for row, value in enumerate(column(table, _present(table, name)).to_pylist()):
        require(isinstance(value, str), f"column {name!r}: row {row} is {value!r}, no text")
        yield f"row {row}", value


def _labels(
    table: pa.Table, name: str | None, classes: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The number of each row's class, and the classes."""
    if name is None:
        return np.full(table.num_rows, IGNORED, dtype=np.int64), classes
    array = column(table, _present(table, name))
    text = keys(array, name)
    known = classes if classes is not None else tuple(sorted_keys(array, name))
    if not known:
        return np.full(table.num_rows, IGNORED, dtype=np.int64), None
    if is_number(array.type) and not set(known) & set(text.to_pylist()):
        at = {str(number): number for number in range(len(known))}
    else:
        at = {key: number for number, key in enumerate(known)}
    found = [IGNORED if key is None else at.get(key, -1) for key in text.to_pylist()]
    row = next((row for row, number in enumerate(found) if number == -1), None)
    if row is not None:
        raise ValueError(f"column {name!r}: row {row} is {array[row].as_py()!r}, no class; they are {listed(known)}")
    return np.array(found, dtype=np.int64), known


def _groups(table: pa.Table, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    array = column(table, _present(table, name))
    require(array.null_count == 0, f"column {name!r}: is missing in some rows; say of each which it belongs to")
    return array.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _classified_texts(table: pa.Table, name: str, more: dict[str, Any]) -> Labelled:
    texts = list(_texts(table, name))
    empty = next((row for row, value in texts if not value.strip()), None)
    require(empty is None, f"column {name!r}: {empty} is empty; leave it out, there is nothing to classify")
    contents = (utf8(value, row) for row, value in texts)
    return Labelled.of([value for _, value in texts], _as_text, contents, names=[row for row, _ in texts], **more)


def _as_text(items: Sequence[str]) -> dict[str, Any]:
    return {"text": list(items)}


def _features(table: pa.Table, besides: Sequence[str], more: dict[str, Any]) -> Labelled:
    names = [name for name in table.column_names if name not in besides]
    require(bool(names), "the table has no column but the label's")
    x_ED = np.concatenate([NumericColumn(name).transform(table, "error") for name in names], axis=1)
    contents = (row.tobytes() for row in x_ED)
    rows = [f"row {row}" for row in range(len(x_ED))]
    return Labelled.of(list(x_ED), _as_features, contents, names=rows, features=names, **more)


def _as_features(items: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    return {"features": torch.from_numpy(np.stack(items))}
