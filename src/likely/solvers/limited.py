"""L-BFGS with a Gram matrix or a diagonal as its first metric, finished by the certificate's Newton step.

Shapes: D features, M columns of parameters; θ and derivatives are (D + 1, M), in standardised columns.

Source: Liu and Nocedal, On the limited memory BFGS method (1989); Nocedal and Wright, Numerical Optimization (2006),
algorithm 7.4.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from likely.solvers.conjugate import Conjugate, Product, conjugate_of, probabilities
from likely.solvers.descend import Aim, Direction, Path, descend
from likely.solvers.passes import Value
from likely.solvers.problem import Problem
from likely.solvers.rows import one_thread

MEMORY = 20


class Limited:
    """The two loops of L-BFGS as a direction; near the optimum conjugate gradients give the step to certify."""

    def __init__(self, newton: Conjugate) -> None:
        self.newton = newton
        self.metric: Product | None = None
        self.pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=MEMORY)
        self.before: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, theta: np.ndarray, value: Value, aim: Aim) -> Direction:
        g = value.gradient
        if self.metric is None:
            p_of = probabilities(self.newton.problem, theta, value.kept)
            self.metric = self.newton.metric(theta, p_of)
        if self.before is not None:
            s, y = theta - self.before[0], g - self.before[1]
            curved = float((s * y).sum())
            if curved > 0:
                self.pairs.append((s, y, curved))
        self.before = (theta, g)
        r, alphas, scale = g.copy(), [], 1.0
        for s, y, curved in reversed(self.pairs):
            alpha = float((s * r).sum()) / curved
            alphas.append(alpha)
            r -= alpha * y
        if self.pairs:
            s, y, curved = self.pairs[-1]
            scale = curved / float((y * self.metric(y)).sum())
        r = scale * self.metric(r)
        for (s, y, curved), alpha in zip(self.pairs, reversed(alphas)):
            r += (alpha - float((y * r).sum()) / curved) * s
        # A step that did not get anywhere leaves a damping behind, which only Newton's knows what to do with.
        if aim.damping or float((g * r).sum()) / 2 <= 0.5 * aim.tol:
            return self.newton(theta, value, aim)
        return Direction(r, certifies=False)


def lbfgs(problem: Problem, penalty: float, theta: np.ndarray, rng: np.random.Generator, **how: Any) -> Path:
    """L-BFGS until half its decrement is below the tolerance, then Newton steps until the gap is certified."""
    how["max_iter"] = 10 * how.get("max_iter", 100)
    with one_thread():
        newton, keep = conjugate_of(problem, penalty, rng)
        return descend(problem, penalty, theta, Limited(newton), keep=keep, **how)
