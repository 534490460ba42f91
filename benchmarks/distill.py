"""Distilling a causal language model: what a record costs to take, and what a record or a live teacher costs a step.

Student and teacher are made from a configuration, with random weights; time does not depend on what they know.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Interval, quartiles, ratio, shuffled
from benchmarks.learners import CONTESTANTS, KEEPS, RECORDS, Size
from benchmarks.report import machine, write
from benchmarks.rounds import PAUSE, ROOT, Process, environment
from benchmarks.running import some_of, wide_console

MIB = 2**20
SOME = ("forward", "capture samples:12", "labels", "record samples:12", "live", "plain KL")
FULL, QUICK = Size(), Size(vocabulary=500, student=(16, 1), teacher=(24, 1), batch=2, length=32)


@dataclass
class Outcome:
    """What one contestant did: seconds per round, by the wall and of processors, and scratch in bytes."""

    contestant: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    loss: float | None = None
    scratch: int | None = None
    exact: bool = True
    not_run: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure with what is demanded of it: `numerator / Σ denominators` within a round, to be low or high."""

    what: str
    numerator: tuple[str, ...]
    denominators: tuple[str, ...]
    limit: float | None = None
    high: bool = False

    def of(self, outcomes: dict[str, Outcome], by: str = "seconds") -> Interval | None:
        both = [*self.numerator, *self.denominators]
        if any(name not in outcomes or not outcomes[name].seconds for name in both):
            return None
        above, below = (
            np.sum([getattr(outcomes[name], by) for name in names], axis=0)
            for names in (self.numerator, self.denominators)
        )
        return ratio(above, below)

    def reached(self, found: Interval) -> bool | None:
        if self.limit is None:
            return None
        return found.median >= self.limit if self.high else found.median <= self.limit


FIGURES = [
    *(Figure(f"capture {k}: of forward throughput", ("forward",), (f"capture {k}",), 0.90, True) for k in KEEPS),
    *(Figure(f"step from {k}: over labels", (f"record {k}",), ("labels",), 1.10) for k in RECORDS),
    Figure("step with a live teacher: over its forward and a step on labels", ("live",), ("forward", "labels"), 1.15),
    Figure("step with both: over its forward and a step on labels", ("live and labels",), ("forward", "labels"), 1.15),
    *(
        Figure(f"{name}: over ours", (name,), (ours,))
        for name, ours in (
            ("transformers labels", "labels"),
            ("plain KL", "live"),
            ("TRL whole logits", "live"),
            ("TRL chunked", "live"),
            ("Liger", "live"),
        )
    ),
]


class Worker(Process):
    """A contestant in a process of its own, see `learners`."""

    def __init__(self, name: str, size: Size, threads: int, log: Any) -> None:
        spec = json.dumps({"contestant": name, "size": asdict(size), "threads": threads})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.learners", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=environment(threads, "default"),
        )


def measure(names: Sequence[str], size: Size, threads: int, rounds: int, say: Any) -> dict[str, Outcome]:
    """Every contestant's runs, one each in turn, in an order drawn anew; one that fails says why."""
    outcomes = {name: Outcome(name) for name in names}
    with open(os.devnull, "w") as log, ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def ask(name: str, command: str) -> dict[str, Any]:
            answer = workers[name].ask(command)
            outcomes[name].not_run = answer.get("not run")
            return answer

        for name in names:
            say(f"preparing {name}")
            workers[name] = Worker(name, size, threads, log)
            stack.callback(workers[name].close)
            outcomes[name].loss = ask(name, "prepare").get("loss")
        same_problem(outcomes)
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            running = [name for name in names if not outcomes[name].not_run]
            for name in shuffled(running, turn):
                time.sleep(PAUSE)
                answer = ask(name, "time")
                if "seconds" in answer:
                    outcomes[name].seconds.append(answer["seconds"])
                    outcomes[name].cpu.append(answer["cpu"])
        for name in [name for name in names if not outcomes[name].not_run]:
            say(f"memory of {name}")
            peak = ask(name, "peak")
            outcomes[name].scratch, outcomes[name].exact = peak.get("scratch"), peak.get("exact", True)
    return outcomes


def same_problem(outcomes: dict[str, Outcome]) -> None:
    """Those that learn from the whole teacher have our first loss, or do not take part."""
    ours = outcomes["live"].loss if "live" in outcomes else None
    for one in outcomes.values():
        if ours is not None and one.loss is not None and abs(one.loss - ours) > 1e-3 * ours:
            one.not_run = f"solves another problem: its first loss is {one.loss:.6g}, ours {ours:.6g}"


def print_outcomes(outcomes: dict[str, Outcome], size: Size, console: Console) -> None:
    whole, body = size.rows * size.vocabulary * 4, outcomes.get("body")
    title = f"{size}: N × C logits in float32 are {whole / MIB:,.0f} MiB"
    table = Table(title=title, title_justify="left")
    for column in ("contestant", "wall, s [quartiles]", "CPU, s", "scratch, MiB", "above the body's", "of N × C"):
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for one in outcomes.values():
        if one.not_run or not one.seconds:
            continue
        spread = quartiles(one.seconds)
        scratch, above = one.scratch or 0, ""
        if one.contestant in CONTESTANTS and CONTESTANTS[one.contestant].trains and body and body.scratch is not None:
            above = f"{(scratch - body.scratch) / MIB:,.0f}"
        cells = [f"{spread.median:.3f} [{spread.low:.3f}–{spread.high:.3f}]", f"{quartiles(one.cpu).median:.3f}"]
        cells += [f"{'' if one.exact else '≤ '}{scratch / MIB:,.0f}", above, f"{scratch / whole:.2f}"]
        table.add_row(one.contestant, *cells)
    console.print(table)
    for one in outcomes.values():
        if one.not_run:
            console.print(f"  not run: {one.contestant}: {one.not_run}", highlight=False, soft_wrap=True)


def figures(outcomes: dict[str, Outcome], judged: bool = True) -> list[dict[str, Any]]:
    """What was measured of each figure, by the wall and by processors.

    The verdict is by processors, whose time does not depend on what else the machine does; at sizes that are too small
    to say anything there is none.
    """
    answers = []
    for one in FIGURES:
        wall, cpu = one.of(outcomes), one.of(outcomes, "cpu")
        if wall is not None and cpu is not None:
            reached = one.reached(cpu) if judged else None
            answer = {"what": one.what, "limit": one.limit, "at least": one.high, "reached": reached}
            answers.append({**answer, "wall": asdict(wall), "cpu": asdict(cpu)})
    return answers


def print_figures(found: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="ratios within a round, median [95 % interval]", title_justify="left")
    for column in ("what", "by the wall", "by processors", "wanted", ""):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for one in found:
        wanted = "" if one["limit"] is None else f"{'≥' if one['at least'] else '≤'} {one['limit']:.2f}"
        verdict = {None: "", True: "reached", False: "MISSED"}[one["reached"]]
        cells = [f"{it['median']:.3f} [{it['low']:.3f}–{it['high']:.3f}]" for it in (one["wall"], one["cpu"])]
        table.add_row(one["what"], *cells, wanted, verdict)
    console.print(table)


def parser(quick: bool) -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(prog="python -m benchmarks distill", description=(__doc__ or "").split("\n\n")[0])
    few = [name for name in CONTESTANTS if name in SOME] if quick else list(CONTESTANTS)
    new.add_argument("--contestants", type=some_of(list(CONTESTANTS)), default=few)
    new.add_argument("--threads", type=int, default=1)
    new.add_argument("--rounds", type=int, default=2 if quick else 7)
    new.add_argument("--out", type=Path, default=Path("benchmark-results"), help="the folder for JSON")
    new.add_argument("--quick", action="store_true", help="small sizes: does it work, not how fast it is")
    return new


def main(arguments: list[str]) -> int:
    options = parser("--quick" in arguments).parse_args(arguments)
    size, console, status = QUICK if options.quick else FULL, wide_console(), Console(file=sys.stderr)
    about = machine()
    console.print(
        f"{about['processor']}, {options.threads} thread(s), torch {about['versions']['torch']}", highlight=False
    )
    with status.status("distill") as line:
        outcomes = measure(options.contestants, size, options.threads, options.rounds, line.update)
    print_outcomes(outcomes, size, console)
    found = figures(outcomes, judged=not options.quick)
    print_figures(found, console)
    given = {"benchmark": "distill", "machine": about, "threads": options.threads, "size": asdict(size)}
    given |= {"figures": found, "runs": [asdict(one) for one in outcomes.values()]}
    path = write(given, options.out, "distill")
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return 0
