"""Products of float32 matrices on the CPU, by the one of PyTorch's two libraries that is faster there.

PyTorch multiplies float32 matrices with MKL, which leaves the wider half of an AMD processor's AVX-512 registers idle;
oneDNN, which it brings along for half precision, does not. On a Zen 5 that is 160 to 240 GFLOP/s a core where MKL has
80 to 105. The operator used here is what `torch.compile` calls for a linear layer. `LIKELY_PRODUCTS=torch` or
`onednn` insists on one of them.

Legend: n rows of a block, C classes, D features.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from likely._checks import Choice

ROOM = 2**18
"""Numbers of a product that is formed at once: oneDNN returns a new tensor, which is copied from the cache, and whose
memory the C library has to be able to use again: from 2 MiB on every tensor may be one of fresh pages."""
SHORT = 256
"""Classes over which a row's gradient is summed at once, and rows over which a weight's is: in longer sums oneDNN's
rounding grows to twice MKL's."""
NARROW = 64
"""Below so many features oneDNN takes as long as MKL, or longer."""


def _linear() -> Callable[..., Tensor] | None:
    """The operator `(x, weight, bias, "none", [], "") -> x weightᵀ + bias`, where this PyTorch has it."""
    try:
        operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
        same = torch.equal(operator(a, b, None, "none", [], ""), a @ b.T)
    except (AttributeError, RuntimeError):
        return None
    return operator if same else None


@cache
def available() -> dict[str, Callable[..., Tensor] | None]:
    """What can be chosen: "torch", and "onednn" with its operator."""
    operator = _linear() if torch.backends.mkldnn.is_available() else None
    return {"torch": None} if operator is None else {"onednn": operator, "torch": None}


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in told


def _best() -> str:
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "onednn" if "onednn" in available() and wide and _is_amd() else "torch"


_choice = Choice("LIKELY_PRODUCTS", "with this PyTorch", available, _best)


def active() -> str:
    """Which library multiplies: "torch" for what PyTorch itself takes, or "onednn"."""
    return _choice.active()


def using(name: str) -> AbstractContextManager[None]:
    """Insist on one of `available()` within a block."""
    return _choice.using(name)


def _operator(features: int, *tensors: Tensor) -> Callable[..., Tensor] | None:
    """oneDNN's product, where it is the faster one for these: contiguous matrices of float32 that hold something."""
    if features < NARROW:
        return None
    for tensor in tensors:
        plain = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        if not plain or tensor.numel() == 0:
            return None
    return available()["onednn"] if active() == "onednn" else None


def logits(x_nD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, out: Tensor) -> Tensor:
    """`x Wᵀ + b` into `out`, (n, C)."""
    linear = _operator(x_nD.shape[1], x_nD, weight_CD)
    if linear is None:
        for some in _columns(x_nD, weight_CD):
            if bias_C is None:
                torch.mm(x_nD, weight_CD[some].T, out=out[:, some])
            else:
                torch.addmm(bias_C[some], x_nD, weight_CD[some].T, out=out[:, some])
        return out
    for some in _tiles(weight_CD.shape[0], _fitting(x_nD.shape[0])):
        bias_c = None if bias_C is None else bias_C[some]
        out[:, some].copy_(linear(x_nD, weight_CD[some], bias_c, "none", [], ""))
    return out


def _columns(x_nD: Tensor, weight_CD: Tensor) -> list[slice]:
    """The classes whose logits PyTorch's own product forms at once.

    From 768 features on MKL's product of few rows and many classes runs at two thirds to nine tenths of its rate, and
    at the whole of it for 384 classes at a time.
    """
    classes, features = weight_CD.shape
    if x_nD.dtype != torch.float32 or x_nD.device.type != "cpu" or features < 768:
        return [slice(None)]
    return _tiles(classes, 384)


def _fitting(other: int) -> int:
    """How many times `other` numbers there is room for, and at least 64."""
    return max(64, ROOM // max(1, other))


def _tiles(many: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, many)) for start in range(0, many, size)]


def rows_gradient(g_nC: Tensor, weight_CD: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """`g W` into `out`, (n, D), or added to it."""
    linear = _operator(weight_CD.shape[1], g_nC, weight_CD)
    if linear is None:
        return out.addmm_(g_nC, weight_CD) if add else torch.mm(g_nC, weight_CD, out=out)
    for rows in _tiles(g_nC.shape[0], _fitting(out.shape[1])):
        for some in _tiles(g_nC.shape[1], SHORT):
            product_nD = linear(g_nC[rows, some], weight_CD[some].T, None, "none", [], "")
            if add or some.start:
                out[rows] += product_nD
            else:
                out[rows] = product_nD
    return out


def weight_gradient(g_nC: Tensor, x_nD: Tensor, total_CD: Tensor, *, add: bool) -> Tensor:
    """`gᵀ x` into `total`, (C, D), or added to it."""
    linear = _operator(x_nD.shape[1], g_nC, x_nD, total_CD)
    if linear is None:
        return total_CD.addmm_(g_nC.T, x_nD) if add else torch.mm(g_nC.T, x_nD, out=total_CD)
    for rows in _tiles(g_nC.shape[0], SHORT):
        for some in _tiles(g_nC.shape[1], _fitting(x_nD.shape[1])):
            part_cD = linear(g_nC[rows, some].T, x_nD[rows].T, None, "none", [], "")
            if add or rows.start:
                total_CD[some] += part_cD
            else:
                total_CD[some] = part_cD
    return total_CD
