"""How the arguments of torch's losses are checked, lowered to targets, and reduced.

The exceptions are torch's own types, and their messages hold what torch's say.

Legend: N rows, C classes, D features, d₁ … d_K further dimensions, P = d₁ ⋯ d_K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from likely import kernels
from likely._checks import require
from likely.forms import Target
from likely.heads import Binary, Head
from likely.kernels import binary
from likely.score import shares
from likely.targets import labels, measure

HALF = (torch.bfloat16, torch.float16)


def reduction_name(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> str:
    """ "mean", "sum" or "none", also from the two deprecated arguments, with torch's warning."""
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_string(size_average, reduce)
    return ("none", "mean", "sum")[_reduction.get_enum(reduction)]


def require_bare(**given: Any) -> None:
    """A Target already says what these arguments say of a tensor."""
    for name, value in given.items():
        require(value is None, f"{name}: the target is a Target, which says it itself; give it to its constructor")


def require_floating(input: Tensor) -> None:
    require(
        input.dtype.is_floating_point,
        f"input: has dtype {input.dtype}; logits are floating point numbers",
        NotImplementedError,
    )


def check_linear(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """Torch's checks of a linear head, in torch's order."""
    x, weight = input, linear_weight
    require(x.dim() in (1, 2), f"expected input with dimensionality 1 or 2, got {x.dim()}", RuntimeError)
    require(
        weight.dim() >= 2, f"expected linear_weight with dimensionality at least 2, got {weight.dim()}", RuntimeError
    )
    require(
        x.shape[-1] == weight.shape[-1],
        "expected equal input and linear_weight last dimensions (in_features), "
        f"got {x.shape[-1]} and {weight.shape[-1]}, respectively",
        RuntimeError,
    )
    if linear_bias is not None and linear_bias.shape != weight.shape[:-1]:
        wanted, got = tuple(weight.shape[:-1]), tuple(linear_bias.shape)
        raise RuntimeError(f"expected linear_bias shape {wanted}, got {got}")
    require(
        weight.dim() == 2 or x.dim() == 2,
        f"K-dimensional loss defined by linear_weight shape {tuple(weight.shape)} requires batched input, "
        f"(N, {x.shape[-1]}), got unbatched input with shape {tuple(x.shape)}",
        RuntimeError,
    )
    require_floating(x)
    require(0 not in weight.shape[1:-1], f"linear_weight: shape {tuple(weight.shape)} has no position", RuntimeError)
    if torch.is_autocast_enabled(x.device.type):
        return
    for name, other in (("linear_weight", weight), ("linear_bias", linear_bias)):
        if other is not None and other.dtype != x.dtype:
            raise RuntimeError(f"{name}: expected the same dtype as input, {x.dtype}, but got {other.dtype}")


def check_target(
    shape: Sequence[int],
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype,
) -> bool:
    """Whether the target holds probabilities, which torch decides by its shape, after torch's checks.

    `shape` is that of the logits, (C,) or (N, C, d₁, …, d_K), and `dtype` theirs.
    """
    shape = tuple(shape)
    if not isinstance(target, Tensor):
        raise TypeError(f"target: is a {type(target).__name__}; it must be a Tensor or a likely Target")
    message = f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}"
    require(0 <= label_smoothing <= 1, message, RuntimeError)
    classes = shape[0] if len(shape) == 1 else shape[1]
    require(
        weight is None or weight.shape == (classes,),
        f"weight tensor should be defined either for all {classes} classes or no classes "
        f"but got weight tensor of shape: {[] if weight is None else list(weight.shape)}",
        RuntimeError,
    )
    if target.shape == shape:
        require(
            target.dtype.is_floating_point,
            f"Expected floating point type for target with class probabilities, got {target.dtype}",
            RuntimeError,
        )
        require(ignore_index < 0, "ignore_index is not supported for floating point target", RuntimeError)
        return True
    _check_label_shape(shape, target)
    require(
        target.dtype in (torch.int64, torch.uint8),
        f"expected target dtype to be Long or Byte, but got {target.dtype}; use target.long()",
        RuntimeError,
    )
    if weight is not None:
        require(
            weight.dtype == dtype or torch.is_autocast_enabled(weight.device.type),
            f"weight: expected scalar type {dtype}, that of input, but found {weight.dtype}",
            RuntimeError,
        )
        require(
            not (weight.requires_grad and torch.is_grad_enabled()),
            "weight: the loss of labels is not differentiable with respect to class weights; detach them",
            RuntimeError,
        )
    return False


def _check_label_shape(shape: tuple[int, ...], target: Tensor) -> None:
    got = tuple(target.shape)
    if len(shape) == 1:
        require(len(got) < 2, "0D or 1D target tensor expected, multi-target not supported", RuntimeError)
        size = f"For 1D input, 1D target must have size 1, but got target size: {list(got)}"
        require(got in ((), (1,)), size)
        return
    expected = (shape[0], *shape[2:])
    rows = got[0] if got else 0
    require(
        rows == shape[0] and got != (), f"Expected input batch_size ({shape[0]}) to match target batch_size ({rows})."
    )
    require(
        got == expected,
        f"Expected target size {list(expected)} (or {list(shape)} for probabilities), got {list(got)}",
        RuntimeError,
    )


def lowered(
    shape: Sequence[int],
    target: Tensor,
    contains_probabilities: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_weight: Tensor | None,
) -> Target:
    """The tensor as a Target of N·P rows beside logits of `shape` (N, C, d₁, …, d_K)."""
    classes = shape[1]
    if row_weight is not None:
        expected = target.shape
        if contains_probabilities:
            expected = target.shape[:1] + target.shape[2:] if target.dim() > 1 else torch.Size()
        if row_weight.shape != expected:
            wanted, got = tuple(expected), tuple(row_weight.shape)
            raise ValueError(f"row_weight: has shape {got}; it is one number per row, {wanted}")
        row_weight = row_weight.reshape(-1)
    if contains_probabilities:
        mu_NC = as_rows(target.reshape(tuple(shape)))
        if label_smoothing:
            mu_NC = mu_NC if mu_NC.dtype not in HALF else mu_NC.float()
            mu_NC = (1 - label_smoothing) * mu_NC + label_smoothing / classes
        return measure(mu_NC, class_weight=weight, weight=row_weight)
    y_N = target.reshape(-1)
    try:
        return labels(
            y_N, classes, smoothing=label_smoothing, ignore_index=ignore_index, class_weight=weight, weight=row_weight
        )
    except IndexError:
        y_N = y_N.long()
        row = int((((y_N < 0) | (y_N >= classes)) & (y_N != ignore_index)).nonzero()[0])
        raise IndexError(
            f"Target {int(y_N[row])} is out of bounds. target: row {row} holds it, and classes are 0 … {classes - 1}, "
            f"or {ignore_index} to ignore the row"
        ) from None


def as_rows(z: Tensor) -> Tensor:
    """(N, C, d₁, …, d_K) as (N·P, C)."""
    return z if z.dim() == 2 else z.movedim(1, -1).reshape(-1, z.shape[1])


def check_binary(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None) -> None:
    """Torch's checks of a binary target."""
    sizes = f"Target size ({target.size()}) must be the same as input size ({input.size()})"
    require(target.size() == input.size(), sizes)
    require(
        target.dtype.is_floating_point,
        f"target: has dtype {target.dtype}; probabilities of class 1 are floating point (target.to(input.dtype))",
        RuntimeError,
    )
    _check_broadcast("weight", weight, input.shape)
    _check_broadcast("pos_weight", pos_weight, input.shape)


def binary_masses(
    target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Probabilities `y` of class 1 as the masses `w p y` of class 1 and `w (1 − y)` of class 0; None for `1 − y`."""
    if weight is None and pos_weight is None:
        return (target if target.dtype == dtype else single(target)[0]), None
    (y,) = single(target)
    one, zero = y if pos_weight is None else y * pos_weight, 1 - y
    return one if weight is None else one * weight, zero if weight is None else zero * weight


def require_mean(reduction: str, total: Any) -> None:
    """A denominator of the caller's own belongs to a mean."""
    require(total is None or reduction == "mean", f"total: is the denominator of a mean; reduction is {reduction!r}")


def reduced_binary(
    input: Tensor, mu1: Tensor, mu0: Tensor | None, reduction: str, temperature: float, total: Any
) -> Tensor:
    """The losses of log odds as torch reduces them: in one reading where that can be, else as any other measure."""
    require_mean(reduction, total)
    if temperature == 1 and input.numel() and binary.refuses(input, mu1, mu0) is None:
        if reduction == "none":
            return binary.rows(input, mu1, mu0)
        denominator = float(1 if reduction == "sum" else input.numel() if total is None else total)
        if denominator:
            return binary.reduced(input, mu1, mu0, 1 / denominator)
    (mu1,) = single(mu1)
    mu = torch.stack([1 - mu1 if mu0 is None else mu0, mu1], dim=-1).reshape(-1, 2)
    return reduced([Binary(input)], [measure(mu)], input.shape, reduction, temperature, total, 0.0)


def _check_broadcast(name: str, factor: Tensor | None, shape: torch.Size) -> None:
    """`factor` stretches to `shape`, and does not stretch it."""
    if factor is None:
        return
    pairs = zip(reversed(factor.shape), reversed(shape))
    fits = factor.dim() <= len(shape) and all(part in (1, whole) for part, whole in pairs)
    require(
        fits,
        f"{name}: shape {tuple(factor.shape)} does not broadcast to the input's shape {tuple(shape)}",
        RuntimeError,
    )


def each_position(value: Any, positions: Sequence[int]) -> Sequence[Any]:
    """A tensor of shape (…, d₁, …, d_K) as its P parts, None as P of it; one backward step joins the gradients."""
    if not positions or value is None:
        return [value] * torch.Size(positions).numel()
    return value.flatten(-len(positions)).unbind(-1)


def wider(dtype: torch.dtype, *others: Tensor | None) -> torch.dtype:
    """float64 where torch's promotion with the others gives it; else `dtype`, since half precision is summed wider."""
    double = torch.float64
    return double if any(other is not None and other.dtype == double for other in others) else dtype


def reduced(
    heads: Sequence[Head],
    targets: Sequence[Target],
    shape: Sequence[int],
    reduction: str,
    temperature: float,
    total: Any,
    z_loss: float,
    kernel: str | None = None,
) -> Tensor:
    """The rows' losses as torch reduces them; `shape` is that of the losses, whose last P are spread over the heads."""
    require_mean(reduction, total)
    if temperature == 1:  # of a default `torch.compile(dynamic=True)` makes a symbol, and an operator wants numbers
        temperature = 1.0
    pairs = list(zip(heads, targets, strict=True))
    if reduction == "none":
        require(not z_loss, "z_loss: belongs to a mean or a sum; reduction is 'none'")
        runs = [kernels.run(h, [(t, temperature)], entropy=False, kernel=kernel) for h, t in pairs]
        rows = [_weighted(run.rows[0][0], target.weight) for run, target in zip(runs, targets)]
        return (rows[0] if len(rows) == 1 else torch.stack(rows, dim=-1)).reshape(tuple(shape))
    counted = [(target.count > 0).double() for target in targets]
    z_total = total
    if reduction == "sum":
        total = z_total = 1
    elif total is None:
        total = torch.stack([target.count.sum(dtype=torch.float64) for target in targets]).sum()
        z_total = torch.stack([counted_N.sum() for counted_N in counted]).sum()
    loss: Tensor | None = None
    for (head, target), counted_N in zip(pairs, counted):
        z_coefficient_N = z_loss * counted_N * shares(None, counted_N, z_total) if z_loss else None
        coefficients = [shares(target.weight, target.count, total)]
        terms = [(target, temperature)]
        part = kernels.run(head, terms, coefficients, z_coefficient_N, entropy=False, kernel=kernel).loss
        assert part is not None
        loss = part if loss is None else loss + part
    assert loss is not None
    # A mean over nothing: NaN as in torch, with torch's gradient, which is 0.
    return loss if reduction == "sum" else torch.where(torch.as_tensor(total, device=loss.device) == 0, torch.nan, loss)


def _weighted(rows_N: Tensor, weight_N: Tensor | None) -> Tensor:
    if weight_N is None:
        return rows_N
    return torch.where(weight_N == 0, 0, rows_N) * weight_N.to(rows_N.dtype)


def single(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Half precision as float32, in which a loss is formed and comes back; of one dtype, as torch wants them."""
    tensors = (first, *others)
    if first.dtype not in HALF:
        return tensors
    return tuple(t.float() if t is not None and t.dtype == first.dtype else t for t in tensors)


def summed(reduction: str, total: Any) -> str:
    """The reduction to ask torch for where the caller's own denominator follows."""
    require_mean(reduction, total)
    return reduction if total is None else "sum"


def over_total(loss: Tensor, total: Any) -> Tensor:
    return loss if total is None else loss / total
