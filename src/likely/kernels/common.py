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


def normalise(z_nC: Tensor, ignored_n: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits as `(s, log_A, m, at)`: `s = z − m` with `m` the row's maximum at class `at`, `log_A = logsumexp(s)`.

    `log_A` is `log1p` of the sum over the classes other than `at`, so that the loss of a confident and right model
    keeps its digits, and a constant added to the logits changes nothing.  Differentiable to any order.  In a row whose
    logits are all −inf `m` is taken as 0.
    """
    if ignored_n is not None:
        z_nC = torch.where(ignored_n[:, None], 0, z_nC)
    if z_nC.shape[-1] == 0:
        empty = z_nC.sum(dim=-1)
        return z_nC, empty - torch.inf, empty, empty.long()
    at_n = z_nC.detach().argmax(dim=-1)
    m_n = z_nC.gather(-1, at_n[:, None])[:, 0]
    m_n = torch.where(torch.isneginf(m_n), 0, m_n)
    s_nC = z_nC - m_n[:, None]
    others_n = s_nC.scatter(-1, at_n[:, None], -torch.inf).exp().sum(dim=-1)
    s_at_n = s_nC.gather(-1, at_n[:, None])[:, 0].detach()
    log_A_n = torch.where(torch.isneginf(s_at_n), -torch.inf, torch.log1p(others_n))
    return s_nC, log_A_n, m_n, at_n


def transformed(*tensors: Tensor | None) -> bool:
    """Whether a tensor is inside `torch.func` or forward-mode differentiation, which need plain operations."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return any(
        t is not None and (wrapped(t) or forward_ad.unpack_dual(t).tangent is not None) for t in tensors
    )
