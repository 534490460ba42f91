"""What an examination found: a list of findings, each with its reason and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "note", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        name: the check, as listed in `likely.doctor.CHECKS`.
        verdict: "pass", "fail", "note" (right or wrong depending on what is meant), or "not applicable".
        reason: what was observed.
        fix: what to write instead; empty where nothing is wrong.
        number: the figure behind the verdict, where there is one.
    """

    name: str
    verdict: Verdict
    reason: str
    fix: str = ""
    number: float | None = None


@dataclass(frozen=True)
class Examination:
    """What was found out about a loss.

    Args:
        loss: its name.
        formula: what it computes, in one line.
        bindings: which of its parameters was given what.
        findings: one for every check, in the order of `likely.doctor.CHECKS`.
    """

    loss: str
    formula: str
    bindings: dict[str, str]
    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name}: there is no such check; the checks are {', '.join(f.name for f in self.findings)}")

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(finding.name for finding in self.findings if finding.verdict == "fail")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it: a number that is not finite is left out."""
        listed = [asdict(finding) for finding in self.findings]
        for one in listed:
            if one["number"] is not None and not math.isfinite(one["number"]):
                one["number"] = None
        return {
            "loss": self.loss,
            "formula": self.formula,
            "bindings": dict(self.bindings),
            "failed": list(self.failed),
            "findings": listed,
        }

    def __str__(self) -> str:
        lines = [f"{self.loss}: {self.formula}"]
        for finding in self.findings:
            lines.append(f"{finding.verdict:>14}  {finding.name}: {finding.reason}")
            if finding.fix:
                lines.append(f"{'':>14}  fix: {finding.fix}")
        return "\n".join(lines)
