"""Targets in a table: one column of labels, or several columns of probabilities.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from likely._checks import require
from likely.data.encoder import sorted_keys
from likely.data.tables import column, first_row, is_number, keys, listed, select_columns

if TYPE_CHECKING:
    from likely.targets import Target

# Written numbers are rounded: a row of probabilities that sums to one within this is divided by its sum.
ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class ColumnTarget:
    """What the rows of a table should be: `index_N` for labels or `p_NC` for probabilities, one of them None.

    `classes` holds the classes as they were in the table, with their types; `keys` the same as text, as they stand in
    the name of a column of probabilities.
    """

    columns: tuple[str, ...]
    classes: tuple[Any, ...]
    keys: tuple[str, ...]
    index_N: np.ndarray | None = None
    p_NC: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.index_N if self.index_N is not None else self.p_NC)  # type: ignore[arg-type]

    def distribution(self) -> np.ndarray:
        """The rows as an (N, C) array of probabilities, ones and zeros for labels."""
        return np.eye(len(self.classes))[self.index_N] if self.p_NC is None else self.p_NC

    def target(self, smoothing: float = 0.0, weight: np.ndarray | None = None) -> Target:
        """The same as a `likely.Target`, with label smoothing and weights of the rows.

        Raises: ValueError where smoothing is asked for probabilities, which say themselves how sure they are.
        """
        from likely.targets import labels, probabilities

        if self.index_N is not None:
            return labels(self.index_N, len(self.classes), smoothing=smoothing, weight=weight)
        require(smoothing == 0, "label_smoothing: is for labels; the target here is a set of probability columns")
        return probabilities(self.p_NC, weight=weight)


def read_target(table: pa.Table, wanted: str | Sequence[str], classes: Sequence[Any] | None = None) -> ColumnTarget:
    """The target in one column of labels, or in several columns of probabilities.

    Labels may be text, numbers or booleans; their classes are all that occur, numbers in their order and text in
    natural order. Of the glob `p_*` the class is what the star stands for; of a list of names it is what follows their
    common beginning. With `classes`, those of a model, the target is read in their order and may lack some of them.

    Raises: ValueError for missing labels, a label that is no class, a single class, as many classes as rows, and rows
        that are no distribution (the worst one is named).

    >>> table = pa.table({"y": ["no", "yes", "no"], "p_no": [0.9, 0.2, 1.0], "p_yes": [0.1, 0.8, 0.0]})
    >>> read_target(table, "y").index_N, read_target(table, "p_*").classes
    (array([0, 1, 0]), ('no', 'yes'))
    """
    names = select_columns(table, wanted, "target")
    if len(names) > 1:
        p_NC, found = read_probabilities(table, wanted, None if classes is None else [key_of(c) for c in classes])
        return ColumnTarget(tuple(names), tuple(classes) if classes is not None else found, found, p_NC=p_NC)
    (name,) = names
    array = column(table, name)
    row = first_row(array.is_null())
    require(row is None, f"target {name!r}: row {row} is missing (empty or NaN); leave the row out")
    text = keys(array, name)
    if classes is None:
        known = sorted_keys(array, name)
        _require_classes(array, name, len(known))
        # The first row of each class keeps the class in its own type.
        first = pc.index_in(pa.array(known, pa.string()), value_set=text)
        classes = array.take(first).to_pylist()
    else:
        known = [key_of(one) for one in classes]
    index = pc.index_in(text, value_set=pa.array(known, pa.string()))
    row = first_row(index.is_null())
    if row is not None:
        raise ValueError(
            f"target {name!r}: row {row} is {array[row].as_py()!r}, which is no class; the classes are {listed(known)}"
        )
    return ColumnTarget((name,), tuple(classes), tuple(known), index_N=index.to_numpy().astype(np.int64))


def read_probabilities(
    table: pa.Table, wanted: str | Sequence[str], classes: Sequence[str] | None = None, what: str = "target"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The (N, C) probabilities in several columns, and the classes that their names end in.

    With `classes` the columns are put into their order, and must be those. Rows that sum to one within 1e-4, as
    written and rounded numbers do, are divided by their sum; any other is refused.

    Raises: ValueError for missing or negative values and for sums other than one, naming the worst row.

    >>> read_probabilities(pa.table({"p_a": [0.25], "p_b": [0.75]}), "p_*")
    (array([[0.25, 0.75]]), ('a', 'b'))
    """
    names = select_columns(table, wanted, what)
    require(len(names) > 1, f"{what}: {wanted!r} is one column, {names[0]!r}; probabilities need one for each class")
    found = class_suffixes(names, wanted)
    if classes is not None and tuple(classes) != found:
        extra, lacking = [k for k in found if k not in classes], [k for k in classes if k not in found]
        require(
            not extra,
            f"{what}: column {names[found.index(extra[0])]!r} is of no class; they are {listed(classes)}"
            if extra
            else "",
        )
        require(not lacking, f"{what}: no column for the class {lacking[0]!r} among {listed(names)}" if lacking else "")
        names = [names[found.index(key)] for key in classes]
        found = tuple(classes)
    p_NC = np.empty((table.num_rows, len(names)))
    for j, name in enumerate(names):
        array = column(table, name)
        require(is_number(array.type), f"{what}: column {name!r} holds {array.type}, where probabilities were expected")
        row = first_row(array.is_null())
        require(row is None, f"{what}: column {name!r}: row {row} is missing (empty or NaN)")
        p_NC[:, j] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return distributions(p_NC, what), found


def distributions(p_NC: np.ndarray, what: str) -> np.ndarray:
    """Rows that are distributions but for the rounding of written numbers, divided by their sums.

    Raises: ValueError naming the worst row, as `likely.probabilities` does.

    >>> distributions(np.array([[0.3333, 0.6667], [0.5, 0.75]]), "target")
    Traceback (most recent call last):
    ValueError: target: row 1 sums to 1.25, not 1; divide every row by its sum
    """
    row = first_row(~np.isfinite(p_NC).all(axis=1))
    require(row is None, f"{what}: row {row} holds an infinite value or NaN; every probability must be finite")
    row = int(p_NC.min(axis=1).argmin())
    require(
        p_NC[row].min() >= 0, f"{what}: row {row} holds the negative value {p_NC[row].min():.6g}; no probability is"
    )
    sum_N = p_NC.sum(axis=1)
    row = int(np.abs(sum_N - 1).argmax())
    require(
        abs(sum_N[row] - 1) <= ROUNDING,
        f"{what}: row {row} sums to {sum_N[row]:.6g}, not 1; divide every row by its sum",
    )
    rounded_N = np.abs(sum_N - 1) > 1e-12
    return np.where(rounded_N[:, None], p_NC / sum_N[:, None], p_NC)


def read_weights(table: pa.Table, name: str) -> np.ndarray:
    """The (N,) weights of the rows in one column: finite, at least 0, not all 0.

    Raises: ValueError naming the row.
    """
    (name,) = one_column(table, name, "weight")
    array = column(table, name)
    require(is_number(array.type), f"weight: column {name!r} holds {array.type}, not numbers")
    w_N = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    row = first_row(~(np.isfinite(w_N) & (w_N >= 0)))
    require(row is None, f"weight: column {name!r}: row {row} is {w_N[row or 0]}; a weight is finite and at least 0")
    require(bool(w_N.any()), f"weight: column {name!r} is 0 in every row")
    return w_N


def one_column(table: pa.Table, wanted: str, what: str) -> list[str]:
    """The one column that is meant.

    Raises: ValueError where there are more, or none.
    """
    names = select_columns(table, wanted, what)
    require(len(names) == 1, f"{what}: {wanted!r} means {len(names)} columns, {listed(names)}; give one")
    return names


def key_of(value: Any) -> str:
    """A class as text, as it stands in the name of its column of probabilities.

    >>> [key_of(c) for c in ("a", 1, 1.0, True)]
    ['a', '1', '1', 'true']
    """
    return value if isinstance(value, str) else keys(pa.array([value]), "class")[0].as_py()


def _require_classes(array: pa.Array, name: str, classes: int) -> None:
    (first,) = array.slice(0, 1).to_pylist()
    require(classes > 1, f"target {name!r}: every row is {first!r}; a classifier needs two classes or more")
    require(
        classes <= max(20, len(array) // 2),
        f"target {name!r}: has {classes} different values in {len(array)} rows; labels repeat, this is a quantity "
        "or an identifier (for probabilities give one column for each class)",
    )


def class_suffixes(names: Sequence[str], wanted: str | Sequence[str] = "") -> tuple[str, ...]:
    """The classes in the names of columns: what a glob's star stands for, or what follows the common beginning.

    >>> class_suffixes(["p_a", "p_ab"], "p_*"), class_suffixes(["vote_a", "vote_ab"])
    (('a', 'ab'), ('a', 'ab'))
    """
    pattern = wanted if isinstance(wanted, str) else wanted[0] if len(wanted) == 1 else ""
    before, star, after = pattern.partition("*")
    if star and not any(sign in before + after for sign in "*?[,"):
        return tuple(name[len(before) : len(name) - len(after)] for name in names)
    common = os.path.commonprefix(list(names))  # noqa: RUF071 (of characters, as wanted here)
    cut = max(common.rfind(sign) for sign in "_.-: ") + 1
    return tuple(name[cut:] for name in names)
