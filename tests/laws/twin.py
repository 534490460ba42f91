"""The naive twin of the objective: dense, in NumPy and float64, with nothing clever in it.

Legend: N rows, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tests.cases import Array, Made

# What one row's loss and gradient may be off by, relative to the size of what is summed.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6}


class Twin(NamedTuple):
    cross_entropy: Array
    entropy: Array
    kl: Array
    gradient: Array
    size: Array
    """The size of the terms that a row's loss is the sum of."""


def logsumexp(z_NC: Array) -> Array:
    m_N = np.where(np.isneginf(z_NC.max(axis=-1)), 0, z_NC.max(axis=-1))
    with np.errstate(divide="ignore"):
        return m_N + np.log(np.exp(z_NC - m_N[:, None]).sum(axis=-1))


def times(mu: Array, x: Array) -> Array:
    """`μ x` where no mass costs nothing."""
    return mu * np.where(mu == 0, 0, x)


def x_log_x(x: Array) -> Array:
    return x * np.log(np.where(x == 0, 1, x))


def twin(z_NC: Array, made: Made, temperature: float) -> Twin:
    """The rows of `M·A(z/T) − ⟨μ, z/T⟩`, their two parts, and the gradient in z."""
    mu_NC, z_NC = made.mu(temperature), z_NC / temperature
    log_q_NC = z_NC - logsumexp(z_NC)[:, None]
    cross_entropy_N = -times(mu_NC, log_q_NC).sum(axis=-1)
    size_N = 1 + np.abs(times(mu_NC, z_NC)).sum(axis=-1) + np.abs(mu_NC).sum(axis=-1) * np.abs(logsumexp(z_NC))
    mass_N, p_NC = mu_NC.sum(axis=-1), mu_NC
    with np.errstate(invalid="ignore", divide="ignore"):
        negative_entropy_N = x_log_x(mu_NC).sum(axis=-1)
        if made.rest is not None and made.outside is not None:
            outside_N = logsumexp(np.where(made.outside, log_q_NC, -np.inf))
            cross_entropy_N = cross_entropy_N - times(made.rest, outside_N)
            size_N = size_N + np.abs(made.rest * outside_N)
            mass_N = mass_N + made.rest
            negative_entropy_N = negative_entropy_N + x_log_x(made.rest)
            p_NC = mu_NC + made.rest[:, None] * np.where(made.outside, np.exp(log_q_NC - outside_N[:, None]), 0)
        entropy_N = x_log_x(mass_N) - negative_entropy_N if made.entropy is None else made.entropy
    gradient_NC = (mass_N[:, None] * np.exp(log_q_NC) - p_NC) / temperature
    return Twin(cross_entropy_N, entropy_N, cross_entropy_N - entropy_N, gradient_NC, size_N)
