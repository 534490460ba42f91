"""A capture that is killed, again and again: `python -m tests.teachers.killing FOLDER`.

One process imports what is needed and forks each run, so that twenty of them take seconds.  It prints how the runs
ended, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from likely._files import new_file
from likely.data.examples import Batch
from likely.heads import Head
from likely.teachers import store
from likely.teachers.capture import capture
from tests.teachers.teaching import Pieces, Teacher

COUNTS = np.arange(240) % 4
KEEP = "hybrid:3+4"


class Slow(Teacher):
    """A teacher of a few milliseconds a batch, so that there are moments to be killed at."""

    def head(self, batch: Batch) -> Head:
        time.sleep(0.005)
        return super().head(batch)


def run(folder: Path) -> None:
    capture(Slow(), Pieces(COUNTS), KEEP, folder, batch_size=3, seed=5, shard_rows=7)


def killed_at_flush(number: int) -> Callable[[int], None]:
    """A flush to the disk that ends the process at its `number`-th call, before it has flushed."""
    left = [number]

    def flush(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync(descriptor)

    return flush


def killed_half_way(path: Path, data: bytes) -> None:
    """A write of a shard that ends the process when half of it is there."""
    with new_file(path, overwrite=True) as temporary:
        temporary.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def forked(folder: Path, delay: float | None = None, prepare: Callable[[], None] = lambda: None) -> int:
    """Run a capture in a child, kill it after so many seconds, and give the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            run(folder)
        finally:
            os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    random.seed(0)
    ends = [forked(folder / "killed", random.uniform(0, 0.04)) for _ in range(12)]
    ends += [
        forked(folder / "killed", prepare=lambda: setattr(store, "_write", killed_half_way)),
        *(
            forked(folder / "killed", prepare=lambda at=at: setattr(store, "_flush", killed_at_flush(at)))  # type: ignore[misc]
            for at in range(7)
        ),
    ]
    journal = folder / "killed" / store.JOURNAL
    done = len(journal.read_bytes().splitlines()) - 1 if journal.exists() else -1
    whole = forked(folder / "whole")
    print(json.dumps({"ends": ends, "shards_before_the_last_run": done, "last": [whole, forked(folder / "killed")]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
