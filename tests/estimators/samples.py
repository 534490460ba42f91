"""Samples that the tests share."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm


@functools.cache
def _spector() -> pd.DataFrame:
    return sm.datasets.spector.load_pandas().data


def spector() -> tuple[pd.DataFrame, pd.Series]:
    """Spector and Mazzeo (1980), with GPA in single precision, as Stata's file has it."""
    data = _spector().copy()
    data["GPA"] = data["GPA"].astype(np.float32).astype(np.float64)
    return data[["GPA", "TUCE", "PSI"]], data["GRADE"]


@functools.cache
def _anes() -> Any:
    return sm.datasets.anes96.load_pandas()


def anes96() -> tuple[pd.DataFrame, np.ndarray]:
    """The party identification of 944 voters in seven classes, and five columns about them."""
    data = _anes()
    return data.exog.copy(), data.endog.to_numpy().astype(int)


def overlapping(n: int = 300, D: int = 4, K: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels drawn from a softmax of them: no class is separable."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, D))
    z = x @ generator.normal(size=(D, K))
    return x, (z + generator.gumbel(size=(n, K))).argmax(axis=1)


def votes(n: int = 300, D: int = 4, K: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and distributions over the classes that depend on them."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, D))
    z = x @ generator.normal(size=(D, K)) + generator.normal(size=(n, K))
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return x, p / p.sum(axis=1, keepdims=True)
