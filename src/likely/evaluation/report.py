"""A report to look at: one HTML file that works offline, in light and dark, on paper and with a keyboard.

Needs the extra `likely[report]` (plotly, jinja2), which is imported when the first report is made and not before.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from likely._checks import require, require_rows
from likely._files import new_file
from likely.evaluation import _images
from likely.evaluation._rows import checked
from likely.evaluation.calibration import Reliability, reliability
from likely.evaluation.estimate import Evaluation
from likely.measures import Estimate, surprisal

FIGURES = re.compile(r"([-+−±\d.,∞%()\[\] –]|unknown|interval )*")
TABLE_CLASSES = 20  # a confusion matrix of more classes is drawn as a heat map


@dataclass(frozen=True)
class Surprise:
    """A row that surprised the model: `surprisal = −log probability`, in nats, of its label.

    `probability` is the model's for the true label, `confidence` for what it predicted instead. `image` is a 2-D array
    of grey values (or (H, W, 3) of colours), scaled from its own minimum to its own maximum.
    """

    label: Any
    predicted: Any
    probability: float
    surprisal: float
    image: Any = None
    text: str = ""
    confidence: float | None = None


class Report:
    """Sections of text, tables and figures, written as one self-contained HTML file.

    Every method adds a section and returns the report. Whatever text it is given is shown as text: markup in it has no
    effect. A page weighs about 5 MB, nearly all of it plotly.js, without which it could not work offline.

    Args:
        title: of the page.
        summary: a paragraph under the title.

    Raises:
        ImportError: the extra `likely[report]` is not installed.

    Example:
        >>> report = Report("Digits").table("Errors", ["model", "error"], [["hard labels", 0.098]])
        >>> [section["heading"] for section in report.sections]
        ['Errors']
    """

    def __init__(self, title: str, summary: str = "") -> None:
        try:
            import jinja2  # noqa: F401
            import plotly  # noqa: F401
        except ImportError as error:
            raise ImportError(f"a report needs plotly and jinja2: pip install 'likely[report]' ({error})") from None
        self.title, self.summary = title, summary
        self.sections: list[dict[str, Any]] = []

    def text(self, heading: str, paragraphs: str | Sequence[str]) -> Report:
        """A section of paragraphs."""
        return self._add("text", heading, paragraphs=[paragraphs] if isinstance(paragraphs, str) else list(paragraphs))

    def table(self, heading: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> Report:
        """A table of strings, numbers and Estimates; the first cell of a row is its heading.

        Raises: ValueError where a row has not as many cells as there are columns.
        """
        body = [list(row) for row in rows]
        for number, row in enumerate(body):
            require(len(row) == len(columns), f"rows: row {number} has {len(row)} cells for {len(columns)} columns")
        if any(isinstance(cell, Estimate) for row in body for cell in row):
            note = f"± is one standard error. {note}".strip()
        return self._add("table", heading, columns=list(columns), rows=body, note=note)

    def curves(self, heading: str, curves: Mapping[str, Mapping[str, Any]], note: str = "") -> Report:
        """Learning curves in nats: the cross-entropy, the entropy that is its floor, and their gap, the KL divergence.

        Args:
            curves: name → {"step", "cross_entropy", "entropy"} and, if wished, "train": the cross-entropy on the
                training rows. Each is a sequence of equal length; the entropy may be one number (0 for labels).

        Raises: ValueError where a series is missing or of another length.
        """
        from likely.evaluation import figures

        panels = figures.curves(curves)
        train = any(curve.get("train") is not None for curve in curves.values())
        return self._add("curves", heading, panels=panels, note=note, train=train)

    def reliability(
        self, heading: str, predictions: Mapping[str, tuple[Any, Any] | Reliability], note: str = ""
    ) -> Report:
        """A reliability diagram for each model: name → (probabilities (N, C), labels (N,) or distributions (N, C)).

        What `likely.evaluation.reliability` has computed already is taken as it is.

        Raises: as `likely.evaluation.reliability`.
        """
        from likely.evaluation import figures

        known = {name: p if isinstance(p, Reliability) else reliability(*p) for name, p in predictions.items()}
        panels = [figures.reliability(name, found) for name, found in known.items()]
        return self._add("reliability", heading, panels=panels, note=note)

    def confusion(
        self, heading: str, name: str, labels: Any, predictions: Any, classes: Sequence[Any], note: str = ""
    ) -> Report:
        """A confusion matrix: a row for each true class, a column for each predicted one.

        Args:
            labels, predictions: (N,) integers 0 … C − 1.
            classes: the C names.

        Raises: ValueError for labels or predictions that are none of the classes.
        """
        y_N, prediction_N = np.asarray(labels), np.asarray(predictions)
        require_rows("predictions", len(prediction_N), len(y_N), "labels")
        names = [str(c) for c in classes]
        for argument, value_N in (("labels", y_N), ("predictions", prediction_N)):
            wrong_N = (value_N < 0) | (value_N >= len(names))
            require(
                not wrong_N.any(),
                f"{argument}: row {int(wrong_N.argmax())} holds none of the {len(names)} classes",
            )
        count_CC = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(count_CC, (y_N, prediction_N), 1)
        return self._confusion(heading, name, count_CC, names, note)

    def _confusion(self, heading: str, name: str, count_CC: np.ndarray, names: list[str], note: str) -> Report:
        from likely.evaluation import figures

        with np.errstate(invalid="ignore"):
            share_CC = count_CC / count_CC.sum(axis=1, keepdims=True)
        if len(names) <= TABLE_CLASSES:
            return self._add("matrix", heading, name=name, count=count_CC, share=share_CC, names=names, note=note)
        wrong_CC = count_CC - np.diag(np.diag(count_CC))
        most = [divmod(int(i), len(names)) for i in np.argsort(-wrong_CC, axis=None, kind="stable")[:20]]
        rows = [[names[t], names[p], int(wrong_CC[t, p]), share_CC[t, p]] for t, p in most if wrong_CC[t, p] > 0]
        panel = figures.confusion(name, share_CC, names)
        columns = ["true", "predicted", "rows", "share of the true class"]
        return self._add("heatmap", heading, panels=[panel], columns=columns, rows=rows, note=note)

    def surprising(self, heading: str, items: Iterable[Surprise | Mapping[str, Any]], note: str = "") -> Report:
        """A gallery of the rows that surprised the model most, in the order given."""
        cards = [item if isinstance(item, Surprise) else Surprise(**item) for item in items]
        images = [None if card.image is None else _images.data_uri(card.image) for card in cards]
        return self._add("gallery", heading, cards=list(zip(cards, images)), note=note)

    def html(self) -> str:
        """The whole page."""
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("likely.evaluation", "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters.update(
            show=show, short=short, is_number=is_number, in_figures=in_figures, interval=interval, trusted=Markup
        )
        drawn = any("panels" in section for section in self.sections)
        return environment.get_template("report.html").render(
            report=self,
            plotly=get_plotlyjs() if drawn else "",
            version=metadata.version("likely"),
        )

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the page to a file, which appears whole or not at all.

        Raises: FileExistsError where `path` exists and `overwrite` was not asked for.
        """
        with new_file(path, overwrite) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return Path(path)

    def _add(self, kind: str, heading: str, note: str = "", **content: Any) -> Report:
        number = len(self.sections) + 1
        self.sections.append({"kind": kind, "heading": heading, "note": note, "id": f"s{number}", **content})
        return self


def evaluation_report(
    title: str,
    evaluation: Evaluation,
    probabilities: Any,
    target: Any,
    classes: Sequence[Any],
    *,
    log_input: bool = False,
    summary: str = "",
    images: Any = None,
    texts: Sequence[str] | None = None,
    most: int = 24,
) -> Report:
    """The report of one model on one table: its measures, its reliability, its confusions, its greatest surprises.

    Args:
        evaluation: what `evaluate(probabilities, target)` returned.
        probabilities: (N, C), log-probabilities if `log_input`.
        target: labels (N,), or distributions (N, C), which have their most probable class for a label here.
        classes: the C names.
        images: (N, H, W) pictures of the rows; texts: (N,) words about them, their number by default.
        most: how many surprises to show.
    """
    x, p = checked(probabilities, target, log_input)
    x_NC = x.double().cpu().numpy()
    y_N = (p.argmax(dim=1) if p.ndim == 2 else p).cpu().numpy()
    prediction_N = x_NC.argmax(axis=1)
    names = [str(c) for c in classes]
    report = Report(title, summary)
    report.table(
        "Measures",
        ["measure", "value"],
        [
            [name.strip(), value if isinstance(value, Estimate) else round(value, 3)]
            for name, value in evaluation.rows()
        ],
        note=f"{evaluation.n:,} rows, {evaluation.classes} classes. Entropy, cross-entropy and KL in nats.",
    )
    report.reliability("Reliability", {"this model": (np.exp(x_NC) if log_input else x_NC, p)})
    report.confusion("Confusion", "this model", y_N, prediction_N, names)
    surprisal_N = surprisal(x_NC[np.arange(len(y_N)), y_N], log_input=log_input, check=False)
    order = np.argsort(-surprisal_N, kind="stable")[:most]
    cards = [
        Surprise(
            label=names[y_N[i]],
            predicted=names[prediction_N[i]],
            probability=math.exp(-surprisal_N[i]),
            surprisal=float(surprisal_N[i]),
            image=None if images is None else images[i],
            text=f"row {i}" if texts is None else texts[i],
            confidence=float(np.exp(x_NC[i].max()) if log_input else x_NC[i].max()),
        )
        for i in order
    ]
    return report.surprising("Most surprising", cards)


def is_number(cell: Any) -> bool:
    """Whether a cell is aligned to the right."""
    return isinstance(cell, (Real, Estimate)) and not isinstance(cell, bool)


def in_figures(rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Which columns hold nothing but numbers, and texts of numbers and their signs: `14.3 ± 1.0`, `[−0.1, +0.2]`.

    >>> in_figures([["a", 0.5, "14.3 ± 1.0", "[−0.2, +0.1]", "7"], ["b", 2, "0.4 ± unknown", "", "seven"]])
    [False, True, True, True, False]
    """

    def is_figure(cell: Any) -> bool:
        return is_number(cell) or cell is None or (isinstance(cell, str) and FIGURES.fullmatch(cell) is not None)

    return [all(map(is_figure, column)) for column in zip(*rows)]


def show(cell: Any) -> str:
    """A cell as text: four significant digits, an Estimate with its standard error, a proper minus sign."""
    if isinstance(cell, Estimate):
        text = str(cell) if math.isfinite(cell.standard_error) else show(cell.mean)
    elif isinstance(cell, bool) or not isinstance(cell, Real):
        return "" if cell is None else str(cell)
    elif isinstance(cell, Integral):
        text = f"{int(cell):,}"
    else:
        text = {"nan": "unknown", "inf": "∞", "-inf": "-∞"}.get(f"{cell:.4g}", f"{cell:.4g}")
    return text.replace("-", "−")


def short(value: float) -> str:
    """A probability or a surprisal in a caption, to two digits after the point or of those that count."""
    return f"{value:.2f}" if value >= 0.005 else show(float(f"{value:.1g}"))


def interval(cell: Estimate) -> str:
    """What stands in the tip of an Estimate."""
    return f"{cell.confidence:.0%} interval {show(cell.low)} … {show(cell.high)}, n = {cell.n:,}"
