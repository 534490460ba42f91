"""The training loop: the loss it says, micro-batches, interruptions, and what it refuses."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import likely
from likely.data.examples import IGNORED
from likely.training.goal import Goal
from likely.training.loop import Trained, train
from likely.training.schedule import indices_of
from likely.training.settings import Settings
from tests.training.toys import CLASSES, Rows, Toy, recorded

Network = Any


def run(student: Network, data: Rows, out: Path, teacher: Any = None, validation: Any = None, **given: Any) -> Trained:
    soft = {} if teacher is not None else {"hard_weight": 1.0, "soft_weight": 0.0}
    settings = Settings(**{"batch_size": 8, "epochs": 2, "save_every": 1000, **soft, **given})
    return train(student, data, settings, teacher=teacher, validation=validation, out=out, progress=False)  # type: ignore[arg-type]


def losses(trained: Trained) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in trained.metrics()]


def weights(student: Toy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_formula(tmp_path: Path, beta: float, temperature: float) -> None:
    """The first step, written out by hand over the whole logits."""
    data, student, teacher = Rows(), Toy(seed=1), Toy(hidden=12, seed=2)
    _, first = indices_of(1, len(data), 8, seed=0)
    batch = data.batch(first)
    z, t = (network.head(batch).logits().detach() for network in (student, teacher))
    log_q, log_p = ((x / temperature).log_softmax(dim=-1) for x in (z, t))
    hard = torch.nn.functional.cross_entropy(z, batch.labels)  # means over the rows with a label
    forward = -(log_p.exp() * log_q).sum(dim=-1).mean()
    reverse = (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean()
    log_m = torch.logaddexp(log_p + math.log(0.3), log_q + math.log(0.7))
    mixed = 0.3 * (log_p.exp() * (log_p - log_m)).sum(-1) + 0.7 * (log_q.exp() * (log_q - log_m)).sum(-1)
    soft = {0.0: forward, 0.3: mixed.mean(), 1.0: reverse}[beta]
    given = {"beta": beta, "temperature": temperature, "hard_weight": 0.25, "soft_weight": 0.75, "max_steps": 1}
    line = run(student, data, tmp_path, teacher, **given).metrics()[0]
    assert line["loss"] == pytest.approx(float(0.25 * hard + 0.75 * temperature**2 * soft), abs=1e-12)
    assert line["hard_cross_entropy"] == pytest.approx(float(hard), abs=1e-12)
    name = {0.0: "soft_cross_entropy", 0.3: "jensen_shannon", 1.0: "reverse_kl"}[beta]
    assert line[name] == pytest.approx(float(soft), abs=1e-12)
    if beta == 0:
        assert line["soft_cross_entropy"] == pytest.approx(line["soft_entropy"] + line["soft_kl"], abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("kept", [False, True])
def test_micro_batches_change_nothing(tmp_path: Path, beta: float, kept: bool) -> None:
    data, teacher = Rows(), Toy(hidden=12, seed=2)
    source = recorded(teacher, data, tmp_path / "record") if kept else teacher
    found = []
    for size in (None, 1, 3):
        student = Toy(seed=1)
        trained = run(student, data, tmp_path / str(size), source, micro_batch=size, beta=beta, validation=data)
        found.append((trained.metrics(), weights(student)))
    whole, theta = found[0]
    for lines, other in found[1:]:
        for name in ("loss", "hard_cross_entropy", "gradient_norm"):
            assert [line[name] for line in lines] == pytest.approx([line[name] for line in whole], abs=1e-12)
        assert lines[-1]["validation"] == pytest.approx(whole[-1]["validation"], abs=1e-12)
        assert all(torch.allclose(theta[name], other[name], atol=1e-10) for name in theta)


def test_a_dense_record_is_the_teacher(tmp_path: Path) -> None:
    data, teacher = Rows(), Toy(hidden=12, seed=2)
    record = recorded(teacher, data, tmp_path / "record", temperature=3.0)
    for beta in (0.0, 0.5, 1.0):
        given = {"temperature": 2.0, "beta": beta}
        live = run(Toy(seed=1), data, tmp_path / f"live{beta}", teacher, **given)
        kept = run(Toy(seed=1), data, tmp_path / f"kept{beta}", record, **given)
        assert [line["loss"] for line in kept.metrics()] == pytest.approx(
            [line["loss"] for line in live.metrics()], abs=1e-4
        )


def test_the_parts_that_are_not_asked_for_cost_nothing(tmp_path: Path) -> None:
    data, teacher = Rows(), Toy(hidden=12, seed=2)
    teacher.head = lambda batch: pytest.fail("the teacher was asked")  # type: ignore[method-assign, assignment]
    lines = run(Toy(), data, tmp_path / "hard", teacher, soft_weight=0.0).metrics()
    assert not any(name.startswith("soft") for name in lines[0])
    lines = run(Toy(), data, tmp_path / "soft", Toy(hidden=12, seed=2), hard_weight=0.0).metrics()
    assert not any(name.startswith("hard") for name in lines[0])


def test_a_student_becomes_its_teacher(tmp_path: Path) -> None:
    data, teacher, student = Rows(E=60, ignored=1.0), Toy(seed=2), Toy(seed=1)
    given = {"hard_weight": 0.0, "soft_weight": 1.0, "learning_rate": 0.05, "weight_decay": 0.0}
    given |= {"epochs": 150, "batch_size": 60}
    trained = run(student, data, tmp_path, teacher, validation=data, **given)
    assert "hard_cross_entropy" not in trained.validation
    assert trained.validation["soft_kl"] < 2e-3 < trained.metrics()[0]["soft_kl"]
    assert not student.module.training
    assert not teacher.module.training


def test_the_teacher_is_in_eval_mode_and_untouched(tmp_path: Path) -> None:
    data, teacher = Rows(), Toy(hidden=12, seed=2, dropout=0.5)
    batch = data.batch(indices_of(1, len(data), 8, seed=0)[1])
    log_p = teacher.head(batch).logits().detach().log_softmax(dim=-1)
    teacher.module.train()
    before = weights(teacher)
    first = run(Toy(), data, tmp_path, teacher, max_steps=2).metrics()[0]
    assert first["soft_entropy"] == pytest.approx(float(-(log_p.exp() * log_p).sum(dim=-1).mean()), abs=1e-12)
    assert equal(before, weights(teacher))
    assert all(p.grad is None for p in teacher.module.parameters())


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    """The first loss is not that of the student at rest; what is measured is, after the last step too."""
    data, student = Rows(ignored=0.0), Toy(seed=1, dropout=0.5)

    def at_rest(indices: Any) -> float:
        batch = data.batch(indices)
        logits = student.head(batch).logits().detach()
        return float(torch.nn.functional.cross_entropy(logits, batch.labels))

    before = at_rest(indices_of(1, len(data), 8, seed=0)[1])
    trained = run(student, data, tmp_path, validation=data, micro_batch=2)
    assert abs(trained.metrics()[0]["loss"] - before) > 1e-3
    assert trained.validation == pytest.approx({"hard_cross_entropy": at_rest(range(len(data)))}, abs=1e-12)


def test_no_more_than_a_micro_batch_is_held(tmp_path: Path) -> None:
    student, seen = Toy(seed=1), []
    head = student.head

    def counted(batch: Any) -> Any:
        seen.append(len(batch.inputs["features"]))
        return head(batch)

    student.head = counted  # type: ignore[method-assign]
    run(student, Rows(ignored=0.0), tmp_path, epochs=1, micro_batch=3, validation=Rows())
    assert max(seen) == 3


def test_masked_labels_contribute_nothing(tmp_path: Path) -> None:
    """A step in which nothing counts leaves the student as it is; a micro-batch of them is as if it were not there."""
    data = Rows(ignored=1.0)
    student = Toy(seed=1)
    before = weights(student)
    lines = run(student, data, tmp_path / "all").metrics()
    assert equal(before, weights(student))
    assert all(line["loss"] == 0 and line["labelled_rows"] == 0 for line in lines)
    assert not any("hard_cross_entropy" in line or "gradient_norm" in line for line in lines)
    some = Rows(ignored=0.0, E=8)
    for y in some.y[2:]:
        y[:] = IGNORED
    whole, parts = Toy(seed=1), Toy(seed=1)
    run(whole, some, tmp_path / "whole")
    lines = run(parts, some, tmp_path / "parts", micro_batch=1).metrics()
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(torch.allclose(weights(whole)[name], value, atol=1e-12) for name, value in weights(parts).items())


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    data, student = Rows(), Toy(seed=1)
    before = weights(student)
    run(student, data, tmp_path, learning_rate=1e-9, weight_decay=1e8, max_steps=1, warmup=0.0)
    after = weights(student)
    for name, value in before.items():
        change = float((after[name] - value).abs().max())
        assert (change > 1e-3) == (value.dim() > 1), name


def test_bfloat16_trains(tmp_path: Path) -> None:
    data, teacher = Rows(E=40), Toy(hidden=12, seed=2, dtype=torch.float32)
    given = {"epochs": 20, "learning_rate": 0.03, "mixed_precision": "bf16"}
    student = Toy(seed=1, dtype=torch.float32)
    lines = run(student, data, tmp_path, teacher, **given).metrics()
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert all(p.dtype == torch.float32 for p in student.module.parameters())


# ------------------------------------------------------------------------------------------------- interruptions


class Killed(Exception):
    pass


@pytest.mark.parametrize("k", [1, 4, 5])
@pytest.mark.parametrize("keep", [None, "dense", "samples:3"])
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, keep: str | None
) -> None:
    """Killed in the step after k, saved every two: dropout, the order of an epoch, moments and schedule all go on."""
    data, teacher = Rows(), Toy(hidden=12, seed=2)
    source: Any = recorded(teacher, data, tmp_path / "record", keep) if keep else teacher
    given: dict[str, Any] = {"epochs": 3, "save_every": 2, "evaluate_every": 3, "micro_batch": 3}
    whole = Toy(seed=1, dropout=0.3)
    expected = run(whole, data, tmp_path / "whole", source, None if keep else data, **given)

    backward = Goal.backward

    def until(self: Goal, batch: Any, indices: Any, N: int, L: int, scaler: Any, step: int) -> Any:
        if step > k:
            raise Killed
        return backward(self, batch, indices, N, L, scaler, step)

    monkeypatch.setattr(Goal, "backward", until)
    with pytest.raises(Killed):
        run(Toy(seed=1, dropout=0.3), data, tmp_path / "cut", source, None if keep else data, **given)
    monkeypatch.undo()
    torch.manual_seed(99)
    student = Toy(seed=1, dropout=0.3)
    found = run(student, data, tmp_path / "cut", source, None if keep else data, **given)
    assert found.resumed == k - k % 2
    assert losses(found) == losses(expected)
    assert found.validation == expected.validation
    assert equal(weights(student), weights(whole))


def test_a_run_that_is_done_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, student = Rows(), Toy(seed=1)
    first = run(student, data, tmp_path, validation=data)
    monkeypatch.setattr(Goal, "backward", lambda *_: pytest.fail("was trained again"))
    again = Toy(seed=1)
    second = run(again, data, tmp_path, validation=data, save_every=7)
    assert equal(weights(student), weights(again))
    assert (second.validation, second.metrics()) == (first.validation, first.metrics())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_terminated_run_saves_and_goes_on(tmp_path: Path, number: int, ending: type[BaseException]) -> None:
    """The signal comes within the fifth step, which is finished first; the usual handlers are back afterwards."""
    usual = signal.getsignal(number)
    student, whole = Toy(seed=1, dropout=0.3), Toy(seed=1, dropout=0.3)
    head, calls = student.head, []

    def killed(batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return head(batch)

    student.head = killed  # type: ignore[method-assign]
    with pytest.raises(ending) as caught:
        run(student, Rows(), tmp_path / "cut", epochs=3)
    assert number != signal.SIGTERM or caught.value.code == 143  # type: ignore[attr-defined]
    assert len(calls) == 5
    assert signal.getsignal(number) == usual
    again = Toy(seed=1, dropout=0.3)
    found = run(again, Rows(), tmp_path / "cut", epochs=3)
    assert found.resumed == 5
    assert losses(found) == losses(run(whole, Rows(), tmp_path / "whole", epochs=3))
    assert equal(weights(whole), weights(again))


# ------------------------------------------------------------------------------------------------------ bad input


def test_another_run_in_the_folder_is_named(tmp_path: Path) -> None:
    data = Rows()
    run(Toy(seed=1), data, tmp_path)
    with pytest.raises(ValueError, match=r"holds another run: learning_rate is 0\.5 where it was 0\.001"):
        run(Toy(seed=1), data, tmp_path, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"data is '.*' where it was"):
        run(Toy(seed=1), Rows(seed=5), tmp_path)
    with pytest.raises(ValueError, match=r"student is '.*' where it was"):
        run(Toy(seed=2), data, tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("precious")
    with pytest.raises(FileExistsError, match="holds chapter and no run"):
        run(Toy(seed=1), data, tmp_path / "thesis")
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text()[:10])
    with pytest.raises(ValueError, match="is shorter than at step 6"):
        run(Toy(seed=1), data, tmp_path)


@pytest.mark.parametrize("place", ["teacher", "student", "record"])
def test_nan_is_named_and_stops_the_run(tmp_path: Path, place: str) -> None:
    data, teacher, student = Rows(ignored=0.0), Toy(hidden=12, seed=2), Toy(seed=1)
    source: Any = teacher
    if place == "record":
        source = recorded(teacher, data, tmp_path / "record")
        target = source.target

        def spoilt_target(indices: Any, tail: Any) -> Any:
            made = target(indices, tail=tail)
            if indices == indices_of(2, len(data), 8, seed=0)[1]:
                made.head.z[0] = math.nan
            return made

        source.target = spoilt_target
    else:
        spoilt = teacher if place == "teacher" else student
        head, calls = spoilt.head, []

        def spoil(batch: Any) -> Any:
            calls.append(1)
            made = head(batch)
            return made if len(calls) < 2 else likely.Linear(made.x * math.nan, made.weight, made.bias)  # type: ignore[attr-defined]

        spoilt.head = spoil  # type: ignore[method-assign]
    who = "student's logits" if place == "student" else "teacher's"
    with pytest.raises(ValueError, match=f"step 2: the loss is nan: the {who}.* NaN"):
        run(student, data, tmp_path / "run", source)
    assert all(bool(torch.isfinite(value).all()) for value in weights(student).values())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def refused(tmp_path: Path, message: str, *arguments: Any, **given: Any) -> None:
    with pytest.raises(ValueError, match=message):
        run(arguments[0], arguments[1], tmp_path / "run", *arguments[2:], **given)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_together_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data, student, teacher = Rows(), Toy(seed=1), Toy(hidden=12, seed=2)
    refused(tmp_path, "soft_weight: is 1 and there is no teacher", student, data, soft_weight=1.0)
    refused(tmp_path, "hard_weight: is 0 and soft_weight too", student, data, hard_weight=0.0)
    refused(tmp_path, "teacher: shares its parameters", student, data, student)
    refused(tmp_path, "fp16 wants a GPU", student, data, mixed_precision="fp16")
    fewer, swapped, unnamed = Toy(seed=1), Toy(seed=1), Rows()
    unnamed.classes = None
    fewer.classes = CLASSES[:3]
    swapped.classes = (CLASSES[1], CLASSES[0], *CLASSES[2:])
    refused(tmp_path, "teacher: has 3 classes where the student has 5", student, data, fewer)
    refused(
        tmp_path,
        "class 0 is 'bee' where the student has 'ant' .the same classes in another order",
        student,
        data,
        swapped,
    )
    refused(tmp_path, "student: class 0 is 'bee' where the data has 'ant'", swapped, data)
    record = recorded(teacher, data, tmp_path / "record", "samples:3")
    refused(tmp_path, "data: the record in .* was taken on examples", student, Rows(seed=3), record)
    refused(tmp_path, "temperature: the record in .* was taken at 1", student, data, record, temperature=2)
    refused(tmp_path, "the record holds some of them", student, data, record, beta=1)
    top = recorded(teacher, data, tmp_path / "top", "top:2")
    refused(tmp_path, "tail: is None; a record of top:2 is no distribution", student, data, top)
    swapped.classes = CLASSES[::-1]
    refused(tmp_path, "classes: number 0 is 'ant' in the record", swapped, unnamed, record)
    refused(tmp_path, "examples: are none", student, data.subset([]))
    brief = Toy(seed=1)
    brief.max_length = 4
    refused(tmp_path, "has more than 4 tokens, and the student reads 4; cut them", brief, data)
    refused(tmp_path, "has more than 4 tokens, and the teacher reads 4; cut them", student, data, brief)
    frozen = Toy(seed=1)
    frozen.module.requires_grad_(False)
    refused(tmp_path, "none of its parameters asks for a gradient", frozen, data)
    fixed = Toy(seed=1)
    fixed.module = None
    refused(tmp_path, "student: cannot be trained", fixed, data)


def test_tensorboard(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained = run(Toy(seed=1), Rows(), tmp_path, tensorboard=True)
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert written == pytest.approx([line["loss"] for line in trained.metrics()], rel=1e-6)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(Toy(seed=1, dropout=0.5), Rows(), tmp_path)
    assert torch.equal(before, torch.get_rng_state())
