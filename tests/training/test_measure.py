"""What a network makes of every row: against formulas over the whole logits, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import likely
from likely.data.examples import IGNORED
from likely.heads import Head
from likely.training import measure as module
from likely.training.measure import BOUND, ESTIMATED, EXACT, measure
from tests.training.toys import CLASSES, Rows, Toy, recorded


def whole(network: Toy, data: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data.batch(range(len(data)))
    return network.head(batch).logits().detach(), batch.labels


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_numbers_of_a_row_are_their_formulas(temperature: float) -> None:
    data, student, teacher = Rows(), Toy(seed=1, dropout=0.5), Toy(hidden=12, seed=2)
    (z, y), (t, _) = whole(student, data), whole(teacher, data)
    log_q, log_p = ((x / temperature).log_softmax(dim=-1) for x in (z, t))
    p = log_p.exp()
    labelled = y != IGNORED
    for batch_size in (1, 7, 100):
        found = measure(student, data, teacher=teacher, batch_size=batch_size, temperature=temperature)
        for name, expected in (
            ("cross_entropy", -(p * log_q).sum(-1)),
            ("entropy", -(p * log_p).sum(-1)),
            ("kl", (p * (log_p - log_q)).sum(-1)),
            ("confidence", z.softmax(-1).amax(-1)),
            ("nll", torch.nn.functional.cross_entropy(z[labelled], y[labelled], reduction="none")),
        ):
            np.testing.assert_allclose(getattr(found, name), expected.numpy(), rtol=1e-12, atol=1e-14, err_msg=name)
        assert found.cross_entropy is not None
        assert found.entropy is not None
        assert found.kl is not None
        assert (found.cross_entropy == found.entropy + found.kl).all()
        assert found.agreement is not None
        assert (found.agreement == (z.argmax(-1) == t.argmax(-1)).numpy()).all()
        assert (found.correct == (z.argmax(-1) == y)[labelled].numpy()).all()
        assert (found.labelled == labelled.numpy()).all()
        assert (found.example == np.repeat(np.arange(len(data)), data.row_counts)).all()
        assert (found.group == data.groups[found.example]).all()
        assert (found.fidelity, found.teacher, found.is_teacher) == (EXACT, teacher.identity.sha256, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_teacher_is_at_no_distance_from_itself(dtype: torch.dtype) -> None:
    data, teacher = Rows(), Toy(seed=3, dtype=dtype)
    for other in (teacher, Toy(seed=3, dtype=dtype)):
        found = measure(teacher, data, teacher=other)
        assert found.kl is not None
        assert found.agreement is not None
        assert found.entropy is not None
        assert (found.kl == 0).all()
        assert (found.entropy > 0).all()
        assert found.agreement.all()
        assert found.is_teacher


def test_a_record_gives_what_it_knows(tmp_path: Path) -> None:
    data, student, teacher = Rows(E=60), Toy(seed=1), Toy(hidden=12, seed=2)
    live = measure(student, data, teacher=teacher)
    assert live.kl is not None
    assert live.entropy is not None

    def read(keep: str) -> Any:
        found = measure(student, data, teacher=recorded(teacher, data, tmp_path / keep, keep))
        assert (found.teacher, found.record) == (live.teacher, keep)
        return found

    dense, top, samples, hybrid = map(read, ("dense", "top:2+tail", "samples:300", "hybrid:2+200"))
    assert [one.fidelity for one in (dense, top, samples, hybrid)] == [EXACT, BOUND, ESTIMATED, ESTIMATED]
    np.testing.assert_allclose(dense.kl, live.kl, atol=2e-6)
    assert (top.kl < live.kl + 1e-6).all()
    assert (top.kl < live.kl - 1e-3).any()
    for one in (samples, hybrid):
        np.testing.assert_allclose(one.entropy, live.entropy, atol=1e-6)
        error = likely.measures.estimate(one.kl - live.kl)
        assert abs(error.mean) < 4 * error.standard_error
    for one in (dense, top, hybrid):
        assert (one.teacher_prediction == live.teacher_prediction).all()
    assert samples.agreement is None  # draws do not say which class is the largest


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    data, teacher = Rows(), Toy(seed=2)
    record = recorded(teacher, data, tmp_path / "r", "top:2", temperature=2.0)
    with pytest.raises(ValueError, match="data: the record"):
        measure(teacher, Rows(seed=5), teacher=record, temperature=2.0)
    with pytest.raises(ValueError, match="temperature: the record"):
        measure(teacher, data, teacher=record)


def test_rows_without_labels_are_measured_against_the_teacher_alone() -> None:
    data = Rows(ignored=1.0)
    found = measure(Toy(seed=1), data, teacher=Toy(seed=2), batch_size=3)
    assert found.kl is not None
    assert found.entropy is not None
    assert len(found) == len(found.kl) == data.row_counts.sum()
    assert len(found.nll) == len(found.correct) == 0
    assert all(np.isfinite(column).all() for column in (found.kl, found.entropy, found.confidence))


def test_no_rows_are_an_answer() -> None:
    data = Rows(E=4)
    data.row_counts = np.zeros(4, dtype=np.int64)
    for teacher in (None, Toy(seed=2)):
        found = measure(Toy(seed=1), data, teacher=teacher)
        assert len(found) == len(found.nll) == len(found.correct) == 0
        assert (found.kl is None) == (teacher is None)


@pytest.mark.parametrize("whose", ["network", "teacher"])
def test_nan_is_named_with_its_example_and_row(whose: str) -> None:
    data = Rows()
    example = int(np.flatnonzero(data.row_counts > 1)[1])
    student, teacher = Toy(seed=1), Toy(seed=2)
    network = student if whose == "network" else teacher
    plain = network.head

    def head(batch: Any) -> Head:
        z = plain(batch).logits().detach()
        z[np.flatnonzero(batch.example == example)[1:2]] = torch.nan
        return likely.Logits(z)

    network.head = head  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"the {whose} gives NaN .* at example {example}, row 1 of it"):
        measure(student, data, teacher=teacher, batch_size=6)


def test_an_impossible_class_costs_infinity_and_not_nan() -> None:
    data, student = Rows(ignored=0.0), Toy(seed=1)
    student.head = lambda batch: likely.Logits(  # type: ignore[assignment,method-assign]
        torch.tensor([0.0, 0.0, 0.0, 0.0, -math.inf]).repeat(len(batch.labels), 1)
    )
    found = measure(student, data, teacher=Toy(seed=2))
    assert found.kl is not None
    assert np.isposinf(found.kl).all()
    assert (np.isposinf(found.nll) == (found.label == 4)).all()
    np.testing.assert_allclose(found.confidence, 0.25)


def test_networks_are_left_as_they_were_found() -> None:
    data, student, teacher = Rows(), Toy(seed=1, dropout=0.5), Toy(seed=2, dropout=0.5)
    student.module.train()
    first, second = (measure(student, data, teacher=teacher) for _ in range(2))
    assert student.module.training
    assert student.module["body"][3].training
    assert not teacher.module.training
    assert (first.nll == second.nll).all()  # no dropout while it was measured


def test_the_largest_is_found_a_block_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(103, 50)
    formed: list[int] = []
    plain = likely.Linear.logits

    def logits(self: likely.Linear, rows: slice = slice(None), out: torch.Tensor | None = None) -> torch.Tensor:
        formed.append(len(range(*rows.indices(self.rows))))
        return plain(self, rows, out)

    monkeypatch.setattr(likely.Linear, "logits", logits)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 50 * 4 * 10)
    at, confidence = module._largest(likely.Linear(torch.eye(50)[torch.arange(103) % 50] * 3, z[:50]))
    assert formed == [10] * 10 + [3]
    expected = (3 * z[:50].T)[torch.arange(103) % 50].softmax(dim=-1)
    assert (at == expected.argmax(dim=-1)).all()
    np.testing.assert_allclose(confidence, expected.amax(dim=-1), rtol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    data = Rows()
    other = Toy(seed=2)
    other.classes = CLASSES[::-1]
    with pytest.raises(ValueError, match=r"teacher: class 0 is .* in another order"):
        measure(Toy(seed=1), data, teacher=other)
    with pytest.raises(ValueError, match=r"network: class 0 is .* in another order"):
        measure(other, data)
    with pytest.raises(ValueError, match="batch_size: is 0"):
        measure(Toy(seed=1), data, batch_size=0)
    few = SimpleNamespace(**{**vars(Toy(seed=1)), "max_length": None, "identity": other.identity})
    few.head = lambda batch: likely.Logits(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="gives 1 rows of 5 classes"):
        measure(few, data)  # type: ignore[arg-type]
