"""Every mutant of the core is caught by its law, and the laws pass where nothing is mutated."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, Mutant
from tests.mutation import Outcome, run


@pytest.fixture(scope="module")
def outcomes() -> dict[Mutant, Outcome]:
    return dict(zip(MUTANTS, run(MUTANTS)))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.name} -> {m.new.strip()[:40]}")
def test_the_mutant_is_caught(mutant: Mutant, outcomes: dict[Mutant, Outcome]) -> None:
    assert outcomes[mutant].caught, f"{mutant.law} -k '{mutant.only}' lets it live: {outcomes[mutant].what}"


def test_what_changes_nothing_is_not_caught() -> None:
    """The control: a copy that differs in a comment alone passes its law."""
    old = '"""Targets: what each row should be'
    harmless = Mutant("targets.py", old, old + ",", "test_objective.py", "bare_target")
    (found,) = run([harmless], 1)
    assert not found.caught
    assert found.what.startswith("pytest ended with 0")
