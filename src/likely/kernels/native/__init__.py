"""The row pass in C++: softmax, losses and gradients of a tile of logits in one reading, by ctypes.

Legend: N rows, C classes, K stored classes per row, n rows of one tile.

The library is built where a compiler was found (setup.py) and chosen by the processor's instruction sets; without it,
or for what it does not serve (float64, targets with a `rest` and a floor, tensors that are not on the CPU), the same
formulas run as PyTorch operations in `kernels.loop`.  `active()` says which one it is, and the environment variable
LIKELY_ROW_PASS=plain, generic, avx2, avx512 or avx512bf16 insists on one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from likely import _memory
from likely.forms import Dense, DenseTile, Sparse, Target
from likely.heads import Head
from likely.kernels.native.flat import PlaneSum, binary, exponentials_, tile_normaliser
from likely.kernels.native.library import TYPES, active, available, call, i32, i64, pointer, using

_SPARSE, _DENSE, _TEACHER, _Z_LOSS = range(4)


class _Term(ctypes.Structure):
    _fields_ = (
        ("kind", i32),
        ("dense_type", i32),
        ("inverse_temperature", ctypes.c_float),
        ("dense_inverse_temperature", ctypes.c_float),
        ("coefficient", pointer),
        ("ignored", pointer),
        ("stored", i64),
        ("index", pointer),
        ("value", pointer),
        ("floor", pointer),
        ("base", pointer),
        ("rest", pointer),
        ("base_total", ctypes.c_double),
        ("dense", pointer),
        ("dense_stride", i64),
        ("class_weight", pointer),
        ("cross_entropy", pointer),
        ("entropy", pointer),
        ("kl", pointer),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("type", i32),
        ("threads", i32),
        ("rows", i64),
        ("classes", i64),
        ("logits", pointer),
        ("logits_stride", i64),
        ("gradient", pointer),
        ("gradient_stride", i64),
        ("terms", ctypes.POINTER(_Term)),
        ("terms_count", i64),
        ("scratch", pointer),
        ("room", i64),
    )


# --------------------------------------------------------------------------------------------------- the row pass


def dtype_of(head: Head) -> torch.dtype | None:
    """The dtype of the tiles that the compiled pass takes of this head; None where it does not serve it."""
    if active() == "plain" or head.device.type != "cpu" or head.classes == 0 or head.acc != torch.float32:
        return None
    return torch.bfloat16 if head.dtype == torch.bfloat16 else torch.float32


def serves(target: Target) -> bool:
    """Whether the compiled pass knows this target; PyTorch operations take it otherwise."""
    if isinstance(target, Sparse):
        return target.rest is None or target.floor is None
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
                term.rest = point(None if target.rest is None else target.rest[rows])
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
        call("rows", job)
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


__all__ = [
    "TYPES",
    "PlaneSum",
    "Rows",
    "active",
    "available",
    "binary",
    "dtype_of",
    "exponentials_",
    "serves",
    "tile_normaliser",
    "using",
]
