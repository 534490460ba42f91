"""Logistic and softmax regression on the columns of a table, by maximum likelihood.

Shapes: N rows, C classes, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from likely._checks import require
from likely.data import ColumnTarget, Encoder, as_table, read_target, read_weights, select_columns
from likely.solvers.lbfgs import LinearFit, fit_linear
from likely.solvers.separation import looks_separable
from likely.training.model import Model
from likely.training.networks import build


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted model, the minimisation it came from, and the target and the row weights that it was fitted to."""

    model: Model
    fit: LinearFit
    target: ColumnTarget
    weight_N: np.ndarray | None

    def coefficients(self) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """The log odds of each class against the first, in the units of the columns.

        Returns: the C − 1 classes, their coefficients (C − 1, D) in the order of `model.encoder.feature_names`, and
        their intercepts (C − 1,), as statsmodels' Logit and MNLogit have them.
        """
        weight_CD, bias_C = self.model.encoder.unscale(self.fit.weight, self.fit.bias)
        if len(bias_C) > 1:
            weight_CD, bias_C = weight_CD[1:] - weight_CD[0], bias_C[1:] - bias_C[0]
        return list(self.model.classes[1:]), weight_CD, bias_C


def regress(
    data: Any,
    target: str | Sequence[str],
    *,
    features: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    categorical: str | Sequence[str] = (),
    impute: str | None = None,
    standardise: bool = True,
    penalty: float = 0.0,
    label_smoothing: float = 0.0,
    weight: str | None = None,
) -> Regression:
    """Fit a linear classifier: logistic regression for two classes, softmax regression for more.

    It minimises `mean cross-entropy + penalty/2 · ‖coefficients‖²`, in nats; without a penalty the result is the
    maximum likelihood estimate. The penalty weighs the coefficients of the columns as the encoder makes them, that is
    of standardised columns unless `standardise` is off, and leaves intercepts alone. The first level of a category is
    the reference and has no coefficient.

    Args:
        data: anything that `likely.data.as_table` reads.
        target: a column of labels, or columns of probabilities (`"p_*"`).
        features: names and globs; by default all columns but the target, the weight and those in `exclude`.
        categorical, impute, standardise: as in `likely.data.Encoder.fit`.
        label_smoothing: ε, mixes labels with the uniform distribution.
        weight: a column with the weights of the rows.

    Raises:
        ValueError: what cannot be used, naming the column and the row; and without a penalty, classes that are
            separable, so that no maximum likelihood estimate exists, or a fit that has not converged. With a penalty
            a fit that has not converged is returned with a warning.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning (2009), section 4.4.

    >>> fitted = regress({"x": [0, 0, 0, 1, 1, 1], "y": ["a", "a", "b", "a", "b", "b"]}, "y")
    >>> fitted.model.predict_proba({"x": [0, 1]}).round(4)    # the frequencies
    array([[0.6667, 0.3333],
           [0.3333, 0.6667]])
    """
    table = as_table(data)
    wanted = read_target(table, target)
    used = list(wanted.columns) + ([] if weight is None else select_columns(table, weight, "weight"))
    names = _features(
        table.column_names,
        None if features is None else select_columns(table, features, "features"),
        select_columns(table, exclude, "exclude") if exclude else [],
        used,
    )
    weight_N = None if weight is None else read_weights(table, weight)
    encoder = Encoder.fit(
        table, names, categorical=categorical, impute=impute, standardise=standardise, drop_first=True
    )
    x_ND, p_NC = encoder.transform(table), wanted.distribution()
    binary = p_NC.shape[1] == 2
    if not label_smoothing:
        _require_mass(wanted, p_NC if weight_N is None else p_NC[weight_N > 0])
    fit = fit_linear(x_ND, wanted.target(label_smoothing, weight_N), binary=binary, penalty=penalty)
    if not penalty and not label_smoothing:
        rows = slice(None) if weight_N is None else weight_N > 0
        separated = looks_separable(x_ND[rows], p_NC[rows], fit.logits(x_ND[rows]), fit.converged)
        require(
            not separated, "the classes look separable: no maximum likelihood estimate exists; use --penalty 0.001, say"
        )
    if not fit.converged:
        message = (
            f"the fit has not converged: its largest derivative is {fit.minimum.gradient:.2g} after "
            f"{fit.minimum.iterations} iterations ({fit.minimum.message.lower()})"
        )
        require(penalty > 0, f"{message}; use --penalty 0.001, say, or leave out columns that repeat others")
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    network = "binary" if binary else "linear"
    module = build(network, x_ND.shape[1], p_NC.shape[1])
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(fit.weight))  # type: ignore[union-attr, operator, arg-type]
        module.bias.copy_(torch.from_numpy(fit.bias))  # type: ignore[union-attr, operator, arg-type]
    how = {
        "trained_by": "maximum likelihood" if not penalty else "penalised maximum likelihood",
        "target": list(wanted.columns),
        "penalty": penalty,
        "label_smoothing": label_smoothing,
        "weight": weight,
        "impute": impute,
        "standardise": standardise,
        "rows": table.num_rows,
        "converged": fit.converged,
    }
    return Regression(Model(encoder, network, module, wanted.classes, how), fit, wanted, weight_N)


def _features(names: list[str], asked: list[str] | None, excluded: list[str], used: list[str]) -> list[str]:
    """The columns that are features: those asked for, or all that serve nothing else."""
    chosen = [name for name in asked or names if name not in excluded and (asked or name not in used)]
    for name in chosen:
        require(name not in used, f"features: column {name!r} is the target or the weight; it cannot be a feature too")
    require(bool(chosen), "features: no column is left to be one")
    return chosen


def _require_mass(wanted: ColumnTarget, p_NC: np.ndarray) -> None:
    """A class that nothing speaks for has its best logit at minus infinity, whatever the penalty of the weights."""
    for key, mass in zip(wanted.keys, p_NC.sum(axis=0)):
        require(mass > 0, f"target: the class {key!r} has probability 0 in every row; leave its column out")
