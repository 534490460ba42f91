"""PyTorch's loss modules under PyTorch's names and constructors, on `likely.functional`.

Replacing `torch.nn.CrossEntropyLoss` by `likely.nn.CrossEntropyLoss` changes no result but precision and memory; the
few deliberate differences are listed in `likely.functional`.  Where torch has the class in every supported version ours
is derived from it, and the state dicts are torch's.  What holds for a whole training (temperature, soft-cap, z-loss) is
said to the constructor; what changes from batch to batch (row weights, the denominator of a mean) is said to the call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from likely import functional
from likely._checks import require
from likely.forms import Target

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LinearCrossEntropyLoss",
    "NLLLoss",
]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """The cross-entropy of logits with labels, probabilities or any Target: `likely.functional.cross_entropy`.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `torch.nn.CrossEntropyLoss`.
    temperature, z_loss : float
        As in `likely.functional.cross_entropy`.

    Examples
    --------
    >>> import torch, likely.nn
    >>> loss = likely.nn.CrossEntropyLoss(label_smoothing=0.1)
    >>> loss(torch.zeros(3, 4), torch.tensor([0, 1, -100]))
    tensor(1.3863)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        temperature: float = 1.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.temperature = temperature
        self.z_loss = z_loss

    def forward(
        self, input: Tensor, target: Tensor | Target, *, row_weight: Tensor | None = None, total: Any = None
    ) -> Tensor:
        """The loss, in nats; `row_weight` and `total` as in `likely.functional.cross_entropy`."""
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            temperature=self.temperature,
            row_weight=row_weight,
            total=total,
            z_loss=self.z_loss,
        )


class LinearCrossEntropyLoss(nn.Module):
    """A linear classifier and its cross-entropy, whose N × C logits are never held: `linear_cross_entropy`.

    The classifier is `self.linear`, with weights of shape (C·d₁⋯d_K, D), as in torch.

    Parameters
    ----------
    in_features, num_classes : int
        D and C.
    out_features : tuple of int
        The further dimensions (d₁, …, d_K).
    bias, device, dtype, reduction, weight, ignore_index, label_smoothing, options
        As in `torch.nn.LinearCrossEntropyLoss`; `options` is accepted and not needed.
    softcap, temperature, z_loss
        As in `likely.functional.linear_cross_entropy`.

    Raises
    ------
    RuntimeError
        Class weights that are not (C,), or a label_smoothing outside [0, 1].

    Examples
    --------
    >>> import torch, likely.nn
    >>> loss = likely.nn.LinearCrossEntropyLoss(8, 1000)
    >>> loss(torch.zeros(2, 8), torch.tensor([3, 999])).item()         # log 1000
    6.907...
    >>> list(loss.state_dict())
    ['linear.weight']

    Source: https://docs.pytorch.org/docs/main/generated/torch.nn.LinearCrossEntropyLoss.html
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        softcap: float | None = None,
        temperature: float = 1.0,
        z_loss: float = 0.0,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        require(
            0 <= label_smoothing <= 1,
            f"expected label_smoothing to be in range [0, 1], got {label_smoothing}",
            RuntimeError,
        )
        super().__init__()
        self.register_buffer("weight", weight)
        self.num_classes = num_classes
        self.out_features = tuple(out_features)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self.softcap = softcap
        self.temperature = temperature
        self.z_loss = z_loss
        columns = math.prod(self.out_features, start=num_classes)
        self.linear = nn.Linear(in_features, columns, bias=bias, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, target: Tensor | Target, *, row_weight: Tensor | None = None, total: Any = None
    ) -> Tensor:
        """The loss, in nats; `row_weight` and `total` as in `likely.functional.linear_cross_entropy`."""
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return functional.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            softcap=self.softcap,
            temperature=self.temperature,
            row_weight=row_weight,
            total=total,
            z_loss=self.z_loss,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, reduction={self.reduction}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, options={self.options}"
        )


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """The binary cross-entropy of log odds: `likely.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        As in `torch.nn.BCEWithLogitsLoss`.
    temperature : float

    Examples
    --------
    >>> import torch, likely.nn
    >>> likely.nn.BCEWithLogitsLoss()(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))
    tensor(0.6931)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.temperature = temperature

    def forward(self, input: Tensor, target: Tensor | Target, *, total: Any = None) -> Tensor:
        """The loss, in nats; `total` as in `likely.functional.binary_cross_entropy_with_logits`."""
        return functional.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            temperature=self.temperature,
            total=total,
        )


class NLLLoss(nn.NLLLoss):
    """The negative log-likelihood of labels under log-probabilities: `likely.functional.nll_loss`.

    Examples
    --------
    >>> import torch, likely.nn
    >>> likely.nn.NLLLoss()(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1]))
    tensor(0.6931)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """

    def forward(self, input: Tensor, target: Tensor, *, total: Any = None) -> Tensor:
        """The loss, in nats; `total` replaces the denominator of the mean."""
        return functional.nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction, total=total
        )


class KLDivLoss(nn.KLDivLoss):
    """The Kullback–Leibler divergence from log-probabilities: `likely.functional.kl_div`.

    Examples
    --------
    >>> import torch, likely.nn
    >>> p = torch.tensor([[0.5, 0.5, 0.0]])
    >>> likely.nn.KLDivLoss(reduction="batchmean")(p.log(), p)
    tensor(0.)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The divergence, in nats."""
        return functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class BCELoss(nn.BCELoss):
    """The binary cross-entropy of probabilities: `likely.functional.binary_cross_entropy`.

    Examples
    --------
    >>> import torch, likely.nn
    >>> likely.nn.BCELoss()(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    tensor(0.6931)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html
    """

    def forward(self, input: Tensor, target: Tensor, *, total: Any = None) -> Tensor:
        """The loss, in nats; `total` replaces the denominator of the mean."""
        return functional.binary_cross_entropy(input, target, self.weight, reduction=self.reduction, total=total)
