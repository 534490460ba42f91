"""Kernels: modules that compute the rows of an objective and their gradients.

A kernel has `refuses(head, terms) -> reason or None` and `run(head, terms, coefficients, ...) -> Result`.  A term here
is a pair of a Target and a temperature.  `run` of this package chooses: the one asked for by name, whose reason is
raised when it refuses, or else the first that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from likely._checks import require
from likely.forms import Target
from likely.heads import Head
from likely.kernels import chunked, eager
from likely.kernels.common import Result, RowScores

KERNELS: dict[str, ModuleType] = {"chunked": chunked, "eager": eager}


def run(
    head: Head,
    terms: Sequence[tuple[Target, float]],
    coefficients: Sequence[Tensor] | None = None,
    z_coefficient: Tensor | None = None,
    *,
    entropy: bool = True,
    kernel: str | None = None,
) -> Result:
    """The scores of every row under every term, and their weighted sum where the coefficients are known beforehand.

    Parameters
    ----------
    head : Head
    terms : pairs of a Target and the temperature that softens it and the student alike
    coefficients : one tensor (N,) per term, optional
        The rows' coefficients in the final sum.  Given, `Result.loss` is that sum, its gradient was formed in the
        forward pass, and the scores are detached; not given, the scores carry the graph.
    z_coefficient : shape (N,), optional, with `coefficients`
        Adds `Σ z_coefficient · A(z)²`, at T = 1.
    entropy : bool
        Whether entropy and KL are wanted beside the cross-entropy.
    kernel : "chunked" or "eager", optional

    Raises
    ------
    ValueError
        A kernel that was asked for by name and cannot serve: its reason.
    """
    check(head, terms)
    head = head.autocast()
    arguments: tuple[Any, ...] = (head, terms, coefficients, z_coefficient, entropy)
    if kernel is not None:
        require(kernel in KERNELS, f"kernel: is {kernel!r}; there are {', '.join(map(repr, KERNELS))}")
        reason = KERNELS[kernel].refuses(head, terms)
        require(reason is None, f"kernel: {kernel!r} cannot serve: {reason}")
        return KERNELS[kernel].run(*arguments)
    chosen = next(k for k in KERNELS.values() if k.refuses(head, terms) is None)
    return chosen.run(*arguments)


def check(head: Head, terms: Sequence[tuple[Target, float]]) -> None:
    """The head and the targets speak of the same rows, classes, device and temperature."""
    for target, temperature in terms:
        require(temperature > 0, f"temperature: is {temperature}; it is a positive number")
        require(
            target.classes == head.classes,
            f"target: is over {target.classes} classes where the head has {head.classes}; "
            "vocabularies that differ need an explicit map, never padding",
        )
        require(target.rows == head.rows, f"target: has {target.rows} rows where the head has {head.rows}")
        require(
            target.count.device == head.device,
            f"target: is on {target.count.device} where the head is on {head.device}",
        )
        reason = target.refuses_temperature(temperature)
        require(reason is None, reason or "")


__all__ = ["KERNELS", "Result", "RowScores", "run"]
