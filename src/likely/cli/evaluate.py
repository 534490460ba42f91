"""`likely evaluate`: how good the probabilities in a table are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import output
from likely.cli.output import Json, Overwrite, Seed

if TYPE_CHECKING:
    import pyarrow as pa


def evaluate(
    file: Annotated[Path, typer.Argument(help="A table with probabilities and their target, as predict writes it.")],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="A column of labels, or columns of probabilities. By default found."),
    ] = None,
    probabilities: Annotated[str, typer.Option("--probabilities", "-p", help="The predicted probabilities.")] = "p_*",
    groups: Annotated[
        str | None, typer.Option(help="A column that says which rows belong together; standard errors are clustered.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="A column with the weights of the rows.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for the metrics and the report.")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure probabilities against labels or distributions.

    Prints cross-entropy = entropy + KL, Brier score, accuracy and calibration error, each ± its standard error.
    Without --target it is the columns `target_*`, or the one column beside the probabilities and `prediction`, as
    `likely predict` writes them. Classes are matched by name: what the star of a glob stands for. Entropies are in
    nats. Nothing here involves chance; the seed is only recorded.

    \b
    Example:
      likely evaluate predictions.csv
      likely evaluate votes.parquet --target 'vote_*' --probabilities 'p_*' --groups document
    """
    from likely._files import new_folder, refuse_folder
    from likely.data import read_probabilities, read_table, read_target, read_weights
    from likely.data.tables import column
    from likely.data.targets import one_column
    from likely.evaluation import evaluate as measure
    from likely.evaluation import evaluation_report

    if out is not None:
        refuse_folder(out, overwrite)
        output.refuse_inputs_inside(out, file)
    table = read_table(file)
    q_NC, classes = read_probabilities(table, probabilities, what="probabilities")
    others = [name for name in (groups, weight) if name is not None]
    wanted = read_target(table, target or _find_target(table, probabilities, others), classes)
    group_N = None if groups is None else column(table, one_column(table, groups, "groups")[0]).to_pylist()
    if group_N is not None and None in group_N:
        raise ValueError(f"groups: row {group_N.index(None)} is missing (empty or NaN)")
    w_N = None if weight is None else read_weights(table, weight)
    truth = wanted.p_NC if wanted.index_N is None else wanted.index_N
    found = measure(q_NC, truth, weights=w_N, groups=group_N)
    settings = {"file": file, "target": list(wanted.columns), "probabilities": probabilities, "groups": groups}
    metrics = output.stamp("evaluate", **settings, weight=weight, seed=seed) | {"class_names": list(classes)}
    metrics |= found.to_dict()
    if out is not None:
        with new_folder(out, overwrite) as folder:
            output.write_metrics(folder, metrics)
            output.write_report(
                folder, lambda: evaluation_report(f"likely evaluate {file.name}", found, q_NC, truth, classes)
            )
    if as_json:
        output.print_json(metrics)
    else:
        print(found)
        if out is not None:
            print(f"written to {output.printable(out)}")


def _find_target(table: pa.Table, probabilities: str, others: list[str]) -> str | list[str]:
    """The target's columns as `likely predict` leaves them.

    Raises: ValueError where more columns, or none, could be the target.
    """
    from likely.data import select_columns
    from likely.data.tables import listed

    used = [*select_columns(table, probabilities, "probabilities"), "prediction", *others]
    left = [name for name in table.column_names if name not in used]
    if any(name.startswith("target_") for name in left):
        return "target_*"
    if len(left) == 1:
        return left
    which = f"it could be {listed(left)}" if left else "there is no column for it"
    raise ValueError(f"target: {which}; give --target")
