"""The page that shows what came of a distillation of networks.

Legend: E examples, N rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from likely.data.examples import IGNORED, Examples, Labelled, name_of
from likely.data.texts import Tokens
from likely.evaluation import Report
from likely.training.comparison import FIDELITY, ON_LABELS, Comparison
from likely.training.measure import EXACT, Measured

_LONGEST = 400  # characters of a row's text


def report(
    comparison: Comparison,
    curves: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    title: str = "Distillation",
    summary: str | None = None,
    about: Mapping[str, Any] | None = None,
    texts: Callable[[int, int], str] | None = None,
    class_name: Callable[[int], str] | None = None,
    most: int = 12,
) -> Report:
    """The report of a comparison: what may be said, the tables, the curves, the reliability, the rows furthest off.

    Args:
        comparison: what `compare` found.
        curves: name → {"step", "cross_entropy", "entropy"} and, if wished, "train", in nats, as `Report.curves` has
            them; the entropy is the floor, and the gap above it the KL.
        title: of the page.
        summary: what it opens with, by default the first of the comparison's sentences.
        about: what was done: names of settings with their values.
        texts: (example, row of the example) → what is shown of it instead of these numbers, for the rows with the
            largest KL; see `words`.
        class_name: class → its name, where the classes are tokens; by default the names that the networks have.
        most: how many rows with the largest KL are shown.

    Returns:
        The Report; `.write(path)` makes a page of it.  Whatever users named is shown as text.

    Raises:
        ImportError: the extra `likely[report]` is not installed.
        ValueError: curves of unequal lengths.

    Example:
        >>> import numpy as np
        >>> from likely.networks import Identity
        >>> from likely.training.comparison import compare
        >>> one = Measured(network=Identity("entry", "m:f", "0"), classes=2, data="d", language=False,
        ...     example=np.arange(2), group=np.arange(2), example_group=np.arange(2), label=np.array([0, 1]),
        ...     prediction=np.array([0, 0]), confidence=np.full(2, 0.8), nll=np.array([0.2, 1.6]))
        >>> page = report(compare({"student": one, "labels only": one}, reference="labels only"))
        >>> [section["heading"] for section in page.sections]
        ['What may be said', 'On labels', 'Paired differences', 'Reliability']
    """
    paragraphs = [" ".join(comparison.claims(name)) for name in comparison.compared()]
    paragraphs = [_unbroken(text) for text in (*paragraphs, *comparison.reservations()) if text]
    page = Report(title, _unbroken(comparison.sentences()[0] if summary is None else summary))
    page.text("What may be said", paragraphs)
    for heading, measures, note in (
        ("Against the teacher", FIDELITY, _teacher_note(comparison)),
        ("On labels", ON_LABELS, _labels_note(comparison)),
    ):
        columns, rows = comparison.table(measures)
        if len(columns) > 1:
            page.table(heading, columns, rows, note)
    columns, rows = comparison.difference_table()
    if rows:
        page.table("Paired differences", columns, rows, _difference_note(comparison))
    if curves:
        page.curves(
            "Learning curves",
            curves,
            "The target's entropy is the floor of the cross-entropy: what is left above it is the KL.",
        )
    if comparison.reliability:
        page.reliability(
            "Reliability",
            comparison.reliability,
            "The bars of a bin, and what chance would show, take rows as independent; the standard errors of the "
            "calibration error are clustered by document.",
        )
    furthest = _furthest(comparison)
    if furthest is not None:
        name, measured = furthest
        columns, rows = _rows(measured, texts, _namer(measured, class_name), most)
        what = "The divergence is of the teacher's distribution from the network's, in nats"
        page.table(f"Rows where {name} is furthest from the teacher", columns, rows, f"{what}.")
    if about:
        page.table(
            "What was done",
            ["setting", "value"],
            [[key, _text(value)] for key, value in about.items() if value is not None],
        )
    return page


def words(examples: Examples, decode: Callable[[Sequence[int]], str] | None = None) -> dict[str, Any]:
    """What `report` shows of the rows of these examples, its `texts` and `class_name`: read when a row is shown.

    Of a row of a language model these are its stretch's name and the tokens before the one that it predicts; of a text
    its name, where it has one, and its beginning; of a file, a picture or a row of a table its name.

    Args:
        examples: those that were measured.
        decode: the text of some tokens; without it their numbers are shown.

    Returns: `texts` and `class_name`, as far as they are known.

    >>> made = Labelled.of(["one\\n"], lambda items: {"text": items}, [b"one"], names=["row 7"])
    >>> words(made)["texts"](0, 0)
    "row 7: 'one\\\\n'"
    """
    if isinstance(examples, Tokens):

        def before(example: int, row: int) -> str:
            ids = examples.before(example, row).tolist()
            return f"{name_of(examples, example)}: {ids if decode is None else repr(decode(ids))}"

        return {"texts": before} | ({} if decode is None else {"class_name": lambda number: repr(decode([number]))})
    if not isinstance(examples, Labelled):
        return {}
    names = examples.names
    if isinstance(examples.items[0], str):
        named = (lambda example: "") if names is None else (lambda example: f"{names[example]}: ")
        return {"texts": lambda example, row: f"{named(example)}{examples.items[example][:_LONGEST]!r}"}
    return {} if names is None else {"texts": lambda example, row: names[example]}


def _teacher_note(comparison: Comparison) -> str:
    some = next(iter(comparison.measured.values()))
    at = "" if some.temperature == 1 else f" at temperature {some.temperature:g}"
    known = "" if some.fidelity == EXACT else f" What is known of the teacher makes them {some.fidelity}."
    return (
        f"Cross-entropy to the teacher{at} = the teacher's entropy, the floor that no student goes below, + KL, in "
        f"nats.{known} {_counts(comparison, len(some), 'rows')}"
    )


def _labels_note(comparison: Comparison) -> str:
    some = next(iter(comparison.measured.values()))
    said = _counts(comparison, int(some.labelled.sum()), "rows with a label")
    return said + (
        " The perplexity is exp(NLL), its standard error the delta method's; bits per byte are a ratio of sums."
        if some.language
        else ""
    )


def _counts(comparison: Comparison, rows: int, what: str) -> str:
    documents = comparison.documents
    clustered = ", by which standard errors are clustered" if documents < rows else ""
    return f"{rows:,} {what}, {documents:,} document{'s' if documents != 1 else ''}{clustered}."


def _difference_note(comparison: Comparison) -> str:
    return (
        f"Paired row by row and clustered by document; negative is lower than {comparison.reference}. An interval that "
        "holds 0 establishes no difference. “Better” and “worse” hold for all rows of this table together."
    )


def _furthest(comparison: Comparison) -> tuple[str, Measured] | None:
    """The first network other than the reference and the teacher whose KL is known, else the reference."""
    known = [
        (name, measured)
        for name, measured in comparison.measured.items()
        if measured.kl is not None and len(measured) and not measured.is_teacher
    ]
    return next((pair for pair in known if pair[0] != comparison.reference), known[0] if known else None)


def _rows(
    measured: Measured, texts: Callable[[int, int], str] | None, class_name: Callable[[int], str], most: int
) -> tuple[list[str], list[list[Any]]]:
    """The rows with the largest KL, the largest first."""
    assert measured.kl is not None
    assert measured.entropy is not None
    order = np.argsort(-measured.kl, kind="stable")[:most]
    place_N = np.arange(len(measured)) - np.searchsorted(measured.example, measured.example)
    several = bool((place_N > 0).any())
    columns = ["text"] if texts is not None else ["example", *(["row"] if several else [])]
    columns += ["KL", "teacher's entropy", "predicted", "with probability"]
    columns += [] if measured.teacher_prediction is None else ["teacher predicts"]
    labelled = bool(measured.labelled[order].any())
    rows: list[list[Any]] = []
    for i in order:
        example, place, label = int(measured.example[i]), int(place_N[i]), int(measured.label[i])
        row: list[Any] = [example, *([place] if several else [])] if texts is None else [_cut(texts(example, place))]
        row += [float(measured.kl[i]), float(measured.entropy[i])]
        row += [class_name(int(measured.prediction[i])), float(measured.confidence[i])]
        row += [] if measured.teacher_prediction is None else [class_name(int(measured.teacher_prediction[i]))]
        rows.append(row + ([class_name(label) if label != IGNORED else ""] if labelled else []))
    return [*columns, *(["label"] if labelled else [])], rows


def _namer(measured: Measured, class_name: Callable[[int], str] | None) -> Callable[[int], str]:
    names = measured.classes
    if class_name is not None:
        return class_name
    return str if isinstance(names, int) else lambda number: names[number]


def _unbroken(text: str) -> str:
    """The text with intervals that stay on one line."""
    return re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
