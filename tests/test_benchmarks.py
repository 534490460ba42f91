"""The machinery of the benchmarks on tiny sizes: errors, memory, ratios, refusals and what is written; never speed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__, gate, head, losses, reference, report, rounds, running
from benchmarks.comparison import Run, compare, holds_in_every_setting, quartiles, ratio
from benchmarks.contestants import NotRun
from benchmarks.memory import reset_high_water
from benchmarks.peers import ALL, as_tensor
from benchmarks.problems import TARGETS, Case, Problem, load, make, shapes
from benchmarks.worker import answer

MIB = 2**20
CASES = [
    *(Case.parse("12x8x40", dtype, target) for dtype in ("float32", "bfloat16") for target in TARGETS),
    *(Case.parse("12x40", "float32", target) for target in losses.TARGETS),
    Case.parse("50", "float32", ""),
]
ERRORS = {"float32": 1e-4, "bfloat16": 0.1}
"""Far above rounding: who exceeds it solves another problem."""
FAST = [one for one in ALL.values() if not one.compiles]


def run_of(contestant: str, kind: str, seconds: list[float], **keywords: Any) -> Run:
    case = asdict(Case.parse("4x2x8", "float32", "labels"))
    errors = {} if kind == "limit" else {"loss": 1e-7, "dx": 2e-7}
    return Run(
        case, 1, keywords.pop("setting", "default"), contestant, kind, seconds, 8 * MIB, True, errors, **keywords
    )


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("found", "exact", "error"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1e-9, -4.0], [0.0, -4.0], 2.5e-10),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], math.inf),
    ],
)
def test_the_relative_error_is_that_of_the_largest_entry(found: list[float], exact: list[float], error: float) -> None:
    numbers = torch.tensor(found, dtype=torch.float64), torch.tensor(exact, dtype=torch.float64)
    assert reference.relative_error(*numbers) == pytest.approx(error)


def test_an_error_in_any_block_of_rows_is_seen() -> None:
    exact = torch.ones(3000, 3000)
    for row in (0, 1500, 2999):
        found = exact.clone()
        found[row, -1] += 0.5
        assert reference.relative_error(found, exact) == 0.5


def test_the_reference_is_softmax_less_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(Case.parse("7x3x5", "bfloat16", "labels"))
    monkeypatch.setattr(reference, "BLOCK_BYTES", 3 * 5 * 8)  # three rows, which do not divide seven
    loss, (dx_ND, dweight_CD) = reference.reference(problem)
    x_ND, weight_CD, y_N = problem["x"].double(), problem["weight"].double(), problem["y"]
    q_NC = torch.softmax(x_ND @ weight_CD.T, -1)
    g_NC = (q_NC - torch.nn.functional.one_hot(y_N, 5)) / 7
    assert loss == pytest.approx(float(-q_NC[torch.arange(7), y_N].log().mean()), rel=1e-14)
    torch.testing.assert_close(dx_ND, g_NC @ weight_CD, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(dweight_CD, g_NC.T @ x_ND, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_who_takes_part_solves_the_same_problem_with_new_gradients(case: Case, tmp_path: Path) -> None:
    reference.prepare(case, tmp_path)
    part = [one for one in FAST if one.refuses(case) is None]
    assert {"eager"} < {one.name for one in part}
    for contestant in part:
        call = contestant.build(case)(problem := load(case, tmp_path))
        loss, gradients = call()
        if contestant.kind == "limit":
            assert gradients == []
            continue
        found = reference.errors(case, loss, [as_tensor(g) for g in gradients], tmp_path)
        assert len(found) == 1 + len(problem.leaves)
        assert max(found.values()) < ERRORS[case.dtype], (contestant.name, found)
        for leaf in problem.leaves:
            leaf.grad = None
        if (refill := getattr(call, "refill", None)) is not None:  # works in memory that it was lent
            refill()
            assert reference.errors(case, *call(), tmp_path) == found
            continue
        _, again = call()
        assert {g.data_ptr() for g in again}.isdisjoint({g.data_ptr() for g in gradients}), contestant.name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_saved_problem_is_the_same_and_has_the_sizes_said(case: Case, tmp_path: Path) -> None:
    made = make(case)
    made.save(tmp_path)
    loaded = load(case, tmp_path)
    assert {k: (tuple(t.shape), t.dtype) for k, t in made.tensors.items()} == shapes(case)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.tensors.items())
    assert rounds.input_bytes(case) == made.nbytes


# ------------------------------------------------------------------------------------------------------- memory


ALLOCATED = """
import sys, torch
from benchmarks.memory import MIB, Scratch

before = torch.ones(16 * MIB)  # 64 MiB that count for nothing
del before
scratch = Scratch()
scratch.begin()
held = torch.ones(12 * MIB)  # 48 MiB
if sys.argv[1] == "freed":
    del held
scratch.end(16 * MIB)
print(scratch.exact, scratch.bytes / MIB)
"""


@pytest.mark.skipif(not reset_high_water(), reason="the system does not reset the high-water mark")
@pytest.mark.parametrize("end", ["kept", "freed"])
def test_a_known_allocation_is_seen_less_the_gradients(end: str) -> None:
    # In a process of its own, as the benchmark does it: this one holds freed memory of other tests, and may return it.
    done = subprocess.run([sys.executable, "-c", ALLOCATED, end], capture_output=True, text=True, check=True)
    exact, mebibytes = done.stdout.split()
    assert exact == "True"
    assert float(mebibytes) == pytest.approx(32, abs=2)


# ------------------------------------------------------------------------------------------------------- ratios


def test_ratios_are_formed_within_a_round() -> None:
    ours = [1.0, 2.0, 30.0, 1.5, 1.0, 1.2, 9.0]  # a disturbed machine disturbs both sides
    assert ratio([2 * s for s in ours], ours).low == pytest.approx(2)
    spread = ratio([2.0, 2.2, 1.8, 2.1, 1.9, 2.0, 2.05], [1.0] * 7)
    assert 1.8 <= spread.low < spread.median == 2.0 < spread.high <= 2.2
    assert asdict(quartiles([1.0, 2.0, 3.0, 4.0, 5.0])) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_ours_is_compared_with_the_fastest_of_its_kind() -> None:
    runs = [
        run_of("likely", "ours", [1.0, 1.0, 1.0]),
        run_of("eager", "eager", [3.0, 3.0, 3.0]),
        run_of("slow", "peer", [4.0, 4.0, 4.0]),
        run_of("fast", "peer", [2.0, 2.0, 2.0]),
        run_of("absent", "peer", [0.1], not_run="fails"),
        run_of("products", "limit", [0.9, 0.9, 0.9]),
        run_of("products by 512", "limit", [0.8, 0.8, 0.8]),
    ]
    found = compare(runs, "likely")
    assert found is not None
    assert found["eager"]["median"] == 3
    assert (found["best peer"]["contestant"], found["best peer"]["low"]) == ("fast", 2)
    assert found["efficiency"]["median"] == pytest.approx(0.8)
    assert found["scratch of eager's"] == 1
    assert found["error of eager's"] == {"loss": 1, "dx": 1}
    assert compare(runs[1:], "likely") is None


def test_what_is_claimed_holds_in_every_setting() -> None:
    ends = [{"eager": {"low": 1.4}}, {"eager": {"low": 1.1}}]
    assert holds_in_every_setting(ends, "eager") == 1.1
    assert holds_in_every_setting([*ends, {}], "eager") is None


# --------------------------------------------------------------------------------------------- red tests, results


@pytest.mark.parametrize(
    ("files", "state"),
    [({"test_a.py": "def test(): pass"}, "green"), ({"test_a.py": "def test(): assert 0"}, "red"), ({}, "red")],
    ids=["green", "red", "none"],
)
def test_only_green_tests_allow_speed_ups(files: dict[str, str], state: str, tmp_path: Path) -> None:
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    verdict = gate.run_tests(["test_a.py", "test_b.py"], root=tmp_path)
    assert verdict.state == state
    assert verdict.allows_speed_ups == (state == "green")
    assert ("FAILED test_a.py::test" in verdict.detail) == ("assert 0" in "".join(files.values()))
    assert not gate.SKIPPED.allows_speed_ups
    assert all((gate.ROOT / path).exists() for path in gate.BRIEF)


@pytest.mark.parametrize("state", ["green", "red", "skipped"])
def test_a_run_prints_and_writes_speed_ups_only_when_green(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(case: Case, folder: Path, names: list[str], *, setting: str, **keywords: Any) -> list[Run]:
        return [run_of(name, ALL[name].kind, [0.5, 0.5], setting=setting) for name in names]

    monkeypatch.setattr(rounds, "measure", measured)
    monkeypatch.setattr(running, "tested", lambda options, console: gate.Verdict(state))
    quick = ["--quick", "--contestants", "likely,eager,products", "--targets", "labels", "--out", str(tmp_path)]
    small = ["--cases", "4x2x8", "--dtypes", "float32", "--settings", "default"]
    assert head.main([*quick, *small]) == (1 if state == "red" else 0)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "head.json").read_text())
    assert ("× eager" in printed) == (state == "green")
    assert ("no speed-ups" in printed) == (state != "green")
    assert (written["comparisons"] is not None) == (state == "green")
    assert [path.name for path in tmp_path.glob("*.png")] == ["head-float32-1-default.png"]


def test_workers_measure_everything_that_is_promised(tmp_path: Path) -> None:
    case = Case(512, 4, 5000, "float32", "labels")
    names = ["likely", "eager", "copy"]
    with rounds.prepared(case) as folder:
        runs = rounds.measure(case, folder, names, threads=1, setting="huge pages", rounds=2)
        assert folder.exists()
    assert not folder.exists()
    by_name = {run.contestant: run for run in runs}
    assert {name: run.not_run for name, run in by_name.items() if run.not_run} == {"copy": "is for given logits"}
    assert all(len(by_name[name].seconds) == len(by_name[name].cpu) == 2 for name in names[:2])
    for name in ("likely", "eager"):
        assert set(by_name[name].errors) == {"loss", "dx", "dW"}
        assert max(by_name[name].errors.values()) < ERRORS["float32"]
    # Eager holds the logits, or their log-softmax, and the gradient.
    assert by_name["eager"].scratch is not None
    assert by_name["eager"].scratch > 1.5 * case.logits_bytes
    path = report.write(report.results(runs, gate.Verdict("green"), benchmark="head"), tmp_path, "head")
    written = json.loads(path.read_text())
    assert written.keys() == {"benchmark", "machine", "tests", "runs", "comparisons"}
    assert written["machine"]["row pass of likely"] == report.row_pass()
    comparison, by_processors = written["comparisons"]
    assert [comparison["by"], by_processors["by"]] == ["wall", "processors"]
    assert {"eager", "scratch of eager's", "error of eager's", "threads", "setting"} < comparison.keys()
    assert len(written["runs"]) == len(names)


def test_what_json_does_not_have_is_none(tmp_path: Path) -> None:
    path = report.write({"runs": [{"error": math.inf, "seconds": (1.0, math.nan)}]}, tmp_path, "x")
    assert json.loads(path.read_text()) == {"runs": [{"error": None, "seconds": [1.0, None]}]}


def _raises(error: Exception) -> Callable[[], dict[str, Any]]:
    def do() -> dict[str, Any]:
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotRun("solves another problem"), "solves another problem"),
        (ModuleNotFoundError("No module named 'optax'"), "No module named 'optax'"),
        (RuntimeError("wrong\nlong trace"), "RuntimeError: wrong"),
    ],
    ids=["refuses", "missing", "fails"],
)
def test_who_fails_says_why(error: Exception, reason: str) -> None:
    assert answer(_raises(error)) == {"not run": reason}


# ------------------------------------------------------------------------------------------------ the command line


def test_cases_are_read_from_sizes() -> None:
    assert str(Case.parse("8x4x16", "float32", "labels")) == "8x4x16 float32 labels"
    assert Case.parse("8x16", "float32", "labels") == Case(8, 0, 16, "float32", "labels")
    assert Case.parse("9", "float32", "labels") == Case(9, 0, 1, "float32", "binary")
    options = running.parser("losses", None, losses.TARGETS, quick=False).parse_args([])
    assert len(running.cases(options, losses.SIZES)) == 2 * (len(losses.TARGETS) + 1)
    assert (options.rounds, options.threads, options.settings) == (7, [1, 2], ["default", "huge pages"])


@pytest.mark.parametrize("arguments", [["--targets", "none"], ["--contestants", "nobody"], ["--dtypes", "float8"]])
def test_an_unknown_word_is_refused_with_the_known_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        head.main(arguments)
    assert "there are" in capsys.readouterr().err


def test_every_benchmark_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--help"]) == 0
    assert __main__.main(["nothing"]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in __main__.BENCHMARKS)


def test_settings_change_the_allocator_alone() -> None:
    plain, huge = (rounds.environment(2, setting) for setting in ("default", "huge pages"))
    assert "THP_MEM_ALLOC_ENABLE" not in plain
    assert huge == {**plain, "THP_MEM_ALLOC_ENABLE": "1"}
    assert plain["OMP_NUM_THREADS"] == "2"


def test_a_problem_knows_its_leaves() -> None:
    assert [tuple(t.shape) for t in make(CASES[0]).leaves] == [(12, 8), (40, 8)]
    part: Problem = make(CASES[0]).rows(slice(0, 5))
    assert [tuple(t.shape) for t in part.leaves] == [(5, 8), (40, 8)]


def test_what_runs_on_cuda_only_says_so_and_the_device_goes_with_the_case() -> None:
    here, there = (Case.parse("8x4x16", "bfloat16", "labels", device) for device in ("cpu", "cuda"))
    assert (str(here), str(there)) == ("8x4x16 bfloat16 labels", "8x4x16 bfloat16 labels on cuda")
    assert there.tiny().device == "cuda"
    for name in ("Liger fused labels", "cut-cross-entropy"):
        assert ALL[name].refuses(here) == "runs on CUDA only"
        assert ALL[name].refuses(there) != "runs on CUDA only"
    assert ALL["optax jit"].refuses(there) == "is run on the CPU only"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        head.main(["--device", "cuda", "--quick"])
    assert "--device cuda: this machine has none" in capsys.readouterr().err
