"""How strong a penalty: paths of fits, and cross-validation by the cross-entropy of held-out rows.

Shapes: n rows, D features, M columns of parameters, S strengths, F folds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from likely._checks import require
from likely.estimators import rows
from likely.forms import Target
from likely.measures import Estimate, estimate

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier

STRENGTHS = tuple(10.0**-e for e in range(8))


@dataclass(frozen=True, eq=False)
class PenaltyPath:
    """Fits for S penalties, strongest first.

    Attributes: `strengths` (S,), `coef` (S, M, D), `intercept` (S, M), `loss`, `cross_entropy`, `gap` (S,) in nats,
        `n_iter` (S,); `models`, the fitted estimators.
    """

    strengths: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    loss: np.ndarray
    cross_entropy: np.ndarray
    gap: np.ndarray
    n_iter: np.ndarray
    models: tuple[Any, ...]


def path(model: LinearClassifier, X: Any, y: Any = None, strengths: Any = None, **fit_options: Any) -> PenaltyPath:
    """Fit for each penalty, from the strongest to the weakest, each beginning where the one before ended.

    Args:
        model: its parameters, but for the penalty, hold for all fits; it is not changed.
        X, y: as in `fit`. fit_options: its other arguments, `sample_weight` and `offset` among them.
        strengths: values of λ ≥ 0; by default 1, 0.1, … 1e-7.

    Raises: ValueError for a strength that is negative or not finite, and what `fit` raises.

    >>> from likely.estimators import LogisticRegression
    >>> found = LogisticRegression().path([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], [0.1, 1.0])
    >>> found.strengths, found.coef[:, 0, 0].round(3)
    (array([1. , 0.1]), array([0.191, 0.637]))
    """
    wanted = read_strengths(strengths)
    options = {"covariance": "none"} | fit_options
    models: list[Any] = []
    for strength in wanted:
        one = clone(model).set_params(penalty_strength=float(strength), C=None, warm_start=bool(models))
        if models:
            one.coef_, one.intercept_, one.classes_ = models[-1].coef_, models[-1].intercept_, models[-1].classes_
        models.append(one.fit(X, y, **options).set_params(warm_start=model.warm_start))

    def of(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in models])

    return PenaltyPath(
        strengths=wanted,
        coef=of("coef_"),
        intercept=of("intercept_"),
        loss=of("loss_"),
        cross_entropy=of("cross_entropy_"),
        gap=of("gap_"),
        n_iter=of("n_iter_"),
        models=tuple(models),
    )


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What held-out rows say of S penalties, strongest first.

    Attributes:
        strengths: (S,).
        estimates: S Estimates of the cross-entropy of held-out rows, in nats, with standard errors over the rows (or
            the groups), taken as independent although their folds share training rows.
        rows: (S, n) the cross-entropy of every row when it was held out.
        best: the strength with the least mean.
        one_standard_error: the strongest penalty whose rows are, in the mean, no more than one standard error of the
            paired difference worse than the best: the simplest model that the data do not tell from it.
        model: the estimator with `best`, fitted to all rows.
    """

    strengths: np.ndarray
    estimates: tuple[Estimate, ...]
    rows: np.ndarray
    best: float
    one_standard_error: float
    model: Any

    def __str__(self) -> str:
        """A line for each strength."""
        lines = [f"{'λ':>10}  held-out cross-entropy (nats)"]
        for strength, found in zip(self.strengths, self.estimates):
            mark = "  best" if strength == self.best else ""
            mark += "  one standard error" if strength == self.one_standard_error else ""
            lines.append(f"{strength:>10.3g}  {found}{mark}")
        return "\n".join(lines)


def cross_validate(
    model: LinearClassifier,
    X: Any,
    y: Any,
    strengths: Any = None,
    *,
    folds: Any = 5,
    sample_weight: Any = None,
    offset: Any = None,
    groups: Any = None,
    random_state: Any = 0,
) -> CrossValidation:
    """Choose the penalty by the cross-entropy of rows that a fit has not seen.

    Args:
        model: its parameters, but for the penalty, hold for all fits; it is not changed.
        X, y: (n, D) features in memory; labels (n,) or probabilities (n, K).
        strengths: values of λ ≥ 0; by default 1, 0.1, … 1e-7.
        folds: how many, or an iterable of pairs of row numbers `(train, test)`. Labels are dealt out evenly by class,
            and rows of a group stay together.
        sample_weight, offset: (n,), as in `fit`. groups: (n,) what belongs together.
        random_state: deals the rows to the folds.

    Raises: ValueError for a class that is missing in a fold's training rows, and what `fit` raises.

    Source: Stone, Cross-validatory choice and assessment of statistical predictions (1974); Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning (2009), section 7.10, for the rule of one standard error.

    >>> x, y = [[0.0], [1.0], [2.0], [3.0]] * 10, [0, 1, 0, 1] * 10
    >>> from likely.estimators import LogisticRegression
    >>> LogisticRegression().cv(x, y, [1.0, 0.01]).best
    0.01
    """
    require(not isinstance(y, Target), "y: folds are cut from labels or an (n, K) array of probabilities")
    wanted = read_strengths(strengths)
    X, y = _indexable(X), np.asarray(y.cpu() if isinstance(y, torch.Tensor) else y)
    n = X.shape[0]
    weight = None if sample_weight is None else rows.read_weight(sample_weight, n)
    add = None if offset is None else np.asarray(offset, dtype=np.float64)
    classes = model.classes
    if classes is None and (y.ndim == 1 or y.shape[1] == 1):
        classes = np.unique(y if weight is None else y[weight > 0]).tolist()
    loss = np.full((len(wanted), n), np.nan)
    for train, test in _folds(folds, X, y, groups, random_state):
        found = path(
            clone(model).set_params(classes=classes),
            _take(X, train),
            y[train],
            wanted,
            sample_weight=None if weight is None else weight[train],
            offset=None if add is None else add[train],
        )
        for s, one in enumerate(found.models):
            score = one.cross_entropy(_take(X, test), y[test], offset=None if add is None else add[test])
            loss[s, test] = score.cross_entropy.numpy()
    held = np.asarray(~np.isnan(loss).any(axis=0))
    used = loss[:, held]
    weights = None if weight is None else weight[held]
    group = None if groups is None else [g for g, keep in zip(groups, held.tolist()) if keep]
    estimates = tuple(estimate(one, weights, group) for one in used)
    best = int(np.argmin([one.mean for one in estimates]))
    simplest = best
    for s in range(best):
        worse = estimate(used[s] - used[best], weights, group)
        if worse.mean <= worse.standard_error:
            simplest = s
            break
    chosen = clone(model).set_params(penalty_strength=float(wanted[best]), C=None)
    chosen.fit(X, y, sample_weight=weight, offset=add, groups=groups)
    return CrossValidation(wanted, estimates, loss, float(wanted[best]), float(wanted[simplest]), chosen)


def read_strengths(strengths: Any) -> np.ndarray:
    """The penalties, each once, from the strongest to the weakest."""
    value = np.asarray(STRENGTHS if strengths is None else strengths, dtype=np.float64).ravel()
    require(len(value) > 0, "strengths: is empty; give one value of λ or more")
    require(bool((np.isfinite(value) & (value >= 0)).all()), "strengths: are finite numbers, at least 0")
    return np.unique(value)[::-1]


def _folds(folds: Any, X: Any, y: np.ndarray, groups: Any, seed: Any) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    if not isinstance(folds, int | np.integer):
        return folds
    n = X.shape[0]
    require(2 <= folds <= n, f"folds: is {folds}; it is at least 2 and at most the {n} rows")
    if groups is not None:
        return GroupKFold(int(folds)).split(np.zeros(n), y, groups)
    if y.ndim == 1:
        return StratifiedKFold(int(folds), shuffle=True, random_state=seed).split(np.zeros(n), y)
    return KFold(int(folds), shuffle=True, random_state=seed).split(np.zeros(n))


def _indexable(X: Any) -> Any:
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    if hasattr(X, "tocsr"):
        return X.tocsr()
    return X if hasattr(X, "shape") else np.asarray(X)


def _take(X: Any, index: np.ndarray) -> Any:
    return X.iloc[index] if hasattr(X, "iloc") else X[index]
