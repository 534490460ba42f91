"""A fit to standardised columns, told in the units of the columns.

Shapes: D features, K classes, M columns of parameters, P = D + 1 parameters a class, k = max(1, M − 1).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from likely._checks import require

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier


def in_units(model: LinearClassifier, mean: Any, scale: Any) -> Any:
    """The same fitted classifier for the raw columns, where it was fitted to `(x − mean) / scale`.

    `coef' = coef / scale` and `intercept' = intercept − coef' · mean`; standard errors are carried along. The penalty
    remains that of the standardised columns: it is what was fitted, and refitting the result would be another model.

    Args:
        model: fitted with an intercept. mean, scale: (D,), scale > 0.

    Returns: a copy; `model` is not changed.

    Raises: ValueError for other shapes, a scale that is not positive, or a fit without an intercept.

    >>> from likely.estimators import LogisticRegression
    >>> x, y = np.array([[10.0], [20.0], [30.0], [40.0]]), [0, 1, 0, 1]
    >>> standard = LogisticRegression(tol=1e-14).fit((x - 25) / 10, y)
    >>> raw = in_units(standard, [25], [10])
    >>> bool(np.allclose(raw.predict_proba(x), standard.predict_proba((x - 25) / 10)))
    True
    """
    M, D = model.coef_.shape
    mean_D, scale_D = np.asarray(mean, dtype=np.float64), np.asarray(scale, dtype=np.float64)
    for name, value in (("mean", mean_D), ("scale", scale_D)):
        require(value.shape == (D,), f"{name}: has shape {value.shape}; it is one number for each of {D} columns")
    require(bool((scale_D > 0).all()), "scale: is positive for every column")
    require(bool(model.fit_intercept), "model: was fitted without an intercept, which a change of the mean needs")
    told = copy.copy(model)
    told.coef_ = model.coef_ / scale_D
    told.intercept_ = model.intercept_ - told.coef_ @ mean_D
    told._inference = dict(model._inference)
    if "matrix" in told._inference:
        back = np.diag(np.r_[1 / scale_D, 1.0])
        back[-1, :D] = -mean_D / scale_D
        whole = np.kron(np.eye(max(1, M - 1)), back)
        told._inference["matrix"] = whole @ model._inference["matrix"] @ whole.T
        told._inference["directions"] = whole @ model._inference["directions"]
        told._inference["size"] = np.abs(whole) @ model._inference["size"]
    if model.separation_ is not None:
        told.separation_ = model.separation_ | {"direction": model.separation_["direction"] / scale_D}
    return told
