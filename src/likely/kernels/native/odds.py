"""Passes over dense rows of features for a binary model, in float64: one reading of the features each.

Legend: n rows of a block, D features; θ is (D + 1,), the intercept last.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.kernels.native.library import active, call, i32, i64, pointer

_MOMENTS, _VALUE, _PRODUCT, _CURVATURE, _DUAL = range(5)


class _Odds(ctypes.Structure):
    _fields_ = (
        ("kind", i32),
        ("rows", i64),
        ("features", i64),
        ("room", i64),
        ("x", pointer),
        ("stride", i64),
        ("weight", pointer),
        ("by", pointer),
        ("offset", pointer),
        ("theta", pointer),
        ("step", pointer),
        ("probability", pointer),
        ("sums", pointer),
        ("sums_2", pointer),
        ("squares", pointer),
        ("numbers", pointer),
    )


def serves(x: Any) -> bool:
    """Whether there is a compiled pass for these features: a NumPy array of float64 whose rows are contiguous."""
    return (
        active() != "plain"
        and isinstance(x, np.ndarray)
        and x.dtype == np.float64
        and x.shape[1] > 0
        and x.strides[1] == 8
        and x.strides[0] % 8 == 0
        and x.strides[0] > 0
    )


def room(D: int) -> int:
    """Numbers that a vector of D + 1 has room for."""
    return (D // 8 + 1) * 8


def padded(a: np.ndarray) -> np.ndarray:
    """A vector (D + 1,) followed by zeros."""
    out = np.zeros(room(len(a) - 1))
    out[: len(a)] = a
    return out


@dataclass(frozen=True, eq=False)
class Dual:
    """Of p' and of the point ahead, as `likely.solvers.certificate` needs them."""

    largest: float
    divergence: float
    sums: np.ndarray
    product: float
    ahead: np.ndarray
    normaliser: float


class Rows:
    """A block: `x` (n, D) of which `serves` is true, its rows' `weight` (n,) and, where there is one, `offset` (n,)."""

    def __init__(self, x: np.ndarray, weight: np.ndarray, offset: np.ndarray | None = None) -> None:
        self.x, self.weight = x, np.ascontiguousarray(weight, np.float64)
        self.offset = None if offset is None else np.ascontiguousarray(offset, np.float64).reshape(-1)

    def _run(self, kind: int, by: np.ndarray | None = None, **given: np.ndarray | None) -> np.ndarray:
        numbers = np.zeros(6)
        kept = {**given, "by": None if by is None else np.ascontiguousarray(by, np.float64)}
        kept |= {"weight": self.weight, "offset": self.offset, "numbers": numbers}
        places = {name: None if a is None else a.__array_interface__["data"][0] for name, a in kept.items()}
        n, D = self.x.shape
        x = {"x": self.x.__array_interface__["data"][0], "stride": self.x.strides[0] // 8}
        call("odds", _Odds(kind=kind, rows=n, features=D, room=room(D), **x, **places))
        return numbers

    def moments(self, by: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(X, 1)'w`, `(X, 1)' by` and `(X ∘ X)' w`."""
        D = self.x.shape[1]
        first, t, squares = np.zeros((3, room(D)))
        self._run(_MOMENTS, by, sums=first, sums_2=t, squares=squares)
        return first[: D + 1], t[: D + 1], squares[:D]

    def value(
        self, theta: np.ndarray, labels: np.ndarray | None = None, *, want_p: bool = False
    ) -> tuple[float, float, np.ndarray, np.ndarray | None]:
        """The loss of labels in {0, 1}, `Σ w softplus(z)`, `(X, 1)'(w (p − labels))`, and the smaller of p and 1 − p,
        all of whose digits are good; `theta` is `padded`."""
        sums = np.zeros(len(theta))
        p = np.empty(len(self.weight)) if want_p else None
        numbers = self._run(_VALUE, labels, theta=theta, sums=sums, probability=p)
        return float(numbers[0]), float(numbers[1]), sums[: self.x.shape[1] + 1], p

    def product(self, v: np.ndarray, by: np.ndarray) -> np.ndarray:
        """`(X, 1)' (w by ((X, 1) v))`; `v` is `padded`."""
        sums = np.zeros(len(v))
        self._run(_PRODUCT, by, theta=v, sums=sums)
        return sums[: self.x.shape[1] + 1]

    def curvature(self, theta: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
        """`(X, 1)' diag(w p (1 − p)) (X, 1)`, (D + 1, D + 1), with p as `value` gave it; `theta` is `padded`."""
        return self._squares(p, None if p is not None else theta)

    def gram(self) -> np.ndarray:
        """`(X, 1)' diag(w) (X, 1)`, (D + 1, D + 1)."""
        return self._squares(None, None)

    def _squares(self, p: np.ndarray | None, theta: np.ndarray | None) -> np.ndarray:
        R = self.x.shape[1] + 1
        m = room(R - 1)
        squares = np.zeros((m, m))
        self._run(_CURVATURE, p, theta=theta, squares=squares)
        upper = np.triu(squares[:R, :R])
        return upper + np.triu(upper, 1).T

    def dual(self, theta: np.ndarray, step: np.ndarray) -> Dual:
        """The dual point of a step, and the sums at `theta − step`; both are `padded`."""
        sums, ahead = np.zeros((2, len(theta)))
        numbers = self._run(_DUAL, theta=theta, step=step, sums=sums, sums_2=ahead)
        R = self.x.shape[1] + 1
        _, _, largest, divergence, product, normaliser = numbers.tolist()
        return Dual(largest, divergence, sums[:R], product, ahead[:R], normaliser)
