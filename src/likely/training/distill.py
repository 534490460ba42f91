"""`likely distill`: the experiment on a table, its tables of results, and what it writes.

Legend: S splits, R rows of the table, m held-out rows of a split, C classes.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from likely._checks import require
from likely._files import new_folder, refuse_folder
from likely.data import (
    CategoricalColumn,
    Encoder,
    as_table,
    distributions,
    read_probabilities,
    read_target,
    select_columns,
    write_table,
)
from likely.data.targets import ROUNDING
from likely.evaluation import Report, Surprise
from likely.networks.model import Model
from likely.training.experiment import (
    TUNED,
    Kind,
    Plan,
    Results,
    experiment,
    make_splits,
)
from likely.training.outcome import (
    COLUMNS,
    DIFFERENCE_COLUMNS,
    FORMULA,
    SPLITS,
    Outcome,
    difference_rows,
    full_sentence,
    recall_rows,
    summarise,
    table_rows,
    to_dict,
)


@dataclass(frozen=True, eq=False)
class Distilled:
    """What `run` gives: `no_report` says why no report was written, where none was."""

    metrics: dict[str, Any]
    outcome: Outcome
    no_report: str | None


def digits() -> tuple[pa.Table, str]:
    """The handwritten digits that ship with scikit-learn, 1,797 images of 8 × 8 from 0 to 1, and their label's name."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    columns = {f"pixel_{j // 8}_{j % 8}": pixels[:, j] / 16 for j in range(64)}
    return pa.table({**columns, "digit": digit}), "digit"


def teacher_logits(wanted: str, table: pa.Table, classes: Sequence[str]) -> Tensor:
    """The logits of a teacher that exists: columns of probabilities, or a file of logits or probabilities.

    A matrix with a negative entry holds logits, log-probabilities among them; one without, whose rows sum to one, holds
    probabilities. Anything else is refused: it could be logits or something that was not normalised.

    Raises: ValueError where the rows or the classes do not match, or the matrix is neither.
    """
    if Path(wanted).suffix not in (".npy", ".npz"):
        p_RC, _ = read_probabilities(table, wanted, classes, "teacher")
        return torch.from_numpy(p_RC).log()
    value_RC = _matrix(wanted)
    require(
        value_RC.shape == (table.num_rows, len(classes)),
        f"teacher: {wanted} has shape {value_RC.shape}; the table has {table.num_rows} rows, {len(classes)} classes",
    )
    # A logit of −∞ makes its class impossible; a row may not hold nothing else.
    wrong_R = np.isnan(value_RC).any(axis=1) | ~np.isfinite(value_RC.max(axis=1))
    require(not wrong_R.any(), f"teacher: {wanted}: row {int(wrong_R.argmax())} holds NaN or infinite values")
    if (value_RC < 0).any():
        return torch.from_numpy(value_RC)
    require(
        bool((value_RC <= 1 + ROUNDING).all()),
        f"teacher: {wanted} could hold logits or unnormalised probabilities, none being negative and some above 1; "
        "subtract its largest value from every logit, or divide every row of probabilities by its sum",
    )
    return torch.from_numpy(distributions(value_RC, f"teacher {wanted}")).log()


def _matrix(path: str) -> np.ndarray:
    """The one array of numbers in a .npy or .npz file, as float64.

    Raises: FileNotFoundError; ValueError for a damaged or foreign file, several arrays, or what is no number.
    """
    try:
        found = np.load(path, allow_pickle=False)
        arrays = [found] if isinstance(found, np.ndarray) else [found[name] for name in found.files]
    except FileNotFoundError:
        raise FileNotFoundError(f"teacher: {path}: no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"teacher: {path} cannot be read as an array of numbers; is it cut short, or foreign?"
        ) from None
    require(len(arrays) == 1, f"teacher: {path} holds {len(arrays)} arrays; give a file with one")
    require(arrays[0].dtype.kind in "fiu", f"teacher: {path} holds {arrays[0].dtype}, not numbers")
    return arrays[0].astype(np.float64)


def run(
    data: Any = None,
    *,
    target: str | None = None,
    teacher: str = "builtin",
    features: str | Sequence[str] | None = None,
    categorical: str | Sequence[str] = (),
    impute: str | None = None,
    leave_out: str | None = None,
    out: str | os.PathLike[str] = "likely-distill",
    overwrite: bool = False,
    progress: bool = True,
    stamp: dict[str, Any] | None = None,
    write_metrics: Callable[[Path, dict[str, Any]], None] | None = None,
    **numbers: Any,
) -> Distilled:
    """Distil a teacher into small students, compare them with students of the labels, and write what came of it.

    Args:
        data: a path or anything that `likely.data.as_table` reads; the handwritten digits where it is None.
        target: the column of labels.
        teacher: columns of probabilities ("p_*"), a .npy or .npz file of logits or probabilities, or "builtin".
        features, categorical, impute: as in `likely.data.Encoder.fit`; by default every column used nowhere
            else. The columns of a table are standardised; pixels are left as they are, alike in scale already.
        leave_out: a class that the students of the last part never see; 3 for the digits.
        out: the folder, which appears whole or not at all.
        stamp, write_metrics: what the command line puts first in `metrics.json`, and what writes that file.
        numbers: of `likely.training.experiment.Plan`.

    Returns: the metrics, as they stand in `metrics.json`, and the outcome that they describe.

    Raises: ValueError for what cannot be used; FileExistsError where the folder exists.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015).
    """
    refuse_folder(out, overwrite)
    plan = Plan(**numbers)
    default = data is None
    if default:
        table, found_target = digits()
        require(target is None, "target: belongs to a table; without one the handwritten digits are used")
        target, leave_out = found_target, leave_out or "3"
    else:
        require(target is not None, "target: is missing; name the column of labels (--target)")
        table = as_table(data)
    assert target is not None
    wanted = read_target(table, target)
    require(wanted.index_N is not None, f"target: {target!r} are columns of probabilities; give one column of labels")
    assert wanted.index_N is not None
    taken = [*wanted.columns]
    teacher_RC = None
    if teacher != "builtin":
        teacher_RC = teacher_logits(teacher, table, wanted.keys)
        if Path(teacher).suffix not in (".npy", ".npz"):
            taken += select_columns(table, teacher, "teacher")
    asked = table.column_names if features is None else select_columns(table, features, "features")
    names = [name for name in asked if name not in taken]
    require(bool(names), "features: no column is left to be one")
    left_out = None
    if leave_out is not None:
        require(leave_out in wanted.keys, f"leave_out: {leave_out!r} is no class; they are {', '.join(wanted.keys)}")
        left_out = list(wanted.keys).index(leave_out)
        rows = int((wanted.index_N == left_out).sum())
        require(
            rows >= plan.splits,
            f"leave_out: {leave_out!r} has {rows} rows, and each of the {plan.splits} splits must hold one out; "
            "leave out a class with more rows, or ask for fewer splits",
        )

    encoders: list[Encoder] = []

    def fitted(rows: pa.Table) -> Encoder:
        return Encoder.fit(rows, names, categorical=categorical, impute=impute, standardise=not default)

    whole = fitted(table)

    def encode(train: np.ndarray) -> np.ndarray:
        # What is computed from values is the training rows'. That a level exists is known of all: the networks of all
        # the splits have the same features.
        own = fitted(table.take(pa.array(train))).columns
        columns = [
            replace(w, fill=o.fill) if isinstance(w, CategoricalColumn) and isinstance(o, CategoricalColumn) else o
            for w, o in zip(whole.columns, own)
        ]
        encoders.append(Encoder(tuple(columns)))
        return encoders[-1].transform(table)

    y_R = torch.from_numpy(wanted.index_N)
    splits, overlap = make_splits(wanted.index_N, encode, plan)
    with _progress(progress) as stage:
        results = experiment(
            splits, y_R, len(wanted.classes), plan, teacher_RC=teacher_RC, left_out=left_out, stage=stage
        )
    outcome = summarise(results, overlap)
    described = {
        "data": _name(data),
        "rows": table.num_rows,
        "target": target,
        "teacher": teacher,
        "class_names": list(wanted.keys),
        "plan": asdict(plan),
        "formula": FORMULA,
        "left_out": leave_out,
    }
    metrics = (stamp or {}) | described | to_dict(outcome)
    best = list(results.kinds)[-1]
    with new_folder(out, overwrite) as folder:
        _write(folder, results, wanted, table, encoders, plan, best, target)
        image = (8, 8) if default else None
        no_report = _report(folder, outcome, described, wanted.keys, table, names, best, image)
        if write_metrics is not None:
            write_metrics(folder, metrics)
    return Distilled(metrics, outcome, no_report)


def _write(
    folder: Path,
    results: Results,
    wanted: Any,
    table: pa.Table,
    encoders: list[Encoder],
    plan: Plan,
    best: str,
    target: str,
) -> None:
    """The models of the first split, the predictions of the last kind of student for every row while held out."""
    students = {"student": results.kinds[best], "student-hard-labels": results.kinds[TUNED]}
    for name, kind in students.items():
        how = {"trained_by": kind.job.name, "target": [target], "split": 0, "seed": plan.seed}
        (folder / name).mkdir()
        Model(encoders[0], f"mlp:{plan.hidden}", kind.networks[0], wanted.classes, how).write_into(folder / name)
    for number, member in enumerate(results.bags[0] if results.bags else []):
        how = {"trained_by": "labels of the training rows", "target": [target], "split": 0, "seed": plan.seed}
        place = folder / f"teacher-{number + 1}"
        place.mkdir()
        Model(encoders[0], f"mlp:{plan.hidden}", member, wanted.classes, how).write_into(place)
    rows_R, p_RC = _held_out(results, results.kinds[best])
    columns: dict[str, Any] = {f"p_{key}": p_RC[:, j] for j, key in enumerate(wanted.keys)}
    columns["prediction"] = pa.array([wanted.classes[j] for j in p_RC.argmax(axis=1)])
    taken = target == "prediction" or target.startswith("p_")
    columns[f"target_{target}" if taken else target] = table[target].take(pa.array(rows_R))
    write_table(folder / "predictions.csv", columns)


def _held_out(results: Results, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """The rows, each held out once, and the probabilities that the student which never saw them gives."""
    rows_R = torch.cat([split.test for split in results.splits]).numpy()
    p_RC = torch.softmax(torch.cat(kind.held_out), dim=1).numpy()
    order = np.argsort(rows_R, kind="stable")
    return rows_R[order], p_RC[order]


def _report(
    folder: Path,
    outcome: Outcome,
    described: dict[str, Any],
    keys: Sequence[str],
    table: pa.Table,
    names: Sequence[str],
    best: str,
    image: tuple[int, int] | None,
) -> str | None:
    """Write `report.html`; the reason where the extra that draws it is not installed."""
    results = outcome.results
    try:
        report = Report(
            "Distillation", f"{described['data']}: {described['rows']:,} rows, {len(results.splits)} splits."
        )
    except ImportError as error:
        return str(error)
    told = BUILTIN if described["teacher"] == "builtin" else GIVEN
    report.text(
        "What was done", [text.format(**described["plan"]) for text in (SETTING, told)] + [f"In force: {FORMULA}."]
    )
    report.table("Held-out rows, at T = 1", ["student", *COLUMNS.values()], table_rows(outcome.rows), SPLITS)
    report.table(
        "Paired differences to hard labels with a tuned penalty",
        DIFFERENCE_COLUMNS,
        difference_rows(outcome.differences),
        "Negative is better. An interval that holds 0 establishes no difference.",
    )
    report.table(
        "With all the labels", ["student", *COLUMNS.values()], table_rows(outcome.full), full_sentence(outcome)
    )
    if outcome.recall:
        report.table(
            f"Class {described['left_out']} left out of the students' rows",
            ["student", "recall of the class, %"],
            recall_rows(outcome),
            "The class stands in no row that the student saw; it is in the held-out rows.",
        )
    report.curves(
        "Learning curves on held-out rows",
        {name: kind.curve for name, kind in results.kinds.items()},
        "Cross-entropy to the teacher at T = 1, mean over the splits; its floor is the teacher's entropy, the gap "
        "between them the KL divergence. A step is an evaluation of the objective; a fit that has arrived ends early.",
    )
    y_R = results.y_R.numpy()
    held = {name: _held_out(results, results.kinds[name]) for name in (TUNED, best)}
    report.reliability("Reliability", {name: (p_RC, y_R[rows]) for name, (rows, p_RC) in held.items()})
    rows_R, p_RC = held[best]
    truth, prediction = y_R[rows_R], p_RC.argmax(axis=1)
    report.confusion("Confusion", best, truth, prediction, keys)
    own = p_RC[np.arange(len(truth)), truth]
    items = []
    for at in np.argsort(own, kind="stable")[:24]:
        row = int(rows_R[at])
        picture = None
        if image is not None:
            picture = np.array([table[name][row].as_py() for name in names], dtype=float).reshape(image)
        with np.errstate(divide="ignore"):
            surprisal = float(-np.log(own[at]))
        items.append(
            Surprise(
                keys[truth[at]],
                keys[prediction[at]],
                float(own[at]),
                surprisal,
                image=picture,
                text=f"row {row}",
                confidence=float(p_RC[at].max()),
            )
        )
    report.surprising("The most surprising rows", items, f"Surprisal of the true label under “{best}”, in nats.")
    report.write(folder / "report.html")
    return None


SETTING = (
    "Every student is a tanh network with {hidden} hidden units, trained from the same random start on the same "
    "{labelled} rows; only the targets differ. Students of the teacher see its probabilities for these rows, no label."
)
BUILTIN = (
    "The teacher is a bag of {members} such networks, trained on the labels of all rows that are not held out. What "
    "its students gain over those of the labels is what it learned from labels that they do not have."
)
GIVEN = "The teacher was given. If held-out rows were among those it learned from, it is too good on them."


def _name(data: Any) -> str:
    """What the data is called."""
    if data is None:
        return "scikit-learn's handwritten digits"
    return str(data) if isinstance(data, str | os.PathLike) else "a table"


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[str, float], Callable[[float], None]]]:
    """A bar with the time left, on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("splits", total=1.0)

        def stage(name: str, share: float) -> Callable[[float], None]:
            bar.update(task, description=name)
            return lambda done: bar.advance(task, done * share)

        yield stage
