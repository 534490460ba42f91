"""The gradient of given logits in their own memory: nothing N × C is held beside them.

The pass of `kernels.loop` writes each tile of gradients over the tile of logits that it was formed from.  The first
touch of fresh memory, which costs more than the arithmetic of a plain loss, does not take place.  The logits are gone
afterwards, so only one backward pass of first order is possible, and anything that saved them raises autograd's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likely.heads import Head, Logits, ProductSum, ProductSums
from likely.kernels.common import Result, RowScores, transformed
from likely.kernels.loop import Pass, Terms


def refuses(head: Head, terms: Terms) -> str | None:
    """What has no logits to overwrite, or whose logits are needed afterwards."""
    if not isinstance(head, Logits):
        return "it overwrites given logits; this head forms its own and holds no more than a block of them"
    z_NC = head.z
    if torch.compiler.is_compiling() or transformed(z_NC):
        return "it is of first order, outside torch.compile and torch.func"
    if z_NC.requires_grad and z_NC.is_leaf:
        return "the logits are a leaf, whose gradient may not lie in its own memory; leave it out"
    if z_NC.stride(-1) != 1 or (z_NC.shape[0] > 1 and z_NC.stride(0) < z_NC.shape[1]):
        return "the rows of the logits do not lie apart in memory; call contiguous() first"
    if z_NC.dtype == torch.float16:
        return "gradients in float16 may underflow before they are scaled; use bfloat16, or leave it out"
    if any(t is not None and t.requires_grad for target, _ in terms for t in (*target.tensors, target.weight)):
        return "the target requires a gradient, which needs the logits"
    return None


class _Overwritten(Logits):
    def gradient_buffers(self, needed: Sequence[bool], product_sum: ProductSums = ProductSum) -> list[Any]:
        return [self.z]


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_NC: Tensor, done: Pass) -> Tensor:
        ctx.grad = None if done.grads is None else done.grads[0]
        return done.loss

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("inplace: create_graph asks for derivatives of a gradient that has replaced its logits")
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("inplace: a second backward pass; the first one's gradient has replaced the logits")
        return grad.mul_(cotangent) if float(cotangent) != 1 else grad, None


def run(
    head: Head,
    terms: Terms,
    coefficients: Sequence[Tensor] | None,
    z_coefficient: Tensor | None,
    entropy: bool,
) -> Result:
    """See `likely.kernels.run`; without coefficients there is no gradient to write, and ValueError is raised."""
    if coefficients is None:
        raise ValueError("inplace: the losses of the rows are asked for, whose gradients are not known yet; take a sum")
    assert isinstance(head, Logits)
    wanted = torch.is_grad_enabled() and head.z.requires_grad
    known = [entropy and target.entropy_unknown() is None for target, _ in terms]
    with torch.no_grad():
        own = _Overwritten(head.z.detach())
        done = Pass(own, terms, known, [wanted]).over(coefficients, z_coefficient)
    if wanted:
        torch.autograd.graph.increment_version(head.z)
    loss = _InPlace.apply(head.z, done) if wanted else done.loss
    rows = [RowScores(ce, *(one if k else None for one in others)) for (ce, *others), k in zip(done.rows, known)]
    return Result(loss, rows, done.z_loss if z_coefficient is not None else None)
