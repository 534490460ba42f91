"""What a row should be: labels, probabilities or a `likely` Target as class numbers or distributions, and masses.

Shapes: n rows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from likely._checks import require, require_distribution
from likely.forms import Sparse, Target

# Entries of a target that are formed at a time: 8 MiB.
BLOCK = 1 << 20
# Labels that are whole numbers are counted in a table of so many places at most.
MOST_SPREAD = 1 << 16


def read_target(
    y: Any, declared: Any = None, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The target as class numbers (n,) or probabilities (n, K), the classes (K,), and the mass of each row or None.

    Args:
        y: labels, probabilities (n, K) or a `likely` Target.
        declared: the classes in their order; else the labels that occur in rows with a weight, or 0 … K − 1.

    Raises: ValueError for what scikit-learn refuses as labels, a label that is not declared, a row that is no
        distribution.
    """
    if isinstance(y, Target):
        target, mass = lower(y)
        return target, declared_classes(declared, y.classes), mass
    if scipy.sparse.issparse(y):
        raise ValueError("y: is sparse; give labels, or probabilities as a dense (n, K) array")
    y = as_array(y, "y")
    if y.ndim == 2 and y.shape[1] > 1:
        return probabilities(y), declared_classes(declared, y.shape[1]), None
    if y.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{y}\n")
    y = column_or_1d(y, warn=True)
    if declared is None and y.dtype.kind in "iub" and len(y):
        found = whole_numbers(y, weight)
        if found is not None:
            return *found, None
    if y.dtype.kind == "f":
        assert_all_finite(y, input_name="y")
    if y.dtype == object:
        missing = np.array([one is None or one != one for one in y], dtype=bool)
        require(not bool(missing.any()), f"y: row {int(missing.argmax())} has no label; leave the row out")
    check_classification_targets(y)
    if declared is None:
        used = y if weight is None or len(weight) != len(y) or weight.all() else y[weight > 0]
        classes = np.unique(used)
    else:
        classes = declared_classes(declared, None)
    return numbered(y, classes, weight, exact=declared is not None), classes, None


def whole_numbers(y: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Class numbers and classes of labels that are whole numbers close together, counted and not sorted; else None.

    >>> whole_numbers(np.array([7, 5, 7]))
    (array([1, 0, 1]), array([5, 7]))
    """
    low, high = int(y.min()), int(y.max())
    if high - low > MOST_SPREAD:
        return None
    place = y.astype(np.int64, copy=False)
    place = place - low if low else place
    used = place if weight is None or len(weight) != len(y) or weight.all() else place[weight > 0]
    held = np.bincount(used, minlength=high - low + 1) > 0
    number = np.where(held, np.cumsum(held) - 1, 0)
    return place if held.all() else number[place], (np.flatnonzero(held) + low).astype(y.dtype)


def numbered(y: np.ndarray, classes: np.ndarray, weight: np.ndarray | None = None, *, exact: bool = True) -> np.ndarray:
    """Labels as class numbers (n,); rows without a weight may hold others, which count as class 0.

    Raises: ValueError naming the first row whose label is none of the classes.
    """
    order = np.argsort(classes, kind="stable")
    try:
        at = np.searchsorted(classes, y, sorter=order)
        index = order[np.minimum(at, len(classes) - 1)]
        wrong = classes[index] != y
    except TypeError:
        raise ValueError(f"y: holds {y.dtype} labels; the classes are {_listed(classes)}") from None
    if not exact and weight is not None and len(weight) == len(y):
        index = np.where(wrong & (weight == 0), 0, index)
        wrong = wrong & (weight > 0)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(f"y: row {row} holds {y[row]!r}, which is no class; the classes are {_listed(classes)}")
    return index.astype(np.int64)


def probabilities(y: np.ndarray, first: int = 0) -> np.ndarray:
    """Rows that are distributions within the rounding of their dtype, divided by their sums, in float64.

    Raises: ValueError naming the worst row.
    """
    require(y.dtype.kind in "fiub", f"y: holds {y.dtype}; an (n, K) target is probabilities")
    p = torch.from_numpy(np.ascontiguousarray(y if y.dtype.kind == "f" else y.astype(np.float64)))
    try:
        require_distribution("y", p)
    except ValueError as error:
        fix = "; an (n, K) array is read as probabilities (for labels give one column)"
        place = f" (row 0 is row {first} of the whole)" if first else ""
        raise ValueError(f"{error}{place}{fix}") from None
    q = p.double().numpy()
    total = q @ np.ones((q.shape[1], 1))
    return q if bool((total == 1).all()) else q / total


def lower(target: Target) -> tuple[np.ndarray, np.ndarray | None]:
    """A `likely` Target as class numbers (n,) or probabilities (n, K), and the mass of each row (weight included).

    A row of mass M counts as a distribution of weight M; of an ignored row it is 0.

    Raises: ValueError for what is no distribution.
    """
    reason = target.refuses_temperature(1.0)
    require(reason is None, f"y: {reason}")
    weight = np.ones(target.rows) if target.weight is None else target.weight.double().cpu().numpy()
    if isinstance(target, Sparse):
        require(
            target.rest is None,
            "y: a record with tail='bucket' is not linear in the logits, so no statistic holds it; take another tail",
        )
        if target.index.shape[1] == 1 and target.floor is None:
            mass = target.value[:, 0].double().cpu().numpy()
            require(bool((mass >= 0).all()), "y: a class has a negative weight; the target is no distribution")
            return target.index[:, 0].cpu().numpy(), weight * mass
    rows, size = [], max(1, BLOCK // target.classes)
    for at in range(0, target.rows, size):
        cut = slice(at, min(target.rows, at + size))
        zero = torch.zeros(cut.stop - cut.start, target.classes, dtype=torch.float64, device=target.count.device)
        # The gradient M·q − μ at q = 0; without `rest` nothing asks for log q.
        tile = target.tile(cut, 1.0, torch.float64)
        rows.append(-tile.gradient_(zero, zero.log).cpu().numpy())
    mu = np.concatenate(rows) if rows else np.zeros((0, target.classes))
    wrong = (mu < 0).any(axis=1)
    require(not bool(wrong.any()), f"y: row {int(wrong.argmax())} has negative mass; a target of a fit is none")
    mass = mu.sum(axis=1)
    return mu / np.where(mass > 0, mass, 1)[:, None], weight * mass


def spread_by_class(
    target: np.ndarray, weight: np.ndarray, weight_K: np.ndarray, smoothing: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Target, weights and smoothing that stand for `μ_c = w_c ((1 − ε) p_c + ε/K)`, the rule of torch."""
    if target.ndim == 1 and not smoothing:
        return target, weight * weight_K[target], 0.0
    K = len(weight_K)
    p = np.eye(K)[target] if target.ndim == 1 else target
    mu = ((1 - smoothing) * p + smoothing / K) * weight_K
    mass = mu.sum(axis=1)
    return mu / np.where(mass > 0, mass, 1)[:, None], weight * mass, 0.0


def class_weights(class_weight: Any, classes: np.ndarray, masses: Callable[[], np.ndarray]) -> np.ndarray | None:
    """One weight for each class: from a dict, `n / (K · mass)` for "balanced", None where all are one."""
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        require(class_weight == "balanced", f"class_weight: is {class_weight!r}; it is a dict, 'balanced' or None")
        mass = masses()
        require_mass(mass, classes)
        return mass.sum() / (len(classes) * mass)
    require(isinstance(class_weight, Mapping), "class_weight: is a dict from classes to weights, 'balanced' or None")
    known = {c: k for k, c in enumerate(classes.tolist())}
    weight_K = np.ones(len(classes))
    for key, value in class_weight.items():
        key = key.item() if isinstance(key, np.generic) else key
        if key not in known and not value:
            continue
        require(key in known, f"class_weight: {key!r} is no class; the classes are {_listed(classes)}")
        require(bool(np.isfinite(value)) and value >= 0, f"class_weight: of {key!r} is {value}; weights are at least 0")
        weight_K[known[key]] = value
    return weight_K


def class_masses(target: np.ndarray, weight: np.ndarray, K: int) -> np.ndarray:
    """`Σ_i w_i q_ik`, (K,)."""
    return np.bincount(target, weights=weight, minlength=K) if target.ndim == 1 else weight @ target


def require_mass(mass: np.ndarray, classes: np.ndarray) -> None:
    """Every class has some mass: of one that has none the best logit is minus infinity."""
    if bool((mass > 0).all()):
        return
    raise ValueError(
        f"y: the class {classes[int((mass <= 0).argmax())]!r} has no mass in any row with a weight, so its best "
        "probability is 0; leave it out of the classes, or fit with label_smoothing"
    )


def require_classes(K: int, binary: bool, y: Any) -> None:
    """Two classes or more, and only two where the estimator is binary."""
    require(K > 1, "y: holds one class only (1 class); a classifier needs two classes or more in rows with a weight")
    if binary and K > 2:
        kind = "probabilities" if getattr(y, "ndim", 1) == 2 or isinstance(y, Target) else type_of_target(y)
        raise ValueError(
            f"Only binary classification is supported. The type of the target is {kind}, with {K} classes; "
            "use SoftmaxRegression."
        )


def declared_classes(declared: Any, K: int | None) -> np.ndarray:
    if declared is None:
        assert K is not None
        return np.arange(K)
    classes = np.asarray(declared)
    if classes.dtype.kind not in "OUSfiubM":
        classes = np.asarray(declared, dtype=object)
    require(classes.ndim == 1, f"classes: has shape {classes.shape}; it is a list of the classes in their order")
    require(len(set(classes.tolist())) == len(classes), "classes: names a class twice")
    require(K is None or len(classes) == K, f"classes: names {len(classes)} where the target has {K} columns")
    return classes


def _listed(classes: np.ndarray, most: int = 8) -> str:
    shown = ", ".join(repr(c) for c in classes.tolist()[:most])
    return shown + (f", … ({len(classes)} in all)" if len(classes) > most else "")


def as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read as an array ({error})") from None
