"""`likely capture`: a teacher's record, taken, checked, or made of another tool's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.output import Json, Overwrite, Seed

if TYPE_CHECKING:
    from likely.data.examples import Examples
    from likely.networks import Network
    from likely.teachers.inspect import Inspection

SURE = 2.0  # seconds after which the time left is more than a guess
LINES = 10  # of progress, where there is no terminal for a bar


def capture(
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="DIR|FILE|MODULE:FUNCTION[=DIR]",
            help="A folder of transformers, an .onnx or .skops file, a saved estimator, or a Python entry.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Texts, tokens, files, pictures or a table, in an order.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            "-k",
            metavar="dense|top:K|top:K+tail|samples:N|hybrid:K+N",
            help="What to keep of a row. samples and hybrid have an unbiased gradient, top:K has not.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder for the record; of --check, the report's file.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="The T of p = softmax(z / T).")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples that the teacher reads at once.")] = 8,
    kind: Annotated[
        str | None, typer.Option(metavar="language|text|files|images|table", help="What the data are, if not plain.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    target: Annotated[str | None, typer.Option(help="The column of labels; a record does not need them.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The folder of a tokenizer; by default the teacher's.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of an example at most.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read so many documents, rows or files at most.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU where there is one.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="DIR", help="Read a record through and tell what is in it.")
    ] = None,
    imported: Annotated[
        Path | None, typer.Option("--import", metavar="FILE|DIR", help="Make a record of what another tool recorded.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="axolotl|distillkit", help="The tool, of --import.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NUMBER", help="The names of the teacher's classes; of --import, how many tokens there are."
        ),
    ] = None,
    compression: Annotated[
        Path | None, typer.Option(help="Of --import distillkit: its settings, if not compression_config.yaml.")
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(metavar="next|same", help="Of --import axolotl: row j is of token j + 1, or j; if unclear."),
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record what a teacher says of some data, so that students can be trained on it.

    The record is a folder of Parquet shards with a manifest: of which teacher, data, tokenizer and classes, in which
    order, with checksums, and the exact entropy of every row. Training refuses a record that is of something else. A
    capture that was interrupted, killed or out of disk goes on when the same command is run again, with nothing lost
    or doubled. What a row costs is printed before it starts.

    \b
    Example:
      likely capture --teacher models/large --data corpus.jsonl --keep hybrid:8+4 --out record
      likely capture --check record
      likely distill corpus.jsonl --teacher record --student models/small --out run
      likely capture --import logits --format distillkit --out record
      likely distill record/examples.parquet --teacher record --student models/small --out run
    """
    chosen = {"--teacher": teacher, "--check": check, "--import": imported}
    given = [name for name, value in chosen.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"--teacher, --check or --import: say which one is wanted (found {found})")
    if check is not None:
        _check(check, out, overwrite, as_json)
        return
    if out is None:
        raise ValueError("--out: is missing; name the folder for the record")
    if imported is not None:
        output.refuse_inputs_inside(out, imported)
        if classes is not None and not classes.isdecimal():
            raise ValueError(f"--classes: is {classes!r}; of --import it is a number")
        number = None if classes is None else int(classes)
        options: dict[str, Any] = {"format": format, "classes": number, "compression": compression}
        options |= {"alignment": alignment, "temperature": temperature, "max_length": max_length}
        _import(imported, out, as_json, overwrite=overwrite, **options)
        return
    for name, value in (("--data", data), ("--keep", keep)):
        if value is None:
            raise ValueError(f"{name}: is missing; see likely capture --help")
    assert teacher is not None
    assert data is not None
    assert keep is not None
    reading = {"kind": kind, "text": text, "label": target, "max_length": max_length, "limit": limit}
    about = {"temperature": temperature, "batch_size": batch_size, "seed": seed}
    _capture(teacher, data, keep, out, overwrite, as_json, tokenizer, classes, device, reading, about)


# --------------------------------------------------------------------------------------------------------- capturing


def _capture(
    teacher: str,
    data: str,
    keep: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
    tokenizer: str | None,
    classes: str | None,
    device: str | None,
    reading: dict[str, Any],
    about: dict[str, Any],
) -> None:
    import torch

    from likely.data.loading import load_examples
    from likely.networks.load import load_network, path_of
    from likely.networks.pretrained import own_tokenizer
    from likely.teachers.capture import capture as take
    from likely.teachers.keep import Keep
    from likely.teachers.replacing import replaced, require_replaceable

    kept = Keep.parse(keep)
    output.refuse_inputs_inside(out, Path(data), path_of(teacher) or Path(teacher))
    if Path(data).is_dir() and Path(data).resolve() in out.resolve().parents:
        raise ValueError(f"--out: {out} lies in the data, {data}, and would be read as such; choose another folder")
    if overwrite:
        require_replaceable(out)
    examples = load_examples(data, tokenizer=tokenizer or own_tokenizer(teacher), **reading)
    network = load_network(teacher, examples=examples, classes=classes)
    if network.module is not None:
        network.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unit = _announce(network, examples, kept)
    progress = _Progress(len(examples), int(examples.row_counts.sum()), unit, out)
    try:
        with replaced(out, overwrite), progress.shown():
            record = take(network, examples, kept, out, progress=progress, **about)
    except (KeyboardInterrupt, SystemExit) as stop:
        output.note(
            f"stopped at {progress.rows:,} of {progress.all_rows:,} {unit}s; what is recorded stays: "
            "run the same command again and it goes on from there"
        )
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from None
    size = sum(shard.bytes for shard in record.manifest.shards)
    result = {
        **output.stamp("capture", teacher=teacher, data=data, keep=str(kept), **about),
        "gradient": kept.gradient,
        "examples": record.manifest.examples,
        "rows": record.manifest.rows,
        "rows_found": progress.found,
        "bytes": size,
        "bytes_per_row": size / record.manifest.rows,
        "seconds": progress.seconds,
        "rows_per_second": progress.speed,
        "out": out,
    }
    if as_json:
        output.print_json(result)
        return
    taken = record.manifest.rows - progress.found
    if taken:
        print(f"{taken:,} {unit}s recorded in {_duration(progress.seconds)}, {progress.speed:,.0f} a second")
    print(
        f"{record.manifest.rows:,} {unit}s, {size / record.manifest.rows:.1f} bytes each on disk, {_size(size)} in all"
    )
    print(f"\nwritten to {output.printable(out)}; look at it: likely capture --check {output.printable(out)}")


def _announce(network: Network, examples: Examples, keep: Any) -> str:
    """Say what is to be recorded and what it takes; returns what a row is called."""
    from likely.teachers.capture import bytes_per_row

    classes = network.classes if isinstance(network.classes, int) else len(network.classes)
    rows, identity = int(examples.row_counts.sum()), network.identity
    unit = "token" if rows > len(examples) else "row"
    cost = bytes_per_row(keep, classes)
    output.note(f"teacher: {identity.kind} {identity.name}, {classes:,} classes")
    output.note(f"data: {len(examples):,} examples, {rows:,} {unit}s")
    output.note(
        f"{keep}: at most {cost:,} bytes a {unit}, {_size(cost * rows)} in all, before compression; its gradient is "
        f"{keep.gradient}"
    )
    return unit


class _Progress:
    """How far a capture is: a bar on a terminal, else a few lines; and how long it takes, once that is known."""

    def __init__(self, examples: int, rows: int, unit: str, out: Path) -> None:
        self.examples, self.all_rows, self.unit, self.out = examples, rows, unit, out
        self.found, self.rows, self.told, self.last = -1, 0, False, 0
        self.start = self.now = time.monotonic()
        self.bar: Any = None

    @property
    def seconds(self) -> float:
        return self.now - self.start

    @property
    def speed(self) -> float:
        """Rows a second."""
        return (self.rows - self.found) / self.seconds if self.seconds else 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Left

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Left())
        with Progress(*columns, console=console, transient=True) as self.bar:
            self.bar.add_task(f"{self.unit}s", total=self.all_rows)
            yield

    def __call__(self, examples: int, rows: int) -> None:
        self.now, self.rows = time.monotonic(), rows
        if self.found < 0:  # the first call, before anything is computed
            self.found, self.start = rows, self.now
            self.last = LINES * rows // self.all_rows
            if rows == self.all_rows:
                self._say(f"the record in {self.out} is whole already")
            elif rows:
                self._say(f"takes up the record in {self.out}: {examples:,} of {self.examples:,} examples are there")
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=rows)
        left = (self.all_rows - rows) / self.speed if self.speed else 0.0
        if not self.told and self.seconds >= SURE and rows < self.all_rows:
            self.told = True
            self._say(f"{self.speed:,.0f} {self.unit}s a second: about {_duration(left)} to go")
        elif self.told and self.bar is None and self.last < LINES * rows // self.all_rows < LINES:
            self._say(f"{rows / self.all_rows:.0%} of the {self.unit}s; about {_duration(left)} to go")
        self.last = LINES * rows // self.all_rows

    def _say(self, message: str) -> None:
        if self.bar is None:
            output.note(message)
        else:  # above the bar, which stays in its place
            self.bar.console.print(f"likely: {output.printable(message)}", markup=False, highlight=False)


# -------------------------------------------------------------------------------------------------------- inspection


def _check(folder: Path, out: Path | None, overwrite: bool, as_json: bool) -> None:
    from likely._files import refuse_file
    from likely.teachers.inspect import inspect

    path = out or folder.with_name(f"{folder.resolve().name}-check.html")
    if out is not None:
        refuse_file(path, overwrite)
    found = inspect(folder)
    written = _write_report(found, path, overwrite)
    if as_json:
        output.print_json({**output.stamp("capture"), **found.to_dict(), "report": path if written else None})
        return
    _show(found)
    if written:
        print(f"\nwritten to {output.printable(path)}")


def _write_report(found: Inspection, path: Path, overwrite: bool) -> bool:
    try:
        found.report().write(path, overwrite)
    except ImportError as error:
        output.note(f"no report was written: {error}")
    except FileExistsError:
        output.note(f"no report was written: {path} exists already (--overwrite replaces it)")
    else:
        return True
    return False


def _show(found: Inspection) -> None:
    facts = found.facts()
    wide = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{wide}}  {output.printable(value)}")
    print()
    output.print_table(["over the rows", *found.columns[1:]], found.table())
    for remark in found.remarks:
        print(f"\nNote: {output.printable(remark)}")


def _import(path: Path, out: Path, as_json: bool, **options: Any) -> None:
    from likely.teachers.importers import FORMATS, import_record
    from likely.teachers.inspect import inspect

    if options["format"] is None:
        raise ValueError(f"--format: is missing; it is one of {', '.join(FORMATS)}")
    done = import_record(path, out, **options)
    found = inspect(done.record)
    if as_json:
        lines = {"notes": list(done.notes), "data": done.data, "out": out}
        output.print_json({**output.stamp("capture"), **found.to_dict(), **lines})
        return
    for note in done.notes:
        output.note(note)
    _show(found)
    print(f"\nwritten to {output.printable(out)}; train on {output.printable(done.data)}")


def _size(size: float) -> str:
    from likely.teachers.inspect import readable

    return readable(size)


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(0.4), _duration(75), _duration(5000)
    ('0.4 s', '1 min 15 s', '1 h 23 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
