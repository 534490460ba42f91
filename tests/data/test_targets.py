"""Targets in tables: labels of any type, and distributions; whatever is neither is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from likely.data import key_of, read_probabilities, read_target, read_weights
from likely.data.targets import class_suffixes, one_column


@pytest.mark.parametrize(
    ("column", "classes", "keys"),
    [
        (["b", "a10", "a9", "b"], ("a9", "a10", "b"), ("a9", "a10", "b")),
        ([10, -1, 9, 10], (-1, 9, 10), ("-1", "9", "10")),
        ([0.0, 1.0, 0.5, 1.0], (0.0, 0.5, 1.0), ("0", "0.5", "1")),
        ([True, False, True], (False, True), ("false", "true")),
        (pa.array(["u", "v", "u"]).dictionary_encode(), ("u", "v"), ("u", "v")),
    ],
)
def test_labels_keep_their_types(column: Any, classes: tuple[Any, ...], keys: tuple[str, ...]) -> None:
    target = read_target(pa.table({"y": column}), "y")
    assert target.classes == classes
    assert [type(one) for one in target.classes] == [type(one) for one in classes]
    assert target.keys == keys == tuple(key_of(one) for one in classes)
    assert target.index_N is not None
    values = pa.table({"y": column})["y"].to_pylist()
    assert [target.classes[i] for i in target.index_N] == values


def test_probabilities_take_their_classes_from_their_names() -> None:
    table = pa.table({"p_10": [0.25, 0.0], "p_2": [0.75, 1.0]})
    target = read_target(table, "p_*")
    assert target.classes == ("2", "10")
    np.testing.assert_array_equal(target.distribution(), [[0.75, 0.25], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("names", "wanted", "classes"),
    [
        (["p_a", "p_ab"], "p_*", ("a", "ab")),
        (["a_share", "b_share"], "*_share", ("a", "b")),
        (["vote.x", "vote.y"], "vote.x,vote.y", ("x", "y")),
        (["low", "high"], ["low", "high"], ("low", "high")),
        (["p_new_a", "p_new_b"], "p_*", ("new_a", "new_b")),
        (["p1", "p2"], "p?", ("p1", "p2")),
    ],
)
def test_classes_in_the_names_of_columns(names: list[str], wanted: Any, classes: tuple[str, ...]) -> None:
    assert class_suffixes(names, wanted) == classes


def test_a_target_is_read_in_the_order_of_a_models_classes() -> None:
    table = pa.table({"y": ["b", "c"], "p_a": [0.1, 0.2], "p_b": [0.9, 0.8]})
    assert read_target(table, "y", ["c", "b", "a"]).index_N.tolist() == [1, 0]  # type: ignore[union-attr]
    p, names = read_probabilities(table, "p_*", ["b", "a"])
    assert names == ("b", "a")
    np.testing.assert_array_equal(p, [[0.9, 0.1], [0.8, 0.2]])


def test_labels_match_classes_of_another_type_by_their_text() -> None:
    assert read_target(pa.table({"y": [1.0, 0.0]}), "y", ["0", "1"]).index_N.tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"y": ["a", None, "b"]}, "y", r"target 'y': row 1 is missing"),
        ({"y": [1.0, float("nan")]}, "y", r"target 'y': row 1 is missing"),
        ({"y": ["a", "a"]}, "y", r"target 'y': every row is 'a'; a classifier needs two classes"),
        ({"y": list(np.linspace(0, 1, 99))}, "y", r"target 'y': has 99 different values in 99 rows"),
        ({"y": [[1], [2]]}, "z", r"target: there is no column 'z'"),
        ({"p_a": [1.0]}, "p_*,q", r"target: there is no column 'q'"),
        ({"p_a": [0.5, 0.5, 0.3], "p_b": [0.5, 0.6, 0.9]}, "p_*", r"target: row 2 sums to 1\.2, not 1"),
        ({"p_a": [0.5, -0.5], "p_b": [0.5, 1.5]}, "p_*", r"target: row 1 holds the negative value -0\.5"),
        ({"p_a": [0.5, None], "p_b": [0.5, 1.0]}, "p_*", r"target: column 'p_a': row 1 is missing"),
        ({"p_a": [0.5, float("inf")], "p_b": [0.5, 1.0]}, "p_*", r"target: row 1 holds an infinite value"),
        ({"p_a": ["x", "y"], "p_b": [0.5, 1.0]}, "p_*", r"target: column 'p_a' holds string"),
    ],
)
def test_what_is_no_target(columns: dict[str, Any], wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_target(pa.table(columns), wanted)


def test_what_fits_no_model() -> None:
    table = pa.table({"y": ["a", "z"], "p_a": [0.5, 1.0], "p_b": [0.5, 0.0]})
    with pytest.raises(ValueError, match=r"target 'y': row 1 is 'z', which is no class; the classes are 'a', 'b'"):
        read_target(table, "y", ["a", "b"])
    with pytest.raises(ValueError, match="column 'p_b' is of no class"):
        read_probabilities(table, "p_*", ["a", "c"])
    with pytest.raises(ValueError, match="no column for the class 'c'"):
        read_probabilities(table, "p_*", ["a", "b", "c"])
    with pytest.raises(ValueError, match="is one column"):
        read_probabilities(table, "p_a")


def test_rounded_numbers_are_divided_by_their_sum_and_exact_ones_left_alone() -> None:
    p, _ = read_probabilities(pa.table({"p_a": [0.333333, 0.25], "p_b": [0.666666, 0.75]}), "p_*")
    assert abs(p[0].sum() - 1) < 1e-15
    np.testing.assert_array_equal(p[1], [0.25, 0.75])


def test_smoothing_is_for_labels() -> None:
    table = pa.table({"y": [0, 1], "p_a": [0.5, 1.0], "p_b": [0.5, 0.0]})
    assert read_target(table, "y").target(0.1).classes == 2
    with pytest.raises(ValueError, match="label_smoothing: is for labels"):
        read_target(table, "p_*").target(0.1)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, -1.0], r"weight: column 'w': row 1 is -1"),
        ([1.0, None], r"weight: column 'w': row 1 is nan"),
        ([1.0, float("inf")], r"row 1 is inf"),
        ([0.0, 0.0], r"is 0 in every row"),
        (["a", "b"], r"holds string"),
    ],
)
def test_weights_are_finite_and_at_least_zero(column: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights(pa.table({"w": column}), "w")


def test_one_column_is_one() -> None:
    with pytest.raises(ValueError, match=r"groups: 'p_\*' means 2 columns"):
        one_column(pa.table({"p_a": [1], "p_b": [1]}), "p_*", "groups")
