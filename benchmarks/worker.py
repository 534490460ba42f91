"""One contestant on one case, in a process of its own: it answers one command a line with one line of JSON.

`time` runs once and answers the seconds by the wall and by the processors; `peak` answers the scratch of further calls
in bytes; `errors` runs once more and compares with the float64 reference.  The gradients of a call are dropped before
the next, outside its time: a buffer that was returned as a gradient is never used again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Call, NotRun, Outcome
from benchmarks.memory import CudaScratch, Scratch
from benchmarks.peers import ALL, as_tensor
from benchmarks.problems import Case, Problem, load, make
from benchmarks.reference import errors

PEAKS = 3  # calls whose scratch is measured
WRONG = 0.5  # a gradient whose error is half its size is that of another problem


class Worker:
    def __init__(self, name: str, case: Case, folder: Path, keep: bool) -> None:
        self.contestant, self.case, self.folder, self.keep = ALL[name], case, folder, keep
        self.outcome: Outcome | None = None
        self.call: Call | None = None
        self.leaves: list[torch.Tensor] = []
        self.scratch: Scratch | CudaScratch | None = None

    def prepare(self) -> dict[str, Any]:
        tiny = self.case.tiny()
        if not self.contestant.compiles:
            made = make(tiny)
            self.contestant.build(tiny)(Problem(tiny, {k: t.to(tiny.device) for k, t in made.tensors.items()}))()
        self.bind = self.contestant.build(self.case)
        self.load()
        if self.contestant.compiles:
            self.run()
            self.drop()
        self.scratch = CudaScratch() if self.case.on_cuda else Scratch()
        return {"warm-up": self.run()[0]}

    def rest(self) -> None:
        """Give up what the others may need while they run: the gradients, and the inputs where all do not fit."""
        self.drop()
        if not self.keep:
            self.call, self.leaves = None, []

    def load(self) -> None:
        problem = load(self.case, self.folder)
        self.call, self.leaves = self.bind(problem), problem.leaves

    def drop(self) -> None:
        self.outcome = None
        for leaf in self.leaves:
            leaf.grad = None
        refill = getattr(self.call, "refill", None)
        if refill is not None:
            refill()

    def wait(self) -> None:
        """A device computes on while the processor goes ahead."""
        if self.case.on_cuda:
            torch.cuda.synchronize()

    def run(self) -> tuple[float, float]:
        self.drop()
        if self.call is None:
            self.load()
        assert self.call is not None
        self.wait()
        start, before = time.perf_counter(), time.process_time()
        self.outcome = self.call()
        self.wait()
        return time.perf_counter() - start, time.process_time() - before

    def time(self) -> dict[str, Any]:
        seconds, cpu = self.run()
        return {"seconds": seconds, "cpu": cpu}

    def peak(self) -> dict[str, Any]:
        assert self.scratch is not None
        if self.contestant.kind == "limit":
            return {}  # its buffers were made beforehand
        for _ in range(PEAKS):
            self.drop()
            if self.call is None:
                self.load()
            self.scratch.begin()
            self.run()
            assert self.outcome is not None
            self.scratch.end(sum(g.nbytes for g in self.outcome[1]))
        return {"scratch": self.scratch.bytes, "exact": self.scratch.exact}

    def errors(self) -> dict[str, Any]:
        self.run()
        assert self.outcome is not None
        loss, gradients = self.outcome
        if self.contestant.kind == "limit":
            return {}
        found = errors(self.case, loss, [as_tensor(g) for g in gradients], self.folder)
        worst = max(found, key=lambda name: found[name])
        if found[worst] > WRONG and self.contestant.kind == "peer":
            raise NotRun(f"solves another problem: the relative error of {worst} is {found[worst]:.2g}")
        return found


def answer(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return do()
    except (NotRun, ImportError) as reason:
        return {"not run": str(reason)}
    except Exception as error:  # whatever a peer raises is its reason not to take part
        return {"not run": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def main(given: str) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr and not between the replies
    spec = json.loads(given)
    if spec["contestant"].startswith("optax") and hasattr(os, "sched_setaffinity"):
        # XLA takes as many threads as it may use processors.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    torch.set_num_threads(spec["threads"])
    worker = Worker(spec["contestant"], Case(**spec["case"]), Path(spec["folder"]), spec["keep"])
    commands = {name: getattr(worker, name) for name in ("prepare", "time", "peak", "errors")}
    for line in sys.stdin:
        reply = answer(commands[line.strip()])
        worker.rest()
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
