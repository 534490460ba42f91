"""Newton's method on the objective: a direction, a line search, and the certified gap that ends it.

Shapes: D features, M columns of parameters; θ, S and derivatives are (D + 1, M), in standardised columns.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 3.1 and sections 7.1 and 10.3.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from likely.solvers.certificate import Gap, certify, dual_point
from likely.solvers.passes import Value, evaluate
from likely.solvers.problem import Problem

ARMIJO, SHORTEST = 1e-4, 1e-12
CHEAP = 10_000_000
"""Products of a pass that costs nothing to speak of."""
DAMPED = 1e-4
"""The least damping; the curvature of a standardised column is at most 1/4."""


@dataclass(frozen=True)
class Step:
    """A point on the solver's way: the loss F and a bound on its gap (nats), and the seconds since the start."""

    iteration: int
    loss: float
    gap: float
    seconds: float


@dataclass(eq=False)
class Path:
    """Where a descent stands, and the way it came."""

    theta: np.ndarray
    value: Value
    gap: Gap
    iterations: int = 0
    converged: bool = False
    message: str = ""
    largest: float = np.inf
    """The largest δ of the last dual point of an exact step: near 0 at an optimum, near 1 if a row runs away."""
    history: list[Step] = field(default_factory=list)
    bend: float = np.inf
    """The last `Aim.bend` that was seen."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A step S, F falls along −S; `certifies` where it is a Newton step, `exact` where that was solved to rounding."""

    step: np.ndarray
    certifies: bool = True
    exact: bool = False


@dataclass(frozen=True)
class Aim:
    """The gap that is wished for, `tol`, and what tells whether a Newton step from here will have reached it.

    The decrement G·S is twice what a Newton step gains, and near the optimum the next one is `bend` times its square:
    as this one was of that `before`, where there was one.
    Without a penalty, and where a pass costs nothing, the wish is for estimates as exact as they can be had: the last
    step is made from where the bound holds.

    With a `damping` μ the step is S with `(H + μ) S = G`, Levenberg's: where probabilities are at their ends there is
    hardly any curvature, and the quadratic model promises steps that it cannot keep.
    """

    tol: float
    bend: float = np.inf
    damping: float = 0.0
    before: float = 0.0

    def near(self, decrement: float) -> bool:
        """Whether the bound after the step may be small enough; the loss falls by what it is above that point's."""
        bend = decrement / self.before**2 if self.before > 0 and np.isfinite(self.bend) else self.bend
        after = decrement / 2 * min(1.0, 4 * bend * decrement)
        return self.damping == 0 and (after <= self.tol or decrement / 2 <= 3 * self.tol)


Direct = Callable[[np.ndarray, Value, Aim], Direction]
"""The direction at θ with its value, and what is aimed at."""


def descend(
    problem: Problem,
    penalty: float,
    theta: np.ndarray,
    direct: Direct,
    *,
    tol: float,
    max_iter: int,
    keep: Any = None,
    certify_always: bool = False,
    enough: float = 0.0,
    bend: float = np.inf,
    report: Callable[[Step], object] = lambda step: None,
    began: float | None = None,
) -> Path:
    """Newton steps with backtracking from θ until the certified gap is at most `tol`.

    The bound costs about what two values cost. It is asked for where the Newton decrement says that it will be small
    enough after the step, or at each step.

    Args:
        keep: the dtype in which the probabilities are kept for the directions.
        enough: stop where half the decrement is below this, without a certificate.
        bend: what is known of `Aim.bend` beforehand.
    """
    began = time.perf_counter() if began is None else began
    value = evaluate(problem, theta, penalty, keep)
    path = Path(theta, value, _by_entropy(problem, value), bend=bend)
    before = damping = 0.0
    early = penalty > 0 and problem.n * problem.D * problem.M > CHEAP
    for path.iterations in range(max_iter + 1):
        theta, value = path.theta, path.value
        path.gap = _by_entropy(problem, value)
        if path.gap.gap <= tol:
            path.converged = True
            _record(path, began, report)
            break
        aim = Aim(max(tol, rounding(value.loss)), path.bend if early else np.inf, damping, before)
        direction = direct(theta, value, aim)
        s = direction.step
        decrement = float((value.gradient * s).sum())
        if before > 0 and decrement > 0:
            path.bend = decrement / before**2
        if enough and decrement <= enough * 2:
            break
        if decrement <= 0:
            path.gap = certify(problem, theta, value, s, penalty)
            path.converged = path.gap.gap <= max(tol, rounding(value.loss))
            path.message = "the derivative is 0 as far as float64 goes"
            _record(path, began, report)
            break
        ahead: Value | None = None
        if direction.certifies and not enough and (certify_always or aim.near(decrement)):
            dual, ahead = dual_point(problem, theta, s, forward=True, penalty=penalty)
            path.largest = dual.largest if direction.exact else np.inf
            path.gap = certify(problem, theta, value, s, penalty, dual)
            assert ahead is not None
            falls = ahead.loss <= value.loss + rounding(value.loss)
            moved = _moved(path.gap, value.loss, ahead.loss) if falls else path.gap
            path.converged = _small(moved if early else path.gap, tol, s)
            if path.converged and falls:
                _record(path, began, report)
                path.gap, path.theta, path.value = moved, theta - s, ahead
                path.iterations += 1
        _record(path, began, report)
        if path.converged:
            break
        if path.iterations == max_iter:
            path.message = f"stopped after {max_iter} iterations"
            break
        if ahead is not None and keep is not None:
            ahead = None
        length, ahead = _search(problem, penalty, theta, value, s, decrement, keep, ahead)
        if ahead is None and damping < 1 and decrement > 1e4 * rounding(value.loss):
            damping = max(100 * damping, DAMPED)
            continue
        if ahead is None:
            path.converged = path.gap.gap <= rounding(value.loss)
            path.message = "the loss no longer falls along the Newton step: this is as far as float64 goes"
            break
        path.theta, path.value = theta - length * s, ahead
        before = decrement if length == 1 and direction.certifies and not damping else 0.0
        damping = _damped(damping, length)
    return path


def _damped(damping: float, length: float) -> float:
    """More after a step that was far too long, less after one of full length."""
    if length < 0.1:
        return max(10 * damping, DAMPED)
    if length < 1:
        return damping
    return damping / 30 if damping > DAMPED else 0.0


def rounding(loss: float) -> float:
    """What float64 leaves uncertain of a mean loss."""
    return 1e-14 * (1.0 + abs(loss))


def _by_entropy(problem: Problem, value: Value) -> Gap:
    return Gap(max(0.0, value.loss - problem.entropy), False, float("nan"), "entropy")


def _small(gap: Gap, tol: float, s: np.ndarray) -> bool:
    if not gap.conditional:
        return gap.gap <= tol
    return gap.gap + gap.residual * float(np.linalg.norm(s)) <= tol


def _moved(gap: Gap, before: float, after: float) -> Gap:
    """The bound after the step: the dual point stays, the loss has fallen. Not less than rounding leaves uncertain."""
    moved = max(gap.gap - (before - after), min(gap.gap, rounding(after)))
    return Gap(moved, gap.conditional, gap.residual, gap.kind)


def _record(path: Path, began: float, report: Callable[[Step], object]) -> None:
    step = Step(path.iterations, path.value.loss, path.gap.gap, time.perf_counter() - began)
    path.history.append(step)
    report(step)


def _search(
    problem: Problem,
    penalty: float,
    theta: np.ndarray,
    value: Value,
    s: np.ndarray,
    decrement: float,
    keep: Any,
    ahead: Value | None,
) -> tuple[float, Value | None]:
    """The first length in 1, … at which F has fallen enough, and the value there."""
    length = 1.0
    noise = rounding(value.loss)
    size = float(np.linalg.norm(value.gradient))
    while length > SHORTEST:
        if ahead is None:
            ahead = evaluate(problem, theta - length * s, penalty, keep)
        fallen = value.loss - ahead.loss
        if fallen >= ARMIJO * length * decrement:
            return length, ahead
        # Where F does not change any more within rounding, its derivative still tells.
        if abs(fallen) <= noise and decrement <= 100 * noise:
            if float(np.linalg.norm(ahead.gradient)) < size:
                return length, ahead
            return 0.0, None
        # The parabola through the value, the slope and the value there.
        bend = 2 * (length * decrement - fallen) if np.isfinite(fallen) else np.inf
        length *= min(0.5, max(0.1, length * decrement / bend)) if np.isfinite(bend) else 0.1
        ahead = None
    return 0.0, None
