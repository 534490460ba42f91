"""Large tensors in huge pages: their first touch, page by page, can cost more than the arithmetic that follows.

Linux lends huge pages to who asks (`madvise`), where the system allows it; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

_PAGE = 2**21
_HUGE = 14  # MADV_HUGEPAGE
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty`, in huge pages where it is large and on the CPU."""
    return in_huge_pages(torch.empty(*shape, dtype=dtype, device=device))


def empty_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like`, contiguous, in huge pages where it is large and on the CPU."""
    return in_huge_pages(torch.empty_like(tensor, memory_format=torch.contiguous_format))


def in_huge_pages(tensor: Tensor) -> Tensor:
    """The same tensor, its memory, which must not have been touched yet, marked for huge pages."""
    size = tensor.numel() * tensor.itemsize
    if size >= 2 * _PAGE and tensor.device.type == "cpu" and _madvise is not None:
        start = -(-tensor.data_ptr() // _PAGE) * _PAGE
        length = (tensor.data_ptr() + size - start) // _PAGE * _PAGE
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _HUGE)
    return tensor
