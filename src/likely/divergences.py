"""Divergences that are no cross-entropy: reverse KL and Jensen–Shannon, row by row, through the same blocks of rows.

Legend: N rows, C classes, n rows of one block.

They have no entropy floor of their own, so they return rows and no Score.

Both logits of a block are formed in float32 (float64 for float64 input), and everything is computed from their
difference `r = log q − log p`.  With `φ(t) = eᵗ − 1 − t ≥ 0` the divergence is `KL(a ‖ b) = Σ a φ(log b − log a)`,
because `Σ b − Σ a` is 0: every class adds something positive, and an error in a normaliser, which is common to a row,
counts only by its square.  The gradient in the student's logits is `q (h − Σ q h) / T` with `h = ∂D/∂q`, closed form,
in which such an error cancels.  So a student near its teacher has its divergence and its gradient to the digits of
`z_student − z_teacher`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from likely import targets
from likely._checks import as_tensor, require, values_can_be_read
from likely.heads import Head, Linear, Logits, finished
from likely.kernels import loop
from likely.kernels.common import transformed
from likely.kernels.exact import exact

CACHE_BYTES = 2**21
"""What a CPU takes of a tile at a time: 2 MiB, which stay in its caches through the dozen operations of the pass."""


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
    return _rows(head, teacher, temperature, 1.0)


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
    return _rows(head, teacher, temperature, float(beta))


def _rows(head: Head, teacher: Any, temperature: float, beta: float) -> Tensor:
    given = teacher if isinstance(teacher, Head) else Logits(as_tensor(teacher, "teacher"))
    own = targets.teacher(given).head  # which refuses one that wants a gradient
    assert own is not None
    require(temperature > 0, f"temperature: is {temperature}; it is a positive number")
    require(own.classes == head.classes, f"teacher: has {own.classes} classes where the student has {head.classes}")
    require(own.rows == head.rows, f"teacher: has {own.rows} rows where the student has {head.rows}")
    require(own.device == head.device, f"teacher: is on {own.device} where the student is on {head.device}")
    head, own = exact(head.autocast()), exact(own)
    with torch.autocast(head.device.type, enabled=False):
        tensors = (*head.tensors, *own.tensors)
        if transformed(*tensors) or not values_can_be_read(*tensors) or head.classes == 0:
            return _definition(head.logits(), own, temperature, beta)
        return _Blocks.apply(head, own, temperature, beta, *head.tensors)


# ------------------------------------------------------------------- the definition, differentiable to any order


def _definition(z_NC: Tensor, teacher: Head, temperature: float, beta: float) -> Tensor:
    log_q_NC = torch.log_softmax(z_NC / temperature, dim=-1)
    log_p_NC = torch.log_softmax(teacher.logits().to(z_NC.dtype) / temperature, dim=-1)
    if beta == 0:
        return _kl(log_p_NC, log_q_NC)
    if beta == 1:
        return _kl(log_q_NC, log_p_NC)
    log_m_NC = _logaddexp(log_p_NC + math.log(beta), log_q_NC + math.log1p(-beta))
    return beta * _kl(log_p_NC, log_m_NC) + (1 - beta) * _kl(log_q_NC, log_m_NC)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """`log(e^a + e^b)`, whose gradient is 0, not NaN, where both are −inf."""
    both = torch.isneginf(a) & torch.isneginf(b)
    return torch.where(both, -torch.inf, torch.logaddexp(torch.where(both, 0, a), torch.where(both, 0, b)))


def _kl(log_a_NC: Tensor, log_b_NC: Tensor) -> Tensor:
    """`Σ a (log a − log b)`; an impossible class of `a` costs nothing, in the value and in the gradient."""
    empty = torch.isneginf(log_a_NC)
    safe_a = torch.where(empty, 0, log_a_NC)
    ratio = safe_a - torch.where(empty, 0, log_b_NC)
    return torch.where(empty, 0, safe_a.exp() * ratio).sum(dim=-1)


# ------------------------------------------------------------------------------------- the rows of a tile at once


def _divergence(
    z_nC: Tensor, t_nC: Tensor, temperature: float, beta: float, a_n: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The divergence of each row, and, given the rows' coefficients, the gradient of their sum in the logits `z`."""
    if temperature != 1:
        z_nC, t_nC = z_nC / temperature, t_nC / temperature
    q_nC, p_nC = torch.softmax(z_nC, dim=-1), torch.softmax(t_nC, dim=-1)
    # The normaliser of a row is its largest logit less the logarithm of the probability there.
    shift_n1 = z_nC.amax(dim=-1, keepdim=True) - t_nC.amax(dim=-1, keepdim=True)
    shift_n1 -= q_nC.amax(dim=-1, keepdim=True).log_() - p_nC.amax(dim=-1, keepdim=True).log_()
    r_nC = (z_nC - t_nC).sub_(shift_n1)
    r_nC.masked_fill_((q_nC == 0) & (p_nC == 0), 0)
    # A class that one of the two holds impossible: r is infinite where that costs, and finite beside a factor of 0.
    most = torch.finfo(r_nC.dtype).max
    r_nC.clamp_(None if beta == 0 else -most, None if beta == 1 else most)
    if beta == 1:
        rows_n = _kl_terms(q_nC, p_nC, -r_nC).sum(dim=-1)
        h_nC = r_nC
    elif beta == 0:
        rows_n = _kl_terms(p_nC, q_nC, r_nC).sum(dim=-1)
        h_nC = torch.expm1(-r_nC).neg_()
    else:
        rows_n, h_nC = _mixed(q_nC, p_nC, r_nC, beta)
    if a_n is None:
        return rows_n, None
    g_nC = q_nC * h_nC if beta else torch.where(r_nC.abs() < 1, q_nC * h_nC, q_nC - p_nC)
    g_nC -= q_nC * g_nC.sum(dim=-1, keepdim=True)
    # The row's gradient sums to 0, and at the likeliest class it is formed so: there h − Σ q h would lose a small one.
    at_n1 = q_nC.argmax(dim=-1, keepdim=True)
    g_nC.scatter_(-1, at_n1, 0)
    g_nC.scatter_(-1, at_n1, -g_nC.sum(dim=-1, keepdim=True))
    return rows_n, g_nC.mul_((a_n / temperature)[:, None]).masked_fill_((a_n == 0)[:, None], 0)


def _kl_terms(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """`a φ(t) = b − a − a t` with `t = log b − log a`, which sum to `KL(a ‖ b)`: none is negative."""
    return torch.where(t.abs() < 1, a * (torch.expm1(t) - t).clamp_min_(0), b - a - a * t)


def _mixed(q_nC: Tensor, p_nC: Tensor, r_nC: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The rows of `JSD_β`, and `∂JSD_β/∂q = −(1 − β)(log m − log q)`, whose constant cancels.

    Of `log m − log q` and `log m − log p` the smaller is `l = log(1 + s (e^−|r| − 1))`, where `s` is the share in `m`
    of the less likely; the other is `l + |r|`.  A class adds `−l m − |r|·(its own share of the less likely)`.
    """
    own_p, own_q = torch.tensor([beta, 1 - beta], dtype=r_nC.dtype, device=r_nC.device)
    size_nC, more_nC = r_nC.abs(), r_nC > 0
    share_nC = torch.where(more_nC, own_p, own_q)
    l_nC = torch.expm1(-size_nC).mul_(share_nC).log1p_()
    if min(beta, 1 - beta) < 1 / 16:  # 1 − s, which may be all there is, is lost above
        far_nC = (torch.where(more_nC, own_q, own_p) + share_nC * torch.exp(-size_nC)).log_()
        l_nC = torch.where(size_nC < 1, l_nC, far_nC)
    p_nC, rest_nC = beta * p_nC, (1 - beta) * q_nC
    terms_nC = l_nC * (p_nC + rest_nC) + size_nC * torch.where(more_nC, p_nC, rest_nC)
    return terms_nC.neg_().clamp_min_(0).sum(dim=-1), l_nC.sub_(r_nC.clamp_max(0)).mul_(beta - 1)


class _Loop:
    """The blocks of a student and its teacher, in two buffers."""

    def __init__(self, head: Head, teacher: Head, temperature: float, beta: float) -> None:
        self.head, self.teacher, self.temperature, self.beta = head, teacher, temperature, beta
        self.buffers: list[Tensor] = []

    def tile(self, which: int, rows: slice) -> Tensor:
        own = (self.head, self.teacher)[which]
        n = rows.stop - rows.start
        if len(self.buffers) == which:
            self.buffers.append(torch.empty(n, own.classes, dtype=own.acc, device=own.device))
        return own.logits(rows, out=self.buffers[which][:n]).to(self.head.acc)

    def over(self, rows_N: Tensor | None, a_N: Tensor | None, grads: list[Any]) -> None:
        """Writes the rows, or carries the gradients of `Σ a · row` back."""
        head, a_row = self.head, self.head.acc.itemsize * self.head.classes
        # The blocks are those of a head in float32, whatever the student is in.
        rows_N0, classes_C0 = (torch.empty(n, 0, dtype=head.acc, device=head.device) for n in (head.rows, head.classes))
        for rows in loop.blocks(Linear(rows_N0, classes_C0)):
            z_nC, t_nC = self.tile(0, rows), self.tile(1, rows)
            n = rows.stop - rows.start
            step = n if z_nC.is_cuda else max(1, CACHE_BYTES // a_row)
            for start in range(0, n, step):
                part = slice(start, start + step)
                a_n = None if a_N is None else a_N[rows][part]
                row_n, g_nC = _divergence(z_nC[part], t_nC[part], self.temperature, self.beta, a_n)
                if rows_N is not None:
                    rows_N[rows][part] = row_n
                if g_nC is not None:
                    t_nC[part] = g_nC
            if a_N is not None:
                head.pull_back(rows, t_nC, z_nC, grads)


class _Blocks(torch.autograd.Function):
    """The divergence of every row, block by block; the backward pass recomputes the tiles."""

    @staticmethod
    def forward(ctx, head, teacher, temperature, beta, *tensors):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*tensors)
        ctx.head, ctx.rest = head.detached(), (teacher.detached(), temperature, beta)
        rows_N = torch.empty(head.rows, dtype=head.acc, device=head.device)
        _Loop(ctx.head, *ctx.rest).over(rows_N, None, [])
        return rows_N

    @staticmethod
    def backward(ctx, a_N):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        needed = [t is not None and need for t, need in zip(tensors, ctx.needs_input_grad[4:])]
        none = (None,) * 4
        if torch.is_grad_enabled():  # create_graph: all rows at once, differentiably
            head = ctx.head.with_tensors(tensors)
            wanted = [t for t, need in zip(tensors, needed) if need]
            rows_N = _definition(head.logits(), *ctx.rest)
            found = iter(torch.autograd.grad(rows_N, wanted, a_N, create_graph=True))
            return (*none, *(next(found) if need else None for need in needed))
        head = ctx.head.with_tensors([None if t is None else t.detach() for t in tensors])
        grads = head.gradient_buffers(needed)
        _Loop(head, *ctx.rest).over(None, a_N, grads)
        return (*none, *(None if g is None else g.to(t.dtype) for g, t in zip(finished(grads), tensors)))
