"""The definition: plain differentiable operations on all rows at once.

    cross_entropy = M·A(z/T) − ⟨μ, z/T⟩        entropy = M·H(μ/M)        kl = M·KL(μ/M ‖ softmax(z/T))

Everything faster is tested against it in float64.  It serves every head and target, `torch.func`, forward mode,
gradients of gradients and gradients to the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from likely.forms import Target
from likely.heads import ALL, Head, normalise
from likely.kernels.common import Result, RowScores, weighted_sum


def refuses(head: Head, terms: Sequence[tuple[Target, float]]) -> str | None:
    """Never."""
    return None


def run(
    head: Head,
    terms: Sequence[tuple[Target, float]],
    coefficients: Sequence[Tensor] | None,
    z_coefficient: Tensor | None,
    entropy: bool,
) -> Result:
    """See `likely.kernels.run`."""
    # The head's products are in its own dtype already; an autocast that is on must not lower the rest.
    with torch.autocast(head.device.type, enabled=False):
        z_NC = head.logits()
        if coefficients is None:
            return Result(None, [_score(z_NC, target, temperature, entropy) for target, temperature in terms], None)
        rows = [
            _score(_where_wanted(z_NC, coefficient_N), target, temperature, entropy)
            for (target, temperature), coefficient_N in zip(terms, coefficients)
        ]
        loss = z_NC.new_zeros(())
        for score, coefficient_N in zip(rows, coefficients):
            loss = loss + weighted_sum(score.cross_entropy, coefficient_N)
        z_loss = None
        if z_coefficient is not None:
            _, log_A_N, m_N, _ = normalise(_where_wanted(z_NC, z_coefficient))
            z_loss = weighted_sum((log_A_N + m_N).square(), z_coefficient)
            loss, z_loss = loss + z_loss, z_loss.detach()
    detached = [RowScores(*(None if r is None else r.detach() for r in score)) for score in rows]  # type: ignore[arg-type]
    return Result(loss, detached, z_loss)


def _where_wanted(z_NC: Tensor, coefficient_N: Tensor) -> Tensor:
    """The logits, constant in a row with coefficient 0 that holds NaN or +inf: it is not to be heard of."""
    if z_NC.shape[-1] == 0:
        return z_NC
    lost_N = (coefficient_N == 0) & ~torch.isfinite(z_NC.detach().amax(dim=-1))
    return torch.where(lost_N[:, None], z_NC.detach(), z_NC)


def _score(z_NC: Tensor, target: Target, temperature: float, entropy: bool) -> RowScores:
    if temperature != 1:
        z_NC = z_NC / temperature
    s_NC, log_A_N, _, _ = normalise(z_NC, target.ignored)
    tile = target.tile(ALL, temperature, z_NC.dtype)
    cross_entropy_N = tile.cross_entropy(s_NC, log_A_N)
    if not entropy or target.entropy_unknown() is not None:
        return RowScores(cross_entropy_N, None, None)
    entropy_N = tile.entropy()
    kl_N = tile.kl(s_NC, log_A_N)
    return RowScores(cross_entropy_N, entropy_N, cross_entropy_N - entropy_N if kl_N is None else kl_N)
