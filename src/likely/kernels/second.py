"""Functions of rows, block by block, whose derivatives of every order are again functions of rows, block by block.

Legend: N rows, C classes, n rows of one block.

A `Plan` holds a function of one block, written in plain differentiable operations, and knows which of its inputs and
outputs are cut into rows and which are shared by all rows (and summed).  Its backward pass, its forward mode and its
`vmap` are plans too, so gradients of gradients in any nesting hold one block at a time: memory O(block · C) beside the
inputs and the result.  `Blockwise` shows a plan to autograd and to `torch.func`.

Second derivatives come from the first in closed form, `gradient`: with `q = softmax(z/T)` it is `a (M q − μ)/T`, and
its derivative `a M (diag(q) − q qᵀ)/T²`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._functorch import eager_transforms

from likely.forms import Sparse, Tile
from likely.heads import ALL, Head
from likely.kernels import eager
from likely.kernels.common import weighted_sum
from likely.kernels.loop import Terms

Tensors = tuple[Tensor, ...]
Cotangents = Sequence[Tensor | None]

_batched = torch._C._functorch.is_legacy_batchedtensor
"""Whether it is a batch of `is_grads_batched`, which hides behind the shape of one of its tensors."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A function of a block of rows.

    Attributes
    ----------
    block : the function, of a block's tensors
    inputs, outputs : whether each is cut into rows, along its first dimension; of the others a sum is the result
    rows, step : how many rows there are, and how many at most stand in a block
    """

    block: Callable[..., Tensors]
    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    rows: int
    step: int

    def forward(self, tensors: Sequence[Tensor]) -> Tensors:
        """Every block in turn; sums of half precision are rounded once, at the end."""
        made: list[Tensor] = []
        own: list[torch.dtype] = []
        for rows, parts in self._each(tensors):
            if not made:
                own = [part.dtype for part in parts]
                for part, cut in zip(parts, self.outputs):
                    size = (self.rows, *part.shape[1:]) if cut else part.shape
                    wide = torch.float32 if part.dtype in (torch.bfloat16, torch.float16) and not cut else part.dtype
                    empty = torch.empty(size, dtype=wide, device=part.device)
                    made.append(empty if cut else empty.zero_())
            for whole, part, cut in zip(made, parts, self.outputs):
                if cut:
                    whole[rows] = part
                else:
                    whole += part
        return tuple(whole.to(dtype) for whole, dtype in zip(made, own))

    def _each(self, tensors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensors]]:
        for start in range(0, max(1, self.rows), self.step):
            rows = slice(start, min(start + self.step, self.rows))
            yield rows, self.block(*(t[rows] if cut else t for t, cut in zip(tensors, self.inputs)))

    def unwritten(self, tensors: Sequence[Tensor]) -> Tensors:
        """`forward` without writing into a tensor, for the batches of `is_grads_batched`."""
        columns = zip(*(parts for _, parts in self._each(tensors)))
        return tuple(torch.cat(c) if cut else sum(c[1:], c[0]) for c, cut in zip(columns, self.outputs))

    def differentiable(self, at: int) -> bool:
        """Whether the output has a derivative."""
        return True

    def kept(self, outputs: Tensors) -> Tensors:
        """The outputs that `pull` wants to see behind the inputs."""
        return ()

    def pull(self, tensors: Tensors, cotangents: Cotangents, wanted: list[int]) -> dict[int, Tensor]:
        """The gradients of the inputs `wanted`, of the outputs that have a cotangent."""
        has = [at for at, cotangent in enumerate(cotangents) if cotangent is not None]
        found = apply(self.vjp(wanted, has), *tensors, *(c for c in cotangents if c is not None))
        return dict(zip(wanted, found))

    def push(self, tensors: Tensors, tangents: Tensors, moved: list[int]) -> Sequence[Tensor | None]:
        """The tangents of the outputs, where the inputs `moved` have tangents."""
        return apply(self.jvp(moved), *tensors, *tangents)

    def vjp(self, wanted: Sequence[int], has: Sequence[int]) -> Plan:
        """`(inputs, cotangents of the outputs that have one) → gradients of the inputs wanted`."""
        count = len(self.inputs)

        def block(*tensors: Tensor) -> Tensors:
            inputs, cotangents = tensors[:count], tensors[count:]

            def outputs(*own: Tensor) -> Tensors:
                made = self._of(inputs, wanted)(*own)
                return tuple(made[at] for at in has)

            back = torch.func.vjp(outputs, *(inputs[at] for at in wanted))[1]
            return back(tuple(cotangents))

        return Plan(
            block,
            (*self.inputs, *(self.outputs[at] for at in has)),
            tuple(self.inputs[at] for at in wanted),
            self.rows,
            self.step,
        )

    def jvp(self, moved: Sequence[int]) -> Plan:
        """`(inputs, tangents of the inputs moved) → tangents of the outputs`."""
        count = len(self.inputs)

        def block(*tensors: Tensor) -> Tensors:
            inputs, tangents = tensors[:count], tensors[count:]
            return _jvp(self._of(inputs, moved), tuple(inputs[at] for at in moved), tangents)

        return Plan(block, (*self.inputs, *(self.inputs[at] for at in moved)), self.outputs, self.rows, self.step)

    def _of(self, inputs: Sequence[Tensor], chosen: Sequence[int]) -> Callable[..., Tensors]:
        def block(*tensors: Tensor) -> Tensors:
            full = list(inputs)
            for at, tensor in zip(chosen, tensors):
                full[at] = tensor
            return self.block(*full)

        return block

    def over(self, batch: int, batched: Sequence[bool]) -> Plan:
        """The plan for a batch of inputs: the dimension of the batch is the second of what is cut into rows, the first
        of what is not.  The blocks have fewer rows by as much as the batch is large.
        """
        dims = tuple((1 if cut else 0) if has else None for cut, has in zip(self.inputs, batched))
        batched_block = torch.vmap(self.block, in_dims=dims, chunk_size=self.step if batch > self.step else None)

        def block(*tensors: Tensor) -> Tensors:
            found = batched_block(*tensors)
            return tuple(t.movedim(0, 1) if cut else t for t, cut in zip(found, self.outputs))

        return Plan(block, self.inputs, self.outputs, self.rows, max(1, self.step // max(1, batch)))

    def batch(self, batch: int, batched: Sequence[bool], tensors: Tensors) -> tuple[Tensors, tuple[int, ...]]:
        """The outputs for a batch, and which of their dimensions is the batch's."""
        found = apply(self.over(batch, batched), *tensors)
        return found, tuple(1 if cut else 0 for cut in self.outputs)


def apply(plan: Plan, *tensors: Tensor) -> Tensors:
    """The plan's outputs, under the eyes of autograd and `torch.func` where they are looking."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return Blockwise.apply(plan, *tensors)
    return Blockwise.forward(plan, *tensors)


def _jvp(function: Callable[..., Tensors], primals: Tensors, tangents: Tensors) -> Tensors:
    """The tangents of `torch.func.jvp`, also inside a level of `forward_ad`, where that refuses to open another."""
    if forward_ad._current_level < 0 or eager_transforms.JVP_NESTING:
        return torch.func.jvp(function, primals, tangents)[1]
    with forward_ad._set_fwd_grad_enabled(True):
        made = function(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents)))
        pairs = [forward_ad.unpack_dual(t) for t in made]
    return tuple(torch.zeros_like(p) if t is None else t for p, t in pairs)


class Blockwise(torch.autograd.Function):
    """A plan, as autograd and `torch.func` see it."""

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor) -> Tensors:  # type: ignore[override]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return plan.unwritten(tensors) if any(_batched(t) for t in tensors) else plan.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.plan, *tensors = inputs
        kept = ctx.plan.kept(output)
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(o for at, o in enumerate(output) if not ctx.plan.differentiable(at)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = [at for at, need in enumerate(ctx.needs_input_grad[1:]) if need]
        tensors = ctx.saved_tensors  # raises where an input was changed in place since the forward pass
        if all(c is None for c in cotangents) or not wanted:
            return (None,) * len(ctx.needs_input_grad)
        found = ctx.plan.pull(tensors, cotangents, wanted)
        return (None, *(found.get(at) for at in range(len(ctx.needs_input_grad) - 1)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        moved = [at for at, t in enumerate(tangents) if t is not None]
        # Forward mode is off in here, and operations would lose an outer level's tangents without a word; to `apply`,
        # which all of `push` goes through, `torch.func` shows them.  The tangents of this level must not be seen twice.
        saved = tuple(forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors)
        return tuple(ctx.plan.push(saved, tuple(t for t in tangents if t is not None), moved))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], plan: Plan, *tensors: Tensor) -> Any:  # type: ignore[override]
        dims = in_dims[1:]
        moved = tuple(
            t if dim is None else t.movedim(dim, 1 if cut else 0) for t, dim, cut in zip(tensors, dims, plan.inputs)
        )
        return plan.batch(info.batch_size, [dim is not None for dim in dims], moved)


# `apply` asks for it at every call, and working it out takes longer than a small loss.
Blockwise.forward.__signature__ = inspect.signature(Blockwise.forward)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------- the blocks of an objective


def definition(
    head: Head,
    terms: Terms,
    known: Sequence[bool],
    coefficients: Sequence[Tensor] | None,
    z_coefficient: Tensor | None,
) -> tuple[list[list[Tensor]], Tensor | None, Tensor | None]:
    """Per term the rows of (cross-entropy, entropy, KL), or of the first alone; the weighted sum; the z-loss in it."""
    z_nC = head.logits()
    rows: list[list[Tensor]] = []
    loss = z_nC.new_zeros(())
    for at, (target, temperature) in enumerate(terms):
        own_nC = z_nC if coefficients is None else _usable(z_nC, coefficients[at], z_nC.detach())
        score = eager._score(own_nC, target, temperature, known[at])
        rows.append([score.cross_entropy])
        if known[at]:
            nan_n = torch.full_like(score.cross_entropy, torch.nan)  # of a signed measure, whose sign was out of sight
            rows[at] += [nan_n if r is None else r for r in (score.entropy, score.kl)]
        if coefficients is not None:
            loss = loss + weighted_sum(score.cross_entropy, coefficients[at])
    if coefficients is None:
        return rows, None, None
    z_loss = None
    if z_coefficient is not None:
        A_n = torch.logsumexp(_usable(z_nC, z_coefficient, z_nC.detach()), dim=-1)
        z_loss = weighted_sum(A_n.square(), z_coefficient)
        loss = loss + z_loss
    return rows, loss, z_loss


def gradient(
    head: Head, terms: Terms, a: Sequence[Tensor], z_a: Tensor | None, wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """The gradients of `Σ a_n · cross_entropy_n + Σ z_a_n · A_n²` in the head's tensors `wanted`, in closed form.

    Plain operations that can be differentiated in everything they are made of, the target and `a` included.
    """
    tensors = [t for t in head.tensors if t is not None]

    def logits(*own: Tensor) -> Tensor:
        full: list[Tensor | None] = list(tensors)
        for at, tensor in zip(wanted, own):
            full[at] = tensor
        return head.with_tensors([*full, *[None] * (len(head.tensors) - len(full))]).logits()

    z_nC, back = torch.func.vjp(logits, *(tensors[at] for at in wanted))[:2]
    g_nC: Tensor | None = None
    at_n1 = z_nC.detach().argmax(dim=-1, keepdim=True) if z_nC.shape[-1] else None
    for (target, temperature), a_n in zip(terms, a):
        own_nC = _usable(z_nC, a_n)
        if target.ignored is not None:
            own_nC = torch.where(target.ignored[:, None], 0, own_nC)
        if temperature != 1:
            own_nC = own_nC / temperature
        own_nC = _mass_q_less_mu(target.tile(ALL, temperature, z_nC.dtype), own_nC)
        if at_n1 is not None:
            # As in the pass: the row sums to 0, and at the largest logit it is formed so.
            own_nC = own_nC.scatter(-1, at_n1, 0)
            own_nC = own_nC.scatter(-1, at_n1, -own_nC.sum(dim=-1, keepdim=True))
        if target.ignored is not None:
            own_nC = torch.where(target.ignored[:, None], 0, own_nC)
        own_nC = (a_n.to(z_nC.dtype) / temperature)[:, None] * own_nC
        g_nC = own_nC if g_nC is None else g_nC + own_nC
    assert g_nC is not None
    if z_a is not None:
        own_nC = _usable(z_nC, z_a)
        A_n = torch.logsumexp(own_nC, dim=-1)
        g_nC = g_nC + (2 * z_a.to(z_nC.dtype) * A_n)[:, None] * torch.softmax(own_nC, dim=-1)
    return back(g_nC)


def _mass_q_less_mu(tile: Tile, z_nC: Tensor) -> Tensor:
    """`M·softmax(z) − μ`, the mass `rest` being where the student puts it."""
    own_nC = tile.mass()[:, None] * torch.softmax(z_nC, dim=-1)
    if not isinstance(tile, Sparse):
        return own_nC - tile.mu  # type: ignore[attr-defined, no-any-return]
    if tile.floor is not None:
        own_nC = own_nC - tile.floor[:, None] * (1 if tile.base is None else tile.base)
    if tile.rest is not None:
        outside_nC = torch.where(tile.rest[:, None] == 0, 0, z_nC.scatter(-1, tile.index, -torch.inf))
        own_nC = own_nC - tile.rest[:, None] * outside_nC.softmax(dim=-1)
    return own_nC.scatter_add(-1, tile.index, -tile.value)


def _usable(z_nC: Tensor, a_n: Tensor, instead: Tensor | float = 0.0) -> Tensor:
    """The logits, but constant in a row with coefficient 0 that holds a NaN, +inf or nothing but −inf: 0 · NaN is NaN.

    In other rows with coefficient 0 they stay as they are: the derivative in the coefficient is not 0 there.
    """
    if z_nC.shape[-1] == 0:
        return z_nC
    lost_n = (a_n == 0) & ~torch.isfinite(z_nC.detach().amax(dim=-1))
    return torch.where(lost_n[:, None], instead, z_nC)
