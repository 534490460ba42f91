"""Scores: what came of a head and a target, per row, in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from likely._checks import require
from likely.measures import Estimate, estimate


class ScoreEstimate(NamedTuple):
    """The means of a score with their standard errors; `entropy` and `kl` are None where they are unknown."""

    cross_entropy: Estimate
    entropy: Estimate | None
    kl: Estimate | None


def shares(weight_N: Tensor | None, count_N: Tensor, total: Any = None) -> Tensor:
    """What each row's loss is multiplied by in a mean: `weight / total`; 0 everywhere when the total is 0.

    `total` is by default the sum of the counts.  This is the only division of a loss by a number of rows.
    """
    total = count_N.sum(dtype=torch.float64) if total is None else torch.as_tensor(total, device=count_N.device)
    require(total.dim() == 0, f"total: has shape {tuple(total.shape)}; the denominator of a mean is one number")
    weight_N = torch.ones_like(count_N) if weight_N is None else weight_N
    nothing = total == 0
    return torch.where(nothing, 0, weight_N.double() / torch.where(nothing, 1, total.double()))


@dataclass(frozen=True, eq=False)
class Score:
    """Cross-entropy = entropy + KL of each row, in nats.

    Attributes
    ----------
    cross_entropy : Tensor of shape (N,)
        `M·A(z) − ⟨μ, z⟩`.  Row weights are not in it; class weights are, being part of `μ`.
    entropy : Tensor of shape (N,)
        `M·H(μ/M)`: the floor, which no model can go below.
    kl : Tensor of shape (N,)
        `M·KL(μ/M ‖ q)`: what a better model could still gain.
    weight, count : Tensor of shape (N,)
        What multiplies a row in a sum, and what it adds to the denominator of a mean.

    Raises
    ------
    ValueError
        On reading `entropy` or `kl` where the target does not know its entropy; the reason is given.

    Examples
    --------
    >>> import torch, likely
    >>> score = likely.nll(likely.Logits(torch.zeros(2, 2)), likely.probabilities([[0.9, 0.1], [0.5, 0.5]]))
    >>> mean = score.mean()
    >>> [round(float(x), 4) for x in (mean.cross_entropy, mean.entropy, mean.kl)]
    [0.6931, 0.5091, 0.184]

    Source: Cover and Thomas, Elements of Information Theory, chapter 2.
    """

    cross_entropy: Tensor
    _entropy: Tensor | None
    _kl: Tensor | None
    weight: Tensor | None
    count: Tensor
    unknown: str | None = None

    def _known(self, name: str, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError(f"{name}: {self.unknown or 'was not computed'}")
        return value

    @property
    def entropy(self) -> Tensor:
        return self._known("entropy", self._entropy)

    @property
    def kl(self) -> Tensor:
        return self._known("kl", self._kl)

    def _means(self, total: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        share_N = shares(self.weight, self.count, total)

        def mean(rows_N: Tensor | None) -> Tensor | None:
            if rows_N is None:
                return None
            idle_N = (share_N == 0) & ~torch.isfinite(rows_N)  # an infinite loss that weighs nothing is not a loss
            return (torch.where(idle_N, 0, rows_N) * share_N.to(rows_N.dtype)).sum()

        first = mean(self.cross_entropy)
        assert first is not None
        return first, mean(self._entropy), mean(self._kl)

    def mean(self, total: Any = None) -> Score:
        """The score of the whole: `Σ weight · row / total`, a Score of single numbers.

        `total` is by default the sum of the counts.  Given (the number of tokens of a whole batch, say), sums of the
        means over micro-batches, or over ranks, are the mean over all of them.
        """
        cross_entropy, entropy, kl = self._means(total)
        count = self.count.sum(dtype=torch.float64)
        return Score(cross_entropy, entropy, kl, None, count, self.unknown)

    def detach(self) -> Score:
        entropy = None if self._entropy is None else self._entropy.detach()
        kl = None if self._kl is None else self._kl.detach()
        return Score(self.cross_entropy.detach(), entropy, kl, self.weight, self.count, self.unknown)

    def estimate(self, groups: Any = None, confidence: float = 0.95) -> ScoreEstimate:
        """The means as estimates for the population that the rows came from, each with its standard error.

        `groups` names the cluster of each row (its document, say): rows of one cluster are not independent.
        A class-weighted mean divides by the sum of the counts; so does this.
        """
        count_N, share_N = self.count.detach().double(), shares(self.weight, self.count).detach()
        total = count_N.sum()

        def one(rows_N: Tensor | None) -> Estimate | None:
            if rows_N is None:
                return None
            # The ratio m = Σ weight·row / Σ count, linearised: values whose mean is m, and whose residuals, divided by
            # their number n, are (weight·row − m·count) / Σ count.  A row that adds to neither sum is not in n.
            part_N = torch.where(share_N == 0, 0, rows_N.detach().double() * share_N)
            kept_N = ((count_N != 0) | (part_N != 0)) & (total != 0)
            n, m = kept_N.sum(), part_N.sum()
            lacking_N = torch.where(torch.isfinite(m), m, 0) * (1 - n * count_N / torch.where(total == 0, 1, total))
            return estimate(n * part_N + lacking_N, weights=kept_N, groups=groups, confidence=confidence)

        first = one(self.cross_entropy)
        assert first is not None
        return ScoreEstimate(first, one(self._entropy), one(self._kl))

    def __repr__(self) -> str:
        known = "" if self._entropy is None else f", entropy={self._entropy}, kl={self._kl}"
        return f"Score(cross_entropy={self.cross_entropy}{known})"
