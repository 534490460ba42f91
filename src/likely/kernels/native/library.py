"""The compiled library: whether it is there, which instruction sets it has for this processor, and how it is called."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch

from likely._checks import Choice

TYPES = {torch.float32: 0, torch.bfloat16: 1}
pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, whose OpenMP is the one that torch has loaded; None where there is none that loads."""
    path = Path(__file__).parent / "_rows.so"
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:
        return None


@cache
def available() -> tuple[str, ...]:
    """The instruction sets that were compiled and that this processor has, best first, and "plain" at the end."""
    library = _library()
    if library is None:
        return ("plain",)
    names = (ctypes.c_char_p * 8)()
    count = library.likely_sets(names, len(names))
    return (*((names[i] or b"").decode() for i in range(count)), "plain")


_choice = Choice("LIKELY_ROW_PASS", "on this machine", available, lambda: available()[0])


def active() -> str:
    """Which row pass runs: an instruction set, or "plain" for PyTorch operations."""
    return _choice.active()


def using(name: str) -> AbstractContextManager[None]:
    """Insist on a row pass, one of `available()`, within a block."""
    return _choice.using(name)


def call(function: str, job: ctypes.Structure) -> None:
    library = _library()
    assert library is not None
    getattr(library, f"likely_{function}_{active()}")(ctypes.byref(job))
