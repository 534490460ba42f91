"""A step of the Trainer against the same written out by hand on whole logits, in float64; the loss functions."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

transformers = pytest.importorskip("transformers")

from likely.integrations.transformers import SFTCollator, causal_lm_loss, classification_loss  # noqa: E402
from tests.integrations.models import (  # noqa: E402
    DATA,
    C,
    Grads,
    T,
    by_hand,
    classified,
    classifier,
    gpt2,
    gradients,
    llama,
    same,
    stepped,
    trainer,
    uneven,
)

# ------------------------------------------------------------------------------------------------- the loss function

LABELS = torch.tensor([[-100, 3, 4, -100, 5], [7, 8, -100, -100, -100]])


def test_a_causal_loss_is_shifted_masked_and_divided_once() -> None:
    logits = torch.randn(2, 5, C, dtype=torch.float64)
    rows, y = [(0, 0), (0, 1), (0, 3), (1, 0)], [3, 4, 5, 8]
    wanted = F.cross_entropy(torch.stack([logits[at] for at in rows]), torch.tensor(y), reduction="sum")
    outputs = types.SimpleNamespace(logits=logits)
    torch.testing.assert_close(causal_lm_loss(outputs, LABELS), wanted / 4)
    torch.testing.assert_close(causal_lm_loss({"logits": logits}, LABELS, torch.tensor(10)), wanted / 10)


def test_a_batch_without_labels_costs_nothing() -> None:
    logits = torch.randn(2, 5, C, requires_grad=True)
    loss = causal_lm_loss(types.SimpleNamespace(logits=logits), torch.full((2, 5), -100))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [None, torch.zeros(2, 4, dtype=torch.long)])
def test_labels_must_be_there_and_fit(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels: "):
        causal_lm_loss(types.SimpleNamespace(logits=torch.zeros(2, 5, C)), labels)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_function_of_a_classifier_in_the_stock_trainer(soft: bool, parts: int, tmp_path: Path) -> None:
    model, rows = classifier(), classified(soft)
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts,
        max_steps=1, learning_rate=0.0, max_grad_norm=0.0, logging_steps=1, report_to=[], use_cpu=True,
        save_strategy="no",
    )  # fmt: skip
    kept = Grads()
    one = transformers.Trainer(
        model, settings, train_dataset=rows, compute_loss_func=classification_loss, callbacks=[kept]
    )
    one.train()
    z = model(input_ids=torch.tensor([r["input_ids"] for r in rows])).logits
    wanted = F.cross_entropy(z, torch.tensor([r["labels"] for r in rows]))
    assert one.state.log_history[0]["loss"] == pytest.approx(float(wanted), abs=1e-6)
    same(kept.found[0], gradients(model, wanted))


# ------------------------------------------------------------------------------------ a step, whole and in uneven parts


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("hard", "soft", "beta"), [(1.0, 0.0, 0.0), (0.3, 0.7, 0.0), (0.0, 1.0, 0.0), (0.5, 0.5, 0.5), (0.0, 1.0, 1.0)]
)
@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(tie_word_embeddings=True)], ids=["llama", "gpt2", "tied"])
def test_a_step_is_the_whole_batchs_however_it_is_cut(
    make: Callable[[], Any], hard: float, soft: float, beta: float, parts: int, tmp_path: Path
) -> None:
    student, teacher = make(), llama(24, seed=1) if soft else None
    given: dict[str, Any] = {
        "hard_weight": hard,
        "soft_weight": soft,
        "temperature": T,
        "beta": beta,
        "teacher": teacher,
    }
    log, found = stepped(student, tmp_path, parts=parts, **given)
    wanted = by_hand(student, teacher, DATA, hard, soft, beta)
    names = {"loss", "hard_cross_entropy"}
    if soft:
        names |= {0.0: {"soft_cross_entropy", "soft_kl", "teacher_entropy"}, 1.0: {"soft_reverse_kl"}}.get(
            beta, {"soft_jensen_shannon"}
        )
    assert names == log.keys() & wanted.keys()
    for name in names:
        assert log[name] == pytest.approx(float(wanted[name]), abs=1e-6), name
    same(found, gradients(student, wanted["loss"]))


def test_neither_logits_are_formed(tmp_path: Path) -> None:
    student, teacher = llama(), llama(24, seed=1)
    one = trainer(student, tmp_path, teacher=teacher, hard_weight=0.5, soft_weight=0.5)
    sizes: list[int] = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda _, given, made: sizes.append(made.numel()))
    one.train()
    one.evaluate()
    assert sizes == [0] * 6  # a step, and two batches of evaluation


def test_what_is_logged_is_the_mean_since_the_last_log(tmp_path: Path) -> None:
    data = uneven((3, 17, 30, 2, 9, 9, 20, 4))
    one = trainer(llama(), tmp_path, data, batch=2, parts=2, hard_weight=1, soft_weight=0,
                  args={"max_steps": 4, "logging_steps": 2, "learning_rate": 1e-2})  # fmt: skip
    one.train()
    logs = [log for log in one.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert [log["hard_cross_entropy"] for log in logs] == pytest.approx([log["loss"] for log in logs], abs=1e-5)


def test_the_formula_is_printed_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = trainer(llama(), tmp_path, teacher=llama(seed=1), hard_weight=0.25, soft_weight=0.75, temperature=T)
    one.train()
    shown = (
        "loss = 0.25 · CE(labels, q) + 0.75 · T² · CE(p_T, q_T), T = 2; means over all predictions of a step, in nats"
    )
    assert capsys.readouterr().out.startswith(shown)


def test_smoothing_is_that_of_the_arguments(tmp_path: Path) -> None:
    student = llama()
    log, _ = stepped(student, tmp_path, hard_weight=1, soft_weight=0, args={"label_smoothing_factor": 0.1})
    data = SFTCollator(0)(DATA)
    z = student(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits[:, :-1]
    wanted = F.cross_entropy(z.flatten(0, 1), data["labels"][:, 1:].flatten(), label_smoothing=0.1)
    assert log["loss"] == pytest.approx(float(wanted), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ what is learnt


def layouts() -> dict[str, list[dict[str, Any]]]:
    """One data set as TRL lays it out: what is to be learnt as labels, as masks, or as both."""
    masks = [[0] * (len(d["input_ids"]) // 2) + [1] * (len(d["input_ids"]) - len(d["input_ids"]) // 2) for d in DATA]
    masks = [[0, *mask[1:]] for mask in masks]
    ids = [d["input_ids"] for d in DATA]
    labels = [[y if kept else -100 for y, kept in zip(*pair)] for pair in zip(ids, masks)]
    return {
        "labels": [{"input_ids": i, "labels": y} for i, y in zip(ids, labels)],
        "completion_mask": [{"input_ids": i, "completion_mask": m} for i, m in zip(ids, masks)],
        "assistant_masks": [{"input_ids": i, "assistant_masks": m} for i, m in zip(ids, masks)],
        "both": [{"input_ids": i, "labels": i, "completion_mask": m} for i, m in zip(ids, masks)],
    }


@pytest.mark.parametrize("layout", list(layouts()))
@pytest.mark.parametrize("collator", ["ours", "plain"])
def test_layouts_of_fine_tuning_data(layout: str, collator: str, tmp_path: Path) -> None:
    student, rows = llama(), layouts()[layout]
    wanted = by_hand(student, None, layouts()["labels"], 1.0, 0.0)["loss"]

    def plain(examples: Any) -> dict[str, Tensor]:
        """Pads every column with token 7, labels and all, as a careless collator does."""
        longest = max(len(e["input_ids"]) for e in examples)
        ones = [{**e, "attention_mask": [1] * len(e["input_ids"])} for e in examples]
        fill = {"attention_mask": 0, "completion_mask": 1, "assistant_masks": 1}
        return {
            k: torch.tensor([e[k] + [fill.get(k, 7)] * (longest - len(e[k])) for e in ones])
            for k in ones[0]
            if k != "example"
        }

    given = {} if collator == "ours" else {"data_collator": plain}
    for parts in (1, 4):
        log, found = stepped(student, tmp_path, rows, parts=parts, hard_weight=1, soft_weight=0, **given)
        assert log["loss"] == pytest.approx(float(wanted), abs=1e-6)
    same(found, gradients(student, wanted))


def test_a_collator_that_would_have_prompts_learnt_is_refused(tmp_path: Path) -> None:
    def copies(examples: Any) -> dict[str, Tensor]:
        ids = torch.tensor([example["input_ids"][:2] for example in examples])
        return {"input_ids": ids, "labels": ids.clone()}

    rows = [{"input_ids": [1, 2], "completion_mask": [0, 1]}] * 4
    one = trainer(llama(), tmp_path, rows, hard_weight=1, soft_weight=0, data_collator=copies)
    with pytest.raises(ValueError, match="makes 8 labels of the 4 that the examples have"):
        one.train()


def test_examples_with_nothing_to_learn_add_nothing(tmp_path: Path) -> None:
    student, teacher = llama(), llama(seed=1)
    given: dict[str, Any] = {"teacher": teacher, "hard_weight": 0.5, "soft_weight": 0.5, "temperature": T}
    masked = {"input_ids": [1, 2, 3], "labels": [-100] * 3}
    log, found = stepped(student, tmp_path, [*DATA[:3], masked], parts=4, **given)
    wanted = by_hand(student, teacher, DATA[:3], 0.5, 0.5)
    assert log["loss"] == pytest.approx(float(wanted["loss"]), abs=1e-6)
    same(found, gradients(student, wanted["loss"]))
    log, found = stepped(student, tmp_path, [masked] * 4, parts=2, **given)
    assert log["loss"] == log["soft_kl"] == 0
    assert all(float(g.abs().max()) == 0 for g in found.values())


def test_evaluation_is_a_mean_over_predictions(tmp_path: Path) -> None:
    student, teacher = llama(), llama(seed=1)
    one = trainer(student, tmp_path, teacher=teacher, hard_weight=0.3, soft_weight=0.7, temperature=T)
    found = one.evaluate()
    wanted = by_hand(student, teacher, DATA, 0.3, 0.7)
    for name in ("loss", "hard_cross_entropy", "soft_cross_entropy", "soft_kl", "teacher_entropy"):
        assert found[f"eval_{name}"] == pytest.approx(float(wanted[name]), abs=1e-6), name
    told = one.predict(DATA)
    assert told.predictions.shape == (4, 30, C)
    assert told.metrics["test_loss"] == pytest.approx(float(wanted["loss"]), abs=1e-6)
