"""Kernels: modules that compute the rows of an objective and their gradients.

A kernel has `refuses(head, terms) -> reason or None`.  A term here is a pair of a Target and a temperature.  `eager` is
the definition; "chunked", "minimal" and "triton" are three passes over the rows, of one interface, and what `chunked`
makes of them for autograd; "inplace" leaves the gradient where the logits were.  `run` chooses: the one asked for by
name, whose reason is raised when it refuses, or else the first of `FASTEST` that serves.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from likely._checks import require
from likely.forms import Target
from likely.heads import Head
from likely.kernels import chunked, eager, inplace, minimal, triton
from likely.kernels.common import Result, RowScores

KERNELS = ("chunked", "minimal", "inplace", "triton", "eager")
FASTEST = ("triton", "chunked", "eager")
"""What is tried in turn where no kernel is asked for."""


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
    kernel : "chunked", "minimal", "inplace", "triton" or "eager", optional

    Raises
    ------
    ValueError
        A kernel that was asked for by name and cannot serve: its reason.
    """
    check(head, terms)
    head = head.autocast()
    if kernel is not None:
        require(kernel in KERNELS, f"kernel: is {kernel!r}; there are {', '.join(map(repr, KERNELS))}")
        reason = refuses(kernel, head, terms)
        require(reason is None, f"kernel: {kernel!r} cannot serve: {reason}")
    chosen = kernel or next(name for name in FASTEST if refuses(name, head, terms) is None)
    if chosen in ("eager", "inplace"):
        own = eager if chosen == "eager" else inplace
        return own.run(head, terms, coefficients, z_coefficient, entropy)
    return chunked.run(head, terms, coefficients, z_coefficient, entropy, chosen)


def refuses(kernel: str, head: Head, terms: Sequence[tuple[Target, float]]) -> str | None:
    """Why this kernel cannot serve, or None."""
    if kernel in ("eager", "inplace"):
        return (eager if kernel == "eager" else inplace).refuses(head, terms)
    own = {"minimal": minimal, "triton": triton}
    reason = own[kernel].refuses(head, terms) if kernel in own else None
    return reason if reason is not None else chunked.refuses(head, terms)


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
