"""Data larger than memory: blocks of rows from an iterable, a DataLoader or Parquet shards, read anew at each pass.

Shapes: b rows of a block, D features, K classes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from likely._checks import require, require_rows
from likely.estimators import rows as reading
from likely.estimators import targets
from likely.estimators.rows import Rows

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

Item = tuple[Any, Any, np.ndarray, np.ndarray | None]
SHARD_ROWS = 65_536


def is_stream(X: Any, y: Any) -> bool:
    """Whether X is a path, a function that gives blocks, or, where there is no y, an iterable of blocks."""
    if isinstance(X, str | os.PathLike) or _are_paths(X):
        return True
    if callable(X) and not hasattr(X, "shape") and not hasattr(X, "__array__"):
        return True
    if y is not None or hasattr(X, "shape") or hasattr(X, "__array__"):
        return False
    return not isinstance(X, list | tuple) or bool(X and isinstance(X[0], list | tuple) and len(X[0]) in (2, 3, 4))


def read_stream(estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any, offset: Any, *, binary: bool) -> Rows:
    """Read a stream once: its rows, width, classes and weights; later passes are held to what was found.

    Args:
        X: an iterable that can be iterated again (a list, a DataLoader), or a function that returns an iterator, of
            blocks `(X, y)`, `(X, y, weight)` or `(X, y, weight, offset)`; or the path, the paths or the glob of
            Parquet shards.
        y, sample_weight, offset: None; for shards the names of their columns (for probabilities several, or a glob).

    Raises: ValueError for a stream that can be read only once, changes between passes, or does not fit itself.
    """
    names = None
    if isinstance(X, str | os.PathLike) or _are_paths(X):
        source, names, declared = _shards(X, y, sample_weight, offset)
        declared = estimator.classes if estimator.classes is not None else declared  # type: ignore[attr-defined]
    else:
        given = [name for name, v in (("y", y), ("sample_weight", sample_weight), ("offset", offset)) if v is not None]
        require(not given, f"{', '.join(given)}: a stream's blocks are (X, y[, weight[, offset]]); give it in them")
        source, declared = _again(X), estimator.classes  # type: ignore[attr-defined]
    smoothing, class_weight = float(estimator.label_smoothing), estimator.class_weight  # type: ignore[attr-defined]

    n, D, width, total, soft, any_offset = 0, -1, 0, 0.0, False, False
    masses: dict[Any, float] = {}
    mass_K: np.ndarray | None = None
    weighted = False
    for number, (x, target, weight, add) in enumerate(_blocks(source)):
        if D < 0:
            D, width = x.shape[1], 0 if target.ndim == 1 else target.shape[1]
        place = f"block {number} (from row {n})"
        require(x.shape[1] == D, f"X: {place} has {x.shape[1]} columns where the blocks before have {D}")
        here = 0 if target.ndim == 1 else target.shape[1]
        require(here == width, f"y: {place} has shape {target.shape}, unlike the blocks before")
        reading.require_finite(x, names, first=n)
        weight_b = np.ones(len(target)) if weight is None else weight
        if target.ndim == 1:
            found, at = np.unique(target, return_inverse=True)
            for label, mass in zip(found.tolist(), np.bincount(at, weights=weight_b, minlength=len(found))):
                masses[label] = masses.get(label, 0.0) + float(mass)
        else:
            mass_K = weight_b @ target if mass_K is None else mass_K + weight_b @ target
            soft = soft or bool((target.max(axis=1) < 1).any())
        weighted, any_offset = weighted or weight is not None, any_offset or add is not None
        n, total = n + len(target), total + float(weight_b.sum())
    require(n > 0, "X: the stream has no rows")
    require(total > 0, "sample_weight: is zero in every row of the stream; a weight that is not zero is needed")
    if width:
        classes = targets.declared_classes(declared, width)
    elif declared is not None:
        classes = targets.declared_classes(declared, None)
    else:
        classes = np.array(sorted(label for label, mass in masses.items() if mass > 0))
    targets.require_classes(len(classes), binary, np.empty((1, 2)) if width else classes)
    if mass_K is None:
        mass_K = np.array([masses.get(c, 0.0) for c in classes.tolist()])
    weight_K = targets.class_weights(class_weight, classes, lambda: mass_K)
    if not smoothing:
        targets.require_mass(mass_K, classes)
    left = 0.0 if weight_K is not None else smoothing

    def factory() -> Iterator[Item]:
        at = 0
        for number, (x, target, weight, add) in enumerate(_blocks(source)):
            require(x.shape[1] == D, f"X: block {number} has {x.shape[1]} columns where it had {D} in the first pass")
            weight_b = np.ones(len(target)) if weight is None else weight
            if target.ndim == 1:
                target = targets.numbered(target, classes, weight_b, exact=declared is not None)
            if weight_K is not None:
                target, weight_b, _ = targets.spread_by_class(target, weight_b, weight_K, smoothing)
            if any_offset:
                add = np.zeros((len(target), len(classes))) if add is None else add
                add = reading.read_offset(add, len(target), len(classes), binary)
            yield x, target, weight_b, add
            at += len(target)
        require(at == n, f"X: the stream gave {n} rows at first and {at} in a later pass")

    if weight_K is not None:
        total = float(sum(weight.sum() for _, _, weight, _ in factory()))
    _set_names(estimator, D, names)
    return Rows(
        factory,
        None,
        None,
        None,
        classes,
        soft or smoothing > 0,
        n,
        D,
        total,
        left,
        None,
        weighted or weight_K is not None,
        any_offset,
    )


def _set_names(estimator: Any, D: int, names: Sequence[str] | None) -> None:
    estimator.n_features_in_ = D
    if names is not None:
        estimator.feature_names_in_ = np.asarray(names, dtype=object)
    elif hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_


def _again(X: Any) -> Callable[[], Iterable[Any]]:
    if callable(X):
        return X
    try:
        iterator = iter(X)
    except TypeError:
        raise ValueError(
            f"X: a {type(X).__name__} is neither features nor a stream; give X and y, an iterable of blocks "
            "(X, y), a function that returns one, or the path of Parquet shards"
        ) from None
    require(
        iterator is not X,
        "X: can be iterated only once, and a fit reads its rows several times; give a list, a DataLoader, or a "
        "function that returns a fresh iterator",
    )
    return lambda: X


def _blocks(source: Callable[[], Iterable[Any]]) -> Iterator[tuple[Any, np.ndarray, Any, Any]]:
    """Every block checked by itself: features (b, D), labels (b,) or probabilities (b, K), weights, offsets."""
    at = 0
    for number, item in enumerate(source()):
        place = f"block {number} (from row {at})"
        require(
            isinstance(item, list | tuple) and 2 <= len(item) <= 4,
            f"X: {place} is no (X, y[, weight[, offset]]), but a {type(item).__name__}",
        )
        x, y, weight, offset = (*item, None, None)[:4]
        x = x.tocsr() if scipy.sparse.issparse(x) else targets.as_array(x, f"X: {place}")
        require(x.ndim == 2, f"X: {place} has shape {x.shape}; a block is (rows, features)")
        require(x.dtype.kind in "fiub", f"X: {place} holds {x.dtype}, not numbers")
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        y = targets.as_array(y, f"y: {place}")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        require(y.ndim in (1, 2), f"y: {place} has shape {y.shape}; it is labels (b,) or probabilities (b, K)")
        require_rows(f"y: {place}", len(y), x.shape[0], "X")
        if y.ndim == 2:
            y = targets.probabilities(y, first=at)
        elif y.dtype.kind == "f":
            whole = bool(np.isfinite(y).all()) and bool((y == np.rint(y)).all())
            require(whole, f"y: {place} is continuous; labels are whole numbers, text or booleans")
        if weight is not None:
            weight = targets.as_array(weight, f"sample_weight: {place}").astype(np.float64)
            require(weight.shape == (len(y),), f"sample_weight: {place} has shape {weight.shape} for {len(y)} rows")
            wrong = ~np.isfinite(weight) | (weight < 0)
            require(
                not bool(wrong.any()),
                f"sample_weight: row {at + int(wrong.argmax())} is negative or not finite; weights are at least 0",
            )
        yield x, y, weight, offset
        at += len(y)


def _are_paths(X: Any) -> bool:
    return isinstance(X, list | tuple) and bool(X) and all(isinstance(one, str | os.PathLike) for one in X)


def _shards(X: Any, y: Any, sample_weight: Any, offset: Any) -> tuple[Callable[[], Iterable[Any]], list[str], Any]:
    """Blocks of Parquet files: `y`, `sample_weight` and `offset` name columns, all others are features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from likely.data import select_columns

    paths = _paths(X)
    schema = pq.read_schema(paths[0])
    empty = pa.table([pa.array([], kind) for kind in schema.types], names=schema.names)
    require(y is not None, "y: name the column of labels of the shards, or the columns of probabilities ('p_*')")
    wanted = [
        select_columns(empty, one, name) if one is not None else []
        for name, one in (("y", y), ("sample_weight", sample_weight), ("offset", offset))
    ]
    target, weights, offsets = wanted
    require(len(weights) < 2, f"sample_weight: {sample_weight!r} means {len(weights)} columns; give one")
    names = [name for name in schema.names if name not in {*target, *weights, *offsets}]
    require(bool(names), "X: no column of the shards is left to be a feature")
    numbers = {"sample_weight": weights, "offset": offsets, "y": target if len(target) > 1 else [], "X": names}
    for what, columns in numbers.items():
        for name in columns:
            kind = schema.field(name).type
            fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            require(fits, f"{what}: column {name!r} of the shards holds {kind}, not numbers; encode it or leave it out")
    narrow = all(pa.types.is_float32(schema.field(name).type) for name in names)

    def read(table: pa.RecordBatch, columns: list[str], dtype: Any) -> np.ndarray:
        out = np.empty((table.num_rows, len(columns)), dtype)
        for j, name in enumerate(columns):
            out[:, j] = table.column(name).to_numpy(zero_copy_only=False)
        return out

    def source() -> Iterator[Any]:
        for path in paths:
            with pq.ParquetFile(path) as file:
                lacking = [name for name in schema.names if name not in file.schema_arrow.names]
                require(not lacking, f"X: {path.name} lacks the column {lacking[0] if lacking else ''!r} of the others")
                for batch in file.iter_batches(SHARD_ROWS, columns=schema.names):
                    x = read(batch, names, np.float32 if narrow else np.float64)
                    label = batch.column(target[0])
                    require(label.null_count == 0, f"y: column {target[0]!r} of {path.name} has missing labels")
                    q = np.asarray(label.to_pylist()) if len(target) == 1 else read(batch, target, np.float64)
                    w = read(batch, weights, np.float64)[:, 0] if weights else None
                    o = read(batch, offsets, np.float64) if offsets else None
                    yield x, q, w, o

    from likely.data.targets import class_suffixes

    return source, names, class_suffixes(target, y) if len(target) > 1 else None


def _paths(X: Any) -> list[Path]:
    found: list[Path] = []
    for one in [X] if isinstance(X, str | os.PathLike) else X:
        path = Path(one)
        if path.is_dir():
            found += sorted(path.glob("*.parquet"))
        elif path.exists():
            found.append(path)
        else:
            found += sorted(Path(p) for p in glob.glob(os.fspath(one)))
    require(bool(found), f"X: no Parquet file is found at {X!r}")
    return found
