"""What every kernel returns and shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


class RowScores(NamedTuple):
    """One term's rows, (N,) each, in nats; entropy and KL are None where they are unknown or were not asked for."""

    cross_entropy: Tensor
    entropy: Tensor | None
    kl: Tensor | None


class Result(NamedTuple):
    loss: Tensor | None
    """`Σ_terms Σ_rows coefficient · cross_entropy + Σ_rows z_coefficient · A²`, where coefficients were given."""
    rows: list[RowScores]
    z_loss: Tensor | None
    """The second of these sums alone, detached."""


def transformed(*tensors: Tensor | None) -> bool:
    """Whether a tensor is inside `torch.func` or forward-mode differentiation, which need plain operations."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return any(t is not None and (wrapped(t) or forward_ad.unpack_dual(t).tangent is not None) for t in tensors)


def weighted_sum(rows_N: Tensor, coefficient_N: Tensor) -> Tensor:
    """`Σ coefficient · row`; a row with coefficient 0 adds 0 even when it is infinite."""
    idle_N = (coefficient_N == 0) & ~torch.isfinite(rows_N)
    return (torch.where(idle_N, 0, rows_N) * coefficient_N.to(rows_N.dtype)).sum()
