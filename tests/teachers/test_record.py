"""A record as a target: rows that sum to one, an unbiased gradient where it is promised, and no other data's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import likely
from likely.heads import Logits
from likely.networks import Identity
from likely.targets import Target
from likely.teachers import record as recording
from likely.teachers.capture import capture
from likely.teachers.keep import Keep, Rows
from likely.teachers.record import Record
from likely.teachers.store import Manifest, Writer
from tests.teachers.teaching import Pieces, Teacher

COUNTS = np.array([3, 0, 2, 5, 1, 0, 4, 1, 1])
KINDS = ["dense", "top:3", "top:3+tail", "samples:7", "hybrid:3+5"]
TAIL = {"top:3": "renormalise", "top:3+tail": "uniform"}
C = 40


def taken(folder: Path, text: str, counts: np.ndarray = COUNTS, temperature: float = 1.0, scale: float = 1.0) -> Record:
    teacher = Teacher(C, scale=scale)
    return capture(teacher, Pieces(counts), text, folder, temperature=temperature, shard_rows=4, seed=1)


def measure(target: Target, temperature: float = 1.0) -> torch.Tensor:
    """The measure over all classes, (N, C), from its gradient at equal logits."""
    z_NC = torch.zeros(target.rows, C, dtype=torch.float64, requires_grad=True)
    score = likely.nll(Logits(z_NC), target, temperature=temperature)
    (gradient_NC,) = torch.autograd.grad(score.cross_entropy.sum() * temperature, z_NC)
    return 1 / C - gradient_NC


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("text", KINDS)
def test_rows_sum_to_one(tmp_path: Path, text: str, scale: float) -> None:
    record = taken(tmp_path, text, scale=scale)
    target = record.target(range(len(COUNTS)), tail=TAIL.get(text))
    mu_NC = measure(target)
    tolerance = 1e-6 if text == "dense" else 1e-14
    torch.testing.assert_close(mu_NC.sum(-1), torch.ones(len(mu_NC)).double(), rtol=0, atol=tolerance)
    assert float(mu_NC.min()) > -1e-14
    assert target.classes == C


@pytest.mark.parametrize("text", ["dense", "top:3+tail", "hybrid:3+5"])
def test_what_is_kept_exactly_is_the_teacher_s(tmp_path: Path, text: str) -> None:
    record = taken(tmp_path, text, temperature=2.0)
    p_NC = Teacher(C).probabilities(Pieces(COUNTS), 2.0)
    mu_NC = measure(record.target(range(len(COUNTS)), tail=TAIL.get(text)), 2.0)
    top_NK = p_NC.topk(C if text == "dense" else 3).indices
    torch.testing.assert_close(
        mu_NC.gather(-1, top_NK), p_NC.gather(-1, top_NK), rtol=1e-5 if text == "dense" else 2e-3, atol=1e-7
    )
    if text != "dense":
        rest_N = 1 - p_NC.gather(-1, top_NK).sum(-1)
        torch.testing.assert_close(1 - mu_NC.gather(-1, top_NK).sum(-1), rest_N, rtol=1e-5, atol=0)


@pytest.mark.parametrize("text", KINDS)
def test_rows_come_in_the_order_of_the_indices(tmp_path: Path, text: str) -> None:
    record = taken(tmp_path, text)
    assert len(record.manifest.shards) > 2
    whole_NC, entropy_N = measure(record.target(range(9), tail=TAIL.get(text))), record.entropy(range(9))
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    for indices in ([8, 3, 0, 1, 3, 6], [7, 3, 8], [6], [2, 2], [1]):
        at = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        some = record.target(indices, tail=TAIL.get(text))
        assert some.rows == len(at)
        assert torch.equal(record.entropy(indices), entropy_N[at])
        if len(at):
            torch.testing.assert_close(measure(some), whole_NC[at], rtol=0, atol=1e-15)


@pytest.mark.parametrize("text", ["samples:3", "samples:12", "hybrid:2+1", "hybrid:4+3"])
def test_draws_are_unbiased_and_so_is_the_gradient(tmp_path: Path, text: str) -> None:
    """The mean over many records of one row is p, and of a student's gradients q − p, within five standard errors."""
    draws, teacher = 8000, Teacher(C)
    examples = Pieces(np.array([draws]))
    examples.x_ND[:] = examples.x_ND[0].clone()  # one row again and again, drawn of anew each time
    record = capture(teacher, examples, text, tmp_path, shard_rows=10_000)
    p_C = teacher.probabilities(examples)[0]
    mu_NC = measure(record.target([0]))
    error_C = mu_NC.std(0) / draws**0.5
    # float16 of the exact ones; and of a class that is never drawn, what five standard errors of none are
    slack_C = p_C * p_C.log().abs() / 2048 * 1.1 + 5 * (p_C / draws / 3).sqrt() * (error_C == 0)
    assert ((mu_NC.mean(0) - p_C).abs() <= 5 * error_C + slack_C).all()
    z_NC = torch.linspace(-1, 1, C, dtype=torch.float64).expand(draws, C).clone().requires_grad_()
    loss, _ = likely.objective(Logits(z_NC), [likely.Term(record.target([0]))])
    (gradient_NC,) = torch.autograd.grad(loss, z_NC)
    exact_C = torch.softmax(z_NC[0].detach(), -1) - p_C
    assert ((gradient_NC.sum(0) - exact_C).abs() <= 5 * error_C + slack_C).all()
    assert float((mu_NC[0] - p_C).abs().max()) > 0.01, "one record alone is no distribution of the teacher's"


def test_the_divergence_of_the_teacher_from_itself_is_0_on_average(tmp_path: Path) -> None:
    """Because the entropy is the teacher's own, and not that of the counts."""
    teacher, examples = Teacher(C, dtype=torch.float64), Pieces(np.full(50, 40))
    for text in ("samples:7", "hybrid:3+5"):
        record = capture(teacher, examples, text, tmp_path / text)
        score = likely.nll(teacher.head(examples.batch(range(50))), record.target(range(50)))
        kl = score.estimate().kl
        assert kl is not None
        assert abs(kl.mean) < 5 * kl.standard_error
        torch.testing.assert_close(score.entropy.float(), record.entropy(range(50)))


def test_truncation_has_the_fixed_point_of_its_tail(tmp_path: Path) -> None:
    """Where the gradient is 0 a student has p / P on the kept classes, and none elsewhere; the bucket gives p."""
    record, examples = taken(tmp_path, "top:3+tail"), Pieces(COUNTS)
    p_NC = Teacher(C).probabilities(examples)
    top_NK = p_NC.topk(3).indices
    kept_NC = torch.zeros_like(p_NC).scatter(-1, top_NK, p_NC.gather(-1, top_NK))
    fixed_NC = kept_NC / kept_NC.sum(-1, keepdim=True)
    mu_NC = measure(record.target(range(9), tail="renormalise"))
    torch.testing.assert_close(mu_NC, fixed_NC, rtol=2e-3, atol=1e-7)
    assert float((mu_NC - p_NC).max()) > 0.01, "which is biased"
    z_NC = p_NC.log().requires_grad_()
    score = likely.nll(Logits(z_NC), record.target(range(9), tail="bucket"))
    (gradient_NC,) = torch.autograd.grad(score.cross_entropy.sum(), z_NC)
    assert float(gradient_NC.abs().max()) < 1e-3


def test_a_dense_record_serves_at_any_temperature(tmp_path: Path) -> None:
    record = taken(tmp_path, "dense", temperature=3.0)
    for temperature in (1.0, 3.0, 5.0):
        p_NC = Teacher(C).probabilities(Pieces(COUNTS), temperature)
        for examples in (9, 3):  # all of them, and those of a single shard, which stays as it was read
            some_NC = measure(record.target(range(examples)), temperature)
            torch.testing.assert_close(some_NC, p_NC[: len(some_NC)], rtol=1e-4, atol=1e-7)
        record.require_matches(temperature=temperature)


@pytest.mark.parametrize("text", KINDS[1:])
def test_another_temperature_is_refused(tmp_path: Path, text: str) -> None:
    record = taken(tmp_path, text, temperature=3.0)
    with pytest.raises(ValueError, match=r"temperature: the record in .* was taken at 3 and cannot be had at 1"):
        record.require_matches(temperature=1.0)
    target = record.target([0], tail=TAIL.get(text))
    with pytest.raises(ValueError, match="taken at temperature 3"):
        likely.nll(Logits(torch.zeros(3, C)), target)
    likely.nll(Logits(torch.zeros(3, C)), target, temperature=3.0)


def test_the_tail_is_chosen_where_there_is_one_and_only_there(tmp_path: Path) -> None:
    record = taken(tmp_path / "top", "top:3")
    for tail in (None, "bin"):
        with pytest.raises(ValueError, match=r"tail: is .*; a record of top:3 is no distribution"):
            record.target([0], tail=tail)
    record = taken(tmp_path / "samples", "samples:3")
    with pytest.raises(ValueError, match="a record of samples:3 has no missing mass"):
        record.target([0], tail="uniform")


def test_all_classes_kept_is_the_distribution(tmp_path: Path) -> None:
    p_NC = Teacher(C).probabilities(Pieces(COUNTS))
    for text in (f"top:{C}", f"top:{C}+tail"):
        mu_NC = measure(taken(tmp_path / text, text).target(range(9), tail="bucket"))
        torch.testing.assert_close(mu_NC, p_NC, rtol=1e-2, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- what matches


def test_what_matches_is_let_through_and_what_differs_is_named(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(5))
    record = capture(Teacher(names), Pieces(COUNTS, tokenizer="t" * 64), "samples:3", tmp_path)
    record.require_matches()
    record.require_matches(data="d" * 64, tokenizer="t" * 64, classes=names, temperature=1.0)
    record.require_matches(classes=5)
    with pytest.raises(ValueError, match=r"data: the record in .* was taken on examples in an order of SHA-256 dddd"):
        record.require_matches(data="e" * 64)
    with pytest.raises(ValueError, match=r"tokenizer: .* SHA-256 tttt.*, and these have uuuu"):
        record.require_matches(tokenizer="u" * 64)
    with pytest.raises(ValueError, match=r"classes: the record in .* has 5 where 6 are asked for"):
        record.require_matches(classes=6)
    swapped = (names[0], names[2], names[1], *names[3:])
    with pytest.raises(ValueError, match=r"number 1 is 'class 1' in the record .* and 'class 2' here .the same"):
        record.require_matches(classes=swapped)
    with pytest.raises(ValueError, match=r"number 4 is 'class 4' in the record .* and 'other' here$"):
        record.require_matches(classes=(*names[:4], "other"))


def test_a_record_from_elsewhere_may_not_know(tmp_path: Path) -> None:
    writer = Writer(tmp_path, Manifest(Keep.parse("samples:2"), C, Identity("imported", "x", "0")), [1])
    writer.put(0, Rows(np.array([2]), ids=np.array([3, 9]), counts=np.array([1, 1])))
    writer.finish()
    record = Record.open(tmp_path)
    record.require_matches(data="d" * 64, tokenizer="t" * 64)
    with pytest.raises(ValueError, match=r"entropy: the record in .* does not say it"):
        record.entropy([0])
    score = likely.nll(Logits(torch.zeros(1, C)), record.target([0]))
    with pytest.raises(ValueError, match="kl: samples do not know"):
        _ = score.kl


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_that_is_no_example_is_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"indices: {index} is no example; the record has 0 … 8"):
        taken(tmp_path, "top:2").entropy([0, index])


# ---------------------------------------------------------------------------------------------------- damage, cache


def test_damage_is_named_before_it_is_trained_on(tmp_path: Path) -> None:
    record = taken(tmp_path, "samples:3")
    record.verify()
    name = record.manifest.shards[1].name
    file = tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
    record = Record.open(tmp_path)
    record.target([0])
    with pytest.raises(ValueError, match=f"{name}: the shard is damaged: its checksum is wrong"):
        record.target([3])
    with pytest.raises(ValueError, match=name):
        record.verify()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"the shard {name} has \d+ bytes, \d+ were written"):
        Record.open(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"the shard {name} is missing"):
        Record.open(tmp_path)


def test_a_shard_is_decoded_once_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = taken(tmp_path, "hybrid:2+3")
    read: list[str] = []
    real = recording.read_shard
    monkeypatch.setattr(recording, "read_shard", lambda *a: read.append(a[1].name) or real(*a))  # type: ignore[func-returns-value]
    for _ in range(3):
        record.target([0, 3, 8])
    assert len(read) == len(set(read)) == 3
    monkeypatch.setattr(recording, "CACHE_BYTES", 1)
    record = Record.open(tmp_path)
    for index in (0, 3, 0):
        record.target([index])
    assert len(read) == 6
    assert len(record._held) == 1
