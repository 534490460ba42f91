"""One contestant on one problem, in a process of its own: a tolerance a line comes in, one line of JSON goes out.

A fit is timed by the wall and by the processors (all threads of the process), from the problem in memory to the
coefficients.  Its loss is computed afterwards in float64, by the same function for everyone.  Scratch is the largest
resident size during the fit less the one before the first, as `benchmarks.memory` reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fits.contestants import ALL, Fitted, quiet
from benchmarks.fits.problems import Problem, Spec, load, make, softened
from benchmarks.memory import hand_back, high_water, reset_high_water, resident


def tiny(spec: Spec, sparse: bool) -> Problem:
    """A problem of the same form, which loads and compiles what the fit needs."""
    small = replace(spec, kind="sparse" if sparse else "gaussian", n=200, D=6, soft=False, K=min(spec.K, 3))
    problem = make(small)
    target = softened(problem.target, small.K, np.random.default_rng(0)) if spec.soft else problem.target
    return replace(problem, target=target)


def measure(fit: Any, problem: Problem, tol: float, before: int) -> dict[str, Any]:
    hand_back()
    exact = reset_high_water()
    wall, cpu = time.perf_counter(), time.process_time()
    fitted: Fitted = fit(problem, tol)
    seconds, used = time.perf_counter() - wall, time.process_time() - cpu
    scratch = max(0, high_water() - before)
    return {"seconds": seconds, "cpu": used, "loss": problem.loss(*fitted), "scratch": scratch, "exact": exact}


def main(given: str) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr and not between the replies
    spec = json.loads(given)
    fit = quiet(ALL[spec["contestant"]].fit)
    problem = load(Path(spec["folder"]))
    with contextlib.suppress(Exception):  # what fails here fails below, where it is told
        fit(tiny(problem.spec, problem.sparse), 1e-4)
    hand_back()
    before = resident()
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        try:
            reply = measure(fit, problem, float(line), before)
        except Exception as error:  # whatever a contestant raises is its reason not to take part
            reply = {"not run": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
