"""The encoder: what it learns from the training rows, what it refuses, and that it comes back from JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from likely.data import Encoder

TRAIN: dict[str, Any] = {
    "age": [20.0, 30.0, 40.0, 50.0],
    "sex": ["f", "m", "m", "f"],
    "smoker": [True, False, True, True],
}


def test_numbers_are_standardised_and_categories_are_not() -> None:
    encoder = Encoder.fit(TRAIN)
    x = encoder.transform(TRAIN)
    assert encoder.feature_names == ["age", "sex=f", "sex=m", "smoker=false", "smoker=true"]
    assert x.dtype == np.float64
    np.testing.assert_allclose(x[:, 0], (np.array(TRAIN["age"]) - 35) / np.std(TRAIN["age"]))
    np.testing.assert_array_equal(x[:, 1:], [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])


def test_the_scale_is_that_of_the_training_rows() -> None:
    encoder = Encoder.fit(TRAIN, "age")
    np.testing.assert_allclose(encoder.transform({"age": [35.0]}), [[0.0]])


def test_without_the_first_level() -> None:
    encoder = Encoder.fit(TRAIN, ["sex", "smoker"], drop_first=True)
    assert encoder.feature_names == ["sex=m", "smoker=true"]
    np.testing.assert_array_equal(encoder.transform(TRAIN), [[0, 1], [1, 0], [1, 1], [0, 1]])


def test_a_constant_column_is_only_centred() -> None:
    encoder = Encoder.fit({"x": [0.1, 0.1, 0.1], "y": [1, 2, 3]})
    np.testing.assert_array_equal(encoder.transform({"x": [0.1, 0.6], "y": [2, 2]})[:, 0], [0.0, 0.5])


def test_numbers_may_be_categories_whatever_their_type_is_later() -> None:
    encoder = Encoder.fit({"code": [10, 9, 2]}, categorical="code", standardise=False)
    assert encoder.feature_names == ["code=2", "code=9", "code=10"]
    for column in ([9.0, 2.0], ["9", "2"], pa.array([9, 2]).dictionary_encode()):
        np.testing.assert_array_equal(encoder.transform({"code": column}), [[0, 1, 0], [1, 0, 0]])


def test_dictionaries_and_pandas_categories_are_categories() -> None:
    frame = pd.DataFrame({"c": pd.Categorical(["b", "a"], categories=["b", "a", "unused"])})
    assert Encoder.fit(frame).feature_names == ["c=a", "c=b"]


def test_an_unseen_level_is_refused_or_none_of_the_known() -> None:
    encoder = Encoder.fit(TRAIN, "sex")
    with pytest.raises(ValueError, match=r"column 'sex': row 1 has the level 'x', which the model has never seen"):
        encoder.transform({"sex": ["f", "x"]})
    np.testing.assert_array_equal(encoder.transform({"sex": ["f", "x"]}, unseen="zero"), [[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="unseen: is 'ignore'"):
        encoder.transform({"sex": ["f"]}, unseen="ignore")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_numbers_are_refused_by_column_and_row(missing: float | None) -> None:
    with pytest.raises(ValueError, match=r"column 'age': row 2 is missing"):
        Encoder.fit({"age": [1.0, 2.0, missing]})
    encoder = Encoder.fit({"age": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"column 'age': row 1 is missing"):
        encoder.transform({"age": [1.0, missing]})


def test_missing_categories_are_refused_by_column_and_row() -> None:
    with pytest.raises(ValueError, match=r"column 'sex': row 1 is missing"):
        Encoder.fit({"sex": ["f", None]})
    with pytest.raises(ValueError, match=r"column 'sex': row 0 is missing"):
        Encoder.fit(TRAIN, "sex").transform({"sex": [None]})


@pytest.mark.parametrize(("how", "value"), [("mean", 13.0), ("median", 3.0)])
def test_missing_values_are_filled_with_those_of_the_training_rows(how: str, value: float) -> None:
    data = {"x": [1.0, 3.0, 35.0, None], "c": ["b", "a", "b", None]}
    encoder = Encoder.fit(data, impute=how, standardise=False)
    np.testing.assert_array_equal(encoder.transform(data), [[1, 0, 1], [3, 1, 0], [35, 0, 1], [value, 0, 1]])
    np.testing.assert_array_equal(encoder.transform({"x": [None], "c": [None]}), [[value, 0, 1]])


@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
def test_infinite_numbers_are_refused_even_when_imputing(infinite: float) -> None:
    with pytest.raises(ValueError, match=r"column 'x': row 1 is infinite"):
        Encoder.fit({"x": [1.0, infinite]}, impute="mean")
    with pytest.raises(ValueError, match=r"column 'x': row 0 is infinite"):
        Encoder.fit({"x": [1.0, 2.0]}).transform({"x": [infinite]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": [None, None]}, "column 'x': has no value in any row"),
        ({"t": pd.to_datetime(["2020-01-01", "2020-01-02"])}, "column 't': holds timestamp"),
        ({"id": [f"u{i}" for i in range(50)]}, "column 'id': has 50 levels in 50 rows"),
        ({"x": [1e308, -1e308, 1e308]}, "column 'x': its numbers are too large"),
    ],
)
def test_what_is_no_feature(data: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.fit(data)


def test_a_column_that_changed_its_kind() -> None:
    with pytest.raises(ValueError, match="column 'age': holds text, as 'old', where numbers were expected"):
        Encoder.fit(TRAIN, "age").transform({"age": ["old"]})


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"features: there is no column 'smoker'; the nearest are 'smokes'"):
        Encoder.fit(TRAIN).transform({"age": [1.0], "sex": ["f"], "smokes": [True]})


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="impute: is 'zero'"):
        Encoder.fit(TRAIN, impute="zero")
    with pytest.raises(ValueError, match="categorical: column 'age' is not among the features"):
        Encoder.fit(TRAIN, "sex", categorical="age")
    with pytest.raises(ValueError, match="features: none is left"):
        Encoder.fit({"c": ["a", "a"]}, drop_first=True)


def test_json_gives_it_back() -> None:
    encoder = Encoder.fit({**TRAIN, "age": [1 / 3, None, 1e30, -0.1]}, impute="median", drop_first=True)
    back = Encoder.from_dict(json.loads(json.dumps(encoder.to_dict(), allow_nan=False)))
    assert back == encoder
    np.testing.assert_array_equal(back.transform(TRAIN), encoder.transform(TRAIN))


def test_coefficients_of_raw_columns_say_the_same() -> None:
    encoder = Encoder.fit(TRAIN)
    weight, bias = np.random.default_rng(0).normal(size=(3, 5)), np.arange(3.0)
    raw, intercept = encoder.unscale(weight, bias)
    plain = Encoder.fit(TRAIN, standardise=False).transform(TRAIN)
    np.testing.assert_allclose(plain @ raw.T + intercept, encoder.transform(TRAIN) @ weight.T + bias, atol=1e-12)
