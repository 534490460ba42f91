"""`likely check` as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Likely

OWN = """
import torch.nn.functional as F

def loss(student, teacher, alpha):
    return alpha * F.kl_div(student.log_softmax(-1), teacher.softmax(-1))
"""


def test_the_right_loss_passes(likely_cli: Likely) -> None:
    shown = likely_cli("check", "examples.faulty_losses:right")
    assert (shown.status, shown.err) == (0, "")
    assert "T² · KL(teacher ‖ student), divided by the rows that count" in shown.out
    assert "temperature ← 1 and others" in shown.out
    assert "19 passed" in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 100


def test_a_fault_fails_with_reason_and_fix(likely_cli: Likely) -> None:
    shown = likely_cli("check", "examples.faulty_losses:mean_over_classes")
    assert shown.status == 1
    assert "FAIL  reduction" in shown.out
    assert '→ reduction="batchmean"' in shown.out
    assert "18 passed, 1 failed" in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 100


def test_json_for_machines(likely_cli: Likely) -> None:
    shown = likely_cli("check", "torch.nn.functional:kl_div", "--json")
    assert (shown.status, shown.err) == (1, "")
    found = json.loads(shown.out)
    assert found["command"] == "check"
    assert found["name"] == "torch.nn.functional:kl_div"
    assert found["failed"] == ["reduction", "extremes"]
    assert next(one for one in found["findings"] if one["name"] == "reduction")["verdict"] == "fail"


def test_options_are_passed_on(likely_cli: Likely) -> None:
    kl = "torch.nn:KLDivLoss"
    shown = likely_cli("check", kl, "--call", "reduction=batchmean", "--accept", "extremes", "--json")
    assert shown.json()["failed"] == []
    options = ["--student", "target", "--teacher", "input", "--inputs", "probs,log_probs", "--expect", "reverse"]
    swapped = likely_cli("check", kl, "--call", "reduction=batchmean", *options, "--accept", "extremes", "--json")
    bindings = swapped.json()["bindings"]
    assert bindings == {
        "target": "the student's probabilities",
        "input": "the teacher's log-probabilities",
        "reduction": "'batchmean'",
    }


def test_a_loss_of_ones_own(likely_cli: Likely, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text(OWN, encoding="utf-8")
    assert "alpha: it needs it" in likely_cli("check", "my_losses:loss").error()
    shown = likely_cli("check", "my_losses:loss", "--call", "alpha=0.5")
    assert "0.5 · KL(teacher ‖ student), divided by rows × classes" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kl_div"], "kl_div: is not package.module:name"),
        (["nowhere:loss"], "nowhere:loss: there is no module nowhere"),
        (["torch:nowhere"], "torch:nowhere: torch has no nowhere"),
        (["torch:pi"], "loss: a float cannot be called"),
        (["torch.nn.functional:kl_div", "--call", "0.5"], "--call: '0.5' is not name=value"),
        (["torch.nn.functional:kl_div", "--call", "reduction=f(1)"], "--call: 'reduction=f(1)' is not name=value"),
        (["torch.nn.functional:kl_div", "--expect", "backward"], "expect: is 'backward'"),
        (["torch.nn.functional:kl_div", "--labels", "y"], "y: is no parameter of the loss; they are input, target"),
    ],
)
def test_what_cannot_be_examined_is_one_line(likely_cli: Likely, arguments: list[str], message: str) -> None:
    assert message in likely_cli("check", *arguments).error()


def test_help_says_that_code_is_run(likely_cli: Likely) -> None:
    shown = likely_cli("check", "--help").out
    assert "  likely check" in shown.partition("Example")[2]
    assert "Importing a module runs its code" in " ".join(shown.split())
