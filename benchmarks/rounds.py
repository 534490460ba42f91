"""The rounds: contestants in processes of their own, asked for one timed run each in turn, in an order drawn anew."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparison import Run, shuffled
from benchmarks.peers import ALL
from benchmarks.problems import Case, shapes

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"default": {}, "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"}}
"""The memory settings: torch's allocator as it comes, and asking the kernel for huge pages."""
PATIENCE = 1200.0  # seconds for an answer; compiling takes the longest
PAUSE = 0.05  # seconds in which the threads of the last contestant go to sleep


def environment(threads: int, setting: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")}
    return {**kept, **counts, "TORCHINDUCTOR_COMPILE_THREADS": "1", **SETTINGS[setting]}


class Process:
    """A worker, see `worker`: `ask` sends a command and waits for the answer."""

    def __init__(self, name: str, case: Case, folder: Path, threads: int, setting: str, keep: bool, log: Any) -> None:
        spec = {"contestant": name, "case": asdict(case), "folder": str(folder), "threads": threads, "keep": keep}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=environment(threads, setting),
        )

    def ask(self, command: str) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{command}\n")
            stdin.flush()
        except OSError:
            return {"not run": self.end()}
        if not select.select([stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            return {"not run": f"gave no answer to {command!r} in {PATIENCE:.0f} s"}
        line = stdout.readline()
        return json.loads(line) if line else {"not run": self.end()}

    def end(self) -> str:
        return f"its process ended with status {self.process.wait()} (−9: out of memory)"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def available_memory() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def input_bytes(case: Case) -> int:
    total = 0
    for shape, dtype in shapes(case).values():
        size = dtype.itemsize
        for n in shape:
            size *= n
        total += size
    return total


@contextlib.contextmanager
def prepared(case: Case, reference: bool = True) -> Iterator[Path]:
    """A folder with the case's inputs and its float64 reference, made in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="likely-benchmark-") as name:
        command = [sys.executable, "-m", "benchmarks.reference", json.dumps(asdict(case)), name]
        subprocess.run(command + ([] if reference else ["--inputs-only"]), check=True, cwd=ROOT)
        yield Path(name)


def measure(
    case: Case,
    folder: Path,
    names: Sequence[str],
    *,
    threads: int,
    setting: str,
    rounds: int,
    accuracy: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Run]:
    """Every contestant's run on a prepared case; one that fails says why in `not_run` and the others go on."""
    runs = {name: Run(asdict(case), threads, setting, name, ALL[name].kind) for name in names}
    keep = len(names) * input_bytes(case) < available_memory() / 3
    with open(os.devnull, "w") as log, contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            runs[name].not_run = ALL[name].refuses(case)
        names = [name for name in names if not runs[name].not_run]
        for name in names:
            workers[name] = Process(name, case, folder, threads, setting, keep, log)
            stack.callback(workers[name].close)

        def ask(name: str, command: str) -> dict[str, Any]:
            answer = workers[name].ask(command)
            runs[name].not_run = answer.get("not run")
            return answer

        for name in names:
            say(f"{case}, {setting}, {threads} thread(s): preparing {name}")
            ask(name, "prepare")
        for turn in range(rounds):
            say(f"{case}, {setting}, {threads} thread(s): round {turn + 1} of {rounds}")
            running = [name for name in names if not runs[name].not_run]
            for name in shuffled(running, turn):
                time.sleep(PAUSE)
                answer = ask(name, "time")
                if "seconds" in answer:
                    runs[name].seconds.append(answer["seconds"])
                    runs[name].cpu.append(answer["cpu"])
        for name in [name for name in names if not runs[name].not_run]:
            peak = ask(name, "peak")
            runs[name].scratch, runs[name].scratch_exact = peak.get("scratch"), peak.get("exact", True)
            found = ask(name, "errors") if accuracy else {}
            runs[name].errors = found if not runs[name].not_run else {}
    return list(runs.values())
