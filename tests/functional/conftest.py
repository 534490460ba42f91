"""Says at the end of a run how many of torch's own cases the faces were run on."""

from __future__ import annotations

from typing import Any

from tests.functional.harness import EXCEPTED, LEDGER


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for subject, counts in sorted(LEDGER.items()):
        families = {family: n for family, n in counts.items() if family != "excepted"}
        listed = ", ".join(f"{family} {n}" for family, n in families.items())
        total, excepted = sum(families.values()), counts["excepted"]
        terminalreporter.write_line(f"conformance of {subject}: {total} of torch's own cases, {excepted} excepted")
        terminalreporter.write_line(f"  {listed}")
    for name, reason in EXCEPTED.items() if LEDGER else ():
        terminalreporter.write_line(f"  excepted: {name}: {reason}")
