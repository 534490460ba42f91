"""What the number of a step decides: its examples, its random numbers, its learning rate.

Legend: E examples.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from likely.training.settings import Settings


def indices_of(step: int, E: int, batch_size: int, seed: int) -> tuple[int, list[int]]:
    """The epoch of a step, from 0, and the examples that it takes; every epoch has an order of its own.

    >>> [indices_of(step, 5, 2, seed=0) for step in (1, 2, 3, 4)]
    [(0, [2, 4]), (0, [3, 0]), (0, [1]), (1, [1, 4])]
    """
    epoch, place = divmod(step - 1, -(-E // batch_size))
    return epoch, _order(E, seed, epoch)[place * batch_size : (place + 1) * batch_size].tolist()


@functools.lru_cache(maxsize=1)
def _order(E: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(E)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step, from 1: a straight rise to the highest, then half a cosine towards 0.

    >>> [round(learning_rate(Settings(learning_rate=1.0, warmup=0.4), step, 5), 2) for step in range(1, 6)]
    [0.5, 1.0, 1.0, 0.75, 0.25]

    Source: Loshchilov and Hutter, SGDR, 2017.
    """
    rising = round(settings.warmup * steps)
    if step <= rising:
        return settings.learning_rate * step / rising
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1 - rising) / (steps - rising)))


def seed_of(step: int, seed: int) -> int:
    """The seed of the random numbers that a step draws, of dropout for instance."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
