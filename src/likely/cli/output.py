"""What the commands share: their common options, and how they show and write results."""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from likely.evaluation import Report

Data = Annotated[Path, typer.Argument(help="A table: .csv, .tsv, .parquet, .arrow, .feather, .jsonl or .npz.")]
Features = Annotated[
    str | None, typer.Option(help="Columns: names and globs, separated by commas. By default all not used elsewhere.")
]
Categorical = Annotated[str, typer.Option(help="Columns of numbers that are categories; text always is.")]
Impute = Annotated[
    str | None,
    typer.Option(
        metavar="mean|median",
        help="Fill missing numbers with it and missing categories with the most frequent; else they are refused.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if likely wrote it before.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Recorded with the results; the same seed gives the same.")]


def printable(text: Any) -> str:
    """A user's text without what a terminal would obey: control characters are shown as their escapes.

    >>> printable("a" + chr(27) + "[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def plain(value: Any) -> Any:
    """What JSON can hold: "inf" and "-inf" for infinities, None for NaN, NumPy's numbers as Python's.

    >>> plain({"kl": math.inf, "error": math.nan})
    {'kl': 'inf', 'error': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Path) else value


def stamp(command: str, **settings: Any) -> dict[str, Any]:
    """The head of a metrics file: the command, the version, and what was asked for."""
    return {"command": command, "likely": importlib.metadata.version("likely"), **settings}


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """`metrics.json` in a folder that is being made."""
    text = json.dumps(plain(metrics), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")


def write_report(folder: Path, make: Callable[[], Report]) -> None:
    """`report.html` in a folder that is being made; without the extra `likely[report]` a remark instead."""
    try:
        report = make()
    except ImportError as error:
        note(f"no report was written: {error}")
    else:
        report.write(folder / "report.html")


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))


def note(message: str) -> None:
    """A remark, on stderr: stdout is for results."""
    print(f"likely: {printable(message)}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows under headings, names to the left and numbers to the right; whatever users named is shown as it is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no width to fold to
        console = Console(highlight=False, emoji=False, width=10_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for j, name in enumerate(columns):
        table.add_column(escape(printable(name)), justify="right" if j else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(f"{cell:.4g}" if isinstance(cell, float) else printable(cell)) for cell in row))
    console.print(table)


def refuse_inputs_inside(out: Path, *inputs: Path) -> None:
    """An output folder that is replaced whole may not hold what the command reads.

    Raises: ValueError naming the input.
    """
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"--out: {path} lies in {out}, which would be replaced with it; choose another folder")
