"""The parts of a data set, and what a record says of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from likely.training.parts import RecordPart, split
from tests.training.toys import Rows, Toy, recorded


def test_documents_stay_whole_and_every_example_is_in_one_part() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 300)
    for seed in (0, 1):
        parts = split(groups, (0.2, 0.1), seed)
        assert sorted(i for part in parts for i in part) == list(range(300))
        documents = [set(groups[part].tolist()) for part in parts]
        assert [len(part) for part in documents] == [8, 4, 28]
        assert not documents[0] & documents[1]
        assert not documents[2] & (documents[0] | documents[1])
    assert split(groups, (0.2, 0.1), 0) != split(groups, (0.2, 0.1), 1)
    assert split(groups, (0.2, 0.1), 0) == split(groups, (0.2, 0.1), 0)
    with pytest.raises(ValueError, match="has 4 documents, too few for parts of 2, 2 and one to train on"):
        split(np.arange(4), (0.1, 0.1))


@pytest.mark.parametrize("keep", ["dense", "samples:3"])
def test_a_part_of_a_record_is_the_record_of_the_part(tmp_path: Path, keep: str) -> None:
    data, teacher = Rows(), Toy(seed=2)
    record = recorded(teacher, data, tmp_path / "record", keep)
    indices = [3, 17, 4, 9]
    part, view = data.subset(indices), RecordPart(record, data, indices)
    view.require_matches(data=part.fingerprint, tokenizer=None, classes=teacher.classes, temperature=1.0)
    assert view.row_counts.tolist() == part.row_counts.tolist()
    asked = [2, 0, 2]
    own, whole = view.target(asked), record.target([indices[i] for i in asked])
    for one, other in zip(own.tensors, whole.tensors):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]
    assert torch.equal(view.entropy(asked), record.entropy([4, 3, 4]))
    with pytest.raises(ValueError, match=r"are not the part of the record's examples"):
        view.require_matches(data=data.fingerprint)
    with pytest.raises(ValueError, match=r"data: the record in .* was taken on"):
        RecordPart(record, Rows(seed=1), indices)
