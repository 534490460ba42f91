"""The loop over blocks of rows: one buffer of logits, and the gradients formed where their coefficients are known.

For each block: the tile of logits, its normaliser, every term's loss, and, where the rows' coefficients in the final
sum are known, the tile of gradients `coefficient · (M·softmax(z/T) − μ)/T`, carried back at once.  The tile is read
once, by the compiled row pass of `kernels.native`, where that serves, and by PyTorch operations otherwise.  Nothing
here is seen by autograd; `kernels.chunked` makes functions of it that are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from likely import _memory
from likely.forms import Dense, Target
from likely.heads import ALL, Head, Linear, ProductSum, finished, normalise
from likely.kernels import native
from likely.kernels.common import weighted_sum

Terms = Sequence[tuple[Target, float]]

BLOCK_BYTES: int | None = None
"""The size of a block of logits, for those who want another than `blocks` chooses."""


def blocks(head: Head, terms: Terms = ()) -> list[slice]:
    """Slices of rows, in each of which the tile of logits is held.

    Bytes, threads and caches decide, not the number of features.  A tile of four second-level caches for each thread
    is still warm when its gradients are formed and carried back.  Below 256 rows the matrix products lose their rate,
    and in bfloat16 every block more than two re-reads the weight's gradient, so a tile has at least 256 rows in float32
    (384 where a teacher's own product comes to the student's three) and 512 in bfloat16, and there are two blocks in
    bfloat16 where that takes no more memory than the sum over more than two would; unless it would exceed 128 MiB.
    Rows come in multiples of 64, spread evenly.
    """
    itemsize = (native.dtype_of(head) or head.acc).itemsize
    size = head.classes * itemsize
    if size == 0 or head.rows == 0:
        return [slice(0, head.rows)] if head.rows else []
    if BLOCK_BYTES is not None:
        rows = max(1, BLOCK_BYTES // size)
    else:
        warm = 4 * _second_level_cache() * torch.get_num_threads()
        products = any(isinstance(t, Dense) and t.head is not None and t.head.stored(ALL) is None for t, _ in terms)
        least = 384 if products else 256
        if itemsize == 2:
            half = -(-head.rows // 2)
            least = half if 512 < half <= 512 + (head.x.shape[1] if isinstance(head, Linear) else 0) else 512
        rows = max(1, min(max(warm // size, least), 2**27 // size))
        even = -(-head.rows // -(-head.rows // rows))
        rows = min(-(-even // 64) * 64, rows)
    return [slice(start, min(start + rows, head.rows)) for start in range(0, head.rows, rows)]


@cache
def _second_level_cache() -> int:
    try:
        return max(2**18, os.sysconf("SC_LEVEL2_CACHE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 2**20  # not told


class Pass:
    """One run over the rows: what it leaves are the terms' rows, the weighted sums, and the gradients."""

    def __init__(self, head: Head, terms: Terms, known: Sequence[bool], needed: Sequence[bool]) -> None:
        self.head, self.terms, self.known, self.needed = head.detached(), terms, known, needed
        self.blocks = blocks(self.head, terms)
        self.grads: list[Any] | None = None
        empty: dict[str, Any] = {"dtype": head.acc, "device": head.device}
        self.rows = [[torch.empty(head.rows, **empty) for _ in range(3)] for _ in terms]
        self.loss = torch.zeros((), **empty)
        self.z_loss = torch.zeros((), **empty)

    def over(self, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None) -> Pass:
        dtype = native.dtype_of(self.head)
        if dtype is not None and all(native.serves(target) for target, _ in self.terms):
            self._compiled(dtype, coefficients, z_coefficient)
        else:
            self._plain(coefficients, z_coefficient)
        if self.grads is not None:
            self.grads = finished(self.grads)
        return self

    # ------------------------------------------------------------------------------------ by the compiled row pass

    def _compiled(
        self, dtype: torch.dtype, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None
    ) -> None:
        head = self.head
        if any(self.needed):
            planes = partial(native.PlaneSum, blocks=len(self.blocks))
            self.grads = head.gradient_buffers(self.needed, planes if head.dtype == torch.bfloat16 else ProductSum)
        rows_pass = native.Rows(head, self.terms, self.rows)
        tile_nC = other_nC = None
        for rows in self.blocks:
            n = rows.stop - rows.start
            z_nC = head.stored(rows)
            if z_nC is None or z_nC.dtype != dtype or z_nC.stride(-1) != 1:
                if tile_nC is None:
                    tile_nC = _memory.empty(n, head.classes, dtype=dtype)
                z_nC = head.logits(rows, out=tile_nC[:n])
            placed_nC = g_nC = None
            if self.grads is not None and coefficients is not None:
                placed_nC = head.gradient_place(rows, self.grads)
                if placed_nC is not None and placed_nC.dtype == dtype:
                    g_nC = placed_nC
                elif head.keeps_logits or tile_nC is None:
                    if other_nC is None:
                        other_nC = _memory.empty(n, head.classes, dtype=dtype)
                    g_nC = other_nC[:n]
                else:
                    g_nC = z_nC
            own = None if coefficients is None else [a_N[rows] for a_N in coefficients]
            a_n = None if z_coefficient is None else z_coefficient[rows]
            A_n = rows_pass.over(rows, z_nC, g_nC, self.known, own, a_n)
            if A_n is not None and a_n is not None:
                self._penalise(A_n, a_n)
            if g_nC is not None and g_nC is not placed_nC and self.grads is not None:
                head.pull_back(rows, g_nC, z_nC, self.grads)
        if coefficients is not None:
            for (cross_entropy_N, _, _), a_N in zip(self.rows, coefficients):
                self.loss += weighted_sum(cross_entropy_N, a_N.to(head.acc))

    def _penalise(self, A_n: Tensor, a_n: Tensor) -> None:
        penalty = weighted_sum(A_n.square(), a_n)
        self.z_loss += penalty
        self.loss += penalty

    # --------------------------------------------------------------------------------------- by PyTorch operations

    def _plain(self, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None) -> None:
        if any(self.needed):
            self.grads = self.head.gradient_buffers(self.needed)
        buffer_nC = None
        for rows in self.blocks:
            n = rows.stop - rows.start
            if buffer_nC is None:
                buffer_nC = torch.empty(n, self.head.classes, dtype=self.head.acc, device=self.head.device)
            z_nC = self.head.logits(rows, out=buffer_nC[:n])
            g_nC = None if self.grads is None else torch.zeros_like(z_nC)
            for at, (target, temperature) in enumerate(self.terms):
                a_n = None if coefficients is None else coefficients[at][rows].to(self.head.acc)
                self._term(at, target, temperature, rows, z_nC, a_n, g_nC)
            if z_coefficient is not None:
                self._z_term(z_nC, z_coefficient[rows].to(self.head.acc), g_nC)
            if g_nC is not None and self.grads is not None:
                self.head.pull_back(rows, g_nC, z_nC, self.grads)

    def _term(
        self,
        at: int,
        target: Target,
        temperature: float,
        rows: slice,
        z_nC: Tensor,
        a_n: Tensor | None,
        g_nC: Tensor | None,
    ) -> None:
        ignored_n = None if target.ignored is None else target.ignored[rows]
        s_nC, log_A_n, _, at_n = normalise(z_nC if temperature == 1 else z_nC / temperature, ignored_n)
        tile = target.tile(rows, temperature, z_nC.dtype)
        cross_entropy_N, entropy_N, kl_N = self.rows[at]
        kl_n = tile.kl(s_nC, log_A_n) if self.known[at] else None
        if self.known[at]:
            entropy_N[rows] = tile.entropy()
            cross_entropy_N[rows] = tile.cross_entropy(s_nC, log_A_n) if kl_n is None else entropy_N[rows] + kl_n
            kl_N[rows] = cross_entropy_N[rows] - entropy_N[rows] if kl_n is None else kl_n
        else:
            cross_entropy_N[rows] = tile.cross_entropy(s_nC, log_A_n)
        if a_n is not None:
            self.loss += weighted_sum(cross_entropy_N[rows], a_n)
        if g_nC is not None and a_n is not None:
            q_nC = (s_nC - log_A_n[:, None]).exp_()
            sure_n1 = q_nC.gather(-1, at_n[:, None]) > 0.5
            own_nC = tile.gradient_(q_nC, lambda: s_nC)
            # The row's gradient sums to 0, and at the largest logit of a confident row it is formed so: q − 1 would
            # lose a small one.  In a row that is not, the sum would bring the rounding of all its classes.
            direct_n1 = own_nC.gather(-1, at_n[:, None])
            own_nC.scatter_(-1, at_n[:, None], 0)
            others_n1 = own_nC.sum(dim=-1, keepdim=True)
            own_nC.scatter_(-1, at_n[:, None], torch.where(sure_n1, -others_n1, direct_n1))
            idle_n = a_n == 0 if ignored_n is None else ignored_n | (a_n == 0)
            own_nC.mul_((a_n / temperature)[:, None]).masked_fill_(idle_n[:, None], 0)
            g_nC += own_nC

    def _z_term(self, z_nC: Tensor, a_n: Tensor, g_nC: Tensor | None) -> None:
        s_nC, log_A_n, m_n, _ = normalise(z_nC)
        A_n = log_A_n + m_n
        self._penalise(A_n, a_n)
        if g_nC is not None:
            own_nC = (s_nC - log_A_n[:, None]).exp_().mul_((2 * a_n * A_n)[:, None])
            g_nC += own_nC.masked_fill_((a_n == 0)[:, None], 0)
