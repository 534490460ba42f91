"""From the columns of a table to the numbers of a model: one-hot categories, imputed values, standardised columns.

Shapes: N rows, D features (columns of the matrix), of which one column of the table may give several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from likely._checks import require
from likely.data.tables import as_table, column, first_row, is_number, is_text, keys, natural_key, select_columns

IMPUTE = ("mean", "median")


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers: `(x − mean) / scale`, with `fill` in the place of a missing value (None: refused)."""

    name: str
    mean: float = 0.0
    scale: float = 1.0
    fill: float | None = None

    @property
    def feature_names(self) -> list[str]:
        return [self.name]

    def transform(self, table: pa.Table, unseen: str) -> np.ndarray:
        x_N = _numbers(column(table, self.name), self.name)
        x_N = _filled(x_N, self.fill, self.name)
        row = first_row(np.isinf(x_N))
        require(row is None, f"column {self.name!r}: row {row} is infinite; correct it or leave the row out")
        return ((x_N - self.mean) / self.scale)[:, None]


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of categories: one feature a level, 1 where the row has it; with `drop_first` none for the first level.

    `fill` is the level that stands for a missing value (None: refused).
    """

    name: str
    levels: tuple[str, ...]
    fill: str | None = None
    drop_first: bool = False

    @property
    def feature_names(self) -> list[str]:
        return [f"{self.name}={level}" for level in self.levels[self.drop_first :]]

    def transform(self, table: pa.Table, unseen: str) -> np.ndarray:
        text = keys(column(table, self.name), self.name)
        if text.null_count and self.fill is None:
            raise ValueError(_missing(self.name, first_row(text.is_null())))
        text = text.fill_null(self.fill) if self.fill is not None else text
        level = pc.index_in(text, value_set=pa.array(self.levels, pa.string()))
        row = first_row(level.is_null())
        if row is not None and unseen == "error":
            raise ValueError(
                f"column {self.name!r}: row {row} has the level {text[row].as_py()!r}, which the model has never seen; "
                "it is refused unless unseen levels are asked to count as none of the known ones"
            )
        index_N = level.fill_null(-1).to_numpy(zero_copy_only=False)
        return (index_N[:, None] == np.arange(self.drop_first, len(self.levels))).astype(np.float64)


@dataclass(frozen=True)
class Encoder:
    """What turns a table into the (N, D) matrix that a model sees, learnt from the training rows and saved with it.

    Numbers are standardised with the mean and the standard deviation of the training rows (a constant column is only
    centred), if that was asked for; categories become one column a level and are not standardised. A maximum
    likelihood fit is the same with and without standardisation, a penalised one is not: the penalty then weighs the
    coefficients of columns of unit spread.

    >>> encoder = Encoder.fit({"age": [20, 40], "sex": ["f", "m"]}, standardise=False)
    >>> encoder.feature_names
    ['age', 'sex=f', 'sex=m']
    >>> encoder.transform({"age": [30], "sex": ["m"]})
    array([[30.,  0.,  1.]])
    """

    columns: tuple[NumericColumn | CategoricalColumn, ...]

    @classmethod
    def fit(
        cls,
        data: Any,
        features: Sequence[str] | str | None = None,
        *,
        categorical: Sequence[str] | str = (),
        impute: str | None = None,
        standardise: bool = True,
        drop_first: bool = False,
    ) -> Encoder:
        """Learn the columns, their levels, the values to impute, and the means and scales from the training rows.

        Args:
            data: anything that `as_table` reads.
            features: names and globs, all columns by default.
            categorical: those that are categories although they are numbers; text and booleans always are.
            impute: None refuses missing values; "mean" and "median" fill numbers, and both fill a category with the
                most frequent level. The value is that of the training rows, also for the rows of a later table.
            standardise: divide numbers by their standard deviation, once they are centred.
            drop_first: no feature for the first level of a category, so that its coefficients are contrasts to it and
                a maximum likelihood estimate is unique.

        Raises: ValueError naming the column and the row, for missing values (without `impute`), infinite ones, and
            columns that are neither numbers nor categories.
        """
        require(impute in (None, *IMPUTE), f"impute: is {impute!r}; it is 'mean' or 'median'")
        table = as_table(data)
        names = table.column_names if features is None else select_columns(table, features, "features")
        chosen = select_columns(table, categorical, "categorical") if categorical else []
        for name in chosen:
            require(name in names, f"categorical: column {name!r} is not among the features")
        columns: list[NumericColumn | CategoricalColumn] = []
        for name in names:
            array = column(table, name)
            require(
                array.null_count < len(array),
                f"column {name!r}: has no value in any row; leave it out of the features",
            )
            if name in chosen or is_text(array.type) or pa.types.is_boolean(array.type):
                columns.append(_fit_categorical(array, name, impute, drop_first))
            else:
                columns.append(_fit_numeric(array, name, impute, standardise))
        encoder = cls(tuple(columns))
        require(bool(encoder.feature_names), "features: none is left; the only category has a single level")
        return encoder

    @property
    def names(self) -> list[str]:
        """The columns of the table that are read."""
        return [one.name for one in self.columns]

    @property
    def feature_names(self) -> list[str]:
        """The D columns of the matrix: a number's own name, `column=level` for a category."""
        return [name for one in self.columns for name in one.feature_names]

    def transform(self, data: Any, unseen: str = "error") -> np.ndarray:
        """The (N, D) matrix of float64 for anything that `as_table` reads; an array has the columns `names`.

        `unseen="zero"` makes a level that was not among the training rows a row of zeros: none of the known levels, or
        with `drop_first` the same as the first one. The default refuses it, since no data speak for either.

        Raises: ValueError naming the column and the row, as `fit`; for missing columns, the nearest names.
        """
        require(unseen in ("error", "zero"), f"unseen: is {unseen!r}; it is 'error' or 'zero'")
        table = as_table(data, self.names)
        select_columns(table, self.names, "features")
        return np.concatenate([one.transform(table, unseen) for one in self.columns], axis=1)

    def unscale(self, weight_CD: np.ndarray, bias_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coefficients and intercepts of the raw columns that say the same as those of the standardised ones."""
        ones = [(one.mean, one.scale) if isinstance(one, NumericColumn) else None for one in self.columns]
        spread = [pair or (0.0, 1.0) for pair, one in zip(ones, self.columns) for _ in one.feature_names]
        mean_D, scale_D = np.array(spread, dtype=np.float64).reshape(-1, 2).T
        raw_CD = weight_CD / scale_D
        return raw_CD, bias_C - raw_CD @ mean_D

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, for JSON."""
        kinds = {NumericColumn: "numeric", CategoricalColumn: "categorical"}
        return {"columns": [{"kind": kinds[type(one)], **asdict(one)} for one in self.columns]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Encoder:
        """The encoder that `to_dict` described.

        >>> encoder = Encoder.fit({"age": [20, 40], "sex": ["f", "m"]})
        >>> Encoder.from_dict(encoder.to_dict()) == encoder
        True
        """
        columns: list[NumericColumn | CategoricalColumn] = []
        for one in saved["columns"]:
            fields = {key: value for key, value in one.items() if key != "kind"}
            if one["kind"] == "numeric":
                columns.append(NumericColumn(**fields))
            else:
                columns.append(CategoricalColumn(**{**fields, "levels": tuple(fields["levels"])}))
        return cls(tuple(columns))


def _fit_numeric(array: pa.Array, name: str, impute: str | None, standardise: bool) -> NumericColumn:
    x_N = _numbers(array, name)
    row = first_row(np.isinf(x_N))
    require(row is None, f"column {name!r}: row {row} is infinite; correct it or leave the row out")
    known = x_N[~np.isnan(x_N)]
    fill = None if impute is None else float(np.mean(known) if impute == "mean" else np.median(known))
    x_N = _filled(x_N, fill, name)
    if not standardise:
        return NumericColumn(name, fill=fill)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(np.mean(x_N)), float(np.std(x_N))
    # A constant column has no spread but rounding; dividing by that would blow it up.
    constant = float(np.min(x_N)) == float(np.max(x_N))
    require(np.isfinite(mean + scale), f"column {name!r}: its numbers are too large to standardise; rescale them")
    return NumericColumn(name, float(x_N[0]) if constant else mean, 1.0 if constant or scale == 0 else scale, fill)


def _fit_categorical(array: pa.Array, name: str, impute: str | None, drop_first: bool) -> CategoricalColumn:
    text = keys(array, name)
    if text.null_count and impute is None:
        raise ValueError(_missing(name, first_row(text.is_null())))
    levels = sorted_keys(array, name)
    require(
        len(levels) <= max(20, len(array) // 2),
        f"column {name!r}: has {len(levels)} levels in {len(array)} rows; categories repeat, this is text or an "
        "identifier; leave it out of the features",
    )
    most = None
    if impute is not None:
        counts = {pair["values"]: pair["counts"] for pair in text.drop_null().value_counts().to_pylist()}
        most = max(levels, key=lambda level: counts[level])
    return CategoricalColumn(name, tuple(levels), most, drop_first)


def sorted_keys(array: pa.Array, name: str) -> list[str]:
    """The distinct values of a column as text, numbers in their order and text in natural order; missing ones left out.

    >>> sorted_keys(pa.array([10, 9, -1]), "x"), sorted_keys(pa.array(["b10", "b9", None]), "x")
    (['-1', '9', '10'], ['b9', 'b10'])
    """
    distinct = pc.unique(array.drop_null())
    if is_number(array.type):
        distinct = distinct.take(pc.sort_indices(distinct))
        return list(dict.fromkeys(keys(distinct, name).to_pylist()))
    return sorted(keys(distinct, name).to_pylist(), key=natural_key)


def _numbers(array: pa.Array, name: str) -> np.ndarray:
    """A column as float64, missing values as NaN."""
    if is_text(array.type):
        known = array.drop_null()
        example = f", as {known[0].as_py()!r}" if len(known) else ""
        raise ValueError(f"column {name!r}: holds text{example}, where numbers were expected")
    require(
        is_number(array.type) or pa.types.is_boolean(array.type) or pa.types.is_null(array.type),
        f"column {name!r}: holds {array.type}, which is neither a number nor a category; leave it out of the features",
    )
    return array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


def _filled(x_N: np.ndarray, fill: float | None, name: str) -> np.ndarray:
    row = first_row(np.isnan(x_N))
    if row is None:
        return x_N
    if fill is None:
        raise ValueError(_missing(name, row))
    return np.where(np.isnan(x_N), fill, x_N)


def _missing(name: str, row: int | None) -> str:
    return f"column {name!r}: row {row} is missing (empty or NaN); fill it, leave the row out, or fit with impute"
