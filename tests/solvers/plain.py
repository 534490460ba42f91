"""Linear classifiers written out by hand: the definition of F, and its minimum by a Newton method with no tricks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special


@dataclass(frozen=True, eq=False)
class Case:
    """x (n, D), q (n, K), w (n,) with sum 1; θ is (K, D + 1) or (1, D + 1), the intercept last."""

    x: np.ndarray
    q: np.ndarray
    w: np.ndarray
    penalty: float
    binary: bool = False
    intercept: bool = True
    offset: np.ndarray | None = None

    @property
    def columns(self) -> int:
        return 1 if self.binary else self.q.shape[1]

    @property
    def ridge(self) -> np.ndarray:
        return np.r_[np.full(self.x.shape[1], self.penalty), 0.0]

    def log_p(self, theta: np.ndarray) -> np.ndarray:
        z = self.design() @ theta.T
        if self.offset is not None:
            z = z + self.offset.reshape(z.shape)
        if self.binary:
            z = np.hstack([np.zeros_like(z), z])
        return np.asarray(scipy.special.log_softmax(z, axis=1))

    def design(self) -> np.ndarray:
        return np.hstack([self.x, np.full((len(self.x), 1), float(self.intercept))])

    def loss(self, theta: np.ndarray) -> float:
        return float(self.w @ -(self.q * self.log_p(theta)).sum(axis=1) + (self.ridge * theta**2).sum() / 2)

    def derivatives(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, x = np.exp(self.log_p(theta)), self.design()
        g, j = p - self.q, np.einsum("nk,kl->nkl", p, np.eye(p.shape[1])) - np.einsum("nk,nl->nkl", p, p)
        if self.binary:
            g, j = g[:, 1:], j[:, 1:, 1:]
        gradient = np.einsum("n,nk,nd->kd", self.w, g, x) + self.ridge * theta
        h = np.einsum("n,nkl,nd,ne->kdle", self.w, j, x, x).reshape(theta.size, theta.size)
        return gradient, h + np.diag(np.tile(self.ridge, len(theta)))

    def step(self, theta: np.ndarray) -> np.ndarray:
        gradient, h = self.derivatives(theta)
        return np.linalg.lstsq(h, gradient.ravel(), rcond=1e-13)[0].reshape(theta.shape)

    def minimum(self, steps: int = 60) -> tuple[np.ndarray, float]:
        """θ and F where Newton's method with halving no longer gets anywhere."""
        theta = np.zeros((self.columns, self.x.shape[1] + 1))
        for _ in range(steps):
            s, t = self.step(theta), 1.0
            while self.loss(theta - t * s) > self.loss(theta) + 1e-15 and t > 1e-6:
                t /= 2
            theta = theta - t * s
        return theta, self.loss(theta)

    def problem(self, **options: Any) -> Any:
        from likely.solvers.problem import Problem

        return Problem.make(
            self.x,
            self.q,
            self.w * 7,
            classes=self.q.shape[1],
            binary=self.binary,
            intercept=self.intercept,
            offset=self.offset,
            **options,
        )


def random_case(seed: int, penalty: float | None = None) -> Case:
    """Binary or not, labels or distributions, weights, offsets, with an intercept or without, any units."""
    rng = np.random.default_rng(seed)
    K, D, n = int(rng.integers(2, 5)), int(rng.integers(1, 5)), int(rng.integers(40, 90))
    binary = K == 2 and bool(rng.integers(2))
    x = rng.normal(size=(n, D)) * 10.0 ** rng.uniform(-1, 1, D) + rng.normal(size=D)
    logits = rng.normal(size=(n, K)) * 2
    q = scipy.special.softmax(logits, axis=1) if rng.integers(2) else np.eye(K)[logits.argmax(axis=1)]
    w = rng.dirichlet(np.full(n, 2.0)) if rng.integers(2) else np.full(n, 1 / n)
    offset = None
    if rng.integers(4) == 0:
        offset = rng.normal(size=n if binary else (n, K))
    penalty = 10.0 ** rng.uniform(-8, 0) if penalty is None else penalty
    return Case(x, q, w, penalty, binary, bool(rng.integers(5)), offset)
