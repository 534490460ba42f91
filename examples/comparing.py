"""What the demonstrations share: measurements joined over folds or seeds, and how they are shown."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from likely.cli.output import print_table
from likely.training.comparison import Comparison
from likely.training.measure import Measured
from likely.training.network_report import report

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
PER_EXAMPLE = ("example_group", "example_bytes")


def joined(parts: Sequence[Measured]) -> Measured:
    """Measurements of several parts of one data set, or of several students on the same part, as one.

    The rows stand one after another and keep their documents, so that whatever is estimated of them is clustered by
    document over all parts.
    """
    first = parts[0]
    columns: dict[str, Any] = {}
    rows = len(first.example)
    for field in fields(Measured):
        value = getattr(first, field.name)
        if isinstance(value, np.ndarray) and (len(value) == rows or field.name in (*PER_EXAMPLE, "nll")):
            columns[field.name] = np.concatenate([getattr(one, field.name) for one in parts])
    starts = np.cumsum([0, *(len(one.example_group) for one in parts)])
    columns["example"] = np.concatenate([one.example + start for one, start in zip(parts, starts)])
    columns["data"] = hashlib.sha256("".join(one.data for one in parts).encode()).hexdigest()
    return replace(first, **columns)


def present(
    title: str,
    about: Mapping[str, Any],
    comparisons: Mapping[str, Comparison],
    out: Path,
    tables: Mapping[str, Table],
    measure: str,
    **more: Any,
) -> Comparison:
    """Print the numbers, the differences to each reference and what may be concluded, and write the report of it all.

    The page opens with what each comparison says in one measure.

    Args:
        about: what was done: names with their values.
        comparisons: by heading; the page is of the last one, and shows the differences of the others.
        tables: more of them, by heading.
        measure: one of `likely.training.comparison.MEASURES`.
        more: what `likely.training.network_report.report` takes.

    Returns: the last comparison.
    """
    last = list(comparisons.values())[-1]
    opening = " ".join(f"{heading}: {comparison.summary(measure)}" for heading, comparison in comparisons.items())
    page = report(last, title=title, summary=opening, about=about, **more)
    print(*(f"{name}: {value}" for name, value in about.items()), "", sep="\n")
    print_table(*last.table())
    for heading, comparison in comparisons.items():
        print(f"\n{heading}", *comparison.sentences(), sep="\n  ")
        if comparison is not last:
            page.text(heading, comparison.sentences()).table(f"{heading}: differences", *comparison.difference_table())
    for heading, table in tables.items():
        print(f"\n{heading}")
        print_table(*table)
        page.table(heading, *table)
    print(f"\n{page.write(out / 'report.html', overwrite=True)}")
    return last


def command(run: Callable[..., Any], name: str) -> None:
    """Run a demonstration as its options say; one that was interrupted goes on where it was."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--small", action="store_true", help="a small setting, of about a minute")
    parser.add_argument("--out", type=Path, default=Path("example-results") / name, help="its folder (%(default)s)")
    given = parser.parse_args()
    run(given.out, small=given.small)
