"""Records that others took, made into records of ours: Axolotl's lists and DistillKit's compressed Parquet.

Shapes: L tokens of an example, N rows, K stored classes of a row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from likely._checks import require
from likely.data.examples import IGNORED, Examples
from likely.data.loading import load_examples
from likely.networks import Identity, file_hash
from likely.teachers.axolotl import axolotl
from likely.teachers.distillkit import Compression, distillkit
from likely.teachers.formats import Reader, Taught, files_of
from likely.teachers.keep import Keep, Rows
from likely.teachers.manifest import Manifest
from likely.teachers.record import Record
from likely.teachers.replacing import EXAMPLES, replaced, require_replaceable
from likely.teachers.store import Writer

FORMATS = ("axolotl", "distillkit")
_MOST_MASS, _WHOLE = 1.05, 1e-4
_Z = 3.0  # standard errors of a paired difference


@dataclass(frozen=True)
class Imported:
    """A record from elsewhere.

    Args:
        record: ours, of kind `top:K` or `top:K+tail`.
        data: the examples that it is of, with `labels` where a token has a target and −100 elsewhere: what a student is
            trained on. It lies in the record's folder.
        notes: what was found, and what is lost, in sentences.
    """

    record: Record
    data: Path
    notes: tuple[str, ...]


def import_record(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    classes: int | None = None,
    compression: str | os.PathLike[str] | None = None,
    alignment: str | None = None,
    temperature: float = 1.0,
    max_length: int | None = None,
    overwrite: bool = False,
) -> Imported:
    """Make a record of what another tool recorded of a teacher, and write the examples that it is of beside it.

    The file is read twice: once to check it, and to learn which token each of its rows is about, and once to write.
    Whatever the format says of the alignment is compared with the tokens: those at their positions should be more
    probable than the tokens before and after them.

    What is lost: the teacher's entropy. The record does not say it, and KL divergences are those of the K + 1 cells of
    `tail="bucket"`. Where every row sums to one, the file was renormalised: the tail's mass is lost too, and the kind
    is `top:K`; else it is `top:K+tail`. Log-probabilities are rounded to float16, as in every record.

    Args:
        path: a file (.parquet, .arrow, .jsonl) or a folder of them.
        out: a new folder, or one with the beginning of this record.
        format: "axolotl" or "distillkit".
        classes: how many there are, which is how many logits a student has. DistillKit's settings say it; Axolotl's
            files do not.
        compression: DistillKit's settings; by default `compression_config.yaml` in the folder of the data.
        alignment: of Axolotl's prepared files, where the data do not tell: "next" or "same", see `axolotl`.
        temperature: T of the recorded distributions.
        max_length: tokens of an example, which `load_examples` is to be given again when a student is trained.
        overwrite: remove the record that lies in `out`, once the file has been found to be good.

    Returns:
        The record, the examples' file and the notes.

    Raises:
        ValueError: a file that is damaged or not of the format, a row that is no distribution over the classes, rows
            that belong to other tokens than the format says; the row is named, and nothing is written.
        FileNotFoundError, FileExistsError: as they say.
    """
    path, out = Path(path), Path(out)
    require(format in FORMATS, f"format: is {format!r}; it is one of {', '.join(FORMATS)}")
    files = files_of(path)
    require(
        out.resolve() not in (path.resolve(), *path.resolve().parents),
        f"out: {path} lies in {out}; choose another folder",
    )
    if overwrite:
        require_replaceable(out)
    notes: list[str] = []
    settings = None
    if format == "distillkit":
        reader, settings = distillkit(path, None if compression is None else Path(compression))
        classes, readers = classes or settings.classes, {"next": reader}
    else:
        require(classes is not None, "classes: is missing; say how many tokens the teacher has: the file does not")
        readers = axolotl(path)
    assert classes is not None
    chosen, found = _aligned(readers, classes, alignment)
    notes.append(found.told(chosen))
    keep = Keep("top", top=found.least, tail=not found.renormalised)
    keep.require_fits(classes)
    notes += found.losses(keep, classes)
    manifest = Manifest(
        keep=keep,
        classes=classes,
        teacher=Identity(format, path.name, file_hash(*files)),
        temperature=float(temperature),
        rounding=(*_compressed(settings), *(one for one in keep.rounding() if not one.startswith("entropy"))),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        data = Path(folder) / EXAMPLES
        _write_examples(_with_targets(readers[chosen]), data)
        examples = load_examples(data, max_length=max_length)
        total = int(np.sum(examples.row_counts))
        require(total == found.rows, f"the examples have {total} rows where the file has {found.rows} targets")
        with replaced(out, overwrite):
            record = _write(readers[chosen], out, manifest, examples)
        os.replace(data, out / EXAMPLES)
    return Imported(record, out / EXAMPLES, tuple(notes))


# --------------------------------------------------------------------------------------------------------- the survey


@dataclass
class _Found:
    """What is in a file, read with one alignment."""

    examples: int = 0
    empty: int = 0
    rows: int = 0
    least: int = 0
    most: int = 0
    whole: int = 0
    heavy: int = 0
    heaviest: float = 0.0
    misfits: int = 0
    hits: int = 0
    before: tuple[float, float] = (0.0, 0.0)
    """By how much a row's own token is more probable than the one before it: the sum over the rows, and of squares."""
    after: tuple[float, float] = (0.0, 0.0)

    def add(self, taught: Taught, classes: int) -> None:
        """Count an example in, once it is found to be of distributions over the classes."""
        self.misfits += taught.misfits
        if not len(taught.position):
            self.empty += 1
            return
        outside = (taught.ids < 0) | (taught.ids >= classes)
        if outside.any():
            at = int(outside.argmax())
            position = np.repeat(taught.position, taught.entries)[at]
            raise ValueError(
                f"{taught.where}: the target of token {position} holds class {taught.ids[at]}; classes are "
                f"0 … {classes - 1}"
            )
        mass = taught.mass
        heaviest = int(mass.argmax())
        require(
            float(mass[heaviest]) <= _MOST_MASS,
            f"{taught.where}: the target of token {taught.position[heaviest]} sums to {mass[heaviest]:.4g}, more than "
            "1; are these log-probabilities, and read with the settings that they were written with?",
        )
        self.examples, self.rows = self.examples + 1, self.rows + len(mass)
        self.least = min(self.least or int(taught.entries.min()), int(taught.entries.min()))
        self.most = max(self.most, int(taught.entries.max()))
        self.whole += int((np.abs(mass - 1) <= _WHOLE).sum())
        self.heavy += int((mass > 1 + _WHOLE).sum())
        self.heaviest = max(self.heaviest, float(mass[heaviest]))
        self.hits += int((taught.ids[taught.starts] == taught.token[taught.position]).sum())
        own = _said_of(taught, 0, classes)
        for name, shift in (("before", -1), ("after", 1)):
            there = taught.position + shift < len(taught.token)
            more = np.where(there, own - _said_of(taught, shift, classes), 0)
            total, squares = getattr(self, name)
            setattr(self, name, (total + float(more.sum()), squares + float((more**2).sum())))

    @property
    def renormalised(self) -> bool:
        """Whether every row sums to one, though classes are missing."""
        return self.whole == self.rows

    def told(self, alignment: str) -> str:
        how = {
            "next": "row j is of token j + 1",
            "same": "row j is of token j",
            "last": "the last row is of the last token",
        }[alignment]
        return (
            f"{self.examples:,} examples, {self.rows:,} rows; {how}: the most probable class is the token itself in "
            f"{self.hits / self.rows:.1%} of the rows"
        )

    def losses(self, keep: Keep, classes: int) -> list[str]:
        """What the record lacks, in sentences."""
        lost = [
            "the teacher's entropy is not in the file: KL divergences are of the stored classes and one for the rest"
        ]
        if self.renormalised and keep.top < classes:
            lost[0] = "the teacher's entropy is not in the file"
            lost.append("every row sums to 1: it was renormalised, and the mass of the other classes is lost")
        if self.least < self.most:
            rest = "their mass is in the tail" if keep.tail else "they are lost"
            lost.append(f"rows hold {self.least} to {self.most} classes: the {self.least} largest are kept, {rest}")
        if self.heavy:
            lost.append(f"{self.heavy:,} rows sum to more than 1 (at most {self.heaviest:.4f}): divided by their sums")
        if self.empty:
            lost.append(f"{self.empty:,} of {self.empty + self.examples:,} examples have no target and are left out")
        return lost


def _said_of(taught: Taught, shift: int, classes: int) -> NDArray[np.float64]:
    """(n,) the log-probability that each target gives the token beside its own; of one not stored, the others' mean.

    Right targets make their own tokens more probable, in the mean, than any others do.
    """
    token = np.append(taught.token, -1)[taught.position + shift]
    said, rest = taught.logprobs[taught.starts + taught.entries - 1], 1 - taught.mass
    known = (rest > _WHOLE) & (taught.entries < classes)  # else nothing is known but that it is not more than the least
    said[known] = np.minimum(said[known], np.log(rest[known] / (classes - taught.entries[known])))
    entry = np.flatnonzero(taught.ids == np.repeat(token, taught.entries))
    said[np.repeat(np.arange(len(token)), taught.entries)[entry]] = taught.logprobs[entry]
    return said


def _sign(comparison: tuple[float, float]) -> int:
    """1 or −1 where the mean difference is more than three of its standard errors from 0, else 0."""
    total, squares = comparison
    return 0 if abs(total) <= _Z * squares**0.5 else 1 if total > 0 else -1


def _aligned(readers: dict[str, Reader], classes: int, asked: str | None) -> tuple[str, _Found]:
    """The alignment of the file, and what it holds, read so."""
    require(
        asked is None or asked in readers,
        f"alignment: is {asked!r}; that of this file is {' or '.join(map(repr, readers))}",
    )
    found: dict[str, _Found] = {}
    for name, reader in readers.items():
        found[name] = _Found()
        for taught in reader():
            found[name].add(taught, classes)
    chosen = asked or next(iter(readers))
    if asked is None and len(readers) == 2:
        fitting = [name for name, one in found.items() if not one.misfits]
        told = _sign(found["next"].before)
        if len(fitting) == 1:
            chosen = fitting[0]
        else:
            require(
                told != 0,
                "alignment: the file does not tell whether its row j is of token j + 1 ('next', as Axolotl prepares "
                "today) or of token j ('same', as it did before): neither the mask nor the tokens say it; give it",
            )
            chosen = "next" if told > 0 else "same"
    one = found[chosen]
    require(one.rows > 0, "the file holds no target at all")
    for comparison, where in ((one.before, "before"), (one.after, "after")):
        require(
            _sign(comparison) >= 0,
            f"alignment: the rows are shifted by one: they make the token {where} their own more probable than their "
            f"own, by {-comparison[0] / one.rows:.3g} nats in the mean of {one.rows:,} rows",
        )
    return chosen, one


# -------------------------------------------------------------------------------------------------------- the writing


def _with_targets(reader: Reader) -> Iterator[Taught]:
    return (taught for taught in reader() if len(taught.position))


def _write_examples(taught: Iterator[Taught], path: Path) -> None:
    kind = pa.list_(pa.int32())
    with pq.ParquetWriter(path, pa.schema([("input_ids", kind), ("labels", kind)])) as writer:
        while part := list(islice(taught, 512)):
            labels = [np.full(len(one.token), IGNORED) for one in part]
            for label, one in zip(labels, part):
                label[one.position] = one.token[one.position]
            columns = [[one.token for one in part], labels]
            writer.write_table(pa.table([pa.array(column, kind) for column in columns], schema=writer.schema))


def _write(reader: Reader, out: Path, manifest: Manifest, examples: Examples) -> Record:
    """The record; what stands in its folder of an earlier run is taken up.

    The examples may be stretches of the file's own, cut where these are too long: their rows are the same in order.
    """
    row_counts = np.asarray(examples.row_counts, dtype=np.int64)
    writer = Writer(out, replace(manifest, data=examples.fingerprint, tokenizer=examples.tokenizer), row_counts)
    parts = (_rows(taught, manifest) for taught in _with_targets(reader))
    held: list[Rows] = []
    for number in range(len(writer.slices)):
        due = int(row_counts[writer.examples(number)].sum())
        while sum(map(len, held)) < due:
            held.append(next(parts))
        rows = Rows.join(held)
        if number in writer.unfinished:
            writer.put(number, _part(rows, slice(0, due), manifest.keep.top))
        held = [_part(rows, slice(due, None), manifest.keep.top)]
    writer.finish()
    return Record.open(out)


def _rows(taught: Taught, manifest: Manifest) -> Rows:
    keep, dtypes = manifest.keep, manifest.keep.dtypes(manifest.number)
    ids_NK, logprobs_NK = taught.leading(keep.top)
    logprobs_NK = logprobs_NK - np.log(np.maximum(taught.mass, 1))[:, None]
    tail_N = np.maximum(1 - np.exp(logprobs_NK).sum(axis=1), 0)
    return Rows(
        np.full(len(ids_NK), keep.top),
        ids=ids_NK.reshape(-1).astype(dtypes["target_token_ids"]),
        logprobs=logprobs_NK.astype(dtypes["target_logprobs"]),
        tail=tail_N.astype(dtypes["tail_mass"]) if keep.tail else None,
    )


def _part(rows: Rows, part: slice, top: int) -> Rows:
    """Some of the rows, all of which have `top` entries."""
    assert rows.ids is not None
    assert rows.logprobs is not None
    return Rows(
        rows.entries[part],
        ids=rows.ids.reshape(-1, top)[part].reshape(-1),
        logprobs=rows.logprobs[part],
        tail=None if rows.tail is None else rows.tail[part],
    )


def _compressed(settings: Compression | None) -> tuple[str, ...]:
    """What the log-probabilities went through before they came here."""
    if settings is None:
        return ()
    exact = str(settings.exact_dtype).removeprefix("torch.")
    behind = settings.stored - settings.exact
    note = f"target_logprobs: DistillKit's compression before: {settings.exact} of {settings.stored} in {exact}"
    if behind:
        note += f", {behind} from {len(settings.terms)} terms and {len(settings.bins)} bins of residuals"
    return (note,)
