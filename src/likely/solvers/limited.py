"""L-BFGS with a Gram matrix or a diagonal as its first metric, finished by the certificate's Newton step.

Shapes: D features, M columns of parameters; θ and derivatives are (D + 1, M), in standardised columns.

Source: Liu and Nocedal, On the limited memory BFGS method (1989); Nocedal and Wright, Numerical Optimization (2006),
algorithm 7.4; the same approximation as a preconditioner: Morales and Nocedal, Automatic preconditioning by limited
memory quasi-Newton updating (2000).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from likely.solvers.conjugate import FAR, Conjugate, conjugate_of, probabilities
from likely.solvers.descend import Aim, Direction, Path, descend
from likely.solvers.passes import Value
from likely.solvers.problem import Problem
from likely.solvers.rows import one_thread

MEMORY = 20
MOST = 20
"""Steps after which the approximation is not expected to become a good one: Newton's go on."""


class Limited:
    """The two loops of L-BFGS as a direction; near the optimum conjugate gradients give the step to certify, and the
    two loops are their metric."""

    def __init__(self, newton: Conjugate) -> None:
        self.newton = newton
        self.pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=MEMORY)
        self.before: tuple[np.ndarray, np.ndarray] | None = None
        self.scale = 1.0
        self.steps = 0

    def __call__(self, theta: np.ndarray, value: Value, aim: Aim) -> Direction:
        g = value.gradient
        self.steps += 1
        if self.steps > MOST:
            return self.newton(theta, value, aim)
        p_of = probabilities(self.newton.problem, theta, value.kept)
        metric = self.newton.kept_metric(theta, p_of)
        if self.before is not None:
            s, y = theta - self.before[0], g - self.before[1]
            curved = float((s * y).sum())
            if curved > 0:
                self.pairs.append((s, y, curved))
                self.scale = curved / float((y * metric(y)).sum())
        self.before = (theta, g)
        step = self.two_loops(g)
        # A step that did not get anywhere leaves a damping behind, which only Newton's knows what to do with.
        decrement = float((g * step).sum())
        if aim.damping or (decrement <= FAR and aim.near(decrement)):
            return self.newton(theta, value, aim, None if aim.damping else self.two_loops)
        return Direction(step, certifies=False)

    def two_loops(self, r: np.ndarray) -> np.ndarray:
        """The product of r with the approximation to the inverse of the Hessian."""
        r, alphas = r.copy(), []
        for s, y, curved in reversed(self.pairs):
            alpha = float((s * r).sum()) / curved
            alphas.append(alpha)
            r -= alpha * y
        assert self.newton.current is not None
        r = self.scale * self.newton.current(r)
        for (s, y, curved), alpha in zip(self.pairs, reversed(alphas)):
            r += (alpha - float((y * r).sum()) / curved) * s
        return r


def lbfgs(problem: Problem, penalty: float, theta: np.ndarray, rng: np.random.Generator, **how: Any) -> Path:
    """L-BFGS until a Newton step may end it, then Newton steps until the gap is certified."""
    how["max_iter"] = 10 * how.get("max_iter", 100)
    with one_thread():
        newton, keep = conjugate_of(problem, penalty, rng)
        return descend(problem, penalty, theta, Limited(newton), keep=keep, **how)
