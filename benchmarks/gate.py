"""No speed-up of a kernel whose tests are red: a short part of the laws runs before anything is compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAWS = ("tests/laws/test_precision.py", "tests/laws/test_gradients.py", "tests/laws/test_native.py")
BRIEF = ("tests/laws/test_precision.py",)


@dataclass(frozen=True)
class Verdict:
    """`state` is "green", "red" or "skipped"; speed-ups are printed when it is green, and only then."""

    state: str
    detail: str = ""

    @property
    def allows_speed_ups(self) -> bool:
        return self.state == "green"


SKIPPED = Verdict("skipped", "the tests were not run, so no speed-up is printed")


def run_tests(paths: Sequence[str] = LAWS, root: Path = ROOT) -> Verdict:
    """Run those of the test files that exist; no test at all is as good as a red one."""
    found = [path for path in paths if (root / path).exists()]
    if not found:
        return Verdict("red", f"none of {', '.join(paths)} exists")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", "not gradcheck", *found]
    done = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return Verdict("green" if done.returncode == 0 else "red", "; ".join([*failed[:1], *lines[-1:]]))
