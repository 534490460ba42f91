"""Tables in and out: every format comes back as it was, and what is broken or foreign is refused in one line."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.data import as_table, natural_key, read_table, select_columns, write_table

FORMATS = [".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson", ".npz"]
TABLE: dict[str, Any] = {
    "x": np.array([0.1, -2.5e-300, 1e300, 1 / 3]),
    "n": np.array([1, -2, 3, 2**53], dtype=np.int64),
    "word": ["plain", 'with "quotes", commas', "two\nlines", "äöü €"],
    "flag": [True, False, True, True],
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    write_table(path, TABLE)
    back = read_table(path)
    assert back.column_names == list(TABLE)
    for name, values in TABLE.items():
        assert back[name].to_pylist() == list(values), name


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    which=st.sampled_from(FORMATS),
)
def test_floats_survive_every_format_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], which: str
) -> None:
    path = tmp_path_factory.mktemp("floats") / f"t{which}"
    write_table(path, {"x": np.array(values)})
    back = read_table(path)["x"].cast(pa.float64()).to_numpy()
    assert np.array_equal(back, np.array(values))


def test_large_csv_with_floats_after_integers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x\n" + "1\n" * 1_500_000 + "2.5\n")
    assert read_table(path)["x"][-1].as_py() == 2.5


def test_large_csv_with_lines_within_quotes(tmp_path: Path) -> None:
    text = "two\n" * 7 + "lines"
    (tmp_path / "t.csv").write_text("x,word\n" + f'1,"{text}"\n' * 100_000)
    table = read_table(tmp_path / "t.csv")
    assert table.num_rows == 100_000
    assert table["word"].unique().to_pylist() == [text]


def test_arrow_stream_is_read_as_well_as_arrow_file(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2]})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert read_table(tmp_path / "t.arrow").to_pydict() == {"x": [1, 2]}


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s not in (".csv", ".tsv")])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_table(path, {"x": np.arange(1000.0), "y": ["a"] * 1000})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=r"t\.\w+: cannot be read as .* cut short, or foreign"):
        read_table(path)


def test_a_csv_file_cut_within_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3")
    with pytest.raises(ValueError, match="cut short"):
        read_table(path)


FOREIGN = {
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
    "an archive": b"PK\x03\x04" + bytes(300),
    "text": b"Dear reader,\nthis is a letter, and no table,\nsincerely\n",
    "UTF-16": "a,b\n1,2\n".encode("utf-16"),
    "pickle": pickle.dumps({"x": [1, 2]}),
    "gzip": gzip.compress(b"a,b\n1,2\n"),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, suffix: str, kind: str) -> None:
    if (suffix, kind) == (".tsv", "text"):
        return  # lines without a tab are a table of one column
    path = tmp_path / f"t{suffix}"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ValueError, match=r"t\.\w+: ") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_and_an_empty_table_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_table(path)
    if suffix not in (".jsonl", ".ndjson"):  # which have no header, so that no row is an empty file
        write_table(path, {"x": np.zeros(0), "y": np.zeros(0)}, overwrite=True)
        with pytest.raises(ValueError, match="is empty; it has 2 columns but no row"):
            read_table(path)


def test_a_pickle_within_an_archive_is_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(ValueError, match=r"t\.npz: cannot be read"):
        read_table(tmp_path / "t.npz")


def test_arrays_and_lists_become_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.arange(24.0).reshape(2, 12), y=np.array(["a", "b"]))
    table = read_table(tmp_path / "t.npz")
    assert table.column_names == [*(f"x_{j}" for j in range(12)), "y"]
    assert table["x_11"].to_pylist() == [11.0, 23.0]
    (tmp_path / "t.jsonl").write_text('{"x": [1, 2], "y": "a"}\n{"x": [3, 4], "y": "b"}\n')
    assert read_table(tmp_path / "t.jsonl").to_pydict() == {"x_0": [1, 3], "x_1": [2, 4], "y": ["a", "b"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(2)}, "'y' has 2 rows, 'x' has 3"),
        ({"x": np.zeros((2, 2, 2))}, r"has shape \(2, 2, 2\)"),
        ({"x": np.zeros(2, dtype=complex)}, "'x'"),
        ({"x": [1, "a"]}, "'x': cannot be read"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_table(columns)


def test_ragged_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"x": [1, 2]}\n{"x": [3]}\n')
    with pytest.raises(ValueError, match="'x' holds lists of differing lengths"):
        read_table(tmp_path / "t.jsonl")


def test_the_index_that_pandas_writes_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5]}, index=[7, 9])
    frame.to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.csv").column_names == ["x"]
    assert read_table(tmp_path / "t.parquet").column_names == ["x"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="two columns are named 'a'"):
        read_table(tmp_path / "t.csv")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\ncafé,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="column 'a' is not UTF-8"):
        read_table(tmp_path / "t.csv")


def test_missing_values_of_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('x,word\n1,NA\n,""\nNA,"NA"\n')
    assert read_table(tmp_path / "t.csv").to_pydict() == {"x": [1, None, None], "word": [None, "", "NA"]}


def test_what_is_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: no such file"):
        read_table("nothing.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read_table("/")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"unknown suffix '\.xlsx'"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(ValueError, match="unknown suffix"):
        write_table(tmp_path / "out.pkl", TABLE)
    assert not (tmp_path / "out.pkl").exists()


def test_writing_does_not_overwrite_unasked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        write_table(path, TABLE)
    assert path.read_text() == "precious"
    write_table(path, TABLE, overwrite=True)
    assert read_table(path).num_rows == 4


def test_missing_values_are_refused_by_npz_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'word': has missing values"):
        write_table(tmp_path / "t.npz", {"word": ["a", None]})
    assert list(tmp_path.iterdir()) == []


def test_archive_members_may_have_any_name(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npz", {"file": np.ones(2), "self": np.zeros(2)})
    assert zipfile.ZipFile(tmp_path / "t.npz").namelist() == ["file.npy", "self.npy"]
    assert read_table(tmp_path / "t.npz").column_names == ["file", "self"]


class TestSelect:
    table = pa.table({name: [1] for name in ["age", "p_10", "p_2", "p_1", "a,b", "x[0]", "Income"]})

    def test_globs_are_in_natural_order_and_names_in_theirs(self) -> None:
        assert select_columns(self.table, "p_*") == ["p_1", "p_2", "p_10"]
        assert select_columns(self.table, "p_10, age,p_*") == ["p_10", "age", "p_1", "p_2"]
        assert select_columns(self.table, ["age", "p_?"]) == ["age", "p_1", "p_2"]

    def test_odd_names_are_names(self) -> None:
        assert select_columns(self.table, "a,b") == ["a,b"]
        assert select_columns(self.table, "x[0]") == ["x[0]"]

    def test_the_nearest_names_are_given(self) -> None:
        with pytest.raises(ValueError, match=r"features: there is no column 'aeg'; the nearest are 'age'"):
            select_columns(self.table, "aeg", "features")
        with pytest.raises(ValueError, match="the nearest are 'Income'"):
            select_columns(self.table, "INCOME")
        with pytest.raises(ValueError, match=r"no column matches 'q_\*'; the columns are 'age', 'p_10'"):
            select_columns(self.table, "q_*")
        with pytest.raises(ValueError, match="names no column"):
            select_columns(self.table, " , ")

    @given(st.lists(st.text("ab01-_", max_size=6), max_size=6))
    def test_natural_order_is_an_order(self, words: list[str]) -> None:
        backwards = words[::-1]
        assert sorted(backwards, key=natural_key) == sorted(words, key=natural_key)


class TestAsTable:
    def test_frames_and_mappings(self) -> None:
        frame = pd.DataFrame({"x": [1.0, None], "c": pd.Categorical(["u", "v"])}, index=[3, 4])
        table = as_table(frame)
        assert table["x"].to_pylist() == [1.0, None]
        assert as_table({"m": np.eye(2)}).column_names == ["m_0", "m_1"]
        assert as_table(table) == table

    def test_polars_and_whatever_speaks_arrow(self) -> None:
        polars = pytest.importorskip("polars")
        assert as_table(polars.DataFrame({"x": [1, 2]})).to_pydict() == {"x": [1, 2]}

    def test_an_array_needs_names(self) -> None:
        assert as_table(np.eye(2), ["a", "b"]).to_pydict() == {"a": [1.0, 0.0], "b": [0.0, 1.0]}
        with pytest.raises(ValueError, match="has no column names"):
            as_table(np.eye(2))
        with pytest.raises(ValueError, match=r"has shape \(2, 3\); give \(N, 2\)"):
            as_table(np.zeros((2, 3)), ["a", "b"])
        with pytest.raises(ValueError, match="has no row"):
            as_table(np.zeros((0, 2)), ["a", "b"])
        with pytest.raises(ValueError, match="not numbers"):
            as_table(np.array([["a", "b"]]), ["a", "b"])
