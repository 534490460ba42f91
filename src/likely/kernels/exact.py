"""Products of half-precision matrices as exact as float32 has them, and the linear head made of them.

Legend: N rows, C classes, D features, n rows of one block, c classes of one tile.

A product of two bfloat16 (or float16) numbers is exact in float32, so logits formed there have the error of the sum
alone.  Rounded to bfloat16 they are off by 2⁻⁹ of their size, which is more than two close models differ by: the
gradient of a divergence between them would be noise.  CUDA forms such a product on the tensor cores; elsewhere the
operands are cast, the weight tile by tile, because a whole copy in float32 would be the largest tensor of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likely.heads import ALL, Head, Linear, ProductSum, ProductSums

TILE_BYTES = 2**24
"""The size of a tile of the weight in float32: 16 MiB, which stay in the caches of a GPU and of large CPUs."""


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` in float32, of operands in float32 or half precision (in float64 where both are).

    A float32 operand beside a bfloat16 one is, on CUDA, the sum of two bfloat16 numbers that hold its first 17 bits.
    """
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    if a.is_cuda and wide == torch.float32:
        if a.dtype == b.dtype and a.dtype != wide:
            return _half(a, b) if out is None else torch.mm(a, b, out_dtype=wide, out=out)
        if {a.dtype, b.dtype} == {wide, torch.bfloat16}:
            (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
            sum_ = _half(a_high, b_high)
            sum_ += _half(a_high, b_low) if a_low is None else _half(a_low, b_high)  # type: ignore[arg-type]
            return sum_ if out is None else out.copy_(sum_)
    a, b = a.to(wide), b.to(wide)
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)


def _half(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32)


def _halves(a: Tensor) -> tuple[Tensor, Tensor | None]:
    """A float32 matrix as the sum of two in bfloat16; one that is bfloat16 already as itself."""
    if a.dtype == torch.bfloat16:
        return a, None
    high = a.to(torch.bfloat16)
    # What is not finite stands in the first alone: inf − inf would be NaN.
    return high, torch.where(torch.isfinite(high), a - high, 0).to(torch.bfloat16)


def tiles(weight_CD: Tensor, times: int = 1) -> Iterator[slice]:
    """Slices of the classes whose tile of the weight has near `TILE_BYTES` in float32, or so many times that."""
    classes = max(1, times * TILE_BYTES // (4 * max(1, weight_CD.shape[1])))
    for start in range(0, weight_CD.shape[0], classes):
        yield slice(start, min(start + classes, weight_CD.shape[0]))


class TiledSum(ProductSum):
    """The gradient of a weight in float32, added tile by tile, so that a product is added from the cache."""

    def __init__(self, like: Tensor, acc: torch.dtype) -> None:
        self.total_CD = torch.zeros(like.shape, dtype=acc, device=like.device)

    def add(self, g_nC: Tensor, x_nD: Tensor) -> None:
        for c in tiles(self.total_CD, 4 if x_nD.is_cuda and g_nC.dtype != x_nD.dtype else 1):
            self.total_CD[c] += product(g_nC[:, c].T, x_nD)

    def result(self) -> Tensor:
        return self.total_CD


class Exact(Linear):
    """A linear head in half precision whose logits, and the gradients it carries back, are formed in float32."""

    def logits(self, rows: slice = ALL, out: Tensor | None = None) -> Tensor:
        x_nD = self.x[rows].to(self.acc) if out is None or not self.x.is_cuda else self.x[rows]
        bias_C = None if self.bias is None else self.bias.to(self.acc)
        if out is None:  # seen by autograd
            z_nC = F.linear(x_nD, self.weight.to(self.acc), bias_C)
            return z_nC if self.softcap is None else self.softcap * torch.tanh(z_nC / self.softcap)
        for c in (ALL,) if self.x.is_cuda else tiles(self.weight):
            product(x_nD, self.weight[c].T, out=out[:, c])
        if bias_C is not None:
            out += bias_C
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = TiledSum) -> list[Any]:
        return super().gradient_buffers(needed, product_sum)

    def pull_back(self, rows: slice, g_nC: Tensor, z_nC: Tensor, grads: Sequence[Any]) -> None:
        dx_ND, dweight_CD, dbias_C = grads
        if self.softcap is not None:
            g_nC *= 1 - (z_nC / self.softcap).square_()
        if dbias_C is not None:
            dbias_C += g_nC.sum(dim=0)
        x_nD = self.x[rows] if self.x.is_cuda else self.x[rows].to(self.acc)
        dx_nD = None if dx_ND is None else torch.zeros_like(x_nD, dtype=self.acc)
        if dx_nD is not None:
            for c in tiles(self.weight, 4 if self.x.is_cuda else 1):
                dx_nD += product(g_nC[:, c], self.weight[c])
            dx_ND[rows] = dx_nD
        if dweight_CD is not None:
            dweight_CD.add(g_nC, x_nD)


def exact(head: Head) -> Head:
    """The head, with its products in float32 where they would have been rounded to half precision."""
    if isinstance(head, Linear) and head.dtype != head.acc:
        return Exact(head.x, head.weight, head.bias, head.softcap)
    return head
