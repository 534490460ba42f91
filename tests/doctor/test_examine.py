"""The library's face of the doctor: what parameters are taken for, what is returned, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from likely.doctor import CHECKS, Examination, examine, load
from likely.doctor.binding import NAMES, bind
from tests.doctor.losses import OfConstructor, recipe


def of_rows(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")


def roles(loss: Any, **options: Any) -> dict[str, str]:
    binding = bind(loss, options.get("call", {}), options.get("names", {}), None)
    return binding.called | binding.built


def test_names_are_recognised() -> None:
    def one(y_s, y_t, T, labels, mask): ...  # type: ignore[no-untyped-def]
    def two(input, target, targets): ...  # type: ignore[no-untyped-def]
    def three(logits, target_token_ids, target_logprobs, kd_temperature=1.0): ...  # type: ignore[no-untyped-def]
    def four(a, b, tau=1.0): ...  # type: ignore[no-untyped-def]

    assert roles(one) == {"student": "y_s", "teacher": "y_t", "temperature": "T", "labels": "labels", "mask": "mask"}
    assert roles(two) == {"student": "input", "teacher": "target", "labels": "targets"}
    stored = {"index": "target_token_ids", "stored": "target_logprobs"}
    assert roles(three) == {"student": "logits", "temperature": "kd_temperature"} | stored
    assert roles(four) == {"student": "a", "teacher": "b", "temperature": "tau"}
    assert roles(four, names={"student": "b", "teacher": "a"}) == {"student": "b", "teacher": "a", "temperature": "tau"}
    assert roles(OfConstructor) == {"student": "student", "teacher": "teacher", "temperature": "tau"}


def test_no_name_has_two_roles() -> None:
    every = [name for names in NAMES.values() for name in names]
    assert len(set(every)) == len(every)


def test_what_the_two_are_given_as() -> None:
    def named(student_log_probs, teacher_probs): ...  # type: ignore[no-untyped-def]

    def forms(loss: Any, inputs: str | None = None, **call: Any) -> tuple[str, str]:
        binding = bind(loss, call, {}, inputs)
        return binding.student_form, binding.teacher_form

    assert forms(of_rows) == ("logits", "logits")
    assert forms(named) == ("log_probs", "probs")
    assert forms(F.kl_div) == forms(torch.nn.KLDivLoss()) == ("log_probs", "probs")
    assert forms(F.kl_div, log_target=True) == forms(torch.nn.KLDivLoss(log_target=True)) == ("log_probs", "log_probs")
    assert forms(of_rows, "probs") == ("probs", "probs")
    assert forms(of_rows, "log_probs,probs") == ("log_probs", "probs")


def test_an_examination_is_read_and_written() -> None:
    found = examine(of_rows)
    assert isinstance(found, Examination)
    assert [one.name for one in found] == list(CHECKS)
    assert found.failed == ("extremes", "bfloat16")
    assert found.formula == "KL(teacher ‖ student), divided by the rows that count"
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["failed"] == ["extremes", "bfloat16"]
    assert written["bindings"] == {"student": "the student's logits", "teacher": "the teacher's logits"}
    assert written["findings"][0].keys() == {"name", "verdict", "reason", "fix", "number"}
    assert "fail  extremes: a class with logit −inf in both gives the loss nan" in str(found)
    with pytest.raises(KeyError, match="no such check; the checks are divergence"):
        found["nonsense"]


def test_a_loss_that_writes_into_its_inputs_does_no_harm() -> None:
    def careless(student: Tensor, teacher: Tensor) -> Tensor:
        rows = of_rows(student * 1, teacher * 1)
        student.zero_(), teacher.zero_()
        return rows

    assert examine(careless).to_dict()["findings"] == examine(of_rows).to_dict()["findings"]


def test_numbers_that_are_none_are_left_out() -> None:
    written = examine(lambda student, teacher: F.kl_div(student, teacher)).to_dict()
    assert [one["number"] for one in written["findings"] if one["name"] == "zero"] == [None]


def test_what_is_accepted_is_noted() -> None:
    found = examine(of_rows, accept=["extremes", "zero"])
    assert found.failed == ("bfloat16",)
    assert found["extremes"].verdict == "note"
    assert found["extremes"].reason.endswith("accepted as meant")
    assert found["zero"].verdict == "pass"


def test_the_same_seed_gives_the_same_and_the_callers_numbers_go_on() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    first = examine(of_rows, seed=3)
    assert torch.equal(torch.rand(3), wanted)
    assert examine(of_rows, seed=3) == first
    assert examine(of_rows, seed=4) != first


@pytest.mark.parametrize("seed", range(5))
def test_the_verdicts_do_not_depend_on_the_seed(seed: int) -> None:
    assert examine(recipe(), seed=seed).failed == ()
    assert examine(of_rows, seed=seed).failed == ("extremes", "bfloat16")


def test_it_takes_what_losses_return() -> None:
    def examined(wrapped: Callable[[Tensor], Any]) -> str:
        return examine(lambda student, teacher: wrapped(of_rows(student, teacher)))["reduction"].reason

    divided = "it divides by the rows that count"
    assert examined(lambda x: (x, {})) == divided
    assert examined(lambda x: {"loss": x, "other": x + 1}) == divided
    assert examined(lambda x: SimpleNamespace(loss=x)) == divided


@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [
        (3, {}, TypeError, "a int cannot be called"),
        (torch.logsumexp, {}, TypeError, "cannot be read; wrap it in a function"),
        (lambda student, teacher: "x", {}, ValueError, "returned a str; it returns a tensor"),
        (lambda student, teacher: student @ teacher, {}, ValueError, "cannot be called: RuntimeError.* student ← the"),
        (lambda student, teacher, alpha: student, {}, ValueError, "alpha: it needs it, and the name says nothing"),
        (lambda student: student.sum(), {}, ValueError, "teacher: no parameter of the loss is known"),
        (of_rows, {"call": {"alpha": 1}}, ValueError, "alpha: is no parameter of the loss; they are student, teacher"),
        (of_rows, {"names": {"mask": "m"}}, ValueError, "m: is no parameter of the loss"),
        (of_rows, {"inputs": "logit"}, ValueError, "inputs: is 'logit'; it is logits, log_probs, probs"),
        (of_rows, {"shape": "flat"}, ValueError, "shape: is 'flat'"),
        (of_rows, {"expect": "backward"}, ValueError, "expect: is 'backward'"),
        (of_rows, {"expect": "jsd:x"}, ValueError, "'x' is no number"),
        (of_rows, {"accept": ["all"]}, ValueError, "accept: 'all' is no check"),
    ],
)  # fmt: skip
def test_what_is_refused(loss: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        examine(loss, **options)


def test_loading_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost_and_found.py").write_text(
        "class Losses:\n    @staticmethod\n    def kd(s, t):\n        return s\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("lost_and_found:Losses.kd")(1, 2) == 1
    assert load("torch.nn.functional:kl_div") is F.kl_div
    for name, message in (
        ("kl_div", "is not package.module:name"),
        ("nowhere.at_all:x", "there is no module nowhere"),
        ("lost_and_found:Losses.none", "has no Losses.none"),
    ):
        with pytest.raises(ValueError, match=message):
            load(name)
