"""Limited-memory BFGS for a stack of independent problems, each at its own pace.

Small networks spend their time in overhead, not in arithmetic. A stack of B of them is evaluated in one call, so that
forty cross-validation fits cost little more than one. The problems stay independent: each has its own curvature, its
own step length and its own end.

Legend: B problems, P parameters of each, m remembered steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from likely._checks import require

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
Watch = Callable[[int, Tensor], None]

_SUFFICIENT = 1e-4  # Armijo: accept a step that gains at least this share of what the slope promises
_CURVATURE = 1e-10  # a pair with a smaller cosine between step and change of gradient is not remembered


@dataclass(frozen=True)
class Minimum:
    """What `minimise` found: `theta` (B, P), `loss` (B,), `gradient` (B,) as max |∂loss/∂θ|, `converged` (B,)."""

    theta: Tensor
    loss: Tensor
    gradient: Tensor
    converged: Tensor
    evaluations: int


def minimise(
    objective: Objective,
    start_BP: Tensor,
    *,
    evaluations: int = 300,
    tolerance: float = 1e-5,
    flat: float = 1e-9,
    history: int = 10,
    watch: Watch | None = None,
) -> Minimum:
    """Minimise B functions of P parameters each: `θ_b ← θ_b − t_b · H_b · ∇loss_b(θ_b)`, H_b from the last m steps.

    `objective` maps parameters (B, P) to losses (B,) and gradients (B, P), and row b of both may depend on row b of the
    parameters alone. Every evaluation tries one step of every problem: a problem whose step gained enough takes it and
    turns, any other shortens its step. A problem has converged when its largest gradient is at most `tolerance`, or
    when a step gained less than `flat` of its loss. `watch(evaluation, θ)` is called at the start and after each
    evaluation. Losses in the units of `objective`.

    Raises: ValueError where a loss is not finite at the start.
    Source: Nocedal and Wright, Numerical Optimization (2nd ed., 2006), algorithm 7.4 with backtracking.

    >>> import torch
    >>> centre = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    >>> quadratic = lambda theta: (((theta - centre) ** 2).sum(1), 2 * (theta - centre))
    >>> minimise(quadratic, torch.zeros(2, 2, dtype=torch.float64)).theta
    tensor([[ 1.0000,  2.0000],
            [-3.0000,  0.5000]], dtype=torch.float64)
    """
    theta = start_BP
    loss, gradient = objective(theta)
    require(bool(torch.isfinite(loss).all()), "objective: is not finite where it starts; check features and targets")
    if watch is not None:
        watch(0, theta)
    # One ring of pairs for all. Of a problem that has no pair from an evaluation it holds 1 / ⟨step, change⟩ = 0, which
    # adds nothing to the recursion.
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=history)
    scale_B = 1 / gradient.norm(dim=1).clamp_min(1.0)
    direction = -scale_B[:, None] * gradient
    slope_B = (gradient * direction).sum(1)
    length_B = torch.ones_like(loss)
    converged = gradient.abs().amax(1) <= tolerance
    stuck = torch.zeros_like(converged)
    done = 0
    while done < evaluations and not bool((converged | stuck).all()):
        active = ~(converged | stuck)
        trial = torch.where(active[:, None], theta + length_B[:, None] * direction, theta)
        trial_loss, trial_gradient = objective(trial)
        done += 1
        gain = loss - trial_loss  # NaN where the trial is not finite, which is no gain
        taken = active & (gain >= -_SUFFICIENT * length_B * slope_B)
        # A step not taken is shortened to the minimum of the parabola through what is known, within a tenth and a half.
        parabola = -slope_B * length_B / (2 * (-gain - slope_B * length_B))
        shorter = length_B * torch.nan_to_num(parabola, nan=0.1).clamp(0.1, 0.5)
        length_B = torch.where(taken, torch.ones_like(length_B), shorter)
        stuck |= active & ~taken & (length_B < 1e-12)

        step, change = trial - theta, trial_gradient - gradient
        product_B = torch.linalg.vecdot(step, change)
        curved = taken & (product_B > _CURVATURE * step.norm(dim=1) * change.norm(dim=1))
        if bool(curved.any()):
            inverse_B = torch.where(curved, 1 / product_B, 0.0)
            # Pairs that are not used may hold anything, also NaN, which 0 · NaN would let through.
            pairs.append((_where(curved, step), _where(curved, change), inverse_B))
            scale_B = torch.where(curved, product_B / change.square().sum(1), scale_B)

        converged |= taken & (gain <= flat * loss.abs())
        theta = trial if bool(taken.all()) else torch.where(taken[:, None], trial, theta)
        loss = torch.where(taken, trial_loss, loss)
        gradient = trial_gradient if bool(taken.all()) else torch.where(taken[:, None], trial_gradient, gradient)
        converged |= taken & (gradient.abs().amax(1) <= tolerance)
        direction = torch.where(taken[:, None], _direction(gradient, pairs, scale_B), direction)
        slope_B = torch.linalg.vecdot(gradient, direction)
        if watch is not None:
            watch(done, theta)
    return Minimum(theta, loss, gradient.abs().amax(1), converged, done)


def _direction(gradient_BP: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]], scale_B: Tensor) -> Tensor:
    """−H·gradient by the two-loop recursion: the newest pair first, then the oldest first."""
    q, weights = gradient_BP.clone(), []
    for step, change, inverse_B in reversed(pairs):
        weight_B = inverse_B * torch.linalg.vecdot(step, q)
        q.addcmul_(weight_B[:, None], change, value=-1)
        weights.append(weight_B)
    q *= scale_B[:, None]
    for (step, change, inverse_B), weight_B in zip(pairs, reversed(weights)):
        back_B = inverse_B * torch.linalg.vecdot(change, q)
        q.addcmul_((weight_B - back_B)[:, None], step)
    return q.neg_()


def _where(kept_B: Tensor, rows_BP: Tensor) -> Tensor:
    return rows_BP if bool(kept_B.all()) else torch.where(kept_B[:, None], rows_BP, 0.0)
