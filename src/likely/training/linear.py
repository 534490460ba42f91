"""Logistic and softmax regression on the columns of a table, by maximum likelihood.

The fitting is that of `likely.estimators`; here a table becomes its rows, and the result a `Model` on tables.

Shapes: N rows, C classes, D features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.exceptions import ConvergenceWarning

from likely._checks import require
from likely.data import ColumnTarget, Encoder, NumericColumn, as_table, read_target, read_weights, select_columns
from likely.data.tables import column
from likely.data.targets import one_column
from likely.estimators import LogisticRegression, SeparationWarning, SoftmaxRegression, in_units
from likely.estimators.notices import separation_text
from likely.networks.layers import build
from likely.networks.model import Model

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted model, the estimator that it came from, and what it was fitted to.

    `estimator` speaks in the units of the columns (its standard errors, too) and has the classes as text; `group_N`
    says which rows belong together, where that was asked for.
    """

    model: Model
    estimator: LinearClassifier
    target: ColumnTarget
    weight_N: np.ndarray | None
    group_N: list[Any] | None = None

    def coefficients(self, reference: int = 0) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """The log odds of each class against one of them, by default the first, in the units of the columns.

        Returns: the other C − 1 classes, their coefficients (C − 1, D) in the order of `model.encoder.feature_names`,
        and their intercepts (C − 1,), as statsmodels' Logit and MNLogit have them.
        """
        theta_CD = np.column_stack([self.estimator.coef_, self.estimator.intercept_])
        if len(theta_CD) == 1:
            theta_CD = np.vstack([np.zeros_like(theta_CD), theta_CD])
        theta_CD = np.delete(theta_CD - theta_CD[reference], reference, axis=0)
        classes = [one for at, one in enumerate(self.model.classes) if at != reference]
        return classes, theta_CD[:, :-1], theta_CD[:, -1]

    def features(self, data: Any) -> pa.Table:
        """The D features of a table's rows as `estimator` reads them: in the units of the columns, with their names."""
        mean_D, scale_D = _units(self.model.encoder)
        return _named(self.model.encoder.transform(data) * scale_D + mean_D, self.model.encoder.feature_names)


def regress(
    data: Any,
    target: str | Sequence[str],
    *,
    features: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    categorical: str | Sequence[str] = (),
    impute: str | None = None,
    standardise: bool = True,
    weight: str | None = None,
    groups: str | None = None,
    weights: str = "frequency",
    covariance: str | None = None,
    **parameters: Any,
) -> Regression:
    """Fit a linear classifier: logistic regression for two classes, softmax regression for more.

    It minimises `mean cross-entropy + λ/2 · ‖coefficients‖²`, in nats; without a penalty the result is the maximum
    likelihood estimate. The penalty weighs the coefficients of the columns as the encoder makes them, that is of
    standardised columns unless `standardise` is off, and leaves intercepts alone. The first level of a category is
    the reference and has no coefficient.

    Args:
        data: anything that `likely.data.as_table` reads.
        target: a column of labels, or columns of probabilities (`"p_*"`).
        features: names and globs; by default all columns but the target, the weight, the groups and those in
            `exclude`.
        categorical, impute, standardise: as in `likely.data.Encoder.fit`.
        weight: a column with the weights of the rows.
        groups: a column that says which rows belong together; standard errors are then clustered.
        weights, covariance: as in `likely.estimators.LogisticRegression.fit`.
        parameters: the estimator's: `penalty_strength` (λ), `label_smoothing` (for labels), `class_weight` (its keys
            are the classes as text), `solver`, `tol`, `max_iter`, `random_state`.

    Raises:
        ValueError: what cannot be used, naming the column and the row; and without a penalty, classes that are
            separable, so that no maximum likelihood estimate exists, with the features that separate them, or a fit
            that has not converged. With a penalty a fit that has not converged is returned.

    Warns: ConvergenceWarning of that; CollinearityWarning of columns that are constant or repeat others.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning (2009), section 4.4.

    >>> fitted = regress({"x": [0, 0, 0, 1, 1, 1], "y": ["a", "a", "b", "a", "b", "b"]}, "y")
    >>> fitted.model.predict_proba({"x": [0, 1]}).round(4)    # the frequencies
    array([[0.6667, 0.3333],
           [0.3333, 0.6667]])
    """
    table = as_table(data)
    wanted = read_target(table, target)
    smoothing = parameters.get("label_smoothing", 0.0)
    require(
        not smoothing or wanted.index_N is not None,
        "label_smoothing: is for labels; the target here is a set of probability columns",
    )
    used = list(wanted.columns)
    for name, what in ((weight, "weight"), (groups, "groups")):
        used += [] if name is None else one_column(table, name, what)
    names = _features(
        table.column_names,
        None if features is None else select_columns(table, features, "features"),
        select_columns(table, exclude, "exclude") if exclude else [],
        used,
    )
    weight_N = None if weight is None else read_weights(table, weight)
    group_N = None if groups is None else _groups(table, groups)
    if not smoothing:
        _require_mass(wanted, weight_N)
    encoder = Encoder.fit(
        table, names, categorical=categorical, impute=impute, standardise=standardise, drop_first=True
    )
    repeated = [name for name in encoder.feature_names if encoder.feature_names.count(name) > 1]
    require(not repeated, f"features: two features have the name {repeated[0]!r}; rename a column" if repeated else "")
    keys = list(wanted.keys)
    estimator = (LogisticRegression if len(keys) == 2 else SoftmaxRegression)(classes=keys, **parameters)
    y_N = wanted.p_NC if wanted.index_N is None else np.array(keys)[wanted.index_N]
    with warnings.catch_warnings():
        if not estimator.penalty_strength:  # then they become errors
            warnings.simplefilter("ignore", SeparationWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
        x_ND = _named(encoder.transform(table), encoder.feature_names)
        estimator.fit(x_ND, y_N, weight_N, groups=group_N, covariance=covariance, weights=weights)
    told = in_units(estimator, *_units(encoder))
    _require_estimate(told, wanted.index_N is not None)
    network = "binary" if len(keys) == 2 else "linear"
    module = build(network, len(encoder.feature_names), len(keys))
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(estimator.coef_))  # type: ignore[union-attr, operator, arg-type]
        module.bias.copy_(torch.from_numpy(estimator.intercept_))  # type: ignore[union-attr, operator, arg-type]
    how = {
        "trained_by": "maximum likelihood" if not estimator.penalty_ else "penalised maximum likelihood",
        "target": list(wanted.columns),
        "penalty_strength": estimator.penalty_,
        "label_smoothing": smoothing,
        "class_weight": estimator.class_weight,
        "weight": weight,
        "impute": impute,
        "standardise": standardise,
        "rows": table.num_rows,
        "converged": estimator.converged_,
        "gap": estimator.gap_ if math.isfinite(estimator.gap_) else None,
    }
    return Regression(Model(encoder, network, module, wanted.classes, how), told, wanted, weight_N, group_N)


def _features(names: list[str], asked: list[str] | None, excluded: list[str], used: list[str]) -> list[str]:
    """The columns that are features: those asked for, or all that serve nothing else."""
    chosen = [name for name in asked or names if name not in excluded and (asked or name not in used)]
    for name in chosen:
        require(
            name not in used,
            f"features: column {name!r} is the target, the weight or the groups; it cannot be a feature too",
        )
    require(bool(chosen), "features: no column is left to be one")
    return chosen


def _groups(table: pa.Table, groups: str) -> list[Any]:
    (name,) = one_column(table, groups, "groups")
    group_N = column(table, name).to_pylist()
    missing = group_N.index(None) if None in group_N else None
    require(missing is None, f"groups: column {name!r}: row {missing} is missing (empty or NaN)")
    return group_N


def _require_mass(wanted: ColumnTarget, weight_N: np.ndarray | None) -> None:
    """A class that nothing speaks for has its best logit at minus infinity, whatever the penalty of the weights."""
    w_N = np.ones(wanted.rows) if weight_N is None else weight_N
    if wanted.p_NC is not None:
        mass_C = w_N @ wanted.p_NC
    else:
        assert wanted.index_N is not None
        mass_C = np.bincount(wanted.index_N, weights=w_N, minlength=len(wanted.keys))
    for key, mass in zip(wanted.keys, mass_C):
        require(mass > 0, f"target: the class {key!r} has probability 0 in every row; leave its column out")


def _require_estimate(model: LinearClassifier, labels: bool) -> None:
    """Without a penalty there must be a maximum likelihood estimate, and the fit must have reached it."""
    if model.penalty_:
        return
    remedy = "use --penalty-strength 0.001, say"
    if model.separable_:
        # The estimator's sentence up to the coefficients that it stopped at, which are not given here.
        found, classes = model.separation_, model.classes_.tolist()
        what = separation_text(found, classes).partition("; there is no maximum")[0] if found else "separable classes"
        raise ValueError(
            f"{what}; no maximum likelihood estimate exists; {remedy}{', or --label-smoothing 0.01' if labels else ''}"
        )
    gap = f"{model.gap_:.2g} nats" if math.isfinite(model.gap_) else "unknown"
    require(
        model.converged_,
        f"the fit has not converged: after {model.n_iter_} iterations its certified gap is {gap} and --tol is "
        f"{model.tol:g}; raise --max-iter or --tol, or {remedy}",
    )


def _units(encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """(D,) mean and scale that the encoder standardised each feature with; 0 and 1 for levels."""
    ones = [(c.mean, c.scale) if isinstance(c, NumericColumn) else (0.0, 1.0) for c in encoder.columns]
    each = [pair for pair, c in zip(ones, encoder.columns) for _ in c.feature_names]
    mean_D, scale_D = np.array(each, dtype=np.float64).reshape(-1, 2).T
    return mean_D, scale_D


def _named(x_ND: np.ndarray, names: list[str]) -> pa.Table:
    """The features with their names, which warnings and summaries say."""
    return pa.table([pa.array(x_N) for x_N in x_ND.T], names=names)
