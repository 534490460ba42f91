"""The definitions: surprisal, entropy, cross-entropy, Kullback–Leibler divergence, and their estimates from samples.

Tensors, NumPy arrays and nested lists alike. If any argument is a tensor the result is one, differentiable and on its
device; otherwise it is a NumPy array or scalar. Everything is computed in the widest dtype given, and half precision
in float32. The unit is the nat, unless `base=` names another logarithm.

`0 log 0 = 0`, and a p > 0 where q = 0 costs +inf, never NaN. Nothing is added to a probability to get there: zeros are
masked before the logarithm, so that no gradient is NaN either. (The slope of p log p at p = 0 is infinite; a masked
entry contributes 0 to it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely._checks import require, values_can_be_read
from likely._estimates import Estimate, estimate, estimate_kl

__all__ = ["Estimate", "cross_entropy", "entropy", "estimate", "estimate_kl", "kl_divergence", "surprisal"]


def surprisal(p: Any, *, log_input: bool = False, base: float | None = None, check: bool = True) -> Any:
    """The surprisal of events, `I(p) = −log p`: 0 for what is certain, +inf for what is impossible.

    The surprisals of independent events add up: `I(p·q) = I(p) + I(q)`.

    Args:
        p: probabilities of events, any shape; each lies in [0, 1], they need not sum to one.
        log_input: `p` holds log-probabilities.
        base: of the logarithm; nats by default, 2 for bits.
        check: look at the values first. False takes them as given.

    Returns:
        The surprisals, in the shape of `p`.

    Raises:
        ValueError: an entry outside [0, 1], or NaN.

    Example:
        >>> surprisal([1.0, 0.5, 0.125], base=2).tolist()
        [0.0, 1.0, 3.0]

    Source: C. E. Shannon, A Mathematical Theory of Communication (1948), section 6.
    """
    (x,), give_back = _open(p=p)
    if check:
        _require_probabilities("p", x, log_input)
    x = x.to(_wide(x.dtype))
    # 0 − x and not −x: the surprisal of a certain event prints as 0, not as −0.
    return give_back((0.0 - (x if log_input else torch.log(x))) / _unit(base))


def entropy(p: Any, *, axis: int = -1, log_input: bool = False, base: float | None = None, check: bool = True) -> Any:
    """The entropy of distributions, `H(p) = −Σ p log p`: the expected surprisal.

    Args:
        p: distributions along `axis`.
        axis: the axis of the classes, the last by default.
        log_input: `p` holds log-probabilities.
        base: of the logarithm; nats by default, 2 for bits.
        check: see that each row is a distribution. False takes `p` as given and evaluates the formula: nothing is
            normalised, and a negative entry gives NaN.

    Returns:
        The entropies, in the shape of `p` without `axis`.

    Raises:
        ValueError: a row is negative somewhere, not finite, or does not sum to one; the worst row is named.

    Example:
        >>> float(entropy([0.5, 0.25, 0.25], base=2))
        1.5

    Source: T. M. Cover and J. A. Thomas, Elements of Information Theory (2006), section 2.1.
    """
    (x,), give_back = _open(p=p)
    axis = _require_axis("p", x, axis)
    if check:
        _require_distributions("p", x, log_input, axis, "log_input")
    x = x.to(_wide(x.dtype))
    mass = x.exp() if log_input else x
    log_p = _log(x, log_input, mass == 0)
    return give_back((0.0 - (mass * log_p).sum(dim=axis)) / _unit(base))


def cross_entropy(
    p: Any,
    q: Any,
    *,
    axis: int = -1,
    log_p: bool = False,
    log_q: bool = False,
    base: float | None = None,
    check: bool = True,
) -> Any:
    """The cross-entropy of p and q, `H(p, q) = −Σ p log q`: the expected surprisal at p of one who believes q.

    It equals `H(p) + KL(p ‖ q)`, is therefore at least `H(p)`, and is not symmetric.

    Args:
        p: the true distributions along `axis`.
        q: the believed ones; equally many classes, the other axes broadcast.
        axis: the axis of the classes, the last by default.
        log_p, log_q: whether that argument holds log-probabilities; each by itself, since the true distribution is
            often known as probabilities and the model's as a log-softmax.
        base: of the logarithm; nats by default, 2 for bits.
        check: see that each row is a distribution. False takes both as given and evaluates the formula: nothing is
            normalised.

    Returns:
        The cross-entropies, in the common shape of `p` and `q` without `axis`.

    Raises:
        ValueError: a row of either is not a distribution (the worst is named), or the shapes do not fit.

    Example:
        >>> float(cross_entropy([0.5, 0.5, 0.0], [0.25, 0.5, 0.25], base=2))
        1.5

    Source: T. M. Cover and J. A. Thomas, Elements of Information Theory (2006), theorem 5.4.3.
    """
    (p_t, q_t), axis, give_back = _pair(p, q, axis, log_p, log_q, check)
    mass = p_t.exp() if log_p else p_t
    expected = (mass * _log(q_t, log_q, _nothing(mass, q_t, log_q))).sum(dim=axis)
    return give_back((0.0 - expected) / _unit(base))


def kl_divergence(
    p: Any,
    q: Any,
    *,
    axis: int = -1,
    log_p: bool = False,
    log_q: bool = False,
    base: float | None = None,
    check: bool = True,
) -> Any:
    """The Kullback–Leibler divergence of q from p, `KL(p ‖ q) = Σ p (log p − log q)`.

    At least 0 (up to rounding), and 0 only where p = q: `kl_divergence(p, p)` is 0 exactly. The true distribution
    comes first, as in the formula; `torch.nn.functional.kl_div` takes it second.

    Args:
        p: the true distributions along `axis`.
        q: the believed ones; equally many classes, the other axes broadcast.
        axis: the axis of the classes, the last by default.
        log_p, log_q: whether that argument holds log-probabilities, each by itself.
        base: of the logarithm; nats by default, 2 for bits.
        check: see that each row is a distribution. False takes both as given and evaluates the formula: nothing is
            normalised, the value may then be negative, and a negative entry gives NaN.

    Returns:
        The divergences, in the common shape of `p` and `q` without `axis`.

    Raises:
        ValueError: a row of either is not a distribution (the worst is named), or the shapes do not fit.

    Example:
        >>> p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
        >>> float(kl_divergence(p, q, base=2)), float(kl_divergence(q, p)), float(kl_divergence(p, p))
        (0.5, inf, 0.0)

    Source: T. M. Cover and J. A. Thomas, Elements of Information Theory (2006), section 2.3.
    """
    (p_t, q_t), axis, give_back = _pair(p, q, axis, log_p, log_q, check)
    mass = p_t.exp() if log_p else p_t
    # The logarithms are subtracted before the product: where p = q every term is 0, not only their sum nearly so.
    difference = _log(p_t, log_p, mass == 0) - _log(q_t, log_q, _nothing(mass, q_t, log_q))
    return give_back((mass * difference).sum(dim=axis) / _unit(base))


# ---------------------------------------------------------------------------------------------------------------------


def _read(name: str, value: Any) -> Tensor:
    """A tensor as it is; anything else as a tensor of its own, in float64 unless it is a float32 or float16 array."""
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: cannot be read as an array of numbers ({error})") from None
        require(array.dtype.kind in "fiub", f"{name}: holds {array.dtype}, not real numbers", TypeError)
        narrow = array.dtype.kind == "f" and array.dtype.itemsize < 8
        # A copy in C order and native bytes: torch takes no other, and warns of memory that may not be written.
        return torch.from_numpy(
            np.array(array, dtype=array.dtype.newbyteorder("=") if narrow else np.float64, order="C")
        )
    require(not value.is_complex(), f"{name}: holds {value.dtype}, not real numbers", TypeError)
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def _open(**arrays: Any) -> tuple[list[Tensor], Callable[[Tensor], Any]]:
    """The arguments as tensors on one device, and the way back to the kind that was given."""
    like = next((value for value in arrays.values() if isinstance(value, Tensor)), None)
    tensors = [_read(name, value) for name, value in arrays.items()]
    if like is None:
        return tensors, lambda result: result.numpy()[()]  # [()] makes a scalar of an array without axes
    return [t if isinstance(value, Tensor) else t.to(like.device) for t, value in zip(tensors, arrays.values())], _same


def _same(result: Tensor) -> Tensor:
    return result


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute in: the widest given, and at least float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _pair(
    p: Any, q: Any, axis: int, log_p: bool, log_q: bool, check: bool
) -> tuple[tuple[Tensor, Tensor], int, Callable[[Tensor], Any]]:
    """Both arguments in one dtype and with equally many axes, checked; the axis, counted from the front."""
    (p_t, q_t), give_back = _open(p=p, q=q)
    shapes = f"p has shape {tuple(p_t.shape)}, q {tuple(q_t.shape)}"
    # The axis is one of the common shape: missing axes are put in front, as broadcasting would. But the classes
    # themselves are never broadcast.
    p_t, q_t = p_t[(None,) * (q_t.ndim - p_t.ndim)], q_t[(None,) * (p_t.ndim - q_t.ndim)]
    axis = _require_axis("p", p_t, axis)
    require(p_t.shape[axis] == q_t.shape[axis], f"{shapes}: p and q need equally many classes along axis {axis}")
    fits = all(a == b or 1 in (a, b) for a, b in zip(p_t.shape, q_t.shape))
    require(fits, f"{shapes}: their rows do not broadcast")
    if check:
        _require_distributions("p", p_t, log_p, axis, "log_p")
        _require_distributions("q", q_t, log_q, axis, "log_q")
    dtype = _wide(p_t.dtype, q_t.dtype)
    return (p_t.to(dtype), q_t.to(dtype)), axis, give_back


def _nothing(mass: Tensor, q: Tensor, log_q: bool) -> Tensor:
    """Where p and q are both 0. Where p alone is, 0 · log q is 0 as it stands, and its slope −log q is right."""
    return (mass == 0) & (q == (-math.inf if log_q else 0.0))


def _log(x: Tensor, is_log: bool, masked: Tensor) -> Tensor:
    """log x, and 0 where masked; masked before the logarithm, so that its infinite slope is never formed."""
    return torch.where(masked, 0.0, x) if is_log else torch.log(torch.where(masked, 1.0, x))


def _unit(base: float | None) -> float:
    if base is None:
        return 1.0
    require(1.0 < base < math.inf, f"base: {base} is no base of a logarithm here; give a number above 1, such as 2")
    return math.log(base)


def _require_axis(name: str, x: Tensor, axis: int) -> int:
    require(x.ndim > 0, f"{name}: is a single number; give the probabilities of all classes")
    require(-x.ndim <= axis < x.ndim, f"axis: {axis} is no axis of {name}, which has {x.ndim}")
    require(x.shape[axis] > 0, f"{name}: has no classes along axis {axis}")
    return axis % x.ndim


def _tolerance(dtype: torch.dtype) -> float:
    """What the sum of a distribution may be off by.

    Probabilities that a float32 model computed are often handed on in float64, so that the wider dtype promises no
    more than the sixth decimal.
    """
    return {torch.float16: 2e-3, torch.float32: 1e-4, torch.float64: 1e-6}.get(dtype, 1e-2)


def _require_probabilities(name: str, x: Tensor, is_log: bool) -> None:
    """Every entry lies in [0, 1]; the first that does not is named."""
    if not values_can_be_read(x):
        return
    least, most = (-math.inf, 0.0) if is_log else (0.0, 1.0)
    x = x.detach()
    wrong = ~((x >= least) & (x.to(_wide(x.dtype)) <= most + _tolerance(x.dtype)))
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        what = "a log-probability is at most 0" if is_log else "a probability lies between 0 and 1"
        hint = "" if is_log else "; if these are log-probabilities say log_input=True"
        raise ValueError(f"{name}: {_entry('entry', at)}is {float(x[at]):.6g}; {what}{hint}")


def _require_distributions(name: str, x: Tensor, is_log: bool, axis: int, flag: str) -> None:
    """Every row along `axis` is a distribution, within the tolerance of its dtype; else the worst row is named."""
    if not values_can_be_read(x):
        return
    held = x.detach().movedim(axis, -1)
    wide = held.to(_wide(held.dtype))
    mass = wide.exp() if is_log else wide
    shape = tuple(mass.shape[:-1])

    def row(badness: Tensor) -> tuple[str, tuple[int, ...]]:
        at = tuple(int(i) for i in np.unravel_index(int(badness.argmax()), shape)) if shape else ()
        return f"{name}: {_entry('row', at)}", at

    unreal = ~torch.isfinite(mass).all(dim=-1)
    if bool(unreal.any()):
        raise ValueError(f"{row(unreal.int())[0]}holds NaN or an infinite value; every probability must be finite")
    least = mass.amin(dim=-1)
    if bool((least < 0).any()):
        where, at = row(-least)
        hint = f"for log-probabilities say {flag}=True, for a measure that is not a distribution check=False"
        raise ValueError(f"{where}holds the negative value {float(least[at]):.6g}; {hint}")
    total = mass.sum(dim=-1)
    excess = (total - 1).abs() - _tolerance(held.dtype)
    if is_log:
        # A logarithm rounded by half an ulp changes its p by the factor eps/2 · |log p|: together, eps/2 · entropy.
        spread = (mass * _log(wide, True, mass == 0)).sum(dim=-1).abs()
        excess = excess - torch.finfo(held.dtype).eps / 2 * spread
    if bool((excess > 0).any()):
        where, at = row(excess)
        what, fix = ("exponentials sum", "subtract its logsumexp") if is_log else ("sums", "divide it by its sum")
        what = f"has {what}" if is_log else what
        raise ValueError(
            f"{where}{what} to {float(total[at]):.9g}, not 1; {fix}, or say check=False for what is not a distribution"
        )


def _entry(noun: str, at: tuple[int, ...]) -> str:
    """`row 3 `, or `row (3, 2) `, or nothing where there is only one."""
    return "" if not at else f"{noun} {at[0] if len(at) == 1 else at} "
