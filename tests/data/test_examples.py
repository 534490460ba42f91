"""Examples of one row each: texts to classify, files, pictures and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likely.data.examples import IGNORED, Examples, Labelled
from likely.data.files import PADDING
from likely.data.loading import load_examples


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS: list[dict[str, Any]] = [
    {"text": "fine", "mood": "good", "who": "ann"},
    {"text": "awful", "mood": "bad", "who": "bob"},
    {"text": "so so", "mood": None, "who": "ann"},
]


def test_texts_have_labels_groups_and_classes_in_order(tmp_path: Path) -> None:
    examples: Examples = load_examples(lines(tmp_path / "t.jsonl", ROWS), label="mood", group="who")
    batch = examples.batch([2, 0, 1])
    assert batch.inputs == {"text": ["so so", "fine", "awful"]}
    assert batch.labels.tolist() == [IGNORED, 1, 0]
    assert batch.example.tolist() == [2, 0, 1]
    assert batch.rows is None
    assert examples.classes == ("bad", "good")
    assert examples.groups.tolist() == [0, 1, 0]
    part = examples.subset([1, 2])
    assert part.batch([0]).labels.tolist() == [0]
    assert part.groups.tolist() == [1, 0]
    assert len(load_examples(tmp_path / "t.jsonl", label="mood", limit=2)) == 2


def test_a_networks_classes_may_be_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", ROWS)
    examples = load_examples(path, label="mood", classes=["good", "odd", "bad"])
    assert examples.batch([0, 1]).labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="column 'mood': row 1 is 'bad', no class; they are 'good', 'odd'"):
        load_examples(path, label="mood", classes=["good", "odd"])
    numbers = lines(tmp_path / "n.jsonl", [{"text": "a", "y": 1}, {"text": "b", "y": 0}])
    assert load_examples(numbers, label="y", classes=["good", "bad"]).batch([0, 1]).labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="row 0 is 1, no class"):
        load_examples(numbers, label="y", classes=["good"])


def test_a_fingerprint_is_of_what_is_read_and_not_of_the_labels(tmp_path: Path) -> None:
    own = load_examples(lines(tmp_path / "t.jsonl", ROWS), label="mood")
    relabelled = load_examples(lines(tmp_path / "r.jsonl", [row | {"mood": "bad"} for row in ROWS]), label="mood")
    other = load_examples(lines(tmp_path / "o.jsonl", [*ROWS[:2], {"text": "so  so"}]), label="mood")
    assert own.fingerprint == relabelled.fingerprint == own.subset([0, 1, 2]).fingerprint
    assert (
        len({own.fingerprint, other.fingerprint, own.subset([1, 0, 2]).fingerprint, own.subset([0, 1]).fingerprint})
        == 4
    )


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"text": "a"}, {"text": " \n"}], {}, "row 1 is empty"),
        ([{"text": "a"}, {"text": 3}], {"label": None}, "different kinds"),
        ([{"words": "a"}], {"kind": "text"}, "no column 'text'; the columns are 'words'"),
        (ROWS, {"label": "moot"}, "no column 'moot'"),
        ([{"text": "a", "who": None}], {"group": "who"}, "column 'who': is missing in some rows"),
        (ROWS, {"kind": "sound"}, "kind: is 'sound'"),
        (ROWS, {"limit": 0}, "limit: is 0"),
    ],
)
def test_texts_that_cannot_be_used_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(lines(tmp_path / "t.jsonl", rows), **more)


def folder(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_files_are_read_at_both_ends_with_their_folder_for_a_label(tmp_path: Path) -> None:
    long = bytes(range(10)) * 10
    root = folder(tmp_path / "d", {"c10/x.a": b"\x00ab", "c9/y.b": long, "c9/deep/z": b"q"})
    examples = load_examples(root, max_length=7)
    assert examples.classes == ("c9", "c10")
    batch = examples.batch([0, 1, 2])
    assert batch.labels.tolist() == [0, 0, 1]
    rows = [[one for one in row if one != PADDING] for row in batch.inputs["bytes"].tolist()]
    assert rows == [[ord("q")], [0, 1, 2, 3, 7, 8, 9], [0, ord("a"), ord("b")]]
    whole = load_examples(root, max_length=100)
    assert whole.batch([1]).inputs["bytes"].tolist() == [list(long)]
    assert load_examples(root, classes=["c10", "c9"]).batch([0]).labels.tolist() == [1]
    with pytest.raises(ValueError, match="the folder 'c10' is no class"):
        load_examples(root, classes=["c9"])
    folder(root, {"c9/none": b""})
    with pytest.raises(ValueError, match="c9/none: is empty"):
        load_examples(root)
    folder(root, {"loose": b"x"})
    with pytest.raises(ValueError, match="loose: lies in no folder of a class"):
        load_examples(root)


def test_files_may_be_listed_in_a_table(tmp_path: Path) -> None:
    folder(tmp_path, {"one.x": b"1", "two.x": b"22"})
    (tmp_path / "list.csv").write_text("path,kind\ntwo.x,b\none.x,a\n")
    examples = load_examples(tmp_path / "list.csv", kind="files", label="kind")
    assert examples.batch([0, 1]).inputs["bytes"].tolist() == [[50, 50], [49, PADDING]]
    assert examples.batch([0, 1]).labels.tolist() == [1, 0]
    (tmp_path / "list.csv").write_text("path,kind\ntwo.x,b\nthree.x,a\n")
    with pytest.raises(FileNotFoundError, match=r"row 1: .*three.x is no file"):
        load_examples(tmp_path / "list.csv", kind="files", label="kind")


def test_pictures_are_of_one_size_and_can_be_read(tmp_path: Path) -> None:
    from PIL import Image

    for name, size in {"a/1.png": (4, 6), "b/2.png": (4, 6), "b/3.png": (5, 5)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", size, 51).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"b/3.png: is 5 × 5 where a/1.png is 4 × 6; give a size"):
        load_examples(tmp_path)
    assert load_examples(tmp_path, size=3).batch([0, 2]).inputs["pixel_values"].shape == (2, 3, 3, 3)
    own = load_examples(tmp_path, limit=2)
    pixels = own.batch([0, 1]).inputs["pixel_values"]
    assert pixels.shape == (2, 3, 6, 4)
    np.testing.assert_allclose(pixels, 0.2, atol=1e-7)
    assert own.fingerprint != load_examples(tmp_path, limit=2, size=3).fingerprint
    (tmp_path / "b" / "3.png").write_bytes(b"\x89PNG cut short")
    with pytest.raises(ValueError, match=r"b/3.png: is no picture that can be read"):
        load_examples(tmp_path, size=3)


def test_a_tables_numbers_are_features_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,kind\n1,2.5,a\n3,4,b\n")
    examples = load_examples(tmp_path / "t.csv", label="kind")
    assert isinstance(examples, Labelled)
    assert examples.features == ("x", "y")
    assert examples.batch([1, 0]).inputs["features"].tolist() == [[3, 4], [1, 2.5]]
    (tmp_path / "w.csv").write_text("x,word,kind\n1,red,a\n3,blue,b\n")
    with pytest.raises(ValueError, match="column 'word': holds text"):
        load_examples(tmp_path / "w.csv", label="kind")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_examples(tmp_path / "absent.csv")
