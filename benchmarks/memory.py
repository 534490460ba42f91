"""The scratch memory of a computation, by the process's own high-water mark.

*Scratch* is the largest resident size during a call, less the resident size before the first call (interpreter,
libraries and inputs are in it), less the bytes of the gradients that the call returns.  In bytes, the largest of three
calls after the timed ones.

* The mark is `VmHWM`, the largest resident size of this address space, reset before each call through
  `/proc/self/clear_refs`, so that making the inputs does not count.  `ru_maxrss` holds the same number, but cannot be
  reset, and a child inherits its parent's through `exec`.  Where the mark cannot be reset it is read as it is, and
  `exact` is False: the number is then an upper bound.
* The resident size before is taken after a call on a tiny problem, which loads the libraries, and after memory that
  was freed has been handed back (`malloc_trim`).  A contestant that compiles is called once at full size before it is
  taken, because what a compiler needs is no scratch.  Whatever another keeps from call to call counts as scratch.
* Before each of the three calls the gradients of the last are dropped and freed memory is handed back, and the C
  library is told to take every block over 1 MiB from the system and to return it at once.  Left alone it keeps freed
  gradients of less than 32 MiB in its heap: eager's scratch then reads anything from 346 to 565 MiB at
  1024 × 256 × 32000, growing from call to call.  This is why they are not the timed calls.
* Pages are counted when they are first touched.  With huge pages a page is 2 MiB.

On CUDA it is the allocator's own mark, the most that was held at once, less what was held before the call.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

MIB, M_MMAP_THRESHOLD = 2**20, -3
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kibibytes(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def resident() -> int:
    """The resident size now, in bytes; where the system does not say, the largest so far."""
    now = _kibibytes("VmRSS")
    return high_water() if now is None else 1024 * now


def high_water() -> int:
    """The largest resident size since the mark was reset, in bytes."""
    mark = _kibibytes("VmHWM")
    if mark is not None:
        return 1024 * mark
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_high_water() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def hand_back() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def return_blocks_at_once() -> None:
    """Have blocks of more than 1 MiB taken from the system one by one, and returned when they are freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)


class Scratch:
    """Watches calls: `begin()`, the call, `end(bytes of its gradients)`; `bytes` is the largest scratch so far."""

    def __init__(self) -> None:
        hand_back()
        self.before = resident()
        self.bytes = 0
        self.exact = True

    def begin(self) -> None:
        return_blocks_at_once()
        hand_back()
        self.exact = reset_high_water() and self.exact

    def end(self, gradients: int) -> None:
        self.bytes = max(self.bytes, high_water() - self.before - gradients)


class CudaScratch:
    """The same on CUDA."""

    def __init__(self) -> None:
        self.before, self.bytes, self.exact = 0, 0, True

    def begin(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def end(self, gradients: int) -> None:
        torch.cuda.synchronize()
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated() - self.before - gradients)
