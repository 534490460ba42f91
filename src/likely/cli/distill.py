"""`likely distill`: students of a teacher, compared with students of the labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli.output import Json, Overwrite, Seed


def distill(
    data: Annotated[Path | None, typer.Argument(help="A table. By default scikit-learn's handwritten digits.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder.")] = Path("likely-distill"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """TODO"""
