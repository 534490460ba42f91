"""PyTorch's losses under PyTorch's names, signatures, shapes and defaults, computed by the one objective.

Replacing `torch.nn.functional.` by `likely.functional.` changes no result but precision and memory.  The functions only
translate: `cross_entropy`, `linear_cross_entropy` and `binary_cross_entropy_with_logits` to a head, a target and a
kernel; `nll_loss`, `kl_div` and `binary_cross_entropy`, whose inputs are no logits, to torch's own.  On purpose differ:

* A class without target mass costs nothing, even where its logit is −inf (torch: NaN).
* The loss of half-precision inputs comes back in float32; gradients keep the inputs' dtype.
* `linear_cross_entropy` sums over blocks of rows in float32 where torch's chunked path sums in bfloat16.
* A negative `label_smoothing`, which torch takes for none, is refused.

`binary_cross_entropy` keeps torch's clamp of the logarithms at −100, and a mean over rows that are all ignored is NaN,
as in torch; `likely.objective` gives 0 there.

Legend: N rows, C classes, D features, d₁ … d_K further dimensions, P = d₁ ⋯ d_K.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likely import _torch
from likely._checks import require
from likely.forms import Target
from likely.heads import Binary, Linear, Logits

__all__ = ["binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "kl_div"]
__all__ += ["linear_cross_entropy", "nll_loss"]


def cross_entropy(
    input: Tensor,
    target: Tensor | Target,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    temperature: float = 1.0,
    row_weight: Tensor | None = None,
    total: Any = None,
    z_loss: float = 0.0,
    inplace: bool = False,
) -> Tensor:
    """The cross-entropy of logits with labels, with probabilities or with any other target, in nats.

    `loss = M·A(z/T) − ⟨μ, z/T⟩` per row, with `A = logsumexp`, `μ` the target, `M = Σ μ`.  A mean divides by `Σ w[y]`
    over the rows that are not ignored for labels, and by the number of rows for probabilities.

    Parameters
    ----------
    input : logits of shape (C,), (N, C) or (N, C, d₁, …, d_K)
    target : labels of shape (), (N,) or (N, d₁, …, d_K); probabilities of the input's shape; or a Target
        Probabilities may be unnormalised, signed, and require a gradient.  A Target has N·P rows, the positions of one
        sample next to one another, and says itself what `weight`, `ignore_index`, `label_smoothing` and `row_weight`
        say of a tensor.
    weight : class weights of shape (C,), optional
    size_average, reduce : bool, optional
        Deprecated in torch, where they stand for `reduction`.
    ignore_index : int
        Rows with this label cost nothing and count for nothing.
    reduction : "mean", "sum" or "none"
    label_smoothing : float in [0, 1]
        Mixes the target with the uniform distribution over the C classes.
    temperature : float
        Divides the logits.  No factor `T²` is applied.
    row_weight : the shape of labels, optional
        Multiplies the rows' losses, and what they add to the denominator of a mean.
    total : number, optional
        The denominator of the mean in place of its own, so that parts of a batch add up to the whole.
    z_loss : float
        Adds this times the mean (the sum) of `A(z)²` over the rows that count.
    inplace : bool
        Overwrites the logits with their gradient: no memory beside them, and one backward pass.

    Raises
    ------
    IndexError, RuntimeError, ValueError
        A label that is no class; shapes, dtypes and settings that torch refuses.

    Examples
    --------
    >>> import torch, likely
    >>> z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> likely.functional.cross_entropy(z, torch.tensor([0, 2]), reduction="none")
    tensor([0.2395, 1.0986])
    >>> votes = likely.probabilities([[0.8, 0.1, 0.1], [1.0, 0.0, 0.0]])
    >>> likely.functional.cross_entropy(z, votes)
    tensor(0.8691)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    reduction = _torch.reduction_name(reduction, size_average, reduce)
    _torch.require_floating(input)
    if input.dim() == 0:
        raise IndexError("input: is a single number; logits are (C,), (N, C) or (N, C, d₁, …, d_K)")
    batched = input if input.dim() > 1 else input[None]
    if isinstance(target, Target):
        _torch.require_bare(weight=weight, row_weight=row_weight, label_smoothing=label_smoothing or None)
        require(ignore_index == -100, "ignore_index: say it to labels(); the target is a Target already")
        own = target
    else:
        soft = _torch.check_target(input.shape, target, weight, ignore_index, label_smoothing, input.dtype)
        batched = batched.to(_torch.wider(input.dtype, target, weight))
        own = _torch.lowered(batched.shape, target, soft, weight, ignore_index, label_smoothing, row_weight)
    head = Logits(_torch.as_rows(batched))
    shape = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    kernel = "inplace" if inplace else None
    return _torch.reduced([head], [own], shape, reduction, temperature, total, z_loss, kernel)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    row_weight: Tensor | None = None,
    total: Any = None,
    z_loss: float = 0.0,
) -> Tensor:
    """`cross_entropy(linear(input, linear_weight, linear_bias), target)`, without ever holding the N × C logits.

    With `softcap=c` the logits are `c·tanh(z/c)`, before the temperature divides them.

    Parameters
    ----------
    input : shape (D,) or (N, D)
    linear_weight : shape (C, D) or (C, d₁, …, d_K, D)
        With further dimensions every position has weights of its own.
    target : labels of shape (), (N,) or (N, d₁, …, d_K); probabilities of shape (C,), (N, C) or (N, C, d₁, …, d_K);
        or, where linear_weight is (C, D), a Target of N rows
    linear_bias : shape (C,) or (C, d₁, …, d_K), optional
    ignore_index : int, optional
        −100 where it is not given; refused together with probabilities.
    options : optional
        torch's settings of its chunked path.  Accepted; blocks are chosen here without it.
    weight, reduction, label_smoothing, temperature, row_weight, total, z_loss
        As in `cross_entropy`.

    Raises
    ------
    IndexError, RuntimeError, ValueError
        A label that is no class; shapes, dtypes and settings that torch refuses.

    Examples
    --------
    >>> import torch, likely
    >>> h, W, y = torch.ones(6, 4), torch.zeros(1000, 4, requires_grad=True), torch.arange(6)
    >>> loss = likely.functional.linear_cross_entropy(h, W, y)
    >>> loss.backward()
    >>> round(loss.item(), 4), W.grad.shape                      # log 1000
    (6.9078, torch.Size([1000, 4]))

    Source: https://docs.pytorch.org/docs/main/generated/torch.nn.functional.linear_cross_entropy.html
    """
    reduction = _torch.reduction_name(reduction)
    _torch.check_linear(input, linear_weight, linear_bias)
    classes, positions = linear_weight.shape[0], linear_weight.shape[1:-1]
    shape = (*input.shape[:-1], classes, *positions)
    if isinstance(target, Target):
        _torch.require_bare(
            weight=weight, row_weight=row_weight, label_smoothing=label_smoothing or None, ignore_index=ignore_index
        )
        require(not positions, f"target: a Target has rows for one position where linear_weight has {positions}")
        own = [target]
    else:
        index = -100 if ignore_index is None else ignore_index
        if ignore_index is not None and isinstance(target, Tensor) and target.shape == shape:
            raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
        soft = _torch.check_target(shape, target, weight, index, label_smoothing, input.dtype)
        parts = zip(_torch.each_position(target, positions), _torch.each_position(row_weight, positions), strict=True)
        own = [
            _torch.lowered((-1, classes), part, soft, weight, index, label_smoothing, row_weights)
            for part, row_weights in parts
        ]
    x_ND = input if input.dim() > 1 else input[None]
    heads = [
        Linear(x_ND, weight_CD, bias_C, softcap)
        for weight_CD, bias_C in zip(
            linear_weight.flatten(1, -2).unbind(1) if positions else [linear_weight],
            _torch.each_position(linear_bias, positions),
            strict=True,
        )
    ]
    return _torch.reduced(heads, own, (*input.shape[:-1], *positions), reduction, temperature, total, z_loss)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor | Target,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    temperature: float = 1.0,
    total: Any = None,
) -> Tensor:
    """The binary cross-entropy of log odds with probabilities of class 1, element by element, in nats.

    `loss = −w [p y log ŷ + (1 − y) log(1 − ŷ)]` with `ŷ = sigmoid(z/T)` and `p = pos_weight`, from the logit and stable
    to |z| = 1e30.

    Parameters
    ----------
    input : any shape
    target : the input's shape, or a Target of two classes with a row for every element
    weight : broadcast to the input's shape, optional
        Multiplies the losses, but not the denominator of a mean, which is the number of elements.
    pos_weight : broadcast to the input's shape, optional
    size_average, reduce, reduction, temperature, total
        As in `cross_entropy`.

    Raises
    ------
    ValueError, RuntimeError
        Shapes, dtypes and settings that torch refuses.

    Examples
    --------
    >>> import torch, likely
    >>> z, y = torch.tensor([0.0, 1e30, -1e30]), torch.tensor([0.5, 1.0, 1.0])
    >>> likely.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    tensor([6.9315e-01, 0.0000e+00, 1.0000e+30])

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html
    """
    reduction = _torch.reduction_name(reduction, size_average, reduce)
    _torch.require_floating(input)
    if isinstance(target, Target):
        _torch.require_bare(weight=weight, pos_weight=pos_weight)
        return _torch.reduced([Binary(input)], [target], input.shape, reduction, temperature, total, 0.0)
    _torch.check_binary(input, target, weight, pos_weight)
    input = input.to(_torch.wider(input.dtype, target))
    mu1, mu0 = _torch.binary_masses(target, weight, pos_weight, input.dtype)
    return _torch.reduced_binary(input, mu1, mu0, reduction, temperature, total)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    total: Any = None,
) -> Tensor:
    """The negative log-likelihood of labels under given log-probabilities, in nats.

    `loss = −w[y] · input[y]` per row; a mean divides by `Σ w[y]` over the rows that are not ignored, or by `total`.

    Parameters
    ----------
    input : shape (C,), (N, C) or (N, C, d₁, …, d_K)
        Log-probabilities; from logits, `cross_entropy` is more exact.
    target : labels of shape (), (N,) or (N, d₁, …, d_K)
    weight, size_average, ignore_index, reduce, reduction, total
        As in `cross_entropy`.

    Raises
    ------
    IndexError, RuntimeError, ValueError
        A label that is no class; shapes, dtypes and settings that torch refuses.

    Examples
    --------
    >>> import torch, likely
    >>> log_p = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> likely.functional.nll_loss(log_p, torch.tensor([0, 1]), reduction="none")
    tensor([0.1054, 0.6931])

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html
    """
    reduction = _torch.reduction_name(reduction, size_average, reduce)
    input, weight = _torch.single(input, weight)
    summed = _torch.summed(reduction, total)
    return _torch.over_total(F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=summed), total)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """The Kullback–Leibler divergence of given probabilities from given log-probabilities, in nats.

    `loss = p (log p − input)` per element, with `0 log 0 = 0`.  Its sum over the classes of a row is KL(p ‖ q).  With
    `reduction="batchmean"` the sum is divided by the number of rows; with `"mean"`, torch's default, by the number of
    elements, which is the divergence divided by C once more.

    Parameters
    ----------
    input : log-probabilities `log q` of any shape
    target : probabilities `p` of the same shape, or `log p` with `log_target`
    reduction : "mean", "batchmean", "sum" or "none"
    size_average, reduce
        As in `cross_entropy`.

    Raises
    ------
    ValueError, RuntimeError
        Shapes and settings that torch refuses.

    Examples
    --------
    >>> import torch, likely
    >>> p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    >>> likely.functional.kl_div(q.log(), p, reduction="batchmean")
    tensor(0.1438)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.kl_div.html
    """
    if size_average is not None or reduce is not None or reduction != "batchmean":
        reduction = _torch.reduction_name(reduction, size_average, reduce)
    rows = input.shape[0] if input.dim() else 1
    input, target = _torch.single(input, target)
    # A class without mass costs nothing, whatever its log-probability.
    if log_target:
        empty = torch.isneginf(target)
        input, target = torch.where(empty, 0, input), torch.where(empty, 0, target)
    else:
        input = torch.where((target == 0) & torch.isneginf(input), 0, input)
    if reduction in ("none", "sum"):
        return F.kl_div(input, target, reduction=reduction, log_target=log_target)
    summed = F.kl_div(input, target, reduction="sum", log_target=log_target)
    if reduction == "mean":
        warnings.warn(
            "reduction: 'mean' divides the divergence by the number of classes too; 'batchmean' is the mean over rows",
            stacklevel=2,
        )
        rows = math.prod(input.shape)
    return summed / rows


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    total: Any = None,
) -> Tensor:
    """The binary cross-entropy of given probabilities, element by element, in nats.

    `loss = −w [y log ŷ + (1 − y) log(1 − ŷ)]`, each logarithm clamped at −100; from logits,
    `binary_cross_entropy_with_logits` is exact.

    Parameters
    ----------
    input : probabilities ŷ of class 1, any shape
    target : the same shape
    weight : broadcast to the input's shape, optional
    size_average, reduce, reduction, total
        As in `cross_entropy`.

    Raises
    ------
    ValueError, RuntimeError
        Shapes and settings that torch refuses, and an input outside [0, 1].

    Examples
    --------
    >>> import torch, likely
    >>> p, y = torch.tensor([0.9, 0.5, 0.0]), torch.tensor([1.0, 0.0, 1.0])
    >>> likely.functional.binary_cross_entropy(p, y, reduction="none")
    tensor([  0.1054,   0.6931, 100.0000])

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy.html
    """
    reduction = _torch.reduction_name(reduction, size_average, reduce)
    input, target, weight = _torch.single(input, target, weight)
    summed = _torch.summed(reduction, total)
    return _torch.over_total(F.binary_cross_entropy(input, target, weight, reduction=summed), total)
