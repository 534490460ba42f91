"""What has no rows of classes: binary losses, tiles of some classes, sums of products."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from likely import _memory
from likely.heads import ProductSum
from likely.kernels.native.library import TYPES, call, i32, i64, pointer


class _Planes(ctypes.Structure):
    _fields_ = (
        ("last", i32),
        ("threads", i32),
        ("rows", i64),
        ("columns", i64),
        ("high", pointer),
        ("low", pointer),
        ("stride", i64),
        ("part", pointer),
    )


class _Tile(ctypes.Structure):
    _fields_ = (
        ("type", i32),
        ("threads", i32),
        ("rows", i64),
        ("classes", i64),
        ("logits", pointer),
        ("logits_stride", i64),
        ("gradient", pointer),
        ("gradient_stride", i64),
        ("inverse_temperature", ctypes.c_float),
        ("coefficient", pointer),
        ("normaliser", pointer),
    )


class _Binary(ctypes.Structure):
    _fields_ = (
        ("type", i32),
        ("threads", i32),
        ("rows", i64),
        ("logits", pointer),
        ("mu1", pointer),
        ("mu0", pointer),
        ("gradient", pointer),
        ("coefficients", pointer),
        ("coefficient", ctypes.c_float),
        ("cross_entropy", pointer),
        ("sum", pointer),
    )


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
    call(
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


# -------------------------------------------------------------------------------------------- tiles of some classes


def tile_normaliser(z_nc: Tensor, temperature: float) -> Tensor:
    """`logsumexp(z/T)` of each row of a tile, (n,)."""
    A_n = torch.empty(z_nc.shape[0])
    _tile(z_nc, temperature, A_n, None)
    return A_n


def exponentials_(z_nc: Tensor, temperature: float, A_n: Tensor, coefficient_n: Tensor) -> Tensor:
    """Turn a tile of logits into `coefficient · exp(z/T − A)`, in place."""
    _tile(z_nc, temperature, A_n.contiguous(), coefficient_n.float().contiguous())
    return z_nc


def _tile(z_nc: Tensor, temperature: float, A_n: Tensor, coefficient_n: Tensor | None) -> None:
    job = _Tile(
        type=TYPES[z_nc.dtype],
        threads=min(torch.get_num_threads(), max(1, z_nc.numel() // 2**14)),
        rows=z_nc.shape[0],
        classes=z_nc.shape[1],
        logits=z_nc.data_ptr(),
        logits_stride=z_nc.stride(0),
        gradient=None if coefficient_n is None else z_nc.data_ptr(),
        gradient_stride=z_nc.stride(0),
        inverse_temperature=1 / temperature,
        coefficient=None if coefficient_n is None else coefficient_n.data_ptr(),
        normaliser=A_n.data_ptr(),
    )
    call("tile", job)


# ----------------------------------------------------------------------------------------------- sums of products


class PlaneSum(ProductSum):
    """A weight's gradient in bfloat16, summed over blocks of rows in float32 without a float32 buffer.

    The float32 sum is two planes of 16 bits: the high one is the result's own memory, the low one is needed from the
    second block on that is not the last.  Products are formed for a few classes at a time, so none is held whole.
    """

    PART_BYTES = 2**21

    def __init__(self, like: Tensor, acc: torch.dtype, blocks: int) -> None:
        self.high_CD = _memory.empty_like(like)
        self.low_CD: Tensor | None = None
        self.blocks, self.done = blocks, 0

    def add(self, g_nC: Tensor, x_nD: Tensor) -> None:
        self.done += 1
        if self.done == 1:
            torch.mm(g_nC.T, x_nD, out=self.high_CD)
            return
        if self.done == 2 == self.blocks:  # PyTorch's product adds in float32 and rounds once
            torch.addmm(self.high_CD, g_nC.T, x_nD, out=self.high_CD)
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
            call(
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
