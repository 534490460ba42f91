"""`likely fit`: logistic or softmax regression by maximum likelihood."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.output import Categorical, Data, Features, Impute, Json, Overwrite, Seed

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from likely.estimators import Summary
    from likely.evaluation import Evaluation, Report
    from likely.training.linear import Regression

MOST_COEFFICIENTS, MOST_FEATURES, MOST_CLASSES, MOST_TOLD = 60, 10, 6, 5
ALONE = "class frequencies"


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
    penalty_strength: Annotated[
        float,
        typer.Option(
            "--penalty-strength",
            "--penalty",
            min=0,
            help="λ: adds λ/2 times the sum of squared coefficients to the mean cross-entropy.",
        ),
    ] = 0.0,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1, help="Mix labels with the uniform distribution.")] = 0,
    class_weight: Annotated[
        str | None, typer.Option(metavar="balanced|CLASS=W,…", help="Weights of the classes; those not named have 1.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="A column with the weights of the rows.")] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="frequency|sampling",
            help="What they are: so many rows alike, or inverse probabilities of being in the sample.",
        ),
    ] = "frequency",
    groups: Annotated[
        str | None, typer.Option(help="A column that says which rows belong together; standard errors are clustered.")
    ] = None,
    covariance: Annotated[
        str | None,
        typer.Option(
            metavar="fisher|sandwich|none",
            help="What standard errors come from. By default fisher for labels, else sandwich.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The class that coefficients are log odds against; by default the first.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="The level of the intervals of the coefficients.")] = 0.95,
    solver: Annotated[
        str, typer.Option(metavar="auto|newton-cholesky|newton-cg|lbfgs", help="By default the data's shape decides.")
    ] = "auto",
    tol: Annotated[
        float, typer.Option(min=0, help="How far the objective may be from its minimum, in nats, certified.")
    ] = 1e-8,
    max_iter: Annotated[int, typer.Option(min=1, help="The most iterations of the solver.")] = 500,
    report: Annotated[
        Path | None, typer.Option(help="A file for the report, instead of report.html in the folder.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a logistic or softmax regression by maximum likelihood.

    Two classes make it logistic, more make it softmax. The target is a column of labels, or a set of columns with
    the probability of each class, named by a glob: what its star stands for is the class. The fit minimises the
    mean cross-entropy = entropy + KL, in nats, and certifies how far it is from the minimum. Of a category the
    first level is the reference, and so is the first class unless another is named. The status is 1, and nothing is
    written, where the fit has not converged or some features tell the classes apart without an error, so that no
    maximum likelihood estimate exists; a penalty mends both.

    \b
    Example:
      likely fit train.csv --target grade --out model
      likely predict model test.csv --out predictions.csv
      likely evaluate predictions.csv
    """
    from likely._files import new_folder, refuse_folder
    from likely.data import read_table
    from likely.evaluation import evaluate
    from likely.training.linear import regress

    refuse_folder(out, overwrite)
    output.refuse_inputs_inside(out, data)
    _refuse_report(report, out, data, overwrite)
    settings: dict[str, Any] = {"features": features, "exclude": exclude, "categorical": categorical, "impute": impute}
    settings |= {"standardise": standardise, "penalty_strength": penalty_strength, "label_smoothing": label_smoothing}
    settings |= {"class_weight": _class_weight(class_weight), "weight": weight, "weights": weights, "groups": groups}
    settings |= {"covariance": covariance, "solver": solver, "tol": tol, "max_iter": max_iter}
    table = read_table(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        fitted = regress(table, target, **settings, random_state=seed, verbose=int(sys.stderr.isatty()))
    for warning in caught:
        output.note(f"warning: {warning.message}")
    model = fitted.model
    model.metadata["seed"] = seed
    truth = fitted.target.index_N if fitted.target.p_NC is None else fitted.target.p_NC
    assert truth is not None
    how: dict[str, Any] = {"log_input": True, "weights": fitted.weight_N, "groups": fitted.group_N}
    found = evaluate(model.predict_log_proba(table), truth, **how)
    alone = evaluate(_frequencies(fitted), truth, **how)
    against = model.keys[0] if reference is None else reference
    told, effects = fitted.estimator.summary(against, confidence), _effects(fitted, table, against)
    metrics = output.stamp("fit", data=data, target=target, seed=seed, **settings) | {
        "rows": table.num_rows,
        "class_names": list(model.classes),
        "columns": model.encoder.names,
        "converged": fitted.estimator.converged_,
        "iterations": fitted.estimator.n_iter_,
        "objective": fitted.estimator.loss_,
        "gap": fitted.estimator.gap_,
        "certificate": fitted.estimator.certificate_,
        "kl_lower_bound": fitted.estimator.kl_lower_bound_,
        "warnings": [str(warning.message) for warning in caught],
        "training": found.to_dict(),
        "class_frequencies": alone.to_dict(),
        "coefficients": _coefficients(fitted),
        "summary": told.to_dict(),
    }
    with new_folder(out, overwrite) as folder:
        model.write_into(folder)
        output.write_metrics(folder, metrics)
        level: dict[str, Any] = {"reference": against, "confidence": confidence}
        page = lambda: _report(f"likely fit {data.name}", fitted, table, truth, found, alone, effects[1], level)  # noqa: E731
        if report is None:
            output.write_report(folder, page)
        else:
            page().write(report, overwrite)
    if as_json:
        output.print_json({**metrics, "out": out, "report": out / "report.html" if report is None else report})
        return
    _show_summary(told, standardise)
    print(f"\non the {found.n:,} rows it was fitted to, ± one standard error:")
    output.print_table(["", "this model", f"{ALONE} alone"], _measures(found, alone, text=True))
    _show_effects(fitted, against, *effects)
    print(f"\nwritten to {output.printable(out)}{f' and {output.printable(report)}' if report else ''}")


def _refuse_report(report: Path | None, out: Path, data: Path, overwrite: bool) -> None:
    """Whatever speaks against writing the report, before any work.

    Raises: ValueError, FileExistsError, IsADirectoryError; ImportError without the extra.
    """
    from likely._files import refuse_file

    if report is None:
        return
    if report.resolve() == data.resolve():
        raise ValueError(f"--report: {report} is the table that is read; give another name")
    if out.resolve() in report.resolve().parents:
        raise ValueError(f"--report: {report} lies in {out}, which has a report.html of its own; leave --report out")
    refuse_file(report, overwrite)
    from likely.evaluation import Report

    Report("")  # says what to install where it cannot be made


def _class_weight(text: str | None) -> str | dict[str, float] | None:
    """`balanced`, or `yes=2,no=0.5` as a dict.

    >>> _class_weight("yes=2, no=0.5")
    {'yes': 2.0, 'no': 0.5}
    """
    if text is None or text == "balanced":
        return text
    weights: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = part.strip().rpartition("=")
        try:
            weights[key] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(
                f"class_weight: {part.strip()!r} is no CLASS=WEIGHT; give 'balanced' or, say, 'yes=2,no=1'"
            )
    return weights


def _frequencies(fitted: Regression) -> np.ndarray:
    """(N, C) log-probabilities of the model without features: the shares of the classes."""
    import numpy as np

    target, C = fitted.target, len(fitted.model.classes)
    w_N = np.ones(target.rows) if fitted.weight_N is None else fitted.weight_N
    if target.p_NC is not None:
        mass_C = w_N @ target.p_NC
    else:
        assert target.index_N is not None
        mass_C = np.bincount(target.index_N, weights=w_N, minlength=C)
    with np.errstate(divide="ignore"):  # a class that only smoothing speaks for
        return np.tile(np.log(mass_C / mass_C.sum()), (target.rows, 1))


def _coefficients(fitted: Regression) -> dict[str, Any]:
    """Log odds against the first class by class and feature, in the units of the columns."""
    _, weight, bias = fitted.coefficients()
    names = fitted.model.encoder.feature_names
    by_class = {
        key: {"intercept": float(b), **dict(zip(names, map(float, row)))}
        for key, row, b in zip(fitted.model.keys[1:], weight, bias)
    }
    return {"log_odds_against": fitted.model.classes[0], "of": by_class}


# ------------------------------------------------------------------------------------------------------- the screen


def _show_summary(told: Summary, standardised: bool) -> None:
    """The table that a statistician reads, no wider than the terminal."""
    import textwrap

    width = _width()
    print(told.title)
    print("\n".join(_facts(told.facts(), width)))
    print(f"\n{output.printable(told.contrast)}, in the units of the columns:")
    output.print_table(["", "coef", "std err", "z", "P>|z|", f"{told.confidence:.0%} low", "high"], _rows(told))
    if len(told.coefficients) > MOST_COEFFICIENTS:
        print(f"… and {len(told.coefficients) - MOST_COEFFICIENTS:,} more: see metrics.json")
    notes = list(told.notes)
    if told.penalty and standardised:
        notes.append("The penalty weighs the coefficients of standardised columns, so that all are shrunk alike.")
    for note in notes:
        print(textwrap.fill(f"Note: {output.printable(note)}", min(width, 110), subsequent_indent="  "))


def _width() -> int:
    """Columns of the terminal; a file or a pipe has no width to fold to."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def _facts(facts: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Names and values in two columns where they fit, else in one."""

    def pad(part: Sequence[tuple[str, str]]) -> list[str]:
        name, value = (max(len(pair[i]) for pair in part) for i in (0, 1))
        return [f"{pair[0]:<{name}}  {pair[1]:<{value}}" for pair in part]

    half = -(-len(facts) // 2)
    left, right = pad(facts[:half]), pad(facts[half:])
    right += [""] * (half - len(right))
    both = [f"{a}    {b}".rstrip() for a, b in zip(left, right)]
    return both if max(map(len, both)) <= width else [line.rstrip() for line in pad(facts)]


def _rows(told: Summary) -> list[list[str]]:
    from likely.estimators.summary import _cells

    rows: list[list[str]] = []
    label: Any = None
    for one in told.coefficients[:MOST_COEFFICIENTS]:
        if one.label is not None and one.label != label:
            label = one.label
            rows.append([f"class {label}", *[""] * 6])
        rows.append([one.name, *_cells(one)])
    return rows


def _measures(found: Evaluation, alone: Evaluation, text: bool = False) -> list[list[Any]]:
    """What was measured, of the model and of the frequencies of the classes alone."""

    def cell(value: Any) -> Any:
        return value if not text else f"{value:.2g}" if isinstance(value, float) else str(value)

    return [[name, cell(a), cell(b)] for (name, a), (_, b) in zip(found.rows(), alone.rows())]


def _effects(fitted: Regression, table: pa.Table, against: str) -> tuple[np.ndarray, np.ndarray]:
    """(C − 1, D) log odds against a class for one standard deviation of each feature, and their order."""
    import numpy as np

    _, weight_CD, _ = fitted.coefficients(fitted.model.keys.index(against))
    effect_CD = weight_CD * np.array([np.std(c.to_numpy()) for c in fitted.features(table).columns])
    return effect_CD, np.argsort(-np.abs(effect_CD).max(axis=0), kind="stable")


def _show_effects(fitted: Regression, against: str, effect_CD: np.ndarray, order_D: np.ndarray) -> None:
    """What moves the predictions most, the largest first."""
    import textwrap

    names = fitted.model.encoder.feature_names
    keys = [key for key in fitted.model.keys if key != against][:MOST_CLASSES]
    head = f"largest effects: log odds against {output.printable(against)} for one standard deviation of a feature:"
    print(f"\n{textwrap.fill(head, _width())}")
    rows = [[names[j], *(f"{v:+.3f}" for v in effect_CD[: len(keys), j])] for j in order_D[:MOST_FEATURES]]
    output.print_table(["", *keys], rows)
    more = [f"{len(names)} features"] if len(names) > MOST_FEATURES else []
    more += [f"{len(fitted.model.keys)} classes"] if len(fitted.model.keys) > MOST_CLASSES + 1 else []
    if more:
        print(f"… {' and '.join(more)} in all: see metrics.json")


# ------------------------------------------------------------------------------------------------------- the report


class _Told(Sequence[str]):
    """Words about each row, made when they are asked for: its number and the columns that matter most."""

    def __init__(self, table: pa.Table, names: list[str]) -> None:
        self.table, self.names = table, names

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: Any) -> Any:
        values = [(name, self.table[name][int(row)].as_py()) for name in self.names[:MOST_TOLD]]
        shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values]
        more = ", …" if len(self.names) > MOST_TOLD else ""
        return f"row {row}: {', '.join(shown)}{more}"


def _report(
    title: str,
    fitted: Regression,
    table: pa.Table,
    truth: np.ndarray,
    found: Evaluation,
    alone: Evaluation,
    order_D: np.ndarray,
    level: dict[str, Any],
) -> Report:
    """The report of the estimator, with the measures beside those of the frequencies, and the confusions."""
    from likely.estimators import fit_report

    model = fitted.model
    source = [one.name for one in model.encoder.columns for _ in one.feature_names]
    y = truth if truth.ndim == 2 else fitted.estimator.classes_[truth]
    report = fit_report(
        fitted.estimator,
        fitted.features(table),
        y,
        title=title,
        summary="Measured on the rows that the model was fitted to: rows that it has not seen tell more.",
        sample_weight=fitted.weight_N,
        **level,
        texts=_Told(table, list(dict.fromkeys(source[j] for j in order_D))),
    )
    place = [section["heading"] for section in report.sections].index("Measures")
    note = f"{found.n:,} rows, in nats where they have a unit."
    report.table("Measures", ["measure", "this model", f"{ALONE} alone"], _measures(found, alone), note=note)
    report.sections[place] = report.sections.pop()
    label = truth.argmax(axis=1) if truth.ndim == 2 else truth
    predicted = model.logits(table).argmax(axis=1)
    report.confusion("Confusion", "this model", label, predicted, model.keys)
    report.sections.insert(-1, report.sections.pop())
    for number, section in enumerate(report.sections, 1):
        section["id"] = f"s{number}"
    return report
