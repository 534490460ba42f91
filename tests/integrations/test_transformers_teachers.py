"""Teachers and records that the Trainer takes or refuses, models that do more to their logits, and classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")

from likely.data.texts import Document, Tokens  # noqa: E402
from likely.integrations.transformers import causal_lm_loss, sft_rows  # noqa: E402
from likely.networks.hf import HuggingFace  # noqa: E402
from likely.teachers.capture import capture  # noqa: E402
from tests.integrations.models import (  # noqa: E402
    DATA,
    C,
    T,
    by_hand,
    classified,
    classifier,
    gradients,
    llama,
    recorded,
    same,
    stepped,
    trainer,
    uneven,
)

# ------------------------------------------------------------------------------------------------------------- teachers


def test_a_teacher_is_frozen_and_in_eval_mode_at_every_step(tmp_path: Path) -> None:
    teacher = llama(seed=1, attention_dropout=0.9).train()
    one = trainer(llama(), tmp_path, teacher=teacher, hard_weight=0, soft_weight=1)
    teacher.train()  # behind its back
    modes: list[bool] = []
    teacher.lm_head.register_forward_hook(lambda *_: modes.append(teacher.model.layers[0].self_attn.training))
    one.train()
    assert modes == [False]
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_that_gives_nan_is_an_error(tmp_path: Path) -> None:
    teacher = llama(seed=1)
    one = trainer(llama(), tmp_path, teacher=teacher, hard_weight=0, soft_weight=1)
    with torch.no_grad():
        teacher.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="teacher: gives NaN at 48 rows of a batch"):
        one.train()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"teacher": "bigger"}, "has 60 classes .* where the student has 53"),
        ({"teacher": "student"}, "shares parameters"),
        ({"teacher": "classifier"}, "teacher: has 3 classes"),
        ({"teacher": "good", "soft_weight": 0}, "soft_weight"),
        ({"soft_weight": 0.5}, "soft_weight"),
        ({"teacher": "good", "hard_weight": -1}, "negative"),
        ({"hard_weight": 0, "soft_weight": 0}, "both 0"),
        ({"teacher": "good", "temperature": 0}, "temperature"),
        ({"teacher": "good", "beta": 1.5}, "beta"),
        ({"teacher": "good", "record": "good"}, "one of them"),
        ({"teacher": "good", "compute_loss_func": causal_lm_loss}, "compute_loss_func"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], why: str, tmp_path: Path) -> None:
    student = llama()
    teachers: dict[str, Callable[[], Any]] = {
        "bigger": lambda: llama(classes=60), "student": lambda: student, "classifier": classifier,
        "good": lambda: llama(seed=1),
    }  # fmt: skip
    made = {k: teachers[v]() if k in ("teacher", "record") else v for k, v in given.items()}
    with pytest.raises(ValueError, match=why):
        trainer(student, tmp_path, **{"hard_weight": 0.5, "soft_weight": 0.5 if "teacher" in given else 0.0, **made})


def test_examples_longer_than_a_model_reads_are_refused(tmp_path: Path) -> None:
    one = trainer(llama(), tmp_path, uneven((40, 3)), batch=2, hard_weight=1, soft_weight=0)
    with pytest.raises(ValueError, match="reads 32 tokens, and the batch has 40"):
        one.train()


# -------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_dense_record_teaches_what_the_teacher_does(beta: float, parts: int, tmp_path: Path) -> None:
    student, teacher = llama(), llama(24, seed=1)
    record = recorded(teacher, "dense", tmp_path / "record", temperature=1.0)
    log, found = stepped(
        student, tmp_path, parts=parts, record=record, hard_weight=0.5, soft_weight=0.5, temperature=T, beta=beta
    )
    wanted = by_hand(student, teacher, DATA, 0.5, 0.5, beta)
    for name in log.keys() & wanted.keys():
        assert log[name] == pytest.approx(float(wanted[name]), abs=2e-6), name
    same(found, gradients(student, wanted["loss"]))


@pytest.mark.parametrize(
    ("keep", "tail", "entropy"),
    [("top:5+tail", "bucket", "target"), ("samples:9", None, "teacher"), ("hybrid:3+5", None, "teacher")],
)
def test_a_record_gives_one_step_however_it_is_cut_and_shuffled(
    keep: str, tail: str | None, entropy: str, tmp_path: Path
) -> None:
    student, teacher = llama(), llama(24, seed=1)
    record = recorded(teacher, keep, tmp_path / "record")
    given: dict[str, Any] = {"record": record, "tail": tail, "hard_weight": 0.0, "soft_weight": 1.0, "temperature": T}
    whole, wanted = stepped(student, tmp_path, **given)
    cut, found = stepped(student, tmp_path, DATA[::-1], parts=4, **given)
    same(found, wanted, 1e-9)
    rows = np.concatenate([[n] * int(count) for n, count in enumerate(record.row_counts)])
    assert len(rows) == 48
    for log in (whole, cut):
        assert log["loss"] == pytest.approx(T**2 * log["soft_cross_entropy"], rel=1e-6)
        assert log["soft_cross_entropy"] == pytest.approx(log["soft_kl"] + log[f"{entropy}_entropy"], rel=1e-6)
    exact = by_hand(student, teacher, DATA, 0, 1)["teacher_entropy"]
    if entropy == "teacher":
        assert whole["teacher_entropy"] == pytest.approx(float(exact), rel=1e-5)


def test_examples_one_after_another_without_padding(tmp_path: Path) -> None:
    def flat(examples: Any) -> dict[str, torch.Tensor]:
        """As TRL's collator has them with `padding_free`."""
        places = torch.cat([torch.arange(len(e["input_ids"])) for e in examples])[None]
        ids, labels = (torch.tensor([[x for e in examples for x in e[name]]]) for name in ("input_ids", "labels"))
        return {"input_ids": ids, "labels": torch.where(places == 0, -100, labels), "position_ids": places}

    student, record = llama(), recorded(llama(24, seed=1), "samples:9", tmp_path / "record")
    given: dict[str, Any] = {"record": record, "hard_weight": 0.5, "soft_weight": 0.5, "temperature": T}
    _, wanted = stepped(student, tmp_path, **given)
    same(stepped(student, tmp_path, data_collator=flat, **given)[1], wanted, 1e-9)


def test_evaluation_takes_a_record_of_its_own_or_the_labels_alone(tmp_path: Path) -> None:
    student, teacher = llama(), llama(24, seed=1)
    record = recorded(teacher, "dense", tmp_path / "record")
    given: dict[str, Any] = {"record": record, "hard_weight": 0.5, "soft_weight": 0.5, "temperature": T}
    wanted = by_hand(student, teacher, DATA, 0.5, 0.5)
    assert trainer(student, tmp_path, eval_record=record, **given).evaluate()["eval_loss"] == pytest.approx(
        float(wanted["loss"]), abs=2e-6
    )
    alone = trainer(student, tmp_path, **given).evaluate()
    assert alone["eval_loss"] == alone["eval_hard_cross_entropy"]
    assert alone["eval_loss"] == pytest.approx(float(wanted["hard_cross_entropy"]), abs=1e-6)
    assert not any("soft" in name for name in alone)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([{**d, "example": 3 - d["example"]} for d in DATA], r"example \d has \d+ rows there and \d+ here"),
        ([{**d, "example": d["example"] + 1} for d in DATA], "has the example 4; the record holds 0 … 3"),
        ([{"input_ids": d["input_ids"], "labels": d["labels"]} for d in DATA], "has no 'example'"),
    ],
)
def test_rows_that_are_not_the_records_are_refused(data: Any, why: str, tmp_path: Path) -> None:
    record = recorded(llama(seed=1), "samples:3", tmp_path / "record")
    one = trainer(llama(), tmp_path, data, record=record, hard_weight=0, soft_weight=1, temperature=T)
    with pytest.raises(ValueError, match=why):
        one.train()


def test_a_record_of_other_data_is_refused_though_its_rows_are_as_many(tmp_path: Path) -> None:
    ids = [np.random.default_rng(at).integers(1, C, 9) for at in range(4)]
    examples = Tokens.of([Document(one, one, None, str(at)) for at, one in enumerate(ids)])
    network = HuggingFace(llama(seed=1), "teacher", "tokens")
    record = capture(network, examples, "samples:3", tmp_path / "record", temperature=T)
    given: dict[str, Any] = {"record": record, "hard_weight": 0, "soft_weight": 1, "temperature": T}
    rows = sft_rows(examples)
    log, _ = stepped(llama(), tmp_path, rows[::-1], **given)  # whose order does not matter
    assert log["soft_kl"] > 0
    for wrong in (
        [{**row, "example": 3 - row["example"]} for row in rows],
        [{**rows[0], "input_ids": [1] * 9}, *rows[1:]],
    ):
        with pytest.raises(ValueError, match=r"data: the record in .* was taken on examples"):
            trainer(llama(), tmp_path, wrong, **given)
    masked = [{**row, "completion_mask": [0] * 3 + [1] * 6} for row in rows]
    with pytest.raises(ValueError, match="data: "):
        trainer(llama(), tmp_path, masked, **given)
    stepped(llama(), tmp_path, rows[1:3], batch=2, **given)  # a part of them


def test_a_record_of_other_classes_or_another_temperature_is_refused(tmp_path: Path) -> None:
    record = recorded(llama(seed=1), "samples:3", tmp_path / "record")
    given: dict[str, Any] = {"record": record, "hard_weight": 0, "soft_weight": 1}
    with pytest.raises(ValueError, match="temperature: "):
        trainer(llama(), tmp_path, **given)
    with pytest.raises(ValueError, match="classes: "):
        trainer(llama(classes=60), tmp_path, temperature=T, **given)
    with pytest.raises(ValueError, match="beta: "):
        trainer(llama(), tmp_path, temperature=T, beta=0.5, **given)


# ---------------------------------------------------------------------------------------------------- models and modes


def special(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": C, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    made = {
        "soft cap": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.2)
        ),
        "multiplied": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**sizes, logit_scale=0.25)),
        "divided": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**sizes, logits_scaling=8.0)),
    }
    return made[kind]().double()


@pytest.mark.parametrize("kind", ["soft cap", "multiplied", "divided"])
def test_what_a_model_does_to_its_logits_is_done(kind: str, tmp_path: Path) -> None:
    student, teacher = special(kind), copy.deepcopy(special(kind))
    log, found = stepped(student, tmp_path, teacher=teacher, hard_weight=0.5, soft_weight=0.5, temperature=T)
    wanted = by_hand(student, teacher, DATA, 0.5, 0.5)
    assert log["loss"] == pytest.approx(float(wanted["loss"]), abs=1e-6)
    assert log["soft_kl"] == pytest.approx(0, abs=1e-9)
    same(found, gradients(student, wanted["loss"]))


def test_a_model_that_does_something_unknown_is_refused(tmp_path: Path) -> None:
    class OddForCausalLM(transformers.LlamaForCausalLM):  # type: ignore[name-defined,misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            outputs = super().forward(*given, **named)
            outputs.logits = outputs.logits**3
            return outputs

    with pytest.raises(ValueError, match="in a way that is not known here"):
        trainer(OddForCausalLM(llama().config), tmp_path, hard_weight=1, soft_weight=0)


@pytest.mark.parametrize(("args", "tolerance"), [({"gradient_checkpointing": True}, 1e-6), ({"bf16": True}, 3e-2)])
def test_checkpointing_and_mixed_precision(args: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    student, teacher = llama().float(), llama(seed=1).float()
    given: dict[str, Any] = {"teacher": teacher, "hard_weight": 0.5, "soft_weight": 0.5, "temperature": T}
    log, found = stepped(student, tmp_path, parts=2, args=args, **given)
    wanted = by_hand(student, teacher, DATA, 0.5, 0.5)
    assert log["loss"] == pytest.approx(float(wanted["loss"]), rel=tolerance)
    for name, gradient in gradients(student, wanted["loss"]).items():
        assert float((found[name] - gradient).norm()) <= 2 * tolerance * float(gradient.norm()), name


# ---------------------------------------------------------------------------------------------------------- classifiers


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_classifier_is_distilled_with_the_examples_that_have_no_label(
    parts: int, unlabelled: bool, tmp_path: Path
) -> None:
    student, teacher, rows = classifier(), classifier(1), classified(False)
    if unlabelled:
        rows[1]["labels"] = -100
    given: dict[str, Any] = {
        "teacher": teacher,
        "hard_weight": 0.5,
        "soft_weight": 0.5,
        "temperature": T,
        "data_collator": None,
    }
    log, found = stepped(student, tmp_path, rows, parts=parts, **given)
    ids = torch.tensor([r["input_ids"] for r in rows])
    z, t = student(input_ids=ids).logits, teacher(input_ids=ids).logits.detach()
    soft = -(F.softmax(t / T, -1) * F.log_softmax(z / T, -1)).sum(-1).mean()
    wanted = 0.5 * F.cross_entropy(z, torch.tensor([r["labels"] for r in rows])) + 0.5 * T**2 * soft
    assert log["loss"] == pytest.approx(float(wanted), abs=1e-6)
    same(found, gradients(student, wanted))


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "owl"}
    student = classifier(id2label=names)
    with pytest.raises(ValueError, match="class 0 is 'dog', the student's 'cat'"):
        trainer(student, tmp_path, classified(False), teacher=classifier(1, id2label={0: "dog", 1: "cat", 2: "owl"}),
                hard_weight=0, soft_weight=1)  # fmt: skip
