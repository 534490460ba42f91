"""The pass over the rows as functions of tensors alone, and as operators of PyTorch.

`torch.compile` neither looks into compiled code nor takes a function of autograd that has a forward mode, but it calls
an operator as it is, in one graph.  There are two, `likely::scores` and `likely::head_gradient`, of first order in the
head only: `kernels.chunked` refuses what else can be asked while a graph is traced, and PyTorch itself refuses second
derivatives of a compiled graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likely.heads import Head
from likely.kernels import minimal, parts, triton
from likely.kernels.loop import Pass, Terms
from likely.kernels.parts import Form

Tensors = tuple[Tensor, ...]

PASSES: dict[str, Any] = {"chunked": Pass, "minimal": minimal.Pass, "triton": triton.Pass}
"""What runs over the rows; they share one interface, that of `kernels.loop.Pass`."""


def scores(form: Form, inputs: Sequence[Tensor]) -> Tensors:
    """The outputs of the form.  If it sums, a scale and the gradients of the head's tensors follow, which are those for
    a cotangent of 1 over the scale; empty where none was needed."""
    head, terms, known = parts.put_together(form.note, inputs[: form.tensors])
    coefficients, z_coefficient = form.weights(inputs)
    if coefficients is None:
        return _rows(form, PASSES[form.kernel](head, terms, known, [False]).over(None, None), terms)
    scale = torch.ones((), dtype=torch.float64, device=head.device)
    if any(form.needed):
        scale = common_scale(head, [*coefficients, z_coefficient])
    done = PASSES[form.kernel](head, terms, known, _of_all(form.needed, head)).over(
        [c / scale for c in coefficients], None if z_coefficient is None else z_coefficient / scale
    )
    loss, z_loss = done.loss * scale, done.z_loss * scale
    sums = (loss.to(head.acc), z_loss.to(head.acc))[: 1 + form.with_z]
    grads = [None] * form.heads if done.grads is None else done.grads[: form.heads]
    formed = [t.new_empty(0) if grad is None else grad for grad, t in zip(grads, inputs)]
    return (*_rows(form, done, terms), *sums, scale, *formed)


def _rows(form: Form, done: Pass, terms: Terms) -> Tensors:
    rows: list[Tensor] = []
    for three, (target, _), known in zip(done.rows, terms, form.known):
        signed = known and target.entropy_unknown() is not None  # which could not be read inside a transform
        rows += [three[0], *(torch.full_like(r, torch.nan) if signed else r for r in three[1:])] if known else three[:1]
    return tuple(rows)


def head_gradient(form: Form, inputs: Sequence[Tensor], arrived: Sequence[Tensor], wanted: Sequence[int]) -> Tensors:
    """The gradients in the head's tensors `wanted`, by a pass with the cotangents that arrived."""
    head, terms, a, z_a = form.made_of(inputs, arrived)
    scale = common_scale(head, [*a, z_a])
    needed = _of_all([at in wanted for at in range(form.heads)], head)
    done = PASSES[form.kernel](head, terms, [False] * len(a), needed).over(
        [c / scale for c in a], None if z_a is None else z_a / scale
    )
    assert done.grads is not None
    return scaled([done.grads[at] for at in wanted], scale, [inputs[at].dtype for at in wanted])


def scaled(grads: Sequence[Any], scale: Tensor, dtypes: Sequence[torch.dtype]) -> Tensors:
    """The gradients times the scale, rounded once."""
    wide = (torch.float32, torch.float64)
    return tuple((g * (scale.to(g.dtype) if g.dtype in wide else scale)).to(dtype) for g, dtype in zip(grads, dtypes))


def _of_all(needed: Sequence[bool], head: Head) -> list[bool]:
    """For every tensor of the head, also those that are None."""
    return [*needed, *[False] * (len(head.tensors) - len(needed))]


def common_scale(head: Head, coefficients: Sequence[Tensor | None]) -> Tensor:
    """What gradients in float16 are formed in units of, so that a mean over many rows does not underflow them.

    A power of two near the largest coefficient, so that dividing by it rounds nothing; 1 where all are 0, and for other
    dtypes, which have room.
    """
    if head.dtype != torch.float16:
        return torch.ones((), dtype=torch.float64, device=head.device)
    largest = torch.stack([c.abs().amax() for c in coefficients if c is not None and c.numel()] or [torch.zeros(())])
    power = torch.frexp(largest.amax().double())[1]
    scale = torch.ldexp(torch.ones((), dtype=torch.float64, device=power.device), power)
    return torch.where((largest.amax() > 0) & torch.isfinite(largest.amax()), scale, 1)


# -------------------------------------------------------------------------------------------------- as operators


@torch.library.custom_op("likely::scores", mutates_args=())
def scores_operator(inputs: Sequence[Tensor], form: str) -> list[Tensor]:
    """`scores`, with the form as its text."""
    own = parts.read(form)
    made = scores(own, inputs)
    formed = [t.to(dtype).contiguous() for t, dtype in zip(made[len(made) - own.heads :], _dtypes(own, inputs))]
    return [*made[: len(made) - own.heads], *formed] if own.summed else list(made)


def _dtypes(form: Form, inputs: Sequence[Tensor]) -> list[torch.dtype]:
    """Of the gradients that are formed: sums over the rows are not rounded yet."""
    head, _, _ = parts.put_together(form.note, inputs[: form.tensors])
    return [inputs[at].dtype if at == 0 else head.acc for at in range(form.heads)]


@scores_operator.register_fake
def _(inputs: Sequence[Tensor], form: str) -> list[Tensor]:
    own = parts.read(form)
    head, _, _ = parts.put_together(own.note, inputs[: own.tensors])
    made = [inputs[0].new_empty((head.rows,) if cut else (), dtype=head.acc) for cut in own.outputs]
    if own.summed:
        made.append(inputs[0].new_empty((), dtype=torch.float64))
        for need, tensor, dtype in zip(own.needed, inputs, _dtypes(own, inputs)):
            made.append(tensor.new_empty(tensor.shape if need else (0,), dtype=dtype))
    return made


@torch.library.custom_op("likely::head_gradient", mutates_args=())
def head_gradient_operator(
    inputs: Sequence[Tensor], arrived: Sequence[Tensor], form: str, wanted: Sequence[int]
) -> list[Tensor]:
    """`head_gradient`, with the form as its text."""
    return [g.contiguous() for g in head_gradient(parts.read(form), inputs, arrived, wanted)]


@head_gradient_operator.register_fake
def _(inputs: Sequence[Tensor], arrived: Sequence[Tensor], form: str, wanted: Sequence[int]) -> list[Tensor]:
    return [inputs[at].new_empty(inputs[at].shape) for at in wanted]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.form = inputs
    ctx.count = len(tensors)
    ctx.set_materialize_grads(False)
    form = parts.read(ctx.form)
    ctx.save_for_backward(*tensors, *output[len(form.outputs) :])
    smooth = (*form.smooth, *[False] * (len(output) - len(form.smooth)))
    ctx.mark_non_differentiable(*(t for t, one in zip(output, smooth) if not one))


def _backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    form = parts.read(ctx.form)
    inputs, formed = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    wanted = [at for at in range(ctx.count) if inputs[at].requires_grad]
    if any(at >= form.heads for at in wanted):
        raise NotImplementedError("likely::scores has a derivative of its losses in the head alone")
    arrived = form.arrived([c for c, one in zip(cotangents, form.smooth) if one], inputs[0])
    found: list[Tensor | None] = [None] * ctx.count
    if arrived is None or not wanted:
        return found, None
    if form.summed:
        dtypes = [inputs[at].dtype for at in wanted]
        made: Sequence[Tensor] = scaled([formed[1 + at] for at in wanted], arrived[0] * formed[0], dtypes)
    else:
        made = head_gradient_operator(inputs, arrived, ctx.form, wanted)
    for at, grad in zip(wanted, made):
        found[at] = grad
    return found, None


scores_operator.register_autograd(_backward, setup_context=_setup_context)
