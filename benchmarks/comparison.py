"""Medians with their spread, and what may be claimed of them.

The order of the contestants is drawn anew for each round, and a ratio is formed within a round: what disturbs the
machine for longer than a round disturbs both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 2000
WALL, PROCESSORS = "wall", "processors"
CLOCKS = (WALL, PROCESSORS)


@dataclass(frozen=True)
class Interval:
    """A median, and where the middle half of the rounds (quartiles) or the median itself (bootstrap, 95 %) lies."""

    median: float
    low: float
    high: float


@dataclass
class Run:
    """What one contestant did on one case with one setting: seconds per round by the wall and by the processors,
    scratch in bytes, relative errors."""

    case: dict[str, Any]
    threads: int
    setting: str
    contestant: str
    kind: str
    seconds: list[float] = field(default_factory=list)
    scratch: int | None = None
    scratch_exact: bool = True
    errors: dict[str, float] = field(default_factory=dict)
    not_run: str | None = None
    cpu: list[float] = field(default_factory=list)

    def times(self, by: str) -> list[float]:
        return self.seconds if by == WALL else self.cpu

    @property
    def sizes(self) -> str:
        return "x".join(str(self.case[n]) for n in ("rows", "features", "classes") if self.case[n] > 1)

    @property
    def group(self) -> tuple[str, str, str, int]:
        """What is compared within one memory setting."""
        return self.sizes, self.case["dtype"], self.case["target"], self.threads

    def json(self) -> dict[str, Any]:
        return asdict(self)


def shuffled(contestants: Sequence[Any], turn: int) -> list[Any]:
    """The order of a round. It is drawn, for who always followed the same one would always find what that one leaves:
    caches, and memory that the system has to clear."""
    return [contestants[i] for i in np.random.default_rng(turn).permutation(len(contestants))]


def quartiles(seconds: Sequence[float]) -> Interval:
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Interval(float(median), float(low), float(high))


def ratio(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> Interval:
    """The median over rounds of `theirs / ours` within a round, with its 95 % percentile bootstrap interval.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Interval(median=2.0, low=2.0, high=2.0)
    """
    ratios = np.asarray(theirs) / np.asarray(ours)
    drawn = np.random.default_rng(seed).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Interval(float(np.median(ratios)), float(low), float(high))


def fastest(runs: Sequence[Run], *kinds: str, by: str = WALL) -> Run | None:
    of_kind = [run for run in runs if run.kind in kinds and run.times(by) and not run.not_run]
    return min(of_kind, key=lambda run: quartiles(run.times(by)).median, default=None)


def compare(runs: Sequence[Run], ours: str, by: str = WALL) -> dict[str, Any] | None:
    """Our contestant against eager, the fastest peer and the fastest limit, among the runs of one group and setting."""
    mine = next((run for run in runs if run.contestant == ours and run.times(by) and not run.not_run), None)
    if mine is None:
        return None
    answer: dict[str, Any] = {"contestant": ours, "case": mine.case, "threads": mine.threads, "setting": mine.setting}
    answer["by"] = by
    against = {"eager": fastest(runs, "eager", by=by), "best peer": fastest(runs, "peer", by=by)}
    for name, other in against.items():
        if other:
            answer[name] = {"contestant": other.contestant, **asdict(ratio(other.times(by), mine.times(by)))}
    limit = fastest(runs, "limit", by=by)
    if limit:
        answer["efficiency"] = {"contestant": limit.contestant, **asdict(ratio(limit.times(by), mine.times(by)))}
    plain = against["eager"]
    if plain and plain.scratch and mine.scratch is not None:
        answer["scratch of eager's"] = mine.scratch / plain.scratch
    if plain and plain.errors and mine.errors:
        answer["error of eager's"] = {
            name: mine.errors[name] / plain.errors[name] for name in mine.errors if plain.errors.get(name)
        }
    return answer


def holds_in_every_setting(comparisons: Sequence[dict[str, Any]], name: str) -> float | None:
    """The lower end of the ratio's interval in the setting where it is lowest: what may be claimed."""
    ends = [c[name]["low"] for c in comparisons if name in c]
    return min(ends) if ends and len(ends) == len(comparisons) else None
