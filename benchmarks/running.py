"""What the benchmarks share: the options of the command line, and the run from the tests to the pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks import gate, report, rounds
from benchmarks.comparison import Run
from benchmarks.peers import ALL
from benchmarks.problems import Case


def wide_console() -> Console:
    """The terminal, or a file with room for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def words(given: str) -> list[str]:
    return [word.strip() for word in given.split(",") if word.strip()]


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(given: str) -> list[str]:
        unknown = [word for word in words(given) if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        return words(given)

    return parse


def parser(name: str, what: str | None, targets: Sequence[str], *, quick: bool) -> argparse.ArgumentParser:
    """The options that every benchmark has; lists are written with commas.  `--quick` changes the defaults."""
    new = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=(what or "").split("\n\n")[0])
    new.add_argument("--cases", type=words, help="sizes as NxDxC (a head), NxC (given logits) or N (binary)")
    new.add_argument("--dtypes", type=some_of(["float32", "bfloat16"]), default=["float32", "bfloat16"])
    new.add_argument("--targets", type=some_of(targets), default=list(targets))
    new.add_argument("--contestants", type=some_of(list(ALL)), default=list(ALL))
    new.add_argument("--device", default="cpu", help="cpu or cuda")
    new.add_argument("--threads", type=lambda given: [int(n) for n in words(given)], default=[1, 2])
    new.add_argument("--settings", type=some_of(list(rounds.SETTINGS)), default=list(rounds.SETTINGS))
    new.add_argument("--rounds", type=int, default=7)
    new.add_argument("--out", type=Path, default=Path("benchmark-results"), help="the folder for JSON and plots")
    new.add_argument(
        "--quick", action="store_true", help="small sizes and few rounds: does it work, not how fast it is"
    )
    new.add_argument("--skip-tests", action="store_true", help="no tests first, and so no speed-ups")
    if quick:
        few = [one for one in ("labels", "teacher-head", "teacher-logits") if one in targets]
        new.set_defaults(rounds=3, threads=[1], targets=few, contestants=[n for n, c in ALL.items() if not c.compiles])
    return new


def tested(options: argparse.Namespace, console: Console) -> gate.Verdict:
    if options.skip_tests:
        verdict = gate.SKIPPED
    else:
        console.print("running the tests of the kernels …")
        verdict = gate.run_tests(gate.BRIEF if options.quick else gate.LAWS)
    console.print(f"tests: {verdict.state} ({verdict.detail})", highlight=False)
    return verdict


def cases(options: argparse.Namespace, sizes: Sequence[str]) -> list[Case]:
    """The product of sizes, dtypes and targets; binary sizes have one target."""
    found = [
        Case.parse(one, dtype, target, options.device)
        for one in options.cases or sizes
        for dtype in options.dtypes
        for target in options.targets
    ]
    return list(dict.fromkeys(found))


def run(name: str, options: argparse.Namespace, wanted: Sequence[Case]) -> int:
    """Tests, rounds, tables, JSON and plots; what is done so far is printed and written."""
    console, status = wide_console(), Console(file=sys.stderr)
    about = report.machine()
    console.print(
        f"{about['processor']}, {about['processors']} processors, torch {about['versions']['torch']}; "
        f"row pass of likely: {about['row pass of likely']}, float32 products: {about['float32 products of likely']}",
        highlight=False,
    )
    verdict = tested(options, console)
    runs: list[Run] = []
    for case in wanted:
        with status.status(f"{case}: float64 reference") as line, rounds.prepared(case) as folder:
            for threads, setting in product(options.threads, options.settings):
                chosen = {"threads": threads, "setting": setting, "rounds": options.rounds}
                done = rounds.measure(case, folder, options.contestants, **chosen, say=line.update)
                runs += done
                report.print_runs(done, console)
                found = report.results(runs, verdict, benchmark=name, rounds=options.rounds)
                path = report.write(found, options.out, name)
    if verdict.allows_speed_ups:
        report.print_comparisons(found["comparisons"], console)
    else:
        console.print(f"no speed-ups: the tests are {verdict.state}. {verdict.detail}", style="bold red")
    pictures = report.plot(runs, options.out, name)
    console.print(f"written: {', '.join(str(p) for p in [path, *pictures])}", highlight=False, soft_wrap=True)
    return 1 if verdict.state == "red" else 0
