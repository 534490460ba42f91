"""`likely predict`: the probabilities of a model, in a table that `likely evaluate` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.output import Data, Json, Seed

if TYPE_CHECKING:
    import pyarrow as pa

    from likely.networks.model import Model


def predict(
    model: Annotated[Path, typer.Argument(help="The folder that fit or distill wrote.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write; its suffix says how.")],
    keep: Annotated[str, typer.Option(help="Columns of the data to carry along: names and globs.")] = "",
    unseen: Annotated[
        str,
        typer.Option(
            metavar="error|zero",
            help="What to do with a level never seen: refuse it, or count it as none (after fit: as the first).",
        ),
    ] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write the probabilities of a model for the rows of a table.

    The columns are `p_CLASS` for each class, `prediction`, what was to be kept, and the target where the data have it:
    labels under their own name, probabilities as `target_CLASS`. The numbers are those of
    `likely.load(MODEL).predict_proba`, to the last bit. A prediction involves no chance; the seed changes nothing.

    \b
    Example:
      likely predict model test.csv --out predictions.csv
      likely evaluate predictions.csv
    """
    from likely._files import refuse_file
    from likely.data import read_table, write_table
    from likely.data.tables import writable
    from likely.networks.model import load

    writable(out)
    refuse_file(out, overwrite)
    if out.resolve() == data.resolve():
        raise ValueError(f"--out: {out} is the table that is read; give another name")
    trained = load(model)
    table = read_table(data)
    columns = columns_of(trained, table, keep, unseen)
    write_table(out, columns, overwrite)
    if as_json:
        done = {"rows": table.num_rows, "columns": list(columns), "out": out, "data": data, "model": model}
        output.print_json(output.stamp("predict", seed=seed, unseen=unseen) | done)
    else:
        print(f"{table.num_rows:,} rows written to {output.printable(out)}")


def columns_of(model: Model, table: pa.Table, keep: str = "", unseen: str = "error") -> dict[str, Any]:
    """The columns that `likely predict` writes."""
    import pyarrow as pa

    from likely.data import select_columns

    q_NC = model.predict_proba(table, unseen)
    columns: dict[str, Any] = {f"p_{key}": q_NC[:, j] for j, key in enumerate(model.keys)}
    columns["prediction"] = pa.array([model.classes[j] for j in q_NC.argmax(axis=1)])
    wanted = [name for name in model.metadata.get("target", ()) if name in table.column_names]
    if len(wanted) == 1:
        (name,) = wanted
        taken = name == "prediction" or name.startswith("p_")
        columns[f"target_{name}" if taken else name] = table[name]
    elif len(wanted) == len(model.classes):
        columns |= {f"target_{key}": table[name] for key, name in zip(model.keys, wanted)}
    for name in select_columns(table, keep, "keep") if keep else []:
        if name in columns and name not in wanted:
            raise ValueError(f"keep: column {name!r} has the name of one that is written; rename it")
        columns.setdefault(name, table[name])
    return columns
