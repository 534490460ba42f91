"""`likely distill`: students of a teacher, compared with students of the labels alone, for tables and for networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.distill_networks import distill_networks, settings_of, with_options
from likely.cli.output import Categorical, Features, Impute, Json, Overwrite, Seed

if TYPE_CHECKING:
    from likely.training.distill import Distilled


OF_BOTH = ("data", "target", "teacher", "temperature", "out", "seed")
OF_TABLES = ("features", "categorical", "impute", "leave_out", "splits", "labelled", "hidden", "smoothing")


@with_options
def distill(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A table, or with --student texts, files or pictures. Without one, the handwritten digits that ship "
            "with scikit-learn."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="The column of labels.")] = None,
    teacher: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS|FILE|builtin",
            help="Columns of probabilities ('p_*'), a .npy or .npz of logits or probabilities, or a bag trained here. "
            "With --student a record, a folder of transformers, an .onnx file, or package.module:function.",
        ),
    ] = "builtin",
    features: Features = None,
    categorical: Categorical = "",
    impute: Impute = None,
    leave_out: Annotated[str | None, typer.Option(help="A class that the students of a last part never see.")] = None,
    splits: Annotated[int, typer.Option(min=2, help="How many times to hold out a part of the rows.")] = 8,
    labelled: Annotated[int, typer.Option(min=1, help="How many rows the students see.")] = 100,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden units of a network.")] = 32,
    temperature: Annotated[
        float,
        typer.Option(
            help="The T that softens teacher and student alike.", show_default="4; with --student the record's, or 1"
        ),
    ] = 4.0,
    smoothing: Annotated[float, typer.Option(help="The share of the uniform distribution in smoothed labels.")] = 0.1,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the models, the metrics and the report.")
    ] = Path("likely-distill"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file of the options below and --student; the command line wins.")
    ] = None,
    **options: Any,
) -> None:
    """Distil a teacher into small students, and compare them.

    Students of one architecture are trained on the same few rows: on their labels, without and with a penalty chosen by
    cross-validation and with smoothing, and on the teacher's probabilities at T = 1 and at the temperature. All are
    measured at T = 1 on rows held out, over several splits: error, cross-entropy to the teacher = its entropy + KL,
    agreement, calibration. Numbers are standardised; of missing values and categories see `likely fit --help`. The
    student is written as a model to OUT/student, and its predictions as a table.

    With --student (or --config) the student is a network: of a folder of transformers, linear, mlp:H or a Python entry.
    It is trained on the labels and on the teacher, which runs beside it or was recorded by `likely capture`; a student
    of the labels alone is tuned by as much; all are measured on documents held out. SIGTERM and Ctrl-C save, and the
    same command goes on. OUT/student is written in the student's own format.

    \b
    Example:
      likely distill
      likely distill train.csv --target species --teacher 'p_*' --out run
      likely distill corpus.jsonl --teacher models/large --student models/small --epochs 3 --out run
      likely distill --config run.yaml
      likely predict run/student test.csv --out predictions.csv
      likely evaluate predictions.csv
    """
    given = {name for name in context.params if _was_given(context, name)}
    if config is not None or options["student"] is not None:
        for name in OF_TABLES:
            if name in given:
                raise ValueError(f"--{name.replace('_', '-')}: belongs to tables; a network has none (leave it out)")
        both = {name: context.params[name] for name in OF_BOTH if name in given}
        both |= {name: str(both[name]) for name in ("data", "out") if name in both}
        distill_networks(settings_of(config, {**options, **both}), overwrite=overwrite, as_json=as_json)
        return
    for name in options:
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')}: belongs to networks; name the student (--student)")

    from likely.training.distill import run

    if data is not None:
        output.refuse_inputs_inside(out, data)
    done = run(
        data,
        target=target,
        teacher=teacher,
        features=features,
        categorical=categorical,
        impute=impute,
        leave_out=leave_out,
        out=out,
        overwrite=overwrite,
        stamp=output.stamp("distill"),
        write_metrics=output.write_metrics,
        splits=splits,
        labelled=labelled,
        hidden=hidden,
        temperature=temperature,
        smoothing=smoothing,
        seed=seed,
    )
    if done.no_report is not None:
        output.note(f"no report was written: {done.no_report}")
    if as_json:
        output.print_json({**done.metrics, "out": out})
    else:
        _show(done, out)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _show(done: Distilled, out: Path) -> None:
    from likely.training import outcome as found

    outcome, metrics = done.outcome, done.metrics
    parts = len(outcome.results.splits)
    print(f"{output.printable(metrics['data'])}: {metrics['rows']:,} rows, held out in {parts} parts")
    print(f"{metrics['formula']}\n")
    columns = ["student", *found.COLUMNS.values()]
    output.print_table(columns, found.table_rows(outcome.rows))
    print(f"{found.SPLITS}\n")
    print("paired differences to hard labels with a tuned penalty, negative is better:")
    output.print_table(found.DIFFERENCE_COLUMNS, found.difference_rows(outcome.differences))
    print()
    output.print_table(["with all the labels", *columns[1:]], found.table_rows(outcome.full))
    print(found.full_sentence(outcome))
    if outcome.recall:
        print()
        heading = f"class {metrics['left_out']} left out of the students' rows"
        output.print_table([heading, "its recall %"], found.recall_rows(outcome))
    print(f"\nwritten to {output.printable(out)}")
