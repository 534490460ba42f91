"""Networks compared on the same rows: every number with its standard error, every difference with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from likely._checks import require
from likely.evaluation.calibration import Reliability
from likely.evaluation.estimate import _plain
from likely.measures import Estimate
from likely.training.measure import BOUND, ESTIMATED, Measured
from likely.training.values import Units, holm, p_value

FEW = 30
"""Documents below which a clustered standard error is itself uncertain."""


@dataclass(frozen=True)
class Measure:
    """How a number is called and shown; `scale` 100 is of a percentage."""

    title: str
    noun: str
    unit: str = "nats"
    scale: float = 1.0
    higher_is_better: bool = False


MEASURES = {
    "cross_entropy": Measure("CE to teacher", "cross-entropy to the teacher"),
    "entropy": Measure("= entropy", "entropy of the teacher"),
    "kl": Measure("+ KL", "KL from the teacher"),
    "agreement": Measure("agreement %", "agreement with the teacher", "points", 100.0, higher_is_better=True),
    "nll": Measure("NLL", "NLL of the labels"),
    "perplexity": Measure("perplexity", "perplexity", ""),
    "bits_per_byte": Measure("bits/byte", "bits per byte", ""),
    "error": Measure("error %", "error", "points", 100.0),
    "calibration_error": Measure("calibration error %", "calibration error", "points", 100.0),
}
FIDELITY = ("cross_entropy", "entropy", "kl", "agreement")
"""What is measured against the teacher."""
ON_LABELS = ("nll", "perplexity", "bits_per_byte", "error", "calibration_error")
"""What is measured against the labels."""
COMPARED = ("kl", "agreement", *ON_LABELS)
"""What differences are formed of: cross-entropies to one teacher differ by their KL."""
TESTED = ("kl", "agreement", "nll", "error", "calibration_error")
"""What is judged: perplexity and bits per byte say again what the NLL says."""

BETTER, WORSE, OPEN, SO_MANY, UNKNOWN = (
    "better",
    "worse",
    "not established",
    "not established among so many",
    "unknown",
)
_BLIND = "cannot be compared with"
CLAIMS: tuple[tuple[tuple[str, ...], dict[tuple[str, ...], str]], ...] = (
    (
        ("nll", "error"),
        {
            (BETTER,): "gains over",
            (WORSE,): "is worse than",
            (OPEN, SO_MANY): "shows no significant gain over",
            (UNKNOWN,): _BLIND,
        },
    ),
    (
        ("kl", "agreement"),
        {
            (BETTER,): "is closer to the teacher than",
            (WORSE,): "is further from the teacher than",
            (OPEN, SO_MANY): "is not established to be closer to the teacher than",
            (UNKNOWN,): _BLIND,
        },
    ),
    (
        ("calibration_error",),
        {
            (BETTER,): "is better calibrated than",
            (WORSE,): "is worse calibrated than",
            (OPEN, SO_MANY): "is not established to be better calibrated than",
            (UNKNOWN,): _BLIND,
        },
    ),
)
"""Measures that are told together, and what is said of them by verdict."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Args:
        measured: the networks, in the order they were given.
        reference: the name of the one that the others are compared with.
        values: name → measure → Estimate; what nothing is known of is left out.
        differences: name → measure → Estimate of `name − reference`, paired row by row.
        p_values: name → measure → of the hypothesis that there is no difference, corrected for their number by Holm's
            procedure; for the measures that are judged.
        reliability: name → the reliability of its predictions on the rows that have a label.
        confidence: level of the intervals, each taken by itself.
    """

    measured: Mapping[str, Measured]
    reference: str
    values: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    p_values: dict[str, dict[str, float]]
    reliability: dict[str, Reliability]
    confidence: float

    @property
    def documents(self) -> int:
        """How many documents the rows came from: what the standard errors are made of."""
        return len(np.unique(self._any.group))

    @property
    def _any(self) -> Measured:
        return next(iter(self.measured.values()))

    def verdict(self, name: str, measure: str) -> str:
        """What may be said of a network's difference to the reference, in one measure.

        "better" and "worse" hold for all that is judged together. An interval that leaves 0 out, but is not remarkable
        among so many, is "not established among so many". Nothing ("") is said of what is not judged by itself.
        """
        difference, p = self.differences[name][measure], self.p_values[name].get(measure)
        if p is None:
            return ""
        if math.isnan(p):
            return UNKNOWN
        if p <= 1 - self.confidence:
            return BETTER if (difference.mean > 0) == MEASURES[measure].higher_is_better else WORSE
        return SO_MANY if difference.low > 0 or difference.high < 0 else OPEN

    # ------------------------------------------------------------------------------------------------------- shown

    def table(self, measures: Sequence[str] = (*FIDELITY, *ON_LABELS)) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the numbers, for `print_table(*…)` and `Report.table(heading, *…)`; errors in percent."""
        shown = [measure for measure in measures if any(measure in of for of in self.values.values())]
        rows = [
            [name, *(_cell(of[measure], measure) if measure in of else None for measure in shown)]
            for name, of in self.values.items()
        ]
        return ["", *(MEASURES[measure].title for measure in shown)], [
            ["–" if cell is None else cell for cell in row] for row in rows
        ]

    def difference_table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the paired differences, each with its interval and what may be said of it."""
        rows = []
        for name, of in self.differences.items():
            for measure, difference in of.items():
                about = MEASURES[measure]
                unit = f", {about.unit}" if about.unit else ""
                says = self.verdict(name, measure)
                rows.append([name, about.noun + unit, *_signed(difference, about.scale), says])
        return ["", f"less {self.reference}", "difference", f"{self.confidence:.0%} interval", "says"], rows

    def sentences(self) -> list[str]:
        """What a reader may conclude, the most important first; every sentence stands by itself."""
        return [sentence for name in self.compared() for sentence in self.claims(name)] + self.reservations()

    def summary(self, measure: str) -> str:
        """One sentence on all that are compared: how each differs from the reference, under what is said of it."""
        about, said = MEASURES[measure], dict[str, list[str]]()
        for name, of in self.differences.items():
            if measure in of:
                phrase = " ".join((f"“{name}”", *_signed(of[measure], about.scale)))
                said.setdefault(self.verdict(name, measure), []).append(phrase)
        unit = f" in {about.unit}" if about.unit else ""
        listed = "; ".join(f"{verdict or 'not judged'} for {', '.join(names)}" for verdict, names in said.items())
        return f"{about.noun}{unit}, less that of “{self.reference}”: {listed or 'not known of any'}."

    def compared(self) -> list[str]:
        """The names that are compared with the reference; a teacher, of which the least is news, stands last."""
        return sorted(self.differences, key=lambda name: self.measured[name].is_teacher)

    def claims(self, name: str) -> list[str]:
        """The sentences on one network: its gain on labels, its closeness to the teacher, its calibration."""
        said = []
        for measures, verbs in CLAIMS:
            for verdict, verb in verbs.items():
                here = [m for m in measures if m in self.differences[name] and self.verdict(name, m) in verdict]
                if here:
                    phrases = "; ".join(self._phrase(name, measure) for measure in here)
                    said.append(f"“{name}” {verb} “{self.reference}”: {phrases}.")
        return said

    def _phrase(self, name: str, measure: str) -> str:
        about, difference = MEASURES[measure], self.differences[name][measure]
        mean, interval = _signed(difference, about.scale)
        return f"{about.noun} {mean}{' ' + about.unit if about.unit else ''} {interval}"

    def reservations(self) -> list[str]:
        """The sentences on what stands behind the numbers, and what they cannot say."""
        some, documents = self._any, self.documents
        said = []
        if len(some) == 0:
            return ["There is no row to measure."]
        if not some.labelled.any():
            said.append("No row has a label, so nothing is known of the loss or the error on labels.")
        if documents == 1:
            said.append(
                "All rows are of one document, so that no standard error and no interval is known: give more documents."
            )
        elif documents < FEW:
            said.append(
                f"There are {documents} documents; from fewer than {FEW} standard errors are rough, rather too small."
            )
        infinite = [
            f"{MEASURES[measure].noun} of “{name}”"
            for name, of in self.values.items()
            for measure in ("kl", "nll")
            if measure in of and math.isinf(of[measure].mean)
        ]
        if infinite:
            said.append(f"Infinite, because something that happens was held impossible: {'; '.join(infinite)}.")
        if some.fidelity == BOUND:
            said.append(
                "The teacher is known by its largest probabilities only: cross-entropy, entropy and KL are those of "
                "these classes and one cell for all others, lower bounds of the full ones."
            )
        if some.fidelity == ESTIMATED:
            said.append(
                "Cross-entropy and KL are estimated, without bias, from a record's draws; the entropy is the teacher's "
                "own."
            )
        tests = sum(not math.isnan(p) for of in self.p_values.values() for p in of.values())
        if tests > 1:
            said.append(
                f"{tests} differences are judged: each interval is at {self.confidence:.0%} by itself; “better” and "
                "“worse” hold for all of them together (Holm's procedure)."
            )
        if documents > 1:
            said.append(
                f"Standard errors are over {documents:,} documents, with the networks as they are: what another seed "
                "of their training would change is not in them."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and numbers for `json.dumps(…, allow_nan=False)`: nats, fractions, None for unknown."""
        some = self._any
        estimates = {
            "networks": {name: _dicts(of) for name, of in self.values.items()},
            "differences": {
                name: {
                    measure: asdict(value)
                    | {"p_value": self.p_values[name].get(measure), "says": self.verdict(name, measure)}
                    for measure, value in of.items()
                }
                for name, of in self.differences.items()
            },
        }
        calibration = {
            name: {"floor": r.floor, "debiased_squared_error": r.debiased_squared_error}
            for name, r in self.reliability.items()
        }
        plain: dict[str, Any] = _plain(
            {
                "reference": self.reference,
                "confidence": self.confidence,
                "measured_on": {
                    "rows": len(some),
                    "labelled_rows": int(some.labelled.sum()),
                    "documents": self.documents,
                    "temperature": some.temperature,
                    "teacher": None if some.teacher is None else some.fidelity,
                },
                **estimates,
                "calibration": calibration,
            }
        )
        return plain | {"sentences": self.sentences()}


def compare(measured: Mapping[str, Measured], *, reference: str, confidence: float = 0.95) -> Comparison:
    """Compare networks that were measured on the same rows, and say how sure the comparison is.

    * To the teacher: `cross-entropy = entropy + KL`, in nats, and how often the predictions agree.
    * On labels: NLL, the share of errors, and the calibration error; for language models the perplexity `exp(mean
      NLL)` and the bits per byte `Σ NLL / (log 2 · Σ bytes)`, over the examples whose every row has a label.

    Rows of one document are not independent: every standard error is clustered by document.  That of a perplexity `p`
    is the delta method's, `p · se(NLL)`, its interval the transformed one of the NLL; that of the bits per byte is the
    ratio estimator's, from the residuals `(nats/log 2 − ratio · bytes) / Σ bytes`.  Differences are paired, row by row;
    those of perplexities have the delta method's interval.

    Args:
        measured: name → what `measure` returned.
        reference: the name that the others are compared with: labels alone at an equal budget, say.
        confidence: level of the intervals.

    Raises:
        ValueError: networks measured on other rows, another teacher or at another temperature; no such reference.

    Example:
        >>> import numpy as np
        >>> from likely.networks import Identity
        >>> rows = {"data": "d", "language": False, "classes": 2, "example": np.arange(4), "group": np.arange(4),
        ...     "example_group": np.arange(4), "label": np.array([0, 0, 1, 1]), "confidence": np.full(4, 0.8)}
        >>> one = Measured(network=Identity("entry", "m:f", "0"), prediction=np.array([0, 0, 1, 1]),
        ...     nll=np.array([0.2, 0.1, 0.2, 0.3]), **rows)
        >>> other = Measured(network=Identity("entry", "m:g", "1"), prediction=np.array([0, 1, 1, 1]),
        ...     nll=np.array([0.3, 0.3, 0.3, 0.5]), **rows)
        >>> found = compare({"student": one, "labels only": other}, reference="labels only")
        >>> print(found.values["student"]["nll"], found.differences["student"]["nll"])
        0.200 ± 0.041 -0.150 ± 0.029
        >>> found.verdict("student", "nll"), found.verdict("student", "error")
        ('better', 'not established')

    Source: A. C. Cameron and D. L. Miller, A Practitioner's Guide to Cluster-Robust Inference (2015); W. G. Cochran,
    Sampling Techniques (1977), section 6.3 (ratios); S. Holm, A Simple Sequentially Rejective Multiple Test Procedure
    (1979).
    """
    require(reference in measured, f"reference: {reference!r} is none of {', '.join(map(repr, measured))}")
    base = measured[reference]
    for name, one in measured.items():
        _require_same(name, one, reference, base)
    units = {name: Units(one, confidence) for name, one in measured.items()}
    differences: dict[str, dict[str, Estimate]] = {}
    for name in measured:
        if name == reference:
            continue
        # Of a teacher against itself KL and agreement are what they are by definition.
        own = ON_LABELS if base.is_teacher or measured[name].is_teacher else COMPARED
        found = {measure: units[name].less(units[reference], measure) for measure in own}
        differences[name] = {measure: value for measure, value in found.items() if value is not None}
    known = {name: unit.estimates() for name, unit in units.items()}
    return Comparison(
        measured=dict(measured),
        reference=reference,
        values={name: {measure: of[measure] for measure in MEASURES if measure in of} for name, of in known.items()},
        differences=differences,
        p_values=holm({name: {m: p_value(of[m]) for m in TESTED if m in of} for name, of in differences.items()}),
        reliability={name: unit.reliability for name, unit in units.items() if unit.reliability is not None},
        confidence=confidence,
    )


def _require_same(name: str, one: Measured, reference: str, base: Measured) -> None:
    whose = f"{name} and {reference}"
    require(one.data == base.data and len(one) == len(base), f"{whose}: were measured on other examples")
    require(
        bool((one.example == base.example).all() and (one.label == base.label).all()),
        f"{whose}: were measured on other rows",
    )
    require(
        (one.teacher, one.record) == (base.teacher, base.record),
        f"{whose}: were measured against other teachers, {one.teacher} {one.record or ''} and {base.teacher} "
        f"{base.record or ''}",
    )
    require(
        one.temperature == base.temperature,
        f"{whose}: were measured at the temperatures {one.temperature:g} and {base.temperature:g}",
    )


def _cell(value: Estimate, measure: str) -> Any:
    """An Estimate in the unit of its column, or words where its spread is unknown."""
    scale = MEASURES[measure].scale
    scaled = _scaled(value, scale)
    if math.isfinite(value.mean) and not math.isfinite(value.standard_error):
        return f"{scaled.mean:.4g} ± unknown"
    return scaled


def _scaled(value: Estimate, by: float) -> Estimate:
    names = ("mean", "standard_error", "low", "high")
    return replace(value, **{name: by * getattr(value, name) for name in names})


def _signed(value: Estimate, scale: float) -> tuple[str, str]:
    """A difference with its sign, and its interval, to the decimals that its standard error leaves standing."""
    scaled = _scaled(value, scale)
    if not math.isfinite(scaled.standard_error):
        return (f"{scaled.mean:+.4g}" if not math.isnan(scaled.mean) else "unknown"), "(interval unknown)"
    decimals = 0
    if scaled.standard_error > 0:
        decimals = min(9, max(0, 1 - int(f"{scaled.standard_error:.1e}".partition("e")[2])))
    elif scaled.mean != 0:
        decimals = 4
    mean, low, high = (f"{x:+.{decimals}f}".replace("-", "−") for x in (scaled.mean, scaled.low, scaled.high))
    return mean, f"[{low}, {high}]"


def _dicts(of: Mapping[str, Estimate]) -> dict[str, Any]:
    return {measure: asdict(value) for measure, value in of.items()}
