"""The portable fast kernel: rows in blocks, one reused buffer of logits, gradients formed in the forward pass.

For each block of rows: the tile of logits, its normaliser, every term's loss, and, where the rows' coefficients in the
final sum are known, the tile of gradients `coefficient · (M·softmax(z/T) − μ)/T`, carried back at once.  Three matrix
products for a linear head.  Where they are not known (losses returned per row) the backward pass runs the same loop
again with the coefficients that arrive: four products.  Neither the student's nor a teacher's N × C logits are held.

Sums over rows are in float32 for half precision.  The gradients are kept for coefficients whose largest is near one,
and scaled once in the backward pass, so that a mean over many rows, or a gradient scaler, does not underflow them.

Everything else that autograd and `torch.func` can ask (gradients of gradients, forward mode, `vmap`, their nestings,
gradients to the target and to the rows' coefficients) is served from the plain operations of a block, `kernels.second`.
Under `torch.compile` the pass is an operator of its own, `kernels.operator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from likely._checks import require, values_can_be_read
from likely.heads import Head
from likely.kernels import operator, parts, second
from likely.kernels.common import Result, transformed
from likely.kernels.loop import Terms, blocks
from likely.kernels.parts import Form, Parts
from likely.kernels.second import Cotangents, Plan, Tensors, apply


def refuses(head: Head, terms: Terms) -> str | None:
    """Kinds of heads and targets that are not this package's; while a graph is traced, what is not of first order."""
    reason = parts.refuses(head, terms)
    if reason is not None:
        return reason
    of_targets = [t for target, _ in terms for t in (*target.tensors, target.weight)]
    if any(t is not None and t.is_meta for t in (*head.tensors, *of_targets)):
        return "the tensors are on the meta device, and have no values"
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return "it is inside torch.func or forward mode and torch.compile at once"
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in of_targets):
            return "the target requires a gradient inside torch.compile"
    return None


def run(
    head: Head,
    terms: Terms,
    coefficients: Sequence[Tensor] | None,
    z_coefficient: Tensor | None,
    entropy: bool,
    kernel: str = "chunked",
) -> Result:
    """See `likely.kernels.run`; `kernel` names the pass over the rows."""
    known = [entropy and target.entropy_unknown() is None for target, _ in terms]
    own = parts.take_apart(head, terms, known)
    weights = [] if coefficients is None else [*coefficients, *([] if z_coefficient is None else [z_coefficient])]
    form = Form.of(own, known, coefficients is not None, z_coefficient is not None, kernel)
    if not torch.compiler.is_compiling():
        return form.result(apply(Scores.of(form, own, head), *own.tensors, *weights))
    require(
        not (torch.is_grad_enabled() and any(w.requires_grad for w in weights)),
        "total: requires a gradient inside torch.compile; there the loss is differentiated in the head alone",
    )
    outputs = operator.scores_operator([*own.tensors, *weights], form.text)
    return form.result([t if one else t.detach() for t, one in zip(outputs, form.smooth)])


@dataclass(frozen=True, eq=False)
class Scores(Plan):
    """The rows of every term, or their weighted sum, whose gradient in the head is then formed at once.

    Behind the outputs of its `form` stand a scale and one gradient, in units of it, for each tensor of the head: for a
    cotangent of 1; empty where it was not formed.
    """

    form: Form

    @staticmethod
    def of(form: Form, own: Parts, head: Head) -> Scores:
        weights = (len(form.known) + form.with_z) if form.summed else 0
        inputs = (*own.per_row, *[True] * weights)
        outputs = (*form.outputs, *[False] * (form.summed * (1 + form.heads)))

        def block(*tensors: Tensor) -> Tensors:
            head, terms, known = parts.put_together(form.note, tensors[: form.tensors])
            rows, loss, z_loss = second.definition(head, terms, known, *form.weights(tensors))
            return tuple(t for t in (*(r for three in rows for r in three), loss, z_loss) if t is not None)

        return Scores(block, inputs, outputs, head.rows, _block_rows(head), form)

    @property
    def smooth(self) -> Plan:
        """The definition of the outputs that have a derivative."""
        at = [at for at, one in enumerate(self.form.smooth) if one]

        def block(*tensors: Tensor) -> Tensors:
            outputs = self.block(*tensors)
            return tuple(outputs[i] for i in at)

        return Plan(block, self.inputs, tuple(self.form.outputs[i] for i in at), self.rows, self.step)

    def forward(self, tensors: Sequence[Tensor]) -> Tensors:
        return operator.scores(self.form, tensors)

    def differentiable(self, at: int) -> bool:
        return at < len(self.form.smooth) and self.form.smooth[at]

    def kept(self, outputs: Tensors) -> Tensors:
        return outputs[len(self.form.outputs) :]

    def pull(self, tensors: Tensors, cotangents: Cotangents, wanted: list[int]) -> dict[int, Tensor]:
        count = len(self.inputs)
        inputs, formed = tensors[:count], tensors[count:]
        smooth = [c for c, one in zip(cotangents, self.form.smooth) if one]
        of_head = [at for at in wanted if at < self.form.heads]
        others = [at for at in wanted if at >= self.form.heads]
        found: dict[int, Tensor] = {}
        arrived = self.form.arrived(smooth, inputs[0])
        if of_head and arrived is not None:
            plan = HeadGradient.of(self, tuple(of_head))
            found.update(zip(of_head, apply(plan, *inputs, *arrived, *formed)))
        if others:
            found.update(self.smooth.pull(inputs, smooth, others))
        return found

    def push(self, tensors: Tensors, tangents: Tensors, moved: list[int]) -> Sequence[Tensor | None]:
        found = iter(self.smooth.push(tensors[: len(self.inputs)], tangents, moved))
        return [next(found) if self.differentiable(at) else None for at in range(len(self.outputs))]

    def batch(self, batch: int, batched: Sequence[bool], tensors: Tensors) -> tuple[Tensors, tuple[int, ...]]:
        plain = Plan(self.block, self.inputs, self.form.outputs, self.rows, self.step)
        found, dims = plain.batch(batch, batched, tensors)
        empty = [tensors[0].new_empty(batch, 0) for _ in range(len(self.outputs) - len(found))]
        return (*found, *empty), (*dims, *[0] * len(empty))


@dataclass(frozen=True, eq=False)
class HeadGradient(Plan):
    """The gradients in the head: what was formed, scaled, or else the pass again with the cotangents that arrived.

    Its derivatives are those of the closed form, `exact`, in which what was formed has no part.
    """

    form: Form
    exact: Plan
    wanted: tuple[int, ...]

    @staticmethod
    def of(scores: Scores, wanted: tuple[int, ...]) -> HeadGradient:
        form, count = scores.form, len(scores.inputs)

        def block(*tensors: Tensor) -> Tensors:
            return second.gradient(*form.made_of(tensors[:count], tensors[count:]), tuple(wanted))

        inputs = (*scores.inputs, *([False] if form.summed else [True] * len(form.known)))
        outputs = tuple(scores.inputs[at] for at in wanted)
        formed = (False,) * (len(scores.outputs) - len(form.outputs))
        exact = Plan(block, inputs, outputs, scores.rows, scores.step)
        return HeadGradient(block, (*inputs, *formed), outputs, scores.rows, scores.step, form, exact, wanted)

    def forward(self, tensors: Sequence[Tensor]) -> Tensors:
        exact, form = len(self.exact.inputs), self.form
        count = exact - (1 if form.summed else len(form.known))
        arrived, formed = tensors[count:exact], tensors[exact:]
        if formed and all(formed[1 + at].shape == tensors[at].shape for at in self.wanted):
            dtypes = [tensors[at].dtype for at in self.wanted]
            grads, scale = [formed[1 + at] for at in self.wanted], arrived[0] * formed[0]
            retained = torch._C._autograd._get_current_graph_task_keep_graph()
            readable = values_can_be_read(scale, *grads) and not transformed(scale, *grads)
            if not retained and readable and float(scale) == 1:
                # What was saved, itself: autograd lets go of it before it goes on.  A graph that is retained keeps it,
                # and a gradient is the caller's, to change in place.
                return tuple(g.to(dtype).view_as(g) for g, dtype in zip(grads, dtypes))
            return operator.scaled(grads, scale, dtypes)
        return operator.head_gradient(form, tensors[:count], arrived, self.wanted)

    def unwritten(self, tensors: Sequence[Tensor]) -> Tensors:
        return self.exact.unwritten(tensors[: len(self.exact.inputs)])

    def pull(self, tensors: Tensors, cotangents: Cotangents, wanted: list[int]) -> dict[int, Tensor]:
        count = len(self.exact.inputs)
        return self.exact.pull(tensors[:count], cotangents, [at for at in wanted if at < count])

    def push(self, tensors: Tensors, tangents: Tensors, moved: list[int]) -> Sequence[Tensor | None]:
        count = len(self.exact.inputs)
        own = [at for at in moved if at < count]
        return self.exact.push(tensors[:count], tangents[: len(own)], own)

    def batch(self, batch: int, batched: Sequence[bool], tensors: Tensors) -> tuple[Tensors, tuple[int, ...]]:
        count = len(self.exact.inputs)
        return self.exact.batch(batch, batched[:count], tensors[:count])


_FEW = 2**18
"""Logits that are held at once without a thought: `vmap` over few rows fills a block of so many."""


def _block_rows(head: Head) -> int:
    """The rows of the pass's blocks; where one block takes all rows there may be room for more."""
    rows = [block.stop - block.start for block in blocks(head)]
    return max(rows, default=1) if len(rows) > 1 else max(1, head.rows, _FEW // max(1, head.classes))
