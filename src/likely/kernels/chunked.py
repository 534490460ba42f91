"""The portable fast kernel: rows in blocks, one reused buffer of logits, gradients formed in the forward pass.

For each block of rows: the tile of logits, its normaliser, every term's loss, and, where the rows' coefficients in the
final sum are known, the tile of gradients `coefficient · (M·softmax(z/T) − μ)/T`, carried back at once.  Three matrix
products for a linear head.  Where they are not known (losses returned per row) the backward pass runs the same loop
again with the coefficients that arrive: four products.  Neither the student's nor a teacher's N × C logits are held.

Sums over rows are in float32 for half precision.  The gradients are kept for coefficients whose largest is near one,
and scaled once in the backward pass, so that a mean over many rows, or a gradient scaler, does not underflow them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from likely._checks import values_can_be_read
from likely.heads import Head
from likely.kernels import eager
from likely.kernels.common import Result, RowScores, transformed
from likely.kernels.loop import Pass, Terms


def refuses(head: Head, terms: Terms) -> str | None:
    """Gradients to a target, `torch.func`, forward mode and `torch.compile` need the plain operations of `eager`."""
    of_targets = [t for target, _ in terms for t in (*target.tensors, target.weight)]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in of_targets):
        return "the target requires a gradient"
    tensors = [*head.tensors, *of_targets]
    if not values_can_be_read(*tensors) or transformed(*tensors):  # in this order torch.compile sees one graph
        return "the tensors are inside a transform (torch.func, forward mode, torch.compile)"
    return None


def run(
    head: Head, terms: Terms, coefficients: Sequence[Tensor] | None, z_coefficient: Tensor | None, entropy: bool
) -> Result:
    """See `likely.kernels.run`."""
    known = [entropy and target.entropy_unknown() is None for target, _ in terms]
    if coefficients is None:
        flat = _Rows.apply(head, terms, known, *head.tensors)
        scores = [_row_scores(flat[3 * i : 3 * i + 3], known[i]) for i in range(len(terms))]
        return Result(None, scores, None)
    *flat, loss, z_loss = _Sum.apply(head, terms, known, coefficients, z_coefficient, *head.tensors)
    scores = [_row_scores(flat[3 * i : 3 * i + 3], known[i]) for i in range(len(terms))]
    return Result(loss, scores, None if z_coefficient is None else z_loss)


def _row_scores(three: Sequence[Tensor], known: bool) -> RowScores:
    return RowScores(*three) if known else RowScores(three[0], None, None)


def _scaled(grads: Sequence[Tensor | None] | None, scale: Tensor, head: Head) -> list[Tensor | None]:
    """The gradients times the scale, in the dtypes of the head's tensors."""
    assert grads is not None
    return [
        None
        if grad is None
        else (grad * scale.to(grad.dtype) if grad.dtype == head.acc else grad * scale).to(own.dtype)
        for grad, own in zip(grads, (t if t is not None else torch.empty(0) for t in head.tensors))
    ]


def _common_scale(coefficients: Sequence[Tensor | None]) -> Tensor:
    """A power of two near the largest coefficient, so that dividing by it rounds nothing; 1 where all are 0."""
    largest = torch.stack([c.abs().amax() for c in coefficients if c is not None and c.numel()] or [torch.zeros(())])
    power = torch.frexp(largest.amax().double())[1]
    scale = torch.ldexp(torch.ones((), dtype=torch.float64, device=power.device), power)
    return torch.where((largest.amax() > 0) & torch.isfinite(largest.amax()), scale, 1)


def _again(ctx: FunctionCtx, tensors: Sequence[Tensor | None]) -> tuple[Head, list[Tensor]]:
    """The head on inputs that carry the graph, for gradients of gradients, and those of them that want one."""
    head: Head = ctx.head.with_tensors(tensors)  # type: ignore[attr-defined]
    return head, [t for t, need in zip(tensors, ctx.needed) if need and t is not None]  # type: ignore[attr-defined]


def _place(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    left = iter(found)
    return [next(left) if need else None for need in needed]


class _Sum(torch.autograd.Function):
    """The weighted sum of the rows: gradients for a unit cotangent are formed in the forward pass."""

    @staticmethod
    def forward(ctx, head, terms, known, coefficients, z_coefficient, *tensors):  # type: ignore[no-untyped-def]
        needed = [t is not None and ctx.needs_input_grad[5 + i] for i, t in enumerate(tensors)]
        ctx.scale = scale = _common_scale([*coefficients, z_coefficient]) if any(needed) else torch.ones(())
        scale = scale.to(head.device)
        done = Pass(head, terms, known, needed).over(
            [c / scale for c in coefficients], None if z_coefficient is None else z_coefficient / scale
        )
        ctx.save_for_backward(*tensors)
        ctx.head, ctx.terms, ctx.needed, ctx.done = head.detached(), terms, needed, done if any(needed) else None
        ctx.coefficients, ctx.z_coefficient = coefficients, z_coefficient
        flat = [r for three in done.rows for r in three]
        loss, z_loss = done.loss * scale, done.z_loss * scale
        ctx.mark_non_differentiable(*flat, z_loss)
        return (*flat, loss.to(head.acc), z_loss.to(head.acc))

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[no-untyped-def]
        cotangent = cotangents[-2]
        none = (None,) * 5
        if torch.is_grad_enabled():  # create_graph: the definition, differentiably
            head, wanted = _again(ctx, ctx.saved_tensors)
            loss = eager.run(head, ctx.terms, ctx.coefficients, ctx.z_coefficient, False).loss
            assert loss is not None
            found = torch.autograd.grad(loss, wanted, cotangent, create_graph=True)
            return (*none, *_place(found, ctx.needed))
        _ = ctx.saved_tensors  # raises where an input was changed in place since the forward pass
        return (*none, *_scaled(ctx.done.grads, cotangent * ctx.scale, ctx.head))


class _Rows(torch.autograd.Function):
    """The rows themselves: the backward pass recomputes the logits with the cotangents as coefficients."""

    @staticmethod
    def forward(ctx, head, terms, known, *tensors):  # type: ignore[no-untyped-def]
        ctx.needed = [t is not None and ctx.needs_input_grad[3 + i] for i, t in enumerate(tensors)]
        done = Pass(head, terms, known, [False]).over(None, None)
        ctx.save_for_backward(*tensors)
        ctx.head, ctx.terms, ctx.known = head.detached(), terms, known
        for _, entropy_N, _ in done.rows:
            ctx.mark_non_differentiable(entropy_N)
        ctx.set_materialize_grads(False)
        return tuple(r for three in done.rows for r in three)

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[no-untyped-def]
        none = (None,) * 3
        # Cross-entropy and KL differ by a constant of the head, so their cotangents add up.
        pairs = [[c for c in cotangents[i : i + 3] if c is not None] for i in range(0, len(cotangents), 3)]
        zero = torch.zeros(ctx.head.rows, dtype=ctx.head.acc, device=ctx.head.device)
        a = [sum(pair, zero) for pair in pairs]
        if torch.is_grad_enabled():
            head, wanted = _again(ctx, ctx.saved_tensors)
            rows = eager.run(head, ctx.terms, None, None, False).rows
            found = torch.autograd.grad([r.cross_entropy for r in rows], wanted, a, create_graph=True)
            return (*none, *_place(found, ctx.needed))
        head = ctx.head.with_tensors(ctx.saved_tensors)
        scale = _common_scale(a)
        done = Pass(head, ctx.terms, [False] * len(a), ctx.needed).over([c / scale for c in a], None)
        return (*none, *_scaled(done.grads, scale, head))
