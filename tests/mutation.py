"""Runs the mutants; `python -m tests.mutation [NAME]` says which are caught and which survive.

Every mutant is made in a copy of the package, never in the tree, and run against its law in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["torch", "numpy", "pytest", "hypothesis.extra.numpy", "hypothesis", "mpmath"]


class Outcome(NamedTuple):
    caught: bool
    what: str
    seconds: float


def outcome(mutant: Mutant) -> Outcome:
    """Apply the mutant to a copy of the package and run its law on it, in this process, which must be a fresh one."""
    import pytest

    began = time.perf_counter()
    assert "likely" not in sys.modules
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "src", "likely")
        shutil.copytree(ROOT / "src" / "likely", package, ignore=shutil.ignore_patterns("__pycache__"))
        path = package / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return Outcome(False, f"its line stands {text.count(mutant.old)} times in {mutant.file}", 0.0)
        text = text.replace(mutant.old, mutant.new)
        try:
            compile(text, mutant.file, "exec")
        except SyntaxError as error:
            return Outcome(False, f"it is no Python: {error}", 0.0)
        path.write_text(text, encoding="utf-8")
        sys.path.insert(0, str(package.parent))
        os.chdir(ROOT)
        with open(Path(folder, "output"), "w+", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            law = str(ROOT / "tests" / "laws" / mutant.law)
            code = pytest.main(
                ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--tb=line", "-k", mutant.only, law]
            )
            output.seek(0)
            tail = output.read()[-600:]
        import likely

        assert likely.__file__.startswith(folder), "the law was run on another copy of the package"
    # 1 says that a test failed; 2 and above that nothing could be run.
    return Outcome(code == 1, f"pytest ended with {int(code)}: {tail}", time.perf_counter() - began)


def run(mutants: list[Mutant], processes: int = 2) -> list[Outcome]:
    """Every mutant in a process of its own, which finds the large libraries loaded."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with context.Pool(processes, maxtasksperchild=1) as pool:
        return pool.map(outcome, mutants, chunksize=1)


if __name__ == "__main__":
    chosen = [m for m in MUTANTS if not sys.argv[1:] or sys.argv[1] in m.name]
    for mutant, result in zip(chosen, run(chosen)):
        if not result.caught:
            print(
                f"SURVIVES {mutant.name}\n    -> {mutant.new}\n    {mutant.law} -k '{mutant.only}'\n    {result.what}"
            )
        else:
            print(f"caught in {result.seconds:.1f} s  {mutant.name}")
