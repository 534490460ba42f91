"""The least memory: tiles of rows × classes, each of whose logits are computed twice and held once.

Legend: N rows, C classes, D features, n rows of one tile, c classes of one tile.

The first sweep over the tiles gathers each row's log-normaliser and expected logit; the second forms
`coefficient · (M·exp(z/T − A) − μ)/T` tile by tile and carries it back.  Four matrix products instead of three (six
instead of four beside a teacher's head), and no more scratch than one tile in float32, a few numbers for each row, and,
for half precision, the float32 sum of a hidden state's gradient.  For a Linear head; a teacher may be one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from likely import _products
from likely.forms import Dense, Sparse, Target
from likely.heads import Head, Linear, ProductSum
from likely.kernels import native
from likely.kernels.common import weighted_sum

Terms = Sequence[tuple[Target, float]]

TILE, HALF_TILE = (256, 2**19), (1024, 2**21)
"""Rows and entries of a tile of logits: 2 MiB in float32, where 256 rows keep the products' rate, and 4 MiB of half
precision, whose products want more rows. Caches hold either."""


def refuses(head: Head, terms: Terms) -> str | None:
    """Other heads hold their logits already; a `rest` needs the whole complement of a row at once."""
    if not isinstance(head, Linear):
        return "it is for a Linear head; other heads hold their logits already"
    for target, temperature in terms:
        if isinstance(target, Sparse):
            if target.rest is not None:
                return "a bucket's mass needs a whole row at once"
        elif isinstance(target, Dense) and target.head is None and target.softens and temperature != 1:
            return "softening probabilities needs a whole row at once; give the teacher's logits"
    return None


def _columns(head: Head, classes: slice) -> Head:
    """The head of a few of the classes."""
    if isinstance(head, Linear):
        bias = None if head.bias is None else head.bias[classes]
        return Linear(head.x, head.weight[classes], bias, softcap=head.softcap)
    z_NC = head.stored(slice(0, head.rows))
    assert z_NC is not None
    return head.with_tensors([z_NC[:, classes]])


class _LogSum:
    """`log Σ exp` over tiles of classes, for every row."""

    def __init__(self, rows: int, like: dict[str, Any]) -> None:
        self.value_N = torch.full((rows,), -torch.inf, **like)

    def add(self, rows: slice, z_nc: Tensor, temperature: float = 1.0) -> None:
        if native.active() != "plain" and z_nc.dtype in native.TYPES and z_nc.device.type == "cpu":
            own_n = native.tile_normaliser(z_nc, temperature)
        else:
            own_n = torch.logsumexp(z_nc if temperature == 1 else z_nc / temperature, dim=-1)
        self.value_N[rows] = torch.logaddexp(self.value_N[rows], own_n)


class Pass:
    """One run over the tiles, with the interface of `kernels.loop.Pass`."""

    def __init__(self, head: Head, terms: Terms, known: Sequence[bool], needed: Sequence[bool]) -> None:
        self.head, self.terms, self.known, self.needed = head.detached(), terms, known, needed
        self.like: dict[str, Any] = {"dtype": head.acc, "device": head.device}
        N = head.rows
        self.rows = [[torch.zeros(N, **self.like) for _ in range(3)] for _ in terms]
        self.loss = torch.zeros((), **self.like)
        self.z_loss = torch.zeros((), **self.like)
        self.grads: list[Any] | None = None
        # One log-normaliser for each temperature, and one of each teacher.
        self.normalisers = {T: _LogSum(N, self.like) for T in {1.0, *(temperature for _, temperature in terms)}}
        self.teachers = [_LogSum(N, self.like) for _ in terms]
        self.room: Tensor | None = None
        # Labels alone: the tile stays in the head's dtype and its gradient is formed in one reading.
        self.lean = native.dtype_of(head) == head.dtype and all(isinstance(target, Sparse) for target, _ in terms)
        self.lean = self.lean and len(terms) == 1 and not head.keeps_logits

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """All rows of one range of classes, then the next."""
        rows, entries = HALF_TILE if self.lean and self.head.dtype.itemsize == 2 else TILE
        n = min(self.head.rows, rows)
        c = max(1, entries // max(1, n))
        for start in range(0, self.head.classes, c):
            for first in range(0, self.head.rows, n):
                yield (
                    slice(first, min(first + n, self.head.rows)),
                    slice(start, min(start + c, self.head.classes)),
                )

    def _tile(self, rows: slice, classes: slice) -> Tensor:
        part = _columns(self.head, classes)
        if not self.lean:
            return part.logits(rows)
        n, c = rows.stop - rows.start, classes.stop - classes.start
        if self.room is None:
            self.room = torch.empty(n * c, dtype=self.head.dtype)
        return part.logits(rows, out=self.room[: n * c].view(n, c))

    def over(self, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None) -> Pass:
        self.lean = self.lean and z_coefficient is None
        for rows, classes in self.tiles():
            self._gather(rows, classes)
        mass_N = [self._finish(at, target, temperature) for at, (target, temperature) in enumerate(self.terms)]
        if coefficients is not None:
            for (cross_entropy_N, _, _), a_N in zip(self.rows, coefficients):
                self.loss += weighted_sum(cross_entropy_N, a_N.to(self.head.acc))
        A_N = self.normalisers[1.0].value_N
        if z_coefficient is not None:
            self.z_loss += weighted_sum(A_N.square(), z_coefficient.to(self.head.acc))
            self.loss += self.z_loss
        if any(self.needed) and coefficients is not None:
            self._carry_back(coefficients, z_coefficient, mass_N)
        return self

    # ------------------------------------------------------------------------------------------- the first sweep

    def _gather(self, rows: slice, classes: slice) -> None:
        z_nc = self._tile(rows, classes)
        for temperature, log_sum in self.normalisers.items():
            log_sum.add(rows, z_nc, temperature)
        for at, (target, temperature) in enumerate(self.terms):
            expected_N, entropy_N, _ = self.rows[at]
            if isinstance(target, Sparse):
                index_nk, value_nk = self._stored(target, rows, classes)
                s_nk = z_nc.gather(-1, index_nk).to(self.head.acc) / temperature
                expected_N[rows] += _product(value_nk, s_nk).sum(dim=-1)
                if target.floor is not None:
                    based_n = _product(self._base(target, classes), z_nc.to(self.head.acc)).sum(dim=-1)
                    expected_N[rows] += target.floor[rows].to(self.head.acc) * based_n / temperature
            else:
                assert isinstance(target, Dense)
                z_T_nc = z_nc if temperature == 1 else z_nc / temperature
                mu_nc, t_nc = self._dense(at, target, rows, classes, temperature)
                if t_nc is not None:  # a teacher's weights are still to be normalised: kept relative to the running sum
                    self._running(at, rows, t_nc, z_T_nc)
                else:
                    assert mu_nc is not None
                    expected_N[rows] += _product(mu_nc, z_T_nc).sum(dim=-1)
                    if self.known[at]:
                        entropy_N[rows] -= _product(mu_nc, torch.where(mu_nc == 0, 1, mu_nc).log()).sum(dim=-1)

    def _running(self, at: int, rows: slice, t_nc: Tensor, z_nc: Tensor) -> None:
        """Means under the teacher's softmax, of the classes seen so far."""
        expected_N, entropy_N, _ = self.rows[at]
        before_n = self.teachers[at].value_N[rows].clone()
        self.teachers[at].add(rows, t_nc)
        now_n = self.teachers[at].value_N[rows]
        kept_n = torch.where(torch.isneginf(before_n), 0, (before_n - now_n).exp())
        p_nc = (t_nc - now_n[:, None]).exp()
        expected_N[rows] = kept_n * expected_N[rows] + _product(p_nc, z_nc).sum(dim=-1)
        entropy_N[rows] = kept_n * entropy_N[rows] + _product(p_nc, t_nc).sum(dim=-1)

    def _finish(self, at: int, target: Target, temperature: float) -> Tensor:
        expected_N, entropy_N, kl_N = self.rows[at]
        A_N = self.normalisers[temperature].value_N
        if isinstance(target, Sparse):
            whole = target.tile(slice(0, self.head.rows), temperature, self.head.acc)
            mass_N = whole.mass()
            if self.known[at]:
                entropy_N.copy_(whole.entropy())
        else:
            assert isinstance(target, Dense)
            if target.head is not None:
                mass_N = torch.ones_like(A_N)
                entropy_N.copy_(self.teachers[at].value_N - entropy_N)
            else:
                mass_N = torch.zeros_like(A_N)
                for rows, classes in self.tiles():
                    mu_nc, _ = self._dense(at, target, rows, classes, temperature)
                    assert mu_nc is not None
                    mass_N[rows] += mu_nc.sum(dim=-1)
                entropy_N += torch.where(mass_N > 0, mass_N * torch.where(mass_N > 0, mass_N, 1).log(), 0)
        cross_entropy_N = mass_N * A_N - expected_N
        if target.ignored is not None:
            cross_entropy_N = torch.where(target.ignored, 0, cross_entropy_N)
        kl_N.copy_(cross_entropy_N - entropy_N)
        self.rows[at][0] = cross_entropy_N
        return mass_N

    # ------------------------------------------------------------------------------------------ the second sweep

    def _carry_back(
        self, coefficients: Sequence[Tensor], z_coefficient: Tensor | None, mass_N: Sequence[Tensor]
    ) -> None:
        head = self.head
        assert isinstance(head, Linear)
        of_x, of_weight, of_bias = self.needed
        dx_ND = torch.zeros(head.x.shape, **self.like) if of_x else None
        dweight_CD = torch.empty_like(head.weight, memory_format=torch.contiguous_format) if of_weight else None
        dbias_C = torch.zeros(head.classes, **self.like) if of_bias else None
        tile: ProductSum | None = None
        for rows, classes in self.tiles():
            part = _columns(head, classes)
            z_nc = self._tile(rows, classes)
            g_nc = self._lean(rows, classes, z_nc, coefficients[0], mass_N[0]) if self.lean else torch.zeros_like(z_nc)
            for at, (target, temperature) in enumerate([] if self.lean else self.terms):
                a_n = coefficients[at][rows].to(z_nc.dtype) / temperature
                A_n = self.normalisers[temperature].value_N[rows]
                own_nc = (z_nc / temperature - A_n[:, None]).exp_().mul_(mass_N[at][rows][:, None])
                self._subtract(at, target, temperature, rows, classes, own_nc)
                idle_n = a_n == 0 if target.ignored is None else target.ignored[rows] | (a_n == 0)
                g_nc += own_nc.mul_(a_n[:, None]).masked_fill_(idle_n[:, None], 0)
            if z_coefficient is not None:
                a_n, A_n = z_coefficient[rows].to(head.acc), self.normalisers[1.0].value_N[rows]
                own_nc = (z_nc - A_n[:, None]).exp_().mul_((2 * a_n * A_n)[:, None])
                g_nc += own_nc.masked_fill_((a_n == 0)[:, None], 0)
            if dweight_CD is not None and rows.start == 0:
                planes = head.dtype == torch.bfloat16 and native.dtype_of(head) is not None
                blocks = -(-head.rows // rows.stop)
                own = dweight_CD[classes]
                tile = native.PlaneSum(own, head.acc, blocks) if planes else ProductSum(own, head.acc)
            buffers = [None, tile if dweight_CD is not None else None, None if dbias_C is None else dbias_C[classes]]
            if dx_ND is not None:
                scaled_nc = g_nc if head.softcap is None else g_nc * (1 - (z_nc / head.softcap).square())
                scaled_nc = scaled_nc.to(head.dtype)
                if head.acc == head.dtype:
                    _products.rows_gradient(scaled_nc, head.weight[classes], dx_ND[rows], add=True)
                else:
                    dx_ND[rows] += scaled_nc @ head.weight[classes]
            part.pull_back(rows, g_nc, z_nc, buffers)
            if tile is not None and rows.stop == head.rows and dweight_CD is not None:
                dweight_CD[classes] = tile.result()
        self.grads = [dx_ND, dweight_CD, dbias_C]

    def _lean(self, rows: slice, classes: slice, z_nc: Tensor, a_N: Tensor, mass_N: Tensor) -> Tensor:
        """The gradient of a single sparse term, in the memory of the logits; its stored classes are rounded once."""
        (target, temperature) = self.terms[0]
        assert isinstance(target, Sparse)
        a_n, A_n = a_N[rows].to(self.head.acc) / temperature, self.normalisers[temperature].value_N[rows]
        if target.ignored is not None:
            a_n = torch.where(target.ignored[rows], 0, a_n)
        index_nk, value_nk = self._stored(target, rows, classes)
        c_n = a_n * mass_N[rows]
        stored_nk = c_n[:, None] * (z_nc.gather(-1, index_nk).to(self.head.acc) / temperature - A_n[:, None]).exp()
        g_nc = native.exponentials_(z_nc, temperature, A_n, c_n)
        if target.floor is not None:
            floor_n = a_n * target.floor[rows].to(self.head.acc)
            base_c = self._base(target, classes)
            g_nc -= floor_n[:, None] * base_c
            stored_nk = stored_nk - floor_n[:, None] * base_c[index_nk]
        if index_nk.shape[-1] == 1:
            at_n = (value_nk[:, 0] != 0).nonzero()[:, 0]
            stored_n = (stored_nk - a_n[:, None] * value_nk)[at_n, 0]
            g_nc[at_n, index_nk[at_n, 0]] = torch.where(a_n[at_n] == 0, 0, stored_n).to(g_nc.dtype)
        else:
            own_nk = torch.where((a_n == 0)[:, None], 0, -a_n[:, None] * value_nk)
            g_nc.scatter_add_(-1, index_nk, own_nk.to(g_nc.dtype))
        return g_nc

    def _subtract(
        self, at: int, target: Target, temperature: float, rows: slice, classes: slice, own_nc: Tensor
    ) -> None:
        if isinstance(target, Sparse):
            if target.floor is not None:
                own_nc -= target.floor[rows].to(own_nc.dtype)[:, None] * self._base(target, classes)
            index_nk, value_nk = self._stored(target, rows, classes)
            own_nc.scatter_add_(-1, index_nk, -value_nk)
            return
        assert isinstance(target, Dense)
        mu_nc, t_nc = self._dense(at, target, rows, classes, temperature)
        if t_nc is not None:
            mu_nc = (t_nc - self.teachers[at].value_N[rows][:, None]).exp_()
        assert mu_nc is not None
        own_nc -= mu_nc

    # ---------------------------------------------------------------------------------------- tiles of the target

    def _stored(self, target: Sparse, rows: slice, classes: slice) -> tuple[Tensor, Tensor]:
        """The stored classes as places in the tile; one that lies outside gets the value 0."""
        index_nk = target.index[rows]
        inside_nk = (index_nk >= classes.start) & (index_nk < classes.stop)
        value_nk = torch.where(inside_nk, target.value[rows].to(self.head.acc), 0)
        return torch.where(inside_nk, index_nk - classes.start, 0), value_nk

    def _base(self, target: Sparse, classes: slice) -> Tensor:
        size = classes.stop - classes.start
        return torch.ones(size, **self.like) if target.base is None else target.base[classes].to(self.head.acc)

    def _dense(
        self, at: int, target: Dense, rows: slice, classes: slice, temperature: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """The measure, or a teacher's softened logits."""
        if target.head is not None:
            t_nc = _columns(target.head, classes).logits(rows).to(self.head.acc)
            return None, t_nc / temperature if target.softens else t_nc
        assert target.given is not None
        mu_nc = target.given[rows, classes].to(self.head.acc)
        return (mu_nc if target.class_weight is None else mu_nc * target.class_weight[classes].to(mu_nc.dtype)), None


def _product(mu: Tensor, s: Tensor) -> Tensor:
    """`μ s`, where a class without mass costs nothing even at `s = −inf`."""
    return mu * torch.where((mu == 0) & torch.isneginf(s), 0, s)
