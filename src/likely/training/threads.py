"""Tasks side by side, a thread each.

torch's own threads share out every product and wait for each other at the end of each, which on a busy machine is many
times slower than one thread. Whole tasks wait for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(tasks: Sequence[Callable[[Event], Result]]) -> list[Result]:
    """What the tasks return, in their order; as many run at a time as torch has threads, each on one of them.

    A task is given an event that says it should give up, and looks at it now and then. It is set when another task has
    failed, or on Ctrl-C. Tasks within tasks run one after the other.

    >>> in_threads([lambda stop: 1, lambda stop: 2])
    [1, 2]
    """
    threads, stop = torch.get_num_threads(), Event()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, min(threads, len(tasks)))) as pool:
            futures = [pool.submit(task, stop) for task in tasks]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)
