"""All contestants on one problem: first each one's loosest tolerance that reaches an accuracy, then the rounds.

An accuracy is the relative suboptimality `(F − f*) / f*` of the mean loss F, in float64.  f* is the smallest loss that
anyone reached, a long run of ours with the tolerance 1e-14 among them, and its certified gap is kept beside it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison import shuffled
from benchmarks.fits.contestants import ALL
from benchmarks.fits.problems import NoData, Spec, make, save

ROOT = Path(__file__).resolve().parent.parent.parent
ACCURACIES = (1e-6, 1e-10)
GRACE = 30.0  # seconds beyond the limit for the loss, which is not timed
LOADING = 300.0
MAKE = """
import json, sys
from pathlib import Path
from benchmarks.fits.trial import prepare
prepare(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


@dataclass
class Timing:
    """What one contestant needs to reach one accuracy: a rung of its ladder and the seconds of each round."""

    tol: float
    suboptimality: float
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass
class Trial:
    """What one contestant did on one problem. `reached` by accuracy; `note` where it did not reach one, or why not run.

    rungs : (tolerance, loss, seconds) of the search
    """

    contestant: str
    not_run: str | None = None
    note: str = ""
    rungs: list[tuple[float, float, float]] = field(default_factory=list)
    reached: dict[float, Timing] = field(default_factory=dict)
    scratch: int = 0
    scratch_exact: bool = True


@dataclass
class Outcome:
    """A problem, f* with the certified gap of the long run, and the trials."""

    spec: Spec
    best: float
    gap: float | None
    trials: list[Trial]
    threads: int
    data_bytes: int = 0

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.json()}


class Worker:
    def __init__(self, name: str, folder: Path, threads: int, python: str, log: Any) -> None:
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.fits.worker", json.dumps({"contestant": name, "folder": str(folder)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **{variable: str(threads) for variable in counts}},
        )
        self.answer = self._read(LOADING)

    def fit(self, tol: float, limit: float) -> dict[str, Any]:
        if "ready" not in self.answer:
            return self.answer
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(f"{tol!r}\n")
            self.process.stdin.flush()
        reply = self._read(limit + GRACE)
        late = {"late": True}
        return late if reply.get("seconds", 0) > limit else reply

    def _read(self, patience: float) -> dict[str, Any]:
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], patience)[0]:
            self.close()
            return {"late": True}
        line = stdout.readline()
        if line:
            return json.loads(line)
        return {"not run": f"its process ended with status {self.process.wait()} (−9: out of memory)"}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()


def prepare(spec: dict[str, Any], folder: Path) -> None:
    """Data and the long run, in a process of its own so that its memory goes with it."""
    import likely

    try:
        problem = make(Spec(**spec))
    except (NoData, ImportError) as reason:
        (folder / "reference.json").write_text(json.dumps({"not made": str(reason)}))
        return
    save(problem, folder)
    known: dict[str, Any] = {"data": problem.nbytes + problem.target.nbytes}
    (folder / "reference.json").write_text(json.dumps(known))
    kind = likely.LogisticRegression if problem.binary else likely.SoftmaxRegression
    model = kind(penalty_strength=problem.penalty, fit_intercept=problem.spec.intercept, tol=1e-14, max_iter=60)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(problem.x, problem.target, covariance="none")
    known |= {"loss": problem.loss(model.coef_, model.intercept_), "gap": model.gap_}
    (folder / "reference.json").write_text(json.dumps(known))


@contextmanager
def prepared(spec: Spec, patience: float = 400.0) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with the data, and `loss` and `gap` of the long run if it ended in time."""
    with TemporaryDirectory(prefix="likely-fits-") as name:
        folder = Path(name)
        command = [sys.executable, "-c", MAKE, json.dumps(asdict(spec)), name]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, check=True, cwd=ROOT, timeout=patience)
        yield folder, json.loads((folder / "reference.json").read_text())


def suboptimality(loss: float, best: float) -> float:
    return max(0.0, loss - best) / abs(best)


def search(trial: Trial, worker: Worker, best: float, limit: float) -> None:
    """Up the ladder until the finest accuracy is reached, with at most twice the limit in all."""
    spent, stalled = 0.0, 0
    for tol in ALL[trial.contestant].ladder:
        reply = worker.fit(tol, limit)
        if "loss" not in reply:
            trial.not_run = reply.get("not run") if not trial.rungs else None
            trial.note = f"not within {limit:.0f} s" if "late" in reply else str(reply.get("not run"))
            return
        stalled = stalled + 1 if trial.rungs and reply["loss"] >= trial.rungs[-1][1] else 0
        trial.rungs.append((tol, reply["loss"], reply["seconds"]))
        trial.scratch = max(trial.scratch, reply["scratch"])
        trial.scratch_exact &= reply["exact"]
        spent += reply["seconds"]
        if suboptimality(reply["loss"], best) <= min(ACCURACIES):
            return
        if spent > 2 * limit:
            trial.note = f"not within {2 * limit:.0f} s for all its tolerances"
            return
        if stalled >= 6:
            break
    trial.note = "no tolerance reaches it"


def run(
    spec: Spec,
    names: Sequence[str],
    *,
    threads: int,
    rounds: int,
    limit: float,
    pythons: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome | str:
    """The trials of a problem, or why it cannot be made."""
    say(f"{spec.label}: data and the long run")
    with prepared(spec) as (folder, known), ExitStack() as stack:
        if "not made" in known:
            return str(known["not made"])
        log = stack.enter_context(open(os.devnull, "w"))
        best = known.get("loss", float("inf"))
        trials = [Trial(name, ALL[name].refuses(spec)) for name in names]
        workers: dict[str, Worker] = {}

        def worker(name: str) -> Worker:
            if name not in workers or not workers[name].alive:
                python = (pythons or {}).get(name, sys.executable)
                workers[name] = Worker(name, folder, threads, python, log)
                stack.callback(workers[name].close)
            return workers[name]

        for trial in (one for one in trials if not one.not_run):
            say(f"{spec.label}: {trial.contestant} looks for its tolerances")
            search(trial, worker(trial.contestant), best, limit)
            best = min([best, *(loss for _, loss, _ in trial.rungs)])
        running = [one for one in trials if not one.not_run]
        for trial in running:
            for accuracy in ACCURACIES:
                rung = next(((t, f) for t, f, _ in trial.rungs if suboptimality(f, best) <= accuracy), None)
                if rung:
                    trial.reached[accuracy] = Timing(rung[0], suboptimality(rung[1], best))
        time_rounds(running, worker, rounds, limit, lambda text: say(f"{spec.label}: {text}"))
        return Outcome(spec, best, known.get("gap"), trials, threads, known["data"])


def time_rounds(
    trials: Sequence[Trial], worker: Callable[[str], Worker], rounds: int, limit: float, say: Callable[[str], None]
) -> None:
    """One fit to each accuracy in turn, in an order drawn anew; who has used the limit up drops out."""
    spent = {trial.contestant: 0.0 for trial in trials}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for trial in shuffled(trials, turn):
            if spent[trial.contestant] > limit:
                continue
            for tol in shuffled(sorted({timing.tol for timing in trial.reached.values()}), turn):
                time.sleep(0.05)
                reply = worker(trial.contestant).fit(tol, 2 * limit)
                if "loss" not in reply:
                    continue
                spent[trial.contestant] += reply["seconds"]
                trial.scratch = max(trial.scratch, reply["scratch"])
                for timing in (one for one in trial.reached.values() if one.tol == tol):
                    timing.seconds.append(reply["seconds"])
                    timing.cpu.append(reply["cpu"])
