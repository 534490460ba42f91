"""The loop over blocks of rows: one buffer of logits, and the gradients formed where their coefficients are known.

For each block: the tile of logits, its normaliser, every term's loss, and, where the rows' coefficients in the final
sum are known, the tile of gradients `coefficient · (M·softmax(z/T) − μ)/T`, carried back at once.  Nothing here is seen
by autograd; `kernels.chunked` makes functions of it that are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from likely.forms import Target
from likely.heads import Head, normalise
from likely.kernels.common import weighted_sum

Terms = Sequence[tuple[Target, float]]

BLOCK_BYTES = 2**25
"""The size of a block of logits: 32 MiB, which at 32,000 classes in float32 are 262 rows."""


def blocks(head: Head, block_rows: int | None = None) -> Iterator[slice]:
    """Slices of rows whose tile of logits is near `BLOCK_BYTES`."""
    if block_rows is None:
        block_rows = max(1, BLOCK_BYTES // max(1, head.classes * head.acc.itemsize))
    for start in range(0, head.rows, block_rows):
        yield slice(start, min(start + block_rows, head.rows))


class Pass:
    """One run over the rows: what it leaves are the terms' rows, the weighted sums, and the gradients."""

    def __init__(self, head: Head, terms: Terms, known: Sequence[bool], needed: Sequence[bool]) -> None:
        self.head, self.terms, self.known = head.detached(), terms, known
        self.grads = self.head.gradient_buffers(needed) if any(needed) else None
        empty: dict[str, Any] = {"dtype": head.acc, "device": head.device}
        self.rows = [[torch.empty(head.rows, **empty) for _ in range(3)] for _ in terms]
        self.loss = torch.zeros((), **empty)
        self.z_loss = torch.zeros((), **empty)

    def over(self, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None) -> Pass:
        buffer_nC = None
        for rows in blocks(self.head):
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
        return self

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
            own_nC = tile.gradient_(q_nC, lambda: s_nC)
            # The row's gradient sums to 0, and at the largest logit it is formed so: q − 1 would lose a small one.
            own_nC.scatter_(-1, at_n[:, None], 0)
            own_nC.scatter_(-1, at_n[:, None], -own_nC.sum(dim=-1, keepdim=True))
            idle_n = a_n == 0 if ignored_n is None else ignored_n | (a_n == 0)
            own_nC.mul_((a_n / temperature)[:, None]).masked_fill_(idle_n[:, None], 0)
            g_nC += own_nC

    def _z_term(self, z_nC: Tensor, a_n: Tensor, g_nC: Tensor | None) -> None:
        s_nC, log_A_n, m_n, _ = normalise(z_nC)
        A_n = log_A_n + m_n
        added = weighted_sum(A_n.square(), a_n)
        self.z_loss += added
        self.loss += added
        if g_nC is not None:
            own_nC = (s_nC - log_A_n[:, None]).exp_().mul_((2 * a_n * A_n)[:, None])
            g_nC += own_nC.masked_fill_((a_n == 0)[:, None], 0)
