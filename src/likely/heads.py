"""Heads: where rows of logits come from.

Legend: N rows, C classes, D features, n rows of one block.

A head answers one question, a tile of logits, and carries a tile of gradients back to the tensors it was made of.
It knows nothing of targets or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likely import _memory, _products
from likely._checks import as_tensor, require

ALL = slice(None)
_HALF = (torch.bfloat16, torch.float16)


class ProductSum:
    """The gradient of a weight, `Σ gᵀ x` over blocks of rows, in `acc`."""

    def __init__(self, like: Tensor, acc: torch.dtype) -> None:
        self.total_CD = _memory.empty(*like.shape, dtype=acc, device=like.device)
        self.started = False

    def add(self, g_nC: Tensor, x_nD: Tensor) -> None:
        if self.total_CD.dtype != x_nD.dtype:
            # Each block's product is rounded once to the input's dtype; the sum over the blocks is not.
            product_CD = g_nC.T @ x_nD
            self.total_CD = self.total_CD.add_(product_CD) if self.started else self.total_CD.copy_(product_CD)
        else:
            _products.weight_gradient(g_nC, x_nD, self.total_CD, add=self.started)
        self.started = True

    def result(self) -> Tensor:
        return self.total_CD if self.started else self.total_CD.zero_()


ProductSums = Callable[[Tensor, torch.dtype], ProductSum]
"""Makes an empty sum for a weight, in a dtype."""


def finished(grads: Sequence[Any]) -> list[Tensor | None]:
    """The gradients that stand in the buffers of `Head.gradient_buffers`, once every block was pulled back."""
    return [grad.result() if isinstance(grad, ProductSum) else grad for grad in grads]


class Head:
    """What every head has: its size, its dtype, the tensors it was made of, a tile of logits and the way back."""

    @property
    def rows(self) -> int:
        raise NotImplementedError

    @property
    def classes(self) -> int:
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that a gradient may go to."""
        raise NotImplementedError

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Head:
        """The same head made of other tensors (detached ones, say)."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return _present(self.tensors[0]).dtype

    @property
    def device(self) -> torch.device:
        return _present(self.tensors[0]).device

    @property
    def acc(self) -> torch.dtype:
        """The dtype in which logits are normalised and losses are summed: float32 for half precision."""
        return torch.float32 if self.dtype in _HALF else self.dtype

    def logits(self, rows: slice = ALL, out: Tensor | None = None) -> Tensor:
        """A tile of logits, (n, C) in `acc`; written into `out` where given, which then must not need a gradient."""
        raise NotImplementedError

    def pull_back(self, rows: slice, g_nC: Tensor, z_nC: Tensor, grads: Sequence[Any]) -> None:
        """Carry the tile `g = ∂loss/∂z` back and add it to `grads`, one buffer (or None) for each of `tensors`.

        `z` is the tile that `logits` gave for these rows.  `g` may be overwritten.
        """
        raise NotImplementedError

    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = ProductSum) -> list[Any]:
        """Empty buffers for `pull_back`: sums over rows in `acc`, per-row gradients in the tensor's own dtype.

        A weight's gradient is a `product_sum`, or a ProductSum; `finished` makes tensors of them all.
        """
        raise NotImplementedError

    @property
    def keeps_logits(self) -> bool:
        """Whether `pull_back` reads the logits, which then must not be overwritten by their gradient."""
        return False

    def stored(self, rows: slice) -> Tensor | None:
        """The tile where it lies in memory, to be read only; None where it has to be formed."""
        return None

    def gradient_place(self, rows: slice, grads: Sequence[Any]) -> Tensor | None:
        """Where the tile of gradients may be written at once, so that `pull_back` has nothing to do; or None."""
        return None

    def detached(self) -> Head:
        return self.with_tensors([None if t is None else t.detach() for t in self.tensors])

    def autocast(self) -> Head:
        """The head as `torch.autocast` would have its products: in the autocast dtype, where it is on."""
        return self


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
    s_at_n = s_nC.gather(-1, at_n[:, None])[:, 0].detach()  # 0; or −inf where all are; or NaN where one is NaN or +inf
    gone_n = torch.isneginf(s_at_n)
    log_A_n = torch.where(gone_n, -torch.inf, torch.log1p(others_n + torch.where(gone_n, 0, s_at_n)))
    return s_nC, log_A_n, m_n, at_n


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _floating(value: Any, name: str) -> Tensor:
    tensor = as_tensor(value, name)
    require(
        tensor.dtype.is_floating_point,
        f"{name}: has dtype {tensor.dtype}; logits and weights are floating point numbers",
        TypeError,
    )
    return tensor


@dataclass(frozen=True, eq=False)
class Logits(Head):
    """Rows of logits that exist already.

    Parameters
    ----------
    z : Tensor of shape (N, C)
        The logits.  A logit of −inf makes its class impossible.

    Examples
    --------
    >>> import torch, likely
    >>> head = likely.Logits(torch.zeros(2, 4))
    >>> likely.nll(head, likely.labels([1, 3], 4)).cross_entropy
    tensor([1.3863, 1.3863])
    """

    z: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", _floating(self.z, "z"))
        require(self.z.dim() == 2, f"z: has shape {tuple(self.z.shape)}; logits are (rows, classes)")

    @property
    def rows(self) -> int:
        return self.z.shape[0]

    @property
    def classes(self) -> int:
        return self.z.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.z,)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Head:
        return replace(self, z=_present(tensors[0]))

    def logits(self, rows: slice = ALL, out: Tensor | None = None) -> Tensor:
        z = self.z[rows]
        return z.to(self.acc) if out is None else out.copy_(z)

    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = ProductSum) -> list[Any]:
        return [_memory.empty_like(self.z) if needed[0] else None]

    def stored(self, rows: slice) -> Tensor | None:
        return self.z[rows]

    def gradient_place(self, rows: slice, grads: Sequence[Any]) -> Tensor | None:
        return None if grads[0] is None else grads[0][rows]

    def pull_back(self, rows: slice, g_nC: Tensor, z_nC: Tensor, grads: Sequence[Any]) -> None:
        if grads[0] is not None:
            grads[0][rows] = g_nC


@dataclass(frozen=True, eq=False)
class Binary(Head):
    """One logit per row: the log odds of class 1, standing for the logits (0, z) of two classes.

    Parameters
    ----------
    z : Tensor of any shape
        Every element is a row.

    Examples
    --------
    >>> import torch, likely
    >>> head = likely.Binary(torch.tensor([0.0, 1e30, -1e30]))
    >>> likely.nll(head, likely.labels([1, 1, 1], 2)).cross_entropy
    tensor([6.9315e-01, 0.0000e+00, 1.0000e+30])
    """

    z: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", _floating(self.z, "z").reshape(-1))

    @property
    def rows(self) -> int:
        return self.z.shape[0]

    @property
    def classes(self) -> int:
        return 2

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.z,)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Head:
        return replace(self, z=_present(tensors[0]))

    def logits(self, rows: slice = ALL, out: Tensor | None = None) -> Tensor:
        z = self.z[rows].to(self.acc)
        if out is None:
            return torch.stack([torch.zeros_like(z), z], dim=-1)
        out[:, 0] = 0
        out[:, 1] = z
        return out

    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = ProductSum) -> list[Any]:
        return [_memory.empty_like(self.z) if needed[0] else None]

    def pull_back(self, rows: slice, g_nC: Tensor, z_nC: Tensor, grads: Sequence[Any]) -> None:
        if grads[0] is not None:
            grads[0][rows] = g_nC[:, 1]


@dataclass(frozen=True, eq=False)
class Linear(Head):
    """The last layer of a classifier, `z = x Wᵀ + b`, whose N × C logits need never exist at once.

    With `softcap=c` the logits are `c · tanh(z / c)`, before any temperature.

    Parameters
    ----------
    x : Tensor of shape (N, D)
        Hidden states or features.
    weight : Tensor of shape (C, D)
    bias : Tensor of shape (C,), optional
    softcap : float, optional
        A positive bound on the size of a logit, as in Gemma 2.

    Examples
    --------
    >>> import torch, likely
    >>> x, weight = torch.ones(3, 8), torch.zeros(50, 8)
    >>> score = likely.nll(likely.Linear(x, weight), likely.labels([0, 7, 49], 50))
    >>> round(float(score.mean().cross_entropy), 4)        # log 50
    3.912
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        for name in ("x", "weight"):
            object.__setattr__(self, name, _floating(getattr(self, name), name))
        if self.bias is not None:
            object.__setattr__(self, "bias", _floating(self.bias, "bias"))
        x, weight, bias = self.x, self.weight, self.bias
        require(x.dim() == 2, f"x: has shape {tuple(x.shape)}; hidden states are (rows, features)")
        require(weight.dim() == 2, f"weight: has shape {tuple(weight.shape)}; it is (classes, features)")
        require(
            x.shape[1] == weight.shape[1],
            f"weight: has {weight.shape[1]} features where x has {x.shape[1]}",
        )
        one = torch.is_autocast_enabled(x.device.type)  # which brings the tensors to one dtype
        require(one or x.dtype == weight.dtype, f"weight: has dtype {weight.dtype} where x has {x.dtype}", TypeError)
        if bias is not None:
            require(
                bias.shape == weight.shape[:1],
                f"bias: has shape {tuple(bias.shape)} where weight has {weight.shape[0]} classes",
            )
            require(one or bias.dtype == x.dtype, f"bias: has dtype {bias.dtype} where x has {x.dtype}", TypeError)
        require(self.softcap is None or self.softcap > 0, f"softcap: is {self.softcap}; it is a positive number")

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.x, self.weight, self.bias)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Head:
        return replace(self, x=_present(tensors[0]), weight=_present(tensors[1]), bias=tensors[2])

    def logits(self, rows: slice = ALL, out: Tensor | None = None) -> Tensor:
        x_nD = self.x[rows]
        if out is None:
            z_nC = F.linear(x_nD, self.weight, self.bias).to(self.acc)
            return z_nC if self.softcap is None else self.softcap * torch.tanh(z_nC / self.softcap)
        if out.dtype == x_nD.dtype:
            _products.logits(x_nD, self.weight, self.bias, out)
        else:
            out.copy_(F.linear(x_nD, self.weight, self.bias))
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    @property
    def keeps_logits(self) -> bool:
        return self.softcap is not None

    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = ProductSum) -> list[Any]:
        x, weight, bias = needed
        return [
            _memory.empty_like(self.x) if x else None,
            product_sum(self.weight, self.acc) if weight else None,
            torch.zeros(self.classes, dtype=self.acc, device=self.device) if bias else None,
        ]

    def pull_back(self, rows: slice, g_nC: Tensor, z_nC: Tensor, grads: Sequence[Any]) -> None:
        dx_ND, dweight_CD, dbias_C = grads
        if self.softcap is not None:
            g_nC *= 1 - (z_nC / self.softcap).square_()
        if dbias_C is not None:
            dbias_C += g_nC.sum(dim=0, dtype=dbias_C.dtype)
        g_nC = g_nC.to(self.dtype)
        if dx_ND is not None:
            _products.rows_gradient(g_nC, self.weight, dx_ND[rows])
        if dweight_CD is not None:
            dweight_CD.add(g_nC, self.x[rows])

    def autocast(self) -> Head:
        kind = self.device.type
        if not torch.is_autocast_enabled(kind) or self.dtype == torch.float64:
            return self
        to = torch.get_autocast_dtype(kind)
        return self.with_tensors([None if t is None else t.to(to) for t in self.tensors])
