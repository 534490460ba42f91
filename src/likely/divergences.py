"""Divergences that are no cross-entropy: reverse KL and Jensen–Shannon, row by row, through the same blocks of rows.

Legend: N rows, C classes, n rows of one block.

They have no entropy floor of their own, so they return rows and no Score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from likely._checks import as_tensor, require, values_can_be_read
from likely.heads import ALL, Head, Logits
from likely.kernels.common import transformed
from likely.kernels.loop import blocks

RowsOf = Callable[[Tensor, slice], Tensor]


def reverse_kl(head: Head, teacher: Head | Tensor, *, temperature: float = 1.0) -> Tensor:
    """The reverse divergence of each row, `KL(q ‖ p) = Σ q (log q − log p)`, student `q` first, in nats.

    It seeks the teacher's modes where the forward one covers them; +inf where the student has mass on a class that the
    teacher holds impossible.

    Parameters
    ----------
    head : Head
        The student, N rows of C logits.
    teacher : Head, or logits of shape (N, C)
        Constant.
    temperature : float
        Softens both; no `T²` is applied.

    Returns
    -------
    Tensor of shape (N,), differentiable in the student.

    Examples
    --------
    >>> import torch, likely
    >>> z = torch.tensor([[1.0, 0.0, -1.0]])
    >>> likely.reverse_kl(likely.Logits(z), z)
    tensor([0.])

    Source: Gu et al., MiniLLM, 2023.
    """

    def rows_of(log_q_nC: Tensor, log_p_nC: Tensor) -> Tensor:
        return _kl(log_q_nC, log_p_nC)

    return _rows(head, teacher, temperature, rows_of)


def jensen_shannon(head: Head, teacher: Head | Tensor, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """The generalised Jensen–Shannon divergence of each row, in nats.

    `JSD_β = β·KL(p ‖ m) + (1 − β)·KL(q ‖ m)` with `m = β p + (1 − β) q`, teacher `p`, student `q`; by convention
    `β = 0` is the forward `KL(p ‖ q)` and `β = 1` the reverse `KL(q ‖ p)`, the limits of `JSD_β / (β(1 − β))`.

    Parameters
    ----------
    head : Head
    teacher : Head, or logits of shape (N, C)
    beta : float in [0, 1]
    temperature : float

    Returns
    -------
    Tensor of shape (N,), differentiable in the student; at most log 2 at β = 1/2.

    Examples
    --------
    >>> import torch, likely
    >>> far = likely.jensen_shannon(likely.Logits(torch.tensor([[1e4, 0.0]])), torch.tensor([[0.0, 1e4]]))
    >>> round(float(far), 4)                    # log 2
    0.6931

    Source: Agarwal et al., On-Policy Distillation of Language Models, 2023.
    """
    require(0 <= beta <= 1, f"beta: is {beta}; it is between 0 (forward KL) and 1 (reverse KL)")

    def rows_of(log_q_nC: Tensor, log_p_nC: Tensor) -> Tensor:
        if beta == 0:
            return _kl(log_p_nC, log_q_nC)
        if beta == 1:
            return _kl(log_q_nC, log_p_nC)
        log = torch.log(torch.tensor([beta, 1 - beta], dtype=log_q_nC.dtype, device=log_q_nC.device))
        log_m_nC = _logaddexp(log_p_nC + log[0], log_q_nC + log[1])
        return beta * _kl(log_p_nC, log_m_nC) + (1 - beta) * _kl(log_q_nC, log_m_nC)

    return _rows(head, teacher, temperature, rows_of)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """`log(e^a + e^b)`, whose gradient is 0, not NaN, where both are −inf."""
    both = torch.isneginf(a) & torch.isneginf(b)
    return torch.where(both, -torch.inf, torch.logaddexp(torch.where(both, 0, a), torch.where(both, 0, b)))


def _kl(log_a_nC: Tensor, log_b_nC: Tensor) -> Tensor:
    """`Σ a (log a − log b)`; an impossible class of `a` costs nothing, in the value and in the gradient."""
    empty = torch.isneginf(log_a_nC)
    safe_a = torch.where(empty, 0, log_a_nC)
    ratio = safe_a - torch.where(empty, 0, log_b_nC)
    return torch.where(empty, 0, safe_a.exp() * ratio).sum(dim=-1)


def _rows(head: Head, teacher: Any, temperature: float, rows_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    own = teacher if isinstance(teacher, Head) else Logits(as_tensor(teacher, "teacher"))
    require(temperature > 0, f"temperature: is {temperature}; it is a positive number")
    require(
        not any(t is not None and t.requires_grad for t in own.tensors),
        "teacher: its tensors require a gradient; a teacher is constant: compute it under torch.no_grad() or detach it",
    )
    require(own.classes == head.classes, f"teacher: has {own.classes} classes where the student has {head.classes}")
    require(own.rows == head.rows, f"teacher: has {own.rows} rows where the student has {head.rows}")

    def block(z_nC: Tensor, rows: slice) -> Tensor:
        log_q_nC = torch.log_softmax(z_nC / temperature, dim=-1)
        log_p_nC = torch.log_softmax(own.logits(rows).to(z_nC.dtype) / temperature, dim=-1)
        return rows_of(log_q_nC, log_p_nC)

    head = head.autocast()
    with torch.autocast(head.device.type, enabled=False):
        if transformed(*head.tensors, *own.tensors) or not values_can_be_read(*head.tensors):
            return block(head.logits(), ALL)
        return _Blocks.apply(head, block, *head.tensors)


class _Blocks(torch.autograd.Function):
    """A function of a tile of logits, block by block; the backward pass recomputes each tile and differentiates it."""

    @staticmethod
    def forward(ctx, head, block, *tensors):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*tensors)
        ctx.head, ctx.block = head.detached(), block
        rows_N = torch.empty(head.rows, dtype=head.acc, device=head.device)
        for rows in blocks(head):
            rows_N[rows] = block(ctx.head.logits(rows), rows)
        return rows_N

    @staticmethod
    def backward(ctx, a_N):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        needed = [t is not None and need for t, need in zip(tensors, ctx.needs_input_grad[2:])]
        if torch.is_grad_enabled():  # create_graph: all rows at once, differentiably
            head = ctx.head.with_tensors(tensors)
            wanted = [t for t, need in zip(tensors, needed) if need]
            found = iter(torch.autograd.grad(ctx.block(head.logits(), ALL), wanted, a_N, create_graph=True))
            return (None, None, *(next(found) if need else None for need in needed))
        head = ctx.head.with_tensors([None if t is None else t.detach() for t in tensors])
        grads = head.gradient_buffers(needed)
        for rows in blocks(head):
            with torch.enable_grad():
                z_nC = head.logits(rows).requires_grad_()
                (g_nC,) = torch.autograd.grad(ctx.block(z_nC, rows), z_nC, a_N[rows])
            head.pull_back(rows, g_nC, z_nC.detach(), grads)
        return (None, None, *(None if g is None else g.to(t.dtype) for g, t in zip(grads, tensors)))
