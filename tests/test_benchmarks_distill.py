"""The benchmark of distillation at a tiny size: one problem for all, figures, verdicts, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks import __main__, distill
from benchmarks.distill import FIGURES, QUICK, Outcome
from benchmarks.learners import CONTESTANTS, Size, Worker

TINY = Size(vocabulary=60, student=(8, 1), teacher=(12, 1), batch=2, length=8)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Worker]:
    found = {}
    for name in CONTESTANTS:
        folder = tmp_path_factory.mktemp("one")
        if name not in ("Liger", "TRL whole logits", "TRL chunked"):
            found[name] = Worker(name, TINY, folder)
    return found


def test_everyone_runs_and_those_with_the_whole_teacher_have_one_loss(workers: dict[str, Worker]) -> None:
    losses = {name: worker.prepare()["loss"] for name, worker in workers.items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    assert set(known) == {"record dense", "live", "live and labels", "plain KL"}
    assert known["live"] > 0.01
    for name, loss in known.items():
        assert loss == pytest.approx(known["live"], rel=1e-4), name
    for name, worker in workers.items():
        answer = worker.time()
        worker.rest()
        assert answer["seconds"] > 0, name
    assert workers["live"].peak()["scratch"] >= 0


def test_a_step_learns(workers: dict[str, Worker]) -> None:
    made = CONTESTANTS["live"].build(TINY, workers["live"].folder)
    losses = []
    for _ in range(20):
        losses.append(made.run())
        made.tidy()
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in made.parameters)  # type: ignore[attr-defined]


def outcomes(**seconds: float) -> dict[str, Outcome]:
    return {
        name.replace("_", " "): Outcome(name, [value] * 3, [2 * value] * 3, scratch=1)
        for name, value in seconds.items()
    }


def test_figures_are_ratios_within_a_round_with_their_verdict() -> None:
    given = outcomes(forward=1.0, labels=2.0, live=3.3)
    given |= {
        "record samples:12": Outcome("r", [2.3] * 3, [4.6] * 3),
        "capture dense": Outcome("c", [1.05] * 3, [2.1] * 3),
    }
    found = {one["what"]: one for one in distill.figures(given)}
    assert len(found) == 3
    live = found["step with a live teacher: over its forward and a step on labels"]
    assert live["wall"]["median"] == pytest.approx(1.1)
    assert live["reached"] is True
    assert found["step from samples:12: over labels"]["reached"] is False
    assert found["capture dense: of forward throughput"]["wall"]["median"] == pytest.approx(1 / 1.05)
    assert all(one["reached"] is None for one in distill.figures(given, judged=False))


def test_the_wanted_figures() -> None:
    limits = {figure.limit for figure in FIGURES if figure.limit is not None}
    assert limits == {0.9, 1.1, 1.15}
    names = {name for figure in FIGURES for name in (*figure.numerator, *figure.denominators)}
    assert names < set(CONTESTANTS)


def test_who_has_another_loss_does_not_take_part() -> None:
    given = outcomes(live=1.0, Liger=1.0, plain_KL=1.0)
    for name, loss in (("live", 2.0), ("Liger", 4.0), ("plain KL", 2.001)):
        given[name].loss = loss
    distill.same_problem(given)
    assert [name for name, one in given.items() if one.not_run] == ["Liger"]
    assert "its first loss is 4, ours 2" in str(given["Liger"].not_run)


def test_a_run_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--quick", "--contestants", "body", "--rounds", "1", "--out", str(tmp_path)]
    assert __main__.main(["distill", *chosen]) == 0
    assert str(QUICK.vocabulary) in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "distill.json").read_text())["runs"]
    assert run["contestant"] == "body"
    assert len(run["seconds"]) == len(run["cpu"]) == 1
