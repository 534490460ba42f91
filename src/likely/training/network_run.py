"""A whole distillation of networks: data and networks by name, the parts, the tuning, the comparison, what is written.

Legend: E examples.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from likely._checks import require
from likely._files import new_folder, refuse_folder
from likely.data.examples import IGNORED, Examples
from likely.data.texts import Tokens, load_tokenizer
from likely.networks import Network
from likely.teachers.manifest import MANIFEST
from likely.teachers.record import Record
from likely.training import checkpoints
from likely.training.goal import Goal
from likely.training.loop import FREE, Trained, train
from likely.training.parts import RecordPart, split
from likely.training.settings import Run, Settings, difference, read_yaml

if TYPE_CHECKING:
    from likely.training.comparison import Comparison

TEACHER, STUDENT, BASELINE = "teacher", "student", "labels only"
Write = Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Distilled:
    """What `distil` gives: `metrics` as they stand in `metrics.json`; `no_report` says why there is none."""

    metrics: dict[str, Any]
    comparison: Comparison
    no_report: str | None


@dataclass(frozen=True, eq=False)
class Tuned:
    """The network of the settings that did best, how it was trained, and what every candidate came to."""

    network: Network
    trained: Trained
    settings: Settings
    candidates: list[dict[str, Any]]

    @property
    def at_the_edge(self) -> bool:
        """Whether its learning rate is the least or the greatest of several, so that another could do better."""
        rates = {one["learning_rate"] for one in self.candidates}
        return len(rates) > 1 and self.settings.learning_rate in (min(rates), max(rates))


def distil(
    run: Run,
    *,
    overwrite: bool = False,
    stamp: dict[str, Any] | None = None,
    write_metrics: Write | None = None,
    progress: bool = True,
) -> Distilled:
    """Distil a teacher into a student, tune a student of the labels alone by as much, and compare all three.

    The documents are divided at random into a part to train on, one to choose settings by and one to measure on.  Every
    setting of the grid is tried for the student and for the baseline alike, and each is chosen by its own loss on the
    validation part.  A run that was interrupted goes on where it was when the same call is made again.

    Args:
        overwrite: replace a run that `likely` wrote before.
        stamp, write_metrics: what the command line puts first in `metrics.json`, and what writes that file.

    Returns: Distilled.

    Raises:
        FileExistsError: a student that would be overwritten, or a folder that holds something else.
        ValueError: what does not fit together, or another run in the folder; the difference is named.
    """
    out = Path(run.out)
    begin = _refuse(out, run, overwrite)
    examples, teacher = load(run)
    held_out, chosen_by, learnt = split(examples.groups, (run.test_share, run.validation_share), run.seed)
    parts = {"train": learnt, "validation": chosen_by, "test": held_out}
    data = {name: examples.subset(indices) for name, indices in parts.items()}
    teachers: dict[str, Any] = {
        name: RecordPart(teacher, examples, indices) if isinstance(teacher, Record) else teacher
        for name, indices in parts.items()
    }
    # What cannot be made, or does not fit together, is refused before anything is written.
    Goal(make_student(run, examples), data["train"], run.training(), teachers["train"])
    if begin:
        _begin(out, run)
    kinds = {STUDENT: run.grid()}
    if run.baseline and run.soft_weight > 0 and has_labels(data["train"]):
        kinds[BASELINE] = [replace(one, hard_weight=1.0, soft_weight=0.0) for one in run.grid()]
    tuned = {
        kind: tune(
            kind,
            lambda: make_student(run, examples),
            data["train"],
            grid,
            out / "runs",
            teacher=teachers["train"],
            validation=data["validation"],
            validation_teacher=teachers["validation"],
            progress=progress,
        )
        for kind, grid in kinds.items()
    }
    return _finish(run, out, tuned, data, teachers, stamp or {}, write_metrics)


def load(run: Run) -> tuple[Examples, Network | Record | None]:
    """The examples and the teacher of a run, the teacher on the run's device.

    Raises: ValueError, FileNotFoundError from what is read.
    """
    from likely.data.loading import load_examples
    from likely.networks.load import load_network

    tokenizer = _tokenizer(run)

    def read(classes: tuple[str, ...] | int | None) -> Examples:
        return load_examples(
            run.data,
            kind=run.kind,
            text=run.text,
            label=run.target,
            group=run.group,
            tokenizer=tokenizer,
            max_length=run.max_length,
            classes=classes if isinstance(classes, tuple) else None,
            limit=run.limit,
        )

    if run.teacher is None:
        return read(None), None
    if (Path(run.teacher) / MANIFEST).is_file():
        record = Record.open(run.teacher)
        return read(record.manifest.classes), record
    examples = read(None)
    teacher = load_network(run.teacher, examples=examples, truncate=run.truncate)
    if isinstance(teacher.classes, tuple) and examples.classes not in (None, teacher.classes):
        examples = read(teacher.classes)  # the labels that occur are some of the teacher's classes
    if teacher.module is not None:
        teacher.module.to(device_of(run))
    return examples, teacher


def _tokenizer(run: Run) -> str | None:
    """What the texts of a language model are read with."""
    from likely.networks.pretrained import own_tokenizer

    return run.tokenizer or own_tokenizer(run.teacher, run.student)


def _decoder(run: Run, examples: Examples) -> Callable[[Sequence[int]], str] | None:
    """What makes texts of a language model's tokens; None where its tokenizer is not known, and of all else."""
    name = _tokenizer(run) if isinstance(examples, Tokens) else None
    return None if name is None else load_tokenizer(name).decode


def make_student(run: Run, examples: Examples) -> Network:
    """The student before its first step; equal settings make an equal one."""
    from likely.networks.load import load_network

    student = load_network(run.student, examples=examples, trainable=True, seed=run.seed, truncate=run.truncate)
    require(student.module is not None, f"student: {run.student} cannot be trained")
    assert student.module is not None
    student.module.to(device_of(run))
    return student


def device_of(run: Run) -> torch.device:
    """The device that was asked for, or a GPU where there is one."""
    return torch.device(run.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def has_labels(examples: Examples, at_once: int = 256) -> bool:
    """Whether any row has a label."""
    for start in range(0, len(examples), at_once):
        if bool((examples.batch(range(start, min(start + at_once, len(examples)))).labels != IGNORED).any()):
            return True
    return False


# ------------------------------------------------------------------------------------------------------- the tuning


def tune(
    name: str,
    make: Callable[[], Network],
    examples: Examples,
    grid: Sequence[Settings],
    out: Path,
    *,
    teacher: Network | Record | None = None,
    validation: Examples | None = None,
    validation_teacher: Network | Record | None = None,
    progress: bool = True,
) -> Tuned:
    """Train a student with each of some settings, and give the one whose own loss on the validation part is least.

    A call that was interrupted goes on where it was when it is made again.

    Args:
        name: of the student, in what is shown and in the names of its runs' folders.
        make: the student before its first step, the same each time.
        examples: what it is trained on.
        grid: the settings; a single one needs no validation part.
        out: the folder of the runs.
        teacher: of the examples.
        validation, validation_teacher: what the settings are chosen by, and its teacher.
        progress: whether it is shown.

    Raises:
        ValueError: no settings, or several with nothing to choose them by; what does not fit together.
    """
    require(len(grid) > 0, "grid: holds no settings")
    require(
        len(grid) == 1 or validation is not None, f"validation: is missing, and {len(grid)} settings to choose from"
    )
    found: list[tuple[float, Trained]] = []
    for number, settings in enumerate(grid, 1):
        if progress:
            rate, decay = settings.learning_rate, settings.weight_decay
            words = f"{name}, {number} of {len(grid)}: learning rate {rate:g}, weight decay {decay:g}"
            print(words, file=sys.stderr)
        trained = train(
            make(),
            examples,
            settings,
            teacher=teacher,
            validation=validation,
            validation_teacher=validation_teacher,
            out=out / _name(name, settings),
            progress=progress,
        )
        found.append((loss_on(trained.validation, settings), trained))
    best = min(range(len(grid)), key=lambda i: found[i][0])
    network = make()
    assert network.module is not None
    last = checkpoints.newest(found[best][1].out / "checkpoints")
    assert last is not None
    checkpoints.load(last, network.module)
    candidates = [
        {
            "learning_rate": s.learning_rate,
            "weight_decay": s.weight_decay,
            "validation_loss": loss,
            **trained.validation,
        }
        for s, (loss, trained) in zip(grid, found)
    ]
    return Tuned(network, found[best][1], grid[best], candidates)


def loss_on(validation: dict[str, float], settings: Settings) -> float:
    """The loss that the settings minimise, on the validation part; with a `beta` the cross-entropy stands for it.

    >>> loss_on({"hard_cross_entropy": 1.0, "soft_cross_entropy": 2.0}, Settings(temperature=2))
    4.5
    """
    hard, soft = (validation.get(f"{name}_cross_entropy", 0.0) for name in ("hard", "soft"))
    return settings.hard_weight * hard + settings.soft_weight * settings.temperature**2 * soft


def curve(trained: Trained) -> dict[str, list[float]]:
    """The validation part over the run: to the teacher where its entropy is known, else to the labels, whose is 0.

    Returns: "step", "cross_entropy" and "entropy", lists of one length.
    """
    looks = [{"step": line["step"], **line["validation"]} for line in trained.metrics() if "validation" in line]
    soft = all("soft_entropy" in look for look in looks)
    return {
        "step": [look["step"] for look in looks],
        "cross_entropy": [look["soft_cross_entropy" if soft else "hard_cross_entropy"] for look in looks],
        "entropy": [look["soft_entropy"] if soft else 0.0 for look in looks],
    }


def _name(name: str, settings: Settings) -> str:
    return f"{re.sub('[^A-Za-z0-9+.-]', '-', name)}-lr{settings.learning_rate:.6g}-wd{settings.weight_decay:.6g}"


# -------------------------------------------------------------------------------------------------- what is written


def _refuse(out: Path, run: Run, overwrite: bool) -> bool:
    """Refuse what would be overwritten, before anything is computed; whether a run is to begin."""
    if overwrite:
        refuse_folder(out, overwrite)
        return True
    place = out / STUDENT
    require(
        not place.exists(),
        f"{place} exists already; choose another folder (--out) or ask for it to be overwritten (--overwrite)",
        FileExistsError,
    )
    if not (out / "settings.yaml").is_file():
        refuse_folder(out)
        return True
    own, theirs = run.to_dict(), read_yaml(out / "settings.yaml")
    changed = difference(*({name: value for name, value in one.items() if name not in FREE} for one in (own, theirs)))
    require(changed is None, f"{out} holds another run: {changed}; go on with its settings, or choose another folder")
    return False


def _begin(out: Path, run: Run) -> None:
    with new_folder(out, overwrite=True) as folder:
        run.write(folder / "settings.yaml")


def _finish(
    run: Run,
    out: Path,
    tuned: dict[str, Tuned],
    data: dict[str, Examples],
    teachers: dict[str, Any],
    stamp: dict[str, Any],
    write_metrics: Write | None,
) -> Distilled:
    """Measure on the test part, and write everything; the student comes last, so that it means a run that is done."""
    from likely.training.comparison import compare
    from likely.training.measure import measure
    from likely.training.network_report import report, words

    teacher = teachers["test"]
    recorded = teacher.manifest if isinstance(teacher, Record) else None
    networks = {name: one.network for name, one in tuned.items()}
    if teacher is not None and recorded is None:
        networks = {TEACHER: teacher, **networks}
    measured = {
        name: measure(
            network,
            data["test"],
            teacher=teacher,
            batch_size=run.micro_batch or run.batch_size,
            temperature=recorded.temperature if recorded is not None else 1.0,
        )
        for name, network in networks.items()
    }
    comparison = compare(measured, reference=next(name for name in (BASELINE, TEACHER, STUDENT) if name in measured))
    metrics = {
        **stamp,
        "settings": run.to_dict(),
        "formula": tuned[STUDENT].trained.formula,
        "examples": {name: len(part) for name, part in data.items()},
        "documents": {name: len(set(part.groups.tolist())) for name, part in data.items()},
        "steps": tuned[STUDENT].trained.steps,
        "chosen": {
            name: {
                "learning_rate": one.settings.learning_rate,
                "weight_decay": one.settings.weight_decay,
                "at_the_edge": one.at_the_edge,
            }
            for name, one in tuned.items()
        },
        "tried": {name: one.candidates for name, one in tuned.items()},
        **comparison.to_dict(),
    }
    no_report = None
    try:
        curves = {name: curve(one.trained) for name, one in tuned.items()}
        about = {"formula": metrics["formula"], "steps": metrics["steps"], **run.to_dict()}
        about |= {f"documents to {name}": number for name, number in metrics["documents"].items()}
        for name, one in tuned.items():
            about[f"{name}: learning rate, weight decay"] = (
                f"{one.settings.learning_rate:g}, {one.settings.weight_decay:g}"
            )
        page = report(comparison, curves, about=about, **words(data["test"], _decoder(run, data["test"])))
    except ImportError as error:
        no_report = str(error)
    else:
        page.write(out / "report.html", overwrite=True)
    if write_metrics is not None:
        write_metrics(out, metrics)
    for name in [*tuned][::-1]:
        with new_folder(out / name.replace(" ", "-"), overwrite=True) as folder:
            tuned[name].network.save(folder)
    for place in (out / "runs").glob("*/checkpoints"):
        shutil.rmtree(place, ignore_errors=True)
    return Distilled(metrics, comparison, no_report)
