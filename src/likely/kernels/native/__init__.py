"""The row pass in C++: softmax, losses and gradients of a tile of logits in one reading, by ctypes.

Legend: N rows, C classes, K stored classes per row, n rows of one tile.

The library is built where a compiler was found (setup.py) and chosen by the processor's instruction sets; without it,
or for what it does not serve (float64, targets with a `rest`, tensors that are not on the CPU), the same formulas run
as PyTorch operations in `kernels.loop`.  `active()` says which one it is, and the environment variable
LIKELY_ROW_PASS=plain, generic, avx2, avx512 or avx512bf16 insists on one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from likely import _memory
from likely._checks import require
from likely.forms import Dense, DenseTile, Sparse, Target
from likely.heads import Head, ProductSum

_SPARSE, _DENSE, _TEACHER, _Z_LOSS = range(4)
TYPES = {torch.float32: 0, torch.bfloat16: 1}
_pointer, _i32, _i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class _Term(ctypes.Structure):
    _fields_ = (
        ("kind", _i32),
        ("dense_type", _i32),
        ("inverse_temperature", ctypes.c_float),
        ("dense_inverse_temperature", ctypes.c_float),
        ("coefficient", _pointer),
        ("ignored", _pointer),
        ("stored", _i64),
        ("index", _pointer),
        ("value", _pointer),
        ("floor", _pointer),
        ("base", _pointer),
        ("base_total", ctypes.c_double),
        ("dense", _pointer),
        ("dense_stride", _i64),
        ("class_weight", _pointer),
        ("cross_entropy", _pointer),
        ("entropy", _pointer),
        ("kl", _pointer),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("type", _i32),
        ("threads", _i32),
        ("rows", _i64),
        ("classes", _i64),
        ("logits", _pointer),
        ("logits_stride", _i64),
        ("gradient", _pointer),
        ("gradient_stride", _i64),
        ("terms", ctypes.POINTER(_Term)),
        ("terms_count", _i64),
        ("scratch", _pointer),
        ("room", _i64),
    )


class _Planes(ctypes.Structure):
    _fields_ = (
        ("last", _i32),
        ("threads", _i32),
        ("rows", _i64),
        ("columns", _i64),
        ("high", _pointer),
        ("low", _pointer),
        ("stride", _i64),
        ("part", _pointer),
    )


class _Binary(ctypes.Structure):
    _fields_ = (
        ("type", _i32),
        ("threads", _i32),
        ("rows", _i64),
        ("logits", _pointer),
        ("mu1", _pointer),
        ("mu0", _pointer),
        ("gradient", _pointer),
        ("coefficients", _pointer),
        ("coefficient", ctypes.c_float),
        ("cross_entropy", _pointer),
        ("sum", _pointer),
    )


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


_chosen: list[str] = []


def active() -> str:
    """Which row pass runs: an instruction set, or "plain" for PyTorch operations."""
    if not _chosen:
        asked = os.environ.get("LIKELY_ROW_PASS", "")
        require(
            asked in ("", *available()),
            f"LIKELY_ROW_PASS: is {asked!r}; on this machine there are {', '.join(available())}",
        )
        _chosen.append(asked or available()[0])
    return _chosen[0]


@contextmanager
def using(name: str) -> Iterator[None]:
    """Insist on a row pass, one of `available()`, within a block."""
    require(name in available(), f"name: is {name!r}; on this machine there are {', '.join(available())}")
    before = list(_chosen)
    _chosen[:] = [name]
    try:
        yield
    finally:
        _chosen[:] = before


def _call(function: str, job: ctypes.Structure) -> None:
    library = _library()
    assert library is not None
    getattr(library, f"likely_{function}_{active()}")(ctypes.byref(job))


# --------------------------------------------------------------------------------------------------- the row pass


def dtype_of(head: Head) -> torch.dtype | None:
    """The dtype of the tiles that the compiled pass takes of this head; None where it does not serve it."""
    if active() == "plain" or head.device.type != "cpu" or head.classes == 0 or head.acc != torch.float32:
        return None
    return torch.bfloat16 if head.dtype == torch.bfloat16 else torch.float32


def serves(target: Target) -> bool:
    """Whether the compiled pass knows this target; PyTorch operations take it otherwise."""
    if isinstance(target, Sparse):
        return target.rest is None
    return isinstance(target, Dense)


class Rows:
    """The results of the terms over all N rows, and the pass over one tile that fills a part of them."""

    def __init__(self, head: Head, terms: Sequence[tuple[Target, float]], rows: Sequence[Sequence[Tensor]]) -> None:
        self.classes, self.terms, self.rows = head.classes, terms, rows
        self.threads = torch.get_num_threads()
        self.room = self.classes + 64
        self.scratch = torch.empty(3 * self.room * self.threads)
        self.tiles: dict[int, Tensor] = {}  # of the teachers

    def over(
        self,
        rows: slice,
        z_nC: Tensor,
        g_nC: Tensor | None,
        known: Sequence[bool],
        coefficients: Sequence[Tensor] | None,
        z_coefficient: Tensor | None,
    ) -> Tensor | None:
        """Losses of the tile `z` into the rows' results, gradients into `g`, which may be `z` itself.

        Returned are the log-normalisers `A`, (n,), where `z_coefficient` is given.
        """
        kept: list[Tensor] = []  # what the pointers point to

        def point(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
            if tensor is None:
                return None
            kept.append(tensor.to(dtype).contiguous())
            return kept[-1].data_ptr()

        def part(result_N: Tensor) -> int:
            return result_N[rows].data_ptr()

        made = []
        for at, (target, temperature) in enumerate(self.terms):
            cross_entropy_N, entropy_N, kl_N = self.rows[at]
            term = _Term(inverse_temperature=1 / temperature, dense_inverse_temperature=1 / temperature)
            term.coefficient = point(None if coefficients is None else coefficients[at])
            term.ignored = point(None if target.ignored is None else target.ignored[rows], torch.uint8)
            term.cross_entropy = part(cross_entropy_N)
            if isinstance(target, Sparse):
                term.kind = _SPARSE
                term.stored = target.index.shape[-1]
                term.index = point(target.index[rows], torch.int64)
                term.value = point(target.value[rows])
                term.floor = point(None if target.floor is None else target.floor[rows])
                term.base = point(target.base)
                term.base_total = self.classes if target.base is None else float(target.base.double().sum())
            else:
                assert isinstance(target, Dense)
                if known[at]:
                    term.entropy, term.kl = part(entropy_N), part(kl_N)
                tile_nC, term.kind = self._dense_tile(at, target, rows, temperature)
                if not target.softens:
                    term.dense_inverse_temperature = 1.0
                if tile_nC.dtype not in TYPES or tile_nC.stride(-1) != 1:
                    tile_nC = tile_nC.float().contiguous()
                kept.append(tile_nC)
                term.dense, term.dense_stride = tile_nC.data_ptr(), tile_nC.stride(0)
                term.dense_type = TYPES[tile_nC.dtype]
                term.class_weight = point(target.class_weight)  # a tile of it, were it softened, has none
            made.append(term)
        A_n = None
        if z_coefficient is not None:
            A_n = torch.empty(z_nC.shape[0])
            z_term = _Term(kind=_Z_LOSS, inverse_temperature=1.0, cross_entropy=A_n.data_ptr())
            z_term.coefficient = point(z_coefficient)
            made.append(z_term)
        array = (_Term * len(made))(*made)
        job = _Job(
            type=TYPES[z_nC.dtype],
            threads=min(self.threads, max(1, z_nC.numel() // 2**14)),
            rows=z_nC.shape[0],
            classes=self.classes,
            logits=z_nC.data_ptr(),
            logits_stride=z_nC.stride(0),
            gradient=None if g_nC is None else g_nC.data_ptr(),
            gradient_stride=0 if g_nC is None else g_nC.stride(0),
            terms=array,
            terms_count=len(made),
            scratch=self.scratch.data_ptr(),
            room=self.room,
        )
        _call("rows", job)
        # A sparse measure's entropy needs no classes beyond the stored ones.
        for at, (target, temperature) in enumerate(self.terms):
            if known[at] and isinstance(target, Sparse):
                cross_entropy_N, entropy_N, kl_N = self.rows[at]
                entropy_N[rows] = target.tile(rows, temperature, torch.float32).entropy()
                kl_N[rows] = cross_entropy_N[rows] - entropy_N[rows]
        return A_n

    def _dense_tile(self, at: int, target: Dense, rows: slice, temperature: float) -> tuple[Tensor, int]:
        if target.head is None:
            assert target.given is not None
            if not target.softens or temperature == 1:
                return target.given[rows], _DENSE
            tile = replace(target, class_weight=None).tile(rows, temperature, torch.float32)
            assert isinstance(tile, DenseTile)
            return tile.mu, _DENSE
        stored_nC = target.head.stored(rows)
        if stored_nC is not None:
            return stored_nC, _TEACHER
        n, dtype = rows.stop - rows.start, dtype_of(target.head)
        if at not in self.tiles:
            self.tiles[at] = _memory.empty(n, self.classes, dtype=dtype or target.head.acc)
        return target.head.logits(rows, out=self.tiles[at][:n]), _TEACHER


# --------------------------------------------------------------------------------------------------- binary rows


def binary(
    z_N: Tensor,
    mu1_N: Tensor,
    mu0_N: Tensor | None,
    *,
    coefficient: float = 1.0,
    coefficients: Tensor | None = None,
    gradient: Tensor | None = None,
    rows: Tensor | None = None,
) -> float:
    """The sum of the losses of binary rows; their gradients and the losses themselves where there is room for them."""
    total = ctypes.c_double()
    _call(
        "binary",
        _Binary(
            type=TYPES[z_N.dtype],
            threads=min(torch.get_num_threads(), max(1, z_N.numel() // 2**14)),
            rows=z_N.numel(),
            logits=z_N.data_ptr(),
            mu1=mu1_N.data_ptr(),
            mu0=None if mu0_N is None else mu0_N.data_ptr(),
            gradient=None if gradient is None else gradient.data_ptr(),
            coefficients=None if coefficients is None else coefficients.data_ptr(),
            coefficient=coefficient,
            cross_entropy=None if rows is None else rows.data_ptr(),
            sum=ctypes.addressof(total),
        ),
    )
    return total.value


# ----------------------------------------------------------------------------------------------- sums of products


class PlaneSum(ProductSum):
    """A weight's gradient in bfloat16, summed over blocks of rows in float32 without a float32 buffer.

    The float32 sum is two planes of 16 bits: the high one is the result's own memory, the low one is needed from the
    second block on that is not the last.  Products are formed for a few classes at a time, so none is held whole.
    """

    PART_BYTES = 2**21

    def __init__(self, like: Tensor, blocks: int) -> None:
        self.high_CD = _memory.empty_like(like)
        self.low_CD: Tensor | None = None
        self.blocks, self.done = blocks, 0

    def add(self, g_nC: Tensor, x_nD: Tensor) -> None:
        self.done += 1
        if self.done == 1:
            torch.mm(g_nC.T, x_nD, out=self.high_CD)
            return
        classes, features = self.high_CD.shape
        last, had_low = self.done == self.blocks, self.low_CD is not None
        if not last and not had_low:
            self.low_CD = _memory.empty_like(self.high_CD)
            self.low_CD.zero_()
        step = max(64, self.PART_BYTES // (2 * features))
        part_cD = torch.empty(min(step, classes), features, dtype=self.high_CD.dtype)
        for start in range(0, classes, step):
            stop = min(start + step, classes)
            torch.mm(g_nC[:, start:stop].T, x_nD, out=part_cD[: stop - start])
            low = None if self.low_CD is None else self.low_CD[start:stop].data_ptr()
            _call(
                "planes",
                _Planes(
                    last=last,
                    threads=torch.get_num_threads(),
                    rows=stop - start,
                    columns=features,
                    high=self.high_CD[start:stop].data_ptr(),
                    low=low,
                    stride=features,
                    part=part_cD.data_ptr(),
                ),
            )

    def result(self) -> Tensor:
        self.low_CD = None
        return self.high_CD if self.done else self.high_CD.zero_()


class DirectSum(ProductSum):
    """A weight's gradient in float32, each block's product added by the product itself."""

    def __init__(self, like: Tensor) -> None:
        self.total_CD = _memory.empty_like(like)
        self.done = 0

    def add(self, g_nC: Tensor, x_nD: Tensor) -> None:
        self.done += 1
        if self.done == 1:
            torch.mm(g_nC.T, x_nD, out=self.total_CD)
        else:
            self.total_CD.addmm_(g_nC.T, x_nD)

    def result(self) -> Tensor:
        return self.total_CD if self.done else self.total_CD.zero_()
