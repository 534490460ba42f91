"""Logistic and softmax regression: the time of a whole fit from zero to a given suboptimality, and its memory.

The contestants are those of `fits/contestants.py`, the problems those of `fits/problems.py`, each also with targets
that are probabilities.  `--growth` fits along n, D and K instead.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Interval, ratio
from benchmarks.fits import problems
from benchmarks.fits.contestants import ALL, OURS
from benchmarks.fits.trial import ACCURACIES, Outcome, Trial, run
from benchmarks.report import machine
from benchmarks.running import some_of, wide_console

MIB = 2**20
FAST = ["likely", "sklearn lbfgs", "sklearn newton-cholesky", "sklearn newton-cg"]
PACKAGES = ("scikit-learn", "statsmodels", "glum", "snapml", "skglm", "adelie")


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(prog="python -m benchmarks estimators", description=(__doc__ or "").split("\n\n")[0])
    new.add_argument("--only", action="append", help="problems whose name contains this; may be given again")
    new.add_argument("--contestants", type=some_of(list(ALL)), help="names with commas between them")
    new.add_argument("--target", choices=["labels", "probabilities"], help="only these targets")
    new.add_argument("--rounds", type=int, default=3)
    new.add_argument("--limit", type=float, default=60.0, help="seconds that one fit may take")
    new.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of linear algebra, for every contestant")
    new.add_argument("--growth", action="store_true", help="how time grows with n, D and K, instead of the problems")
    new.add_argument("--python", action="append", default=[], metavar="CONTESTANT=PATH", help="another interpreter")
    new.add_argument("--out", type=Path, default=Path("benchmark-results"), help="the folder for JSON")
    new.add_argument("--quick", action="store_true", help="small sizes: does it work, not how fast it is")
    return new


def chosen(options: argparse.Namespace) -> list[problems.Spec]:
    if options.growth:
        specs = [spec for along in problems.growth(options.quick).values() for spec in along]
    else:
        specs = problems.QUICK if options.quick else problems.FULL
    if options.only:
        specs = [spec for spec in specs if any(word in spec.label for word in options.only)]
    if options.target:
        specs = [spec for spec in specs if spec.soft == (options.target == "probabilities")]
    return specs


def best_peer(trials: Sequence[Trial], accuracy: float, by: str = "seconds") -> Trial | None:
    """The fastest of the others that reached it."""
    peers = [t for t in trials if t.contestant != OURS and accuracy in t.reached and t.reached[accuracy].seconds]
    return min(peers, key=lambda t: float(np.median(getattr(t.reached[accuracy], by))), default=None)


def against(mine: Trial, peer: Trial, accuracy: float, by: str = "seconds") -> Interval:
    """Their time over ours within a round, the median with its interval."""
    theirs, ours = getattr(peer.reached[accuracy], by), getattr(mine.reached[accuracy], by)
    rounds = min(len(theirs), len(ours))
    return ratio(theirs[:rounds], ours[:rounds])


def comparison(outcome: Outcome) -> dict[str, Any]:
    """Best peer's time over ours, by the wall and by the processors, to each accuracy; memory against scikit-learn."""
    mine = next((t for t in outcome.trials if t.contestant == OURS), None)
    found: dict[str, Any] = {}
    if mine is None:
        return found
    for accuracy in ACCURACIES:
        if accuracy not in mine.reached or not mine.reached[accuracy].seconds:
            continue
        for by in ("seconds", "cpu"):
            peer = best_peer(outcome.trials, accuracy, by)
            if peer:
                name = f"{accuracy:.0e} {'wall' if by == 'seconds' else 'cpu'}"
                found[name] = {"contestant": peer.contestant, **asdict(against(mine, peer, accuracy, by))}
    theirs = [t.scratch for t in outcome.trials if t.contestant.startswith("sklearn") and t.reached]
    if theirs and mine.reached:
        found["memory of the leanest sklearn's"] = mine.scratch / max(1, min(theirs))
    return found


def number(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    low, high = min(seconds), max(seconds)
    return f"{np.median(seconds):.3g} [{low:.3g}–{high:.3g}]"


def print_outcome(outcome: Outcome, console: Console) -> None:
    sure = "" if outcome.gap is None else f", certified to {outcome.gap:.1e} nats"
    title = f"{outcome.spec.label}, {outcome.threads} thread(s): f* = {outcome.best:.12g}{sure}"
    table = Table(title=title, title_justify="left")
    for column in ("contestant", *(f"{what} to {a:.0e}" for a in ACCURACIES for what in ("wall s", "CPU s"))):
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    table.add_column("peak above data, MiB", justify="right")
    table.add_column("note")
    for trial in (one for one in outcome.trials if not one.not_run):
        cells = []
        for accuracy in ACCURACIES:
            timing = trial.reached.get(accuracy)
            cells += [number(timing.seconds), number(timing.cpu)] if timing else ["–", "–"]
        note = trial.note if len(trial.reached) < len(ACCURACIES) else ""
        memory = f"{'' if trial.scratch_exact else '≤ '}{trial.scratch / MIB:.1f}"
        table.add_row(trial.contestant, *cells, memory, note)
    console.print(table)
    for trial in (one for one in outcome.trials if one.not_run):
        console.print(f"  not run: {trial.contestant}: {trial.not_run}", highlight=False, soft_wrap=True)
    for name, one in comparison(outcome).items():
        if isinstance(one, dict):
            text = f"{one['median']:.2f} [{one['low']:.2f}–{one['high']:.2f}] × against {one['contestant']}"
        else:
            text = f"{one:.2f}"
        console.print(f"  {name}: {text}", highlight=False)


def print_growth(outcomes: Sequence[Outcome], quick: bool, console: Console) -> None:
    """Seconds along each size, and the exponent of a power of it."""
    by_name = {outcome.spec.name: outcome for outcome in outcomes}
    for size, specs in problems.growth(quick).items():
        found = [by_name[spec.name] for spec in specs if spec.name in by_name]
        if len(found) < 2:
            continue
        table = Table(title=f"CPU seconds to {ACCURACIES[0]:.0e} as {size} grows", title_justify="left")
        for column in ("contestant", *(f"{getattr(o.spec, size):,}" for o in found), f"power of {size}"):
            table.add_column(column, justify="left" if column == "contestant" else "right")
        for name in dict.fromkeys(trial.contestant for outcome in found for trial in outcome.trials):
            times = [_median(outcome, name) for outcome in found]
            points = [(math.log(getattr(o.spec, size)), math.log(t)) for o, t in zip(found, times) if t]
            power = f"{slope(points):.2f}" if len(points) > 1 else "–"
            table.add_row(name, *("–" if t is None else f"{t:.3g}" for t in times), power)
        console.print(table)


def slope(points: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def _median(outcome: Outcome, name: str) -> float | None:
    timing = next((t.reached.get(ACCURACIES[0]) for t in outcome.trials if t.contestant == name), None)
    return float(np.median(timing.cpu)) if timing and timing.cpu else None


def write(outcomes: Sequence[Outcome], absent: dict[str, str], options: argparse.Namespace) -> Path:
    from importlib.metadata import PackageNotFoundError, version

    def version_of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / ("estimators-growth.json" if options.growth else "estimators.json")
    found = {
        "benchmark": "estimators",
        "machine": machine(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "rounds": options.rounds,
        "limit": options.limit,
        "problems": [{**outcome.json(), "comparison": comparison(outcome)} for outcome in outcomes],
        "not made": absent,
    }
    path.write_text(json.dumps(found, indent=1))
    return path


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    console, status = wide_console(), Console(file=sys.stderr)
    names = options.contestants or (FAST if options.growth else list(ALL))
    pythons = dict(one.split("=", 1) for one in options.python)
    outcomes: list[Outcome] = []
    absent: dict[str, str] = {}
    path = None
    for spec in chosen(options):
        with status.status(spec.label) as line:
            how = {"threads": options.threads, "rounds": options.rounds, "limit": options.limit, "pythons": pythons}
            outcome = run(spec, names, **how, say=line.update)
        if isinstance(outcome, str):
            absent[spec.label] = outcome
            console.print(f"{spec.label}: not made: {outcome}", highlight=False)
            continue
        outcomes.append(outcome)
        print_outcome(outcome, console)
        path = write(outcomes, absent, options)
    if options.growth:
        print_growth(outcomes, options.quick, console)
    console.print(f"written: {path}" if path else "no problem is called that", highlight=False, soft_wrap=True)
    return 0 if outcomes else 2
