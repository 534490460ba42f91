"""Checks of shape, type and range whose messages name the argument, the row and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


class Choice:
    """One of several ways to compute the same: by default the best, by an environment variable or in a block another.

    `names()` are those that there are, and `where` says of what; `best()` is one of them.
    """

    def __init__(
        self, variable: str, where: str, names: Callable[[], Collection[str]], best: Callable[[], str]
    ) -> None:
        self.variable, self.where, self.names, self.best = variable, where, names, best
        self._chosen: str | None = None

    def active(self) -> str:
        if self._chosen is None:
            asked = os.environ.get(self.variable, "")
            self._require(not asked or asked in self.names(), self.variable, asked)
            self._chosen = asked or self.best()
        return self._chosen

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        self._require(name in self.names(), "name", name)
        before, self._chosen = self._chosen, name
        try:
            yield
        finally:
            self._chosen = before

    def _require(self, known: bool, argument: str, name: str) -> None:
        require(known, f"{argument}: is {name!r}; {self.where} there are {', '.join(self.names())}")


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor from a tensor, an array or nested lists; a tensor is returned as it is, with its graph."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        require(value.dtype != object, f"{name}: an array of Python objects; give numbers", TypeError)
    try:
        if isinstance(value, np.ndarray):
            # torch takes native bytes in C order only, and warns of memory that may not be written.
            native = value.dtype.newbyteorder("=")
            kept = value.flags.writeable and value.dtype == native
            return torch.from_numpy(np.ascontiguousarray(value) if kept else np.array(value, dtype=native, order="C"))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: cannot be read as a tensor of numbers ({error})") from None


def values_can_be_read(*tensors: Tensor | None) -> bool:
    """Whether a check may look at values: inside `vmap`, `torch.compile` and on the meta device it may not."""
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return all(t is None or not (wrapped(t) or t.is_meta) for t in tensors)


def is_integer(tensor: Tensor) -> bool:
    """Whether the tensor holds integers (bool is not one)."""
    return not tensor.dtype.is_floating_point and not tensor.dtype.is_complex and tensor.dtype != torch.bool


def require_rows(name: str, rows: int, expected: int, of: str) -> None:
    """Two arguments that speak of the same rows have equally many."""
    require(rows == expected, f"{name}: has {rows} rows where {of} has {expected}")


def require_distribution(name: str, p_NC: Tensor) -> None:
    """Every row of `p` is non-negative and sums to one, within the tolerance of its dtype; else the worst row is named.

    The tolerance is that of additions in the dtype that p is held in: 1e-2 for bfloat16, 2e-3 for float16,
    1e-4 for float32, 1e-6 for float64, which may hold what was computed in float32.
    """
    if p_NC.numel() == 0 or not values_can_be_read(p_NC):
        return
    p_NC = p_NC.detach()
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}.get(p_NC.dtype, 1e-6)
    # Two fast readings accept what is plainly a distribution; what is not is looked at again, to say what is wrong.
    # Half precision is summed in float32 a few rows at a time: PyTorch's own sum with a dtype takes ten times as long.
    # Of a few classes a product with ones is the faster sum.
    if p_NC.itemsize > 2 and p_NC.shape[-1] <= 64 and p_NC.device.type == "cpu":
        quick_N = p_NC @ p_NC.new_ones(p_NC.shape[-1])
    else:
        blocks = p_NC.split(max(1, 2**20 // p_NC.shape[-1])) if p_NC.itemsize == 2 else (p_NC,)
        quick_N = torch.cat([(p_nC.float() if p_NC.itemsize == 2 else p_nC).sum(dim=-1) for p_nC in blocks])
    if bool(p_NC.amin() >= 0) and bool(((quick_N - 1).abs() <= tolerance / 2).all()):
        return
    finite_N = torch.isfinite(p_NC).all(dim=-1)
    if not bool(finite_N.all()):
        row = int((~finite_N).nonzero()[0, 0])
        raise ValueError(f"{name}: row {row} holds NaN or an infinite value; every probability must be finite")
    least_N = p_NC.amin(dim=-1)
    row = int(least_N.argmin())
    require(
        float(least_N[row]) >= 0,
        f"{name}: row {row} holds the negative value {float(least_N[row]):.6g}; "
        "probabilities are at least 0 (a signed or unnormalised target goes through measure())",
    )
    sums_N = p_NC.sum(dim=-1, dtype=torch.float64)
    row = int((sums_N - 1).abs().argmax())
    require(
        abs(float(sums_N[row]) - 1) <= tolerance,
        f"{name}: row {row} sums to {float(sums_N[row]):.9g}, not 1; "
        "divide it by its sum, or use measure() for a target that is not a distribution",
    )


def require_class_indices(name: str, index: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Every index is a class, or the one that means "ignore this row"; else the first wrong row is named."""
    if index.numel() == 0 or not values_can_be_read(index):
        return
    wrong = (index < 0) | (index >= classes)
    if ignore_index is not None:
        wrong &= index != ignore_index
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        row = at[0] if at else 0
        allowed = f"0 … {classes - 1}" + ("" if ignore_index is None else f", or {ignore_index} to ignore the row")
        raise IndexError(f"{name}: row {row} holds {int(index[tuple(at)])}, which is no class; classes are {allowed}")
