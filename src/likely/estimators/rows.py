"""What `fit` is given, as the solvers read it: features, a target, weights and an offset, checked row by row.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.validation import validate_data

from likely._checks import require, require_rows
from likely.estimators.targets import (
    BLOCK,
    as_array,
    class_masses,
    class_weights,
    read_target,
    require_classes,
    require_mass,
    spread_by_class,
)
from likely.solvers.problem import Problem

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


class Block(NamedTuple):
    """Consecutive rows: where they are, `x` (b, D), `target` (b,) or (b, K), `weight` (b,), `offset` or None."""

    rows: slice
    x: Any
    target: np.ndarray
    weight: np.ndarray
    offset: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that a fit sees: in memory those with a weight, or a stream.

    Attributes:
        X: (n, D) of float32 or float64, dense or CSR; or a function that returns an iterator of blocks
            `(X, target, weight, offset)`, the same at every call.
        target: class numbers (n,) or probabilities (n, K); None for a stream.
        weight: (n,) > 0, the product of the rows' and the classes' weights, not normalised; None for a stream.
        offset: None, or what is added to the logits: (n,) for one column of parameters, (n, K) for K.
        classes: (K,) in their own type.
        soft: whether some target is a distribution that is not a single class.
        n, D, total: rows, features, the sum of the weights.
        smoothing: what is still to be mixed with the uniform distribution.
        kept: the rows of the caller's data that these are; None for all of them.
        weighted, shifted: whether the caller gave weights of any kind, and an offset.
    """

    X: Any
    target: np.ndarray | None
    weight: np.ndarray | None
    offset: np.ndarray | None
    classes: np.ndarray
    soft: bool
    n: int
    D: int
    total: float
    smoothing: float = 0.0
    kept: np.ndarray | None = None
    weighted: bool = False
    shifted: bool = False

    @property
    def K(self) -> int:
        return len(self.classes)

    def blocks(self, columns: int) -> Iterator[Block]:
        """The rows a block at a time, so that `columns` numbers a row fill about 8 MiB; a stream has its own blocks."""
        if callable(self.X):
            at = 0
            for x, target, weight, offset in self.X():
                yield Block(slice(at, at + len(target)), x, target, weight, offset)
                at += len(target)
            return
        assert self.target is not None
        assert self.weight is not None
        size = max(1, BLOCK // max(1, columns))
        for at in range(0, self.n, size):
            cut = slice(at, min(self.n, at + size))
            offset = None if self.offset is None else self.offset[cut]
            yield Block(cut, self.X[cut], self.target[cut], self.weight[cut], offset)

    def problem(self, *, binary: bool, intercept: bool, names: Sequence[str] | None = None) -> Problem:
        """The objective of these rows, for the solvers; its first pass sees whether all features are finite.

        Raises: ValueError naming a row and a column, by one of the `names` where they are given.
        """
        options: dict[str, Any] = {"classes": self.K, "binary": binary, "intercept": intercept}
        options["label_smoothing"] = self.smoothing
        if callable(self.X):
            return Problem.make(self.X, **options)
        try:
            return Problem.make(self.X, self.target, self.weight, offset=self.offset, **options)
        except ValueError:
            require_finite(self.X, names)
            raise


def read_rows(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    offset: Any = None,
    *,
    binary: bool,
) -> Rows:
    """Check everything that `fit` was given and bring it into one form.

    Args:
        estimator: its `classes`, `class_weight` and `label_smoothing` are heeded, and `n_features_in_` and
            `feature_names_in_` are set on it.
        binary: two classes are all that the estimator can hold.

    Raises: ValueError naming the argument, the row and the fix.
    """
    from likely.estimators import streams

    if streams.is_stream(X, y):
        return streams.read_stream(estimator, X, y, sample_weight, offset, binary=binary)
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    X = read_features(estimator, X, reset=True, finite=False)
    n, smoothing = X.shape[0], float(estimator.label_smoothing)  # type: ignore[attr-defined]
    weight = read_weight(sample_weight, n)
    target, classes, mass = read_target(y, estimator.classes, weight)  # type: ignore[attr-defined]
    require_rows("y", len(target), n, "X")
    if mass is not None:
        weight = weight * mass
    require(bool(weight.any()), "y: the weights of its rows are zero everywhere, so there is nothing to fit")
    K = len(classes)
    require_classes(K, binary, y)
    offset = read_offset(offset, n, K, binary)
    weight_K = class_weights(
        estimator.class_weight,  # type: ignore[attr-defined]
        classes,
        lambda: class_masses(target, weight, K),
    )
    weighted = sample_weight is not None or mass is not None or weight_K is not None
    if weight_K is not None:
        target, weight, smoothing = spread_by_class(target, weight, weight_K, smoothing)
    kept = None
    if not bool(weight.all()):
        kept = weight > 0
        require(bool(kept.any()), "y: all weights are zero, so there is nothing to fit")
        require_finite(X, getattr(estimator, "feature_names_in_", None))
        X, target, weight = X[kept], target[kept], weight[kept]
        offset = None if offset is None else offset[kept]
    if not smoothing:
        require_mass(class_masses(target, weight, K), classes)
    if target.ndim == 2 and not smoothing and bool((target.max(axis=1) == 1).all()):
        target = target.argmax(axis=1)
    soft = smoothing > 0 or target.ndim == 2
    total = float(weight.sum())
    shape = (len(weight), X.shape[1], total)
    return Rows(X, target, weight, offset, classes, soft, *shape, smoothing, kept, weighted, offset is not None)


def read_features(estimator: BaseEstimator, X: Any, *, reset: bool, finite: bool = True) -> Any:
    """The (n, D) features in float32 or float64, dense or CSR, checked against the estimator where `reset` is off.

    Whether they are `finite` may be left to `Rows.problem`, which reads them anyway.

    Raises: ValueError for another width or other names than those of the fit, complex numbers, text, NaN and infinity.
    """
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu().numpy()
    X = validate_data(
        estimator,
        X,
        reset=reset,
        accept_sparse="csr",
        dtype=[np.float64, np.float32],
        ensure_all_finite=False,
        accept_large_sparse=True,
    )
    if finite:
        require_finite(X, getattr(estimator, "feature_names_in_", None))
    return X


def require_finite(X: Any, names: Sequence[str] | None = None, first: int = 0) -> None:
    """Every feature is finite; else the first row that is not is named, counted from `first`."""
    values = X.data if scipy.sparse.issparse(X) else X
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)) or bool(np.isfinite(values).all()):
            return
    if scipy.sparse.issparse(X):
        at = int((~np.isfinite(X.data)).argmax())
        row, column, value = int(np.searchsorted(X.indptr, at, side="right")) - 1, int(X.indices[at]), X.data[at]
    else:
        row = int((~np.isfinite(X).all(axis=1)).argmax())
        column = int((~np.isfinite(X[row])).argmax())
        value = X[row, column]
    what = "NaN" if np.isnan(value) else "an infinite value (inf)"
    name = f"{column}" if names is None else f"{names[column]!r}"
    raise ValueError(f"X: row {first + row}, column {name} holds {what}; fill it in or leave the row out")


def read_weight(sample_weight: Any, n: int) -> np.ndarray:
    """The (n,) weights, ones where none were given.

    Raises: ValueError where one is negative or not finite (its row is named), or all are zero.
    """
    if sample_weight is None:
        return np.ones(n)
    weight = as_array(sample_weight, "sample_weight")
    require(weight.dtype.kind in "fiub", f"sample_weight: holds {weight.dtype}, not numbers")
    weight = weight.astype(np.float64)
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    require(weight.ndim == 1, f"sample_weight: has shape {weight.shape}; it is one number for each row")
    require_rows("sample_weight", len(weight), n, "X")
    wrong = ~np.isfinite(weight) | (weight < 0)
    require(
        not bool(wrong.any()),
        f"sample_weight: row {int(wrong.argmax())} is {weight[wrong.argmax()]:g}; weights are finite and at least 0, "
        "and a row to leave out has weight 0",
    )
    require(bool(weight.any()), "sample_weight: is zero in every row; a weight that is not zero is needed")
    return weight


def read_offset(offset: Any, n: int, K: int, binary: bool) -> np.ndarray | None:
    """What is added to the logits: (n,) where there is one column of parameters, else (n, K)."""
    if offset is None:
        return None
    value = as_array(offset, "offset")
    require(value.dtype.kind in "fiu", f"offset: holds {value.dtype}, not numbers")
    value = value.astype(np.float64)
    if binary and value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    shape = (n,) if binary else (n, K)
    meaning = "the log odds of the second class" if binary else "a logit for each class"
    require(value.shape == shape, f"offset: has shape {value.shape}; give {shape}, {meaning}, for each row")
    wrong = ~np.isfinite(value).reshape(n, -1).all(axis=1)
    require(not bool(wrong.any()), f"offset: row {int(wrong.argmax())} is not finite")
    return value
