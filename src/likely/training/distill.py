"""`likely distill`: the experiment on a table, its tables of results, and what it writes.

Legend: S splits, R rows of the table, m held-out rows of a split, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from likely._checks import require
from likely._files import new_folder, refuse_folder
from likely.data import (
    Encoder,
    distributions,
    read_probabilities,
    read_table,
    read_target,
    select_columns,
    write_table,
)
from likely.evaluation import Report, Surprise, paired_difference
from likely.measures import Estimate
from likely.training.experiment import (
    TUNED,
    Kind,
    Plan,
    Results,
    experiment,
    make_splits,
    measure,
)
from likely.training.model import Model

FORMULA = "loss = T² · mean CE(p_T, softmax(z/T)) + λ/2 · ‖weights‖², with p the labels or the teacher; CE = H(p) + KL"
PERCENT = ("error", "agreement", "calibration_error")
COLUMNS = {
    "error": "error %",
    "nll": "NLL",
    "cross_entropy": "CE to teacher",
    "entropy": "= entropy",
    "kl": "+ KL",
    "agreement": "agreement %",
    "calibration_error": "calibration error %",
}


@dataclass(eq=False)
class Outcome:
    """The results and every number that is reported of them; `rows` and `full` have one entry per student."""

    results: Results
    overlap: float | None
    rows: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    full: dict[str, dict[str, Estimate]]
    full_difference: dict[str, Estimate]
    recall: dict[str, Estimate]


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

    A matrix without negative entries whose rows sum to one holds probabilities; one with a negative entry or an entry
    above one holds logits; anything between is refused.

    Raises: ValueError where the rows or the classes do not match, or the matrix is neither.
    """
    if Path(wanted).suffix in (".npy", ".npz"):
        found = np.load(wanted, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            require(len(found.files) == 1, f"teacher: {wanted} holds {len(found.files)} arrays; give a file with one")
            found = found[found.files[0]]
        require(
            found.shape == (table.num_rows, len(classes)),
            f"teacher: {wanted} has shape {found.shape}; the table has {table.num_rows} rows, {len(classes)} classes",
        )
        value_RC = found.astype(np.float64)
        require(bool(np.isfinite(value_RC).all()), f"teacher: {wanted} holds NaN or infinite values")
        if (value_RC < 0).any() or (value_RC > 1 + 1e-4).any():
            return torch.from_numpy(value_RC)
        p_RC = distributions(value_RC, f"teacher {wanted}")
    else:
        p_RC, _ = read_probabilities(table, wanted, classes, "teacher")
    return torch.from_numpy(p_RC).log()


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
        table = read_table(data) if isinstance(data, str | os.PathLike) else data
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

    encoders: list[Encoder] = []

    def encode(train: np.ndarray) -> np.ndarray:
        encoders.append(
            Encoder.fit(
                table.take(pa.array(train)), names, categorical=categorical, impute=impute, standardise=not default
            )
        )
        return encoders[-1].transform(table)

    y_R = torch.from_numpy(wanted.index_N)
    splits, overlap = make_splits(wanted.index_N, encode, plan)
    with _progress(progress) as stage:
        results = experiment(
            splits, y_R, len(wanted.classes), plan, teacher_RC=teacher_RC, left_out=left_out, stage=stage
        )
    outcome = summarise(results, overlap)
    described = {
        "data": "scikit-learn's handwritten digits" if default else str(data),
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


def summarise(results: Results, overlap: float | None) -> Outcome:
    """Every number that is reported, as means over the splits with their standard errors."""
    y = [results.y_R[split.test] for split in results.splits]
    teachers = [teacher_RC[split.test] for teacher_RC, split in zip(results.teacher_RC, results.splits)]

    def of(held_out: Sequence[Tensor]) -> dict[str, np.ndarray]:
        each = [measure(z_mC, y_m, t_mC) for z_mC, y_m, t_mC in zip(held_out, y, teachers)]
        return {name: np.array([one[name] for one in each]) for name in each[0]}

    def mean(value_S: np.ndarray) -> Estimate:
        return paired_difference(value_S, np.zeros_like(value_S), test_train_ratio=overlap)

    def means(values: dict[str, np.ndarray]) -> dict[str, Estimate]:
        return {name: mean(value_S) for name, value_S in values.items()}

    def against(values: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> dict[str, Estimate]:
        return {
            name: paired_difference(values[name], base[name], test_train_ratio=overlap) for name in ("error", "nll")
        }

    kinds = {name: of(kind.held_out) for name, kind in results.kinds.items()}
    full = {name: of(kind.held_out) for name, kind in results.full.items()}
    hard, soft = full.values()
    recall = {}
    for name, kind in results.without.items():
        right = [
            float((z_mC.argmax(1)[y_m == results.left_out] == torch.tensor(results.left_out)).double().mean())
            for z_mC, y_m in zip(kind.held_out, y)
        ]
        recall[name] = mean(np.array(right))
    return Outcome(
        results,
        overlap,
        {"the teacher": means(of(teachers)), **{name: means(values) for name, values in kinds.items()}},
        {name: against(values, kinds[TUNED]) for name, values in kinds.items() if name != TUNED},
        {name: means(values) for name, values in full.items()},
        against(soft, hard),
        recall,
    )


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON has it: fractions and nats, each with its standard error and interval."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {name: getattr(value, name) for name in ("mean", "standard_error", "low", "high", "n")}
        return {name: plain(inner) for name, inner in value.items()}

    results = outcome.results
    return {
        "splits_overlap": outcome.overlap,
        "students": plain(outcome.rows),
        "difference_to_tuned_hard_labels": plain(outcome.differences),
        "all_labels": plain(outcome.full),
        "all_labels_difference": plain(outcome.full_difference),
        "recall_of_the_class_left_out": plain(outcome.recall),
        "penalty": {name: kind.penalty for name, kind in results.kinds.items()},
        "converged": {name: float(kind.trained.converged.double().mean()) for name, kind in results.kinds.items()},
        "curves": {name: kind.curve for name, kind in results.kinds.items()},
    }


def verdict(difference: Estimate) -> str:
    """What an interval says of a difference in a loss or an error.

    >>> verdict(Estimate(-0.1, 0.01, -0.12, -0.08, 8, 0.95))
    'better'
    """
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "no established difference"


def table_rows(rows: dict[str, dict[str, Estimate]]) -> list[list[str]]:
    """The students' rows as text: percent and nats ± standard error."""
    return [[name, *(_cell(values[key], key in PERCENT) for key in COLUMNS)] for name, values in rows.items()]


def difference_rows(differences: dict[str, dict[str, Estimate]]) -> list[list[str]]:
    """The paired differences as text, with their intervals and what they say."""
    return [
        [name, _interval(of["error"], True), verdict(of["error"]), _interval(of["nll"], False), verdict(of["nll"])]
        for name, of in differences.items()
    ]


def recall_rows(outcome: Outcome) -> list[list[str]]:
    """The recall of the class left out, as text in percent."""
    return [[name, _cell(value, True)] for name, value in outcome.recall.items()]


DIFFERENCE_COLUMNS = ["student", "Δ error, points [95 %]", "error", "Δ NLL, nats [95 %]", "NLL"]


def _cell(value: Estimate, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    return f"{scale * value.mean:.{digits}f} ± {scale * value.standard_error:.{digits}f}"


def _interval(value: Estimate, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    mean, low, high = (scale * x for x in (value.mean, value.low, value.high))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


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
    columns[target] = table[target].take(pa.array(rows_R))
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
    report.text("What was done", [SETTING.format(**described["plan"]), f"In force: {FORMULA}."])
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
        "Cross-entropy to the teacher; its floor is the teacher's entropy, the gap between them the KL divergence.",
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
    "{labelled} rows; only the targets differ. The builtin teacher is a bag of {members} such networks trained on the "
    "labels of all training rows. Students of the teacher see its probabilities for the {labelled} rows and no label."
)
SPLITS = (
    "CE to the teacher = the teacher's entropy, which is the floor, + KL, in nats. "
    "± is one standard error over the splits."
)


def full_sentence(outcome: Outcome) -> str:
    """What the teacher adds where every label is known."""
    error, loss = outcome.full_difference["error"], outcome.full_difference["nll"]
    return (
        f"With every label known, the teacher changes the error by {_interval(error, True)} points "
        f"({verdict(error)}) and the NLL by {_interval(loss, False)} nats ({verdict(loss)})."
    )


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
