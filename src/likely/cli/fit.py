"""`likely fit`: logistic or softmax regression by maximum likelihood."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.output import Categorical, Data, Features, Impute, Json, Overwrite, Seed

if TYPE_CHECKING:
    from likely.training.linear import Regression

MOST_FEATURES, MOST_CLASSES = 20, 6


def fit(
    data: Data,
    target: Annotated[
        str, typer.Option("--target", "-t", help="A column of labels, or the columns of probabilities: 'p_*'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the model, its metrics and its report.")],
    features: Features = None,
    exclude: Annotated[str, typer.Option(help="Columns to leave out of the features.")] = "",
    categorical: Categorical = "",
    impute: Impute = None,
    standardise: Annotated[
        bool,
        typer.Option(help="Scale numbers to unit spread. It matters to the penalty only, which then weighs all alike."),
    ] = True,
    penalty: Annotated[
        float, typer.Option(min=0, help="λ: adds λ/2 times the sum of squared coefficients to the mean cross-entropy.")
    ] = 0.0,
    weight: Annotated[str | None, typer.Option(help="A column with the weights of the rows.")] = None,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1, help="Mix labels with the uniform distribution.")] = 0,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a logistic or softmax regression by maximum likelihood.

    Two classes make it logistic, more make it softmax. The target is a column of labels, or a set of columns with the
    probability of each class, named by a glob: what its star stands for is the class. The fit minimises the mean
    cross-entropy = entropy + KL, in nats. Of a category the first level is the reference. The status is 1, and nothing
    is written, where the fit has not converged or the classes are separable, so that no maximum likelihood estimate
    exists; a penalty mends both.

    \b
    Example:
      likely fit train.csv --target grade --out model
      likely predict model test.csv --out predictions.csv
      likely evaluate predictions.csv
    """
    from likely._files import new_folder, refuse_folder
    from likely.data import read_table
    from likely.evaluation import evaluate, evaluation_report
    from likely.training.linear import regress

    refuse_folder(out, overwrite)
    output.refuse_inputs_inside(out, data)
    settings: dict[str, Any] = {"features": features, "exclude": exclude, "categorical": categorical, "impute": impute}
    settings |= {"standardise": standardise, "penalty": penalty, "weight": weight, "label_smoothing": label_smoothing}
    table = read_table(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        fitted = regress(table, target, **settings)
    for warning in caught:
        output.note(f"warning: {warning.message}")
    model = fitted.model
    model.metadata["seed"] = seed
    truth = fitted.target.p_NC if fitted.target.index_N is None else fitted.target.index_N
    found = evaluate(model.predict_log_proba(table), truth, log_input=True, weights=fitted.weight_N)
    metrics = output.stamp("fit", data=data, target=target, seed=seed, **settings) | {
        "rows": table.num_rows,
        "class_names": list(model.classes),
        "columns": model.encoder.names,
        "converged": fitted.fit.converged,
        "iterations": fitted.fit.minimum.iterations,
        "largest_derivative": fitted.fit.minimum.gradient,
        "objective": fitted.fit.minimum.value,
        "training": found.to_dict(),
        "coefficients": _coefficients(fitted),
    }
    with new_folder(out, overwrite) as folder:
        model.write_into(folder)
        output.write_metrics(folder, metrics)
        output.write_report(
            folder,
            lambda: evaluation_report(
                f"likely fit {data.name}",
                found,
                model.predict_proba(table),
                truth,
                fitted.target.keys,
                summary="Measured on the rows that the model was fitted to: rows that it has not seen tell more.",
            ),
        )
    if as_json:
        output.print_json({**metrics, "out": out})
        return
    kind = "binary logistic regression" if model.network == "binary" else "softmax regression"
    end = "converged" if fitted.fit.converged else "NOT converged"
    print(f"{kind} on {len(model.encoder.names)} columns: {end} in {fitted.fit.minimum.iterations} iterations")
    print("on the rows it was fitted to:")
    print(found)
    _show_coefficients(fitted)
    print(f"written to {output.printable(out)}")


def _coefficients(fitted: Regression) -> dict[str, Any]:
    """Log odds against the first class by class and feature, in the units of the columns."""
    _, weight, bias = fitted.coefficients()
    names = fitted.model.encoder.feature_names
    by_class = {
        key: {"intercept": float(b), **dict(zip(names, map(float, row)))}
        for key, row, b in zip(fitted.model.keys[1:], weight, bias)
    }
    return {"log_odds_against": fitted.model.classes[0], "of": by_class}


def _show_coefficients(fitted: Regression) -> None:
    classes, weight, bias = fitted.coefficients()
    names = ["(intercept)", *fitted.model.encoder.feature_names]
    rows = [[name, *map(float, values)] for name, values in zip(names, [bias, *weight.T])]
    print(f"\nlog odds against class {output.printable(fitted.model.keys[0])}, in the units of the columns:")
    shown = fitted.model.keys[1:][:MOST_CLASSES]
    output.print_table(["feature", *shown], [row[: 1 + len(shown)] for row in rows[: MOST_FEATURES + 1]])
    if len(rows) > MOST_FEATURES + 1 or len(classes) > MOST_CLASSES:
        print(f"… {len(rows) - 1} features and {len(classes)} classes in all: see metrics.json")
