"""Binary rows in one reading: the losses of log odds and their gradients, at the speed of memory.

    loss = (μ₀ + μ₁) log1p(e^(−|z|)) + μ₀ max(z, 0) + μ₁ max(−z, 0)        gradient = (μ₀ + μ₁) σ(z) − μ₁

It is what the general kernels give for `Binary(z)` with the measure (μ₀, μ₁), for the rows of which they would write
tiles of two columns.  float32 and bfloat16 on the CPU, by the compiled row pass; whatever it refuses goes to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from likely import _memory
from likely._checks import values_can_be_read
from likely.kernels import native
from likely.kernels.common import transformed


def refuses(z: Tensor, mu1: Tensor, mu0: Tensor | None) -> str | None:
    """Why these rows go to the general kernels, or None."""
    tensors = [t for t in (z, mu1, mu0) if t is not None]
    if native.active() == "plain":
        return "the row pass was not compiled"
    if any(t.device.type != "cpu" or t.dtype != z.dtype for t in tensors) or z.dtype not in native.TYPES:
        return "it serves float32 and bfloat16 on the CPU"
    if not values_can_be_read(*tensors) or transformed(*tensors):
        return "the tensors are inside a transform (torch.func, forward mode, torch.compile)"
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors[1:]):
        return "the target requires a gradient"
    return None


def reduced(z: Tensor, mu1: Tensor, mu0: Tensor | None, scale: float) -> Tensor:
    """`scale · Σ loss`, in float32."""
    return _Reduced.apply(z, mu1.contiguous(), None if mu0 is None else mu0.contiguous(), scale)


def rows(z: Tensor, mu1: Tensor, mu0: Tensor | None) -> Tensor:
    """The losses, in the shape of z, in float32."""
    return _Rows.apply(z, mu1.contiguous(), None if mu0 is None else mu0.contiguous())


def _differentiably(z: Tensor, mu1: Tensor, mu0: Tensor | None, coefficient: Tensor) -> Tensor:
    wide, one = z.float(), mu1.float()
    mass = 1.0 if mu0 is None else mu0.float() + one
    return torch.where(coefficient == 0, 0, coefficient * (mass * torch.sigmoid(wide) - one)).to(z.dtype)


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mu1: Tensor, mu0: Tensor | None, scale: float) -> Tensor:
        own = z.contiguous()
        ctx.grad = _memory.empty_like(own) if ctx.needs_input_grad[0] else None
        total = native.binary(own, mu1, mu0, coefficient=scale, gradient=ctx.grad)
        ctx.save_for_backward(z, mu1, mu0)
        ctx.scale = scale
        return torch.tensor(total * scale, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        z, mu1, mu0 = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiably(z, mu1, mu0, a * ctx.scale), None, None, None
        grad, ctx.grad = ctx.grad, None  # given away: a second backward pass forms its own
        if grad is None:
            grad = _memory.empty_like(z.contiguous())
            native.binary(z.contiguous(), mu1, mu0, coefficient=float(a) * ctx.scale, gradient=grad)
        elif float(a) != 1:
            grad.mul_(a)
        return grad, None, None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mu1: Tensor, mu0: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, mu1, mu0)
        loss = _memory.empty(*z.shape, dtype=torch.float32)
        native.binary(z.contiguous(), mu1, mu0, rows=loss)
        return loss

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        z, mu1, mu0 = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiably(z, mu1, mu0, a), None, None
        grad = _memory.empty_like(z.contiguous())
        native.binary(z.contiguous(), mu1, mu0, coefficients=a.float().contiguous(), gradient=grad)
        return grad, None, None
