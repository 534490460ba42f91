"""The two normal forms that every kind of target lowers to: `Sparse` and `Dense`.

Legend: N rows, C classes, K stored classes per row, n rows of one block.

`Sparse` holds a few values per row and a constant elsewhere, `Dense` a measure as given or a head that is softened tile
by tile.  Both answer the same questions about a block of rows: the mass `M = Σ μ`, the cross-entropy from the expected
logit `⟨μ, z⟩`, `μ` itself (to be subtracted from a gradient), its entropy, and its divergence from a row of logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from likely._checks import values_can_be_read
from likely.heads import Head, normalise

SIGNED = "the target has negative entries, so it is no distribution and has no entropy; only its cross-entropy exists"


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """What every target has.

    Attributes
    ----------
    classes : int
    count : Tensor of shape (N,)
        What a row adds to the denominator of a mean: its weight, times its class's weight for labels; 0 when ignored.
    weight : Tensor of shape (N,) or None
        What multiplies a row's loss in every sum.
    ignored : Tensor of shape (N,) or None
        The rows that cost nothing, whatever their logits are.
    """

    classes: int
    count: Tensor
    weight: Tensor | None = None
    ignored: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.count.shape[0]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors a gradient could go to."""
        raise NotImplementedError

    def entropy_unknown(self) -> str | None:
        """Why the entropy is unknown, or None where it is known."""
        return None

    def refuses_temperature(self, temperature: float) -> str | None:
        """Why the target cannot be had at this temperature, or None."""
        return None

    def tile(self, rows: slice, temperature: float, dtype: torch.dtype) -> Tile:
        """The block `rows` of the measure, softened, in `dtype`."""
        raise NotImplementedError


class Tile:
    """A block of rows of a measure `μ`; `s` are the logits less their row's maximum, `log_A = logsumexp(s)`."""

    def mass(self) -> Tensor:
        """`M = Σ μ`, (n,)."""
        raise NotImplementedError

    def cross_entropy(self, s_nC: Tensor, log_A_n: Tensor) -> Tensor:
        """`M·log_A − ⟨μ, s⟩`, (n,)."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """`M·H(μ/M)`, (n,)."""
        raise NotImplementedError

    def kl(self, s_nC: Tensor, log_A_n: Tensor) -> Tensor | None:
        """`M·KL(μ/M ‖ softmax s)`, (n,); None where nothing is better than cross-entropy less entropy."""
        return None

    def gradient_(self, q_nC: Tensor, log_q: Callable[[], Tensor]) -> Tensor:
        """Turn the probabilities `q` into `M·q − μ`, in place."""
        raise NotImplementedError


def _signed(mu: Tensor) -> bool:
    least = float(mu.detach().amin())  # one reading, which a NaN would hide the sign from
    return least < 0 or (math.isnan(least) and bool((mu < 0).any()))


def _x_log_x(x: Tensor) -> Tensor:
    """`x log x` with `0 log 0 = 0`, and a gradient that is finite at 0 (taken as 0 there)."""
    positive = x > 0
    return torch.where(positive, x * torch.where(positive, x, 1).log(), 0)


# ------------------------------------------------------------------------------------------------------ Sparse


@dataclass(frozen=True, eq=False, kw_only=True)
class Sparse(Target, Tile):
    """`μ = Σ_k value_k at index_k + floor · base`; the mass `rest` lies anywhere outside `index`.

    The term of `rest` is `−rest · (logsumexp over the complement of index − A)`: the cross-entropy of the K + 1 cells.
    """

    index: Tensor  # (N, K) int64
    value: Tensor  # (N, K)
    floor: Tensor | None = None  # (N,), with `base`
    base: Tensor | None = None  # (C,), ones where None
    rest: Tensor | None = None  # (N,)
    temperature: float | None = None  # at which a record was taken; None: holds at any
    known_entropy: Tensor | None = None  # (N,)
    no_entropy: str | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.value, self.floor, self.base, self.rest)

    def entropy_unknown(self) -> str | None:
        return self.no_entropy

    def refuses_temperature(self, temperature: float) -> str | None:
        if self.temperature is None or self.temperature == temperature:
            return None
        return (
            f"temperature: the record was taken at temperature {self.temperature:g} and cannot be had at "
            f"{temperature:g}; take it again, or give Term(..., temperature={self.temperature:g})"
        )

    def tile(self, rows: slice, temperature: float, dtype: torch.dtype) -> Sparse:
        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[rows].to(dtype)

        value, floor = cut(self.value), cut(self.floor)
        assert value is not None
        return replace(
            self,
            index=self.index[rows],
            value=value,
            floor=floor,
            base=None if self.base is None else self.base.to(dtype),
            rest=cut(self.rest),
            known_entropy=cut(self.known_entropy),
            count=self.count[rows],
            weight=None,
            ignored=None if self.ignored is None else self.ignored[rows],
        )

    def _base_total(self) -> Tensor | float:
        return float(self.classes) if self.base is None else self.base.sum()

    def _base_at_index(self) -> Tensor:
        return torch.ones_like(self.value) if self.base is None else self.base[self.index]

    def _stored(self) -> Tensor:
        """The whole measure of the stored classes, (n, K)."""
        return self.value if self.floor is None else self.value + self.floor[:, None] * self._base_at_index()

    def mass(self) -> Tensor:
        mass_n = self.value.sum(dim=-1)
        if self.floor is not None:
            mass_n = mass_n + self.floor * self._base_total()
        return mass_n if self.rest is None else mass_n + self.rest

    def cross_entropy(self, s_nC: Tensor, log_A_n: Tensor) -> Tensor:
        stored_s_nK = s_nC.gather(-1, self.index)
        if self.floor is None:
            expected_n = _expected(self.value, stored_s_nK)
        else:
            expected_n = self._expected_with_floor(s_nC, stored_s_nK)
        loss_n = self.mass() * log_A_n - expected_n
        if self.rest is not None:
            # Masked before the logsumexp: of a complement that is impossible its gradient would be NaN.
            outside_nC = s_nC.scatter(-1, self.index, -torch.inf)
            outside_nC = torch.where(self.rest[:, None] == 0, 0, outside_nC)
            loss_n = loss_n - self.rest * torch.logsumexp(outside_nC, dim=-1)
        return loss_n

    def _expected_with_floor(self, s_nC: Tensor, stored_s_nK: Tensor) -> Tensor:
        # A class with logit −inf costs nothing where its whole mass, stored value and floor together, is 0.  The finite
        # part and the impossible part are summed apart, because (value)(−inf) + (floor)(−inf) would be NaN.
        assert self.floor is not None
        gone_nC, gone_nK = torch.isneginf(s_nC), torch.isneginf(stored_s_nK)
        finite_nC = torch.where(gone_nC, 0, s_nC)
        based_n = finite_nC.sum(dim=-1) if self.base is None else finite_nC @ self.base
        stored_n = (self.value * torch.where(gone_nK, 0, stored_s_nK)).sum(dim=-1)
        counts_C = torch.ones_like(s_nC[:1]) if self.base is None else (self.base != 0).to(s_nC.dtype)[None]
        elsewhere_n = (gone_nC * counts_C).sum(dim=-1) - (gone_nK & (self._base_at_index() != 0)).sum(dim=-1)
        impossible_n = (gone_nK & (self._stored() != 0)).any(dim=-1) | ((self.floor != 0) & (elsewhere_n > 0))
        return torch.where(impossible_n, -torch.inf, self.floor * based_n + stored_n)

    def entropy(self) -> Tensor:
        if self.known_entropy is not None:
            return self.known_entropy
        negative_n = _x_log_x(self._stored()).sum(dim=-1)
        if self.floor is not None:
            floor_n = self.floor
            if self.base is None:
                unstored_n = (self.classes - self.value.shape[-1]) * _x_log_x(floor_n)
            else:
                all_n = _x_log_x(floor_n) * self.base.sum() + floor_n * _x_log_x(self.base).sum()
                unstored_n = all_n - _x_log_x(floor_n[:, None] * self._base_at_index()).sum(dim=-1)
            negative_n = negative_n + unstored_n
        if self.rest is not None:
            negative_n = negative_n + _x_log_x(self.rest)
        return _x_log_x(self.mass()) - negative_n

    def gradient_(self, q_nC: Tensor, log_q: Callable[[], Tensor]) -> Tensor:
        outside_nC = None
        if self.rest is not None:
            # softmax over the complement, from the logits: q / (1 − Σ q) loses everything when the complement is small.
            outside_nC = log_q().scatter(-1, self.index, -torch.inf).softmax(dim=-1)
            outside_nC = torch.where(self.rest[:, None] == 0, 0, outside_nC)
        g_nC = q_nC.mul_(self.mass()[:, None])
        if self.floor is not None:
            g_nC -= self.floor[:, None] * (1 if self.base is None else self.base)
        if outside_nC is not None and self.rest is not None:
            g_nC -= outside_nC * self.rest[:, None]
        return g_nC.scatter_add_(-1, self.index, -self.value)


def _expected(mu: Tensor, s: Tensor) -> Tensor:
    """`Σ μ s` over the last axis, where a class without mass costs nothing even at `s = −inf`."""
    return (mu * torch.where((mu == 0) & torch.isneginf(s), 0, s)).sum(dim=-1)


# ------------------------------------------------------------------------------------------------------- Dense


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(Target):
    """A measure over all classes: `given` as it is, or the softmax of a head; `class_weight` multiplies it."""

    given: Tensor | None = None  # (N, C)
    head: Head | None = None
    class_weight: Tensor | None = None  # (C,)
    softens: bool = True

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.given, self.class_weight, *(self.head.tensors if self.head is not None else ()))

    def entropy_unknown(self) -> str | None:
        # What is softened has been checked to be a distribution.
        signed = [None if self.softens else self.given, self.class_weight]
        read = [t for t in signed if t is not None and t.numel() and values_can_be_read(t)]
        return SIGNED if any(_signed(t) for t in read) else None

    def tile(self, rows: slice, temperature: float, dtype: torch.dtype) -> DenseTile:
        scale = 1.0 if not self.softens else temperature
        if self.head is not None:
            # Normalised as the student is, so that a teacher's divergence from itself is 0 exactly.
            s_nC, log_A_n, _, _ = normalise(self.head.logits(rows).to(dtype) / scale)
            log_p_nC = s_nC - log_A_n[:, None]
            return DenseTile(log_p_nC.exp(), log_p_nC)
        assert self.given is not None
        mu_nC = self.given[rows].to(dtype)
        if scale != 1:
            empty_nC = mu_nC == 0
            log_nC = torch.where(empty_nC, -torch.inf, torch.where(empty_nC, 1, mu_nC).log())
            mu_nC = torch.softmax(log_nC / scale, dim=-1)
        return DenseTile(mu_nC if self.class_weight is None else mu_nC * self.class_weight.to(dtype))


@dataclass(eq=False)
class DenseTile(Tile):
    mu: Tensor  # (n, C)
    log_mu: Tensor | None = None  # known of a softmax, whose mass is 1 but for rounding

    def mass(self) -> Tensor:
        return self.mu.sum(dim=-1)

    def _mass_log_mass(self) -> Tensor | float:
        return _x_log_x(self.mass()) if self.log_mu is None else 0.0

    def cross_entropy(self, s_nC: Tensor, log_A_n: Tensor) -> Tensor:
        return self.mass() * log_A_n - _expected(self.mu, s_nC)

    def entropy(self) -> Tensor:
        negative_nC = _x_log_x(self.mu) if self.log_mu is None else _expected(self.mu, self.log_mu)[:, None]
        return self._mass_log_mass() - negative_nC.sum(dim=-1)

    def kl(self, s_nC: Tensor, log_A_n: Tensor) -> Tensor:
        # Term by term, so that the divergence of a row from itself is 0 and a small one keeps its digits.
        empty_nC = self.mu == 0
        log_mu_nC = torch.where(empty_nC, 1, self.mu).log() if self.log_mu is None else self.log_mu
        ratio_nC = log_mu_nC - (s_nC - log_A_n[:, None])
        return (self.mu * torch.where(empty_nC, 0, ratio_nC)).sum(dim=-1) - self._mass_log_mass()

    def gradient_(self, q_nC: Tensor, log_q: Callable[[], Tensor]) -> Tensor:
        return q_nC.mul_(self.mass()[:, None]).sub_(self.mu)
