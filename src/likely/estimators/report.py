"""The report of a fit: one HTML file with the table, the coefficients' forest, the solver's way, and the surprises.

Needs the extra `likely[report]`.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from likely._checks import require, require_rows
from likely.estimators.rows import read_features, read_weight
from likely.estimators.targets import read_target
from likely.evaluation import Report, Surprise, evaluate
from likely.forms import Target
from likely.measures import Estimate

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier

MOST_COEFFICIENTS, MOST_CLASSES = 40, 6


def fit_report(
    model: LinearClassifier,
    X: Any,
    y: Any,
    *,
    title: str = "",
    summary: str = "",
    sample_weight: Any = None,
    offset: Any = None,
    reference: Any = None,
    confidence: float = 0.95,
    texts: Sequence[str] | None = None,
    images: Any = None,
    most: int = 24,
) -> Report:
    """A report of a fitted estimator on rows, those it was fitted to or others.

    It shows the figures of `summary()`; the coefficients with their intervals as a forest, times the standard
    deviations of their columns in X (of many, those that are the most standard errors from 0; without intercepts);
    the loss and the certified gap at each step of the solver; measures of the predictions with standard errors; a
    reliability diagram; and the rows whose target surprised the model most.

    Args:
        X, y: (n, D) features in memory; labels, or probabilities (n, K).
        reference, confidence: as in `summary()`.
        texts: (n,) words about the rows, their number by default. images: (n, H, W) pictures of them.
        most: how many surprises to show.

    Returns: a Report, to be written with `.write(path)`.

    Raises: ImportError without the extra. ValueError for rows that do not fit the model.

    Example:
        >>> from likely.estimators import LogisticRegression
        >>> x, y = [[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]], [0, 0, 1, 0, 1, 1]
        >>> report = fit_report(LogisticRegression().fit(x, y), x, y)
        >>> [section["heading"] for section in report.sections][:3]
        ['The fit', 'Coefficients', 'The way of the solver']
    """
    from likely.estimators import figures

    require(not isinstance(y, Target), "y: a report is of labels or an (n, K) array of probabilities")
    told = model.summary(reference, confidence)
    target, _, _ = read_target(y, model.classes_)
    log_q = model.predict_log_proba(X, offset)
    require_rows("y", len(target), len(log_q), "X")
    names = [str(one) for one in model.classes_.tolist()]
    report = Report(title or told.title, summary)
    report.table("The fit", ["", "value"], [list(fact) for fact in told.facts()], note=" ".join(told.notes))

    spread = dict(zip(model._feature_names(), _spread(read_features(model, X, reset=False))))
    slopes = [one for one in told.coefficients if one.name in spread]
    labels: list[Any] = list(dict.fromkeys(one.label for one in told.coefficients))[:MOST_CLASSES]
    drawn = {label: largest([one for one in slopes if one.label == label]) for label in labels}
    span = figures.span([one for shown in drawn.values() for one in shown], spread)
    panels = []
    for label, shown in drawn.items():
        numbers = [one for one in told.coefficients if one.label == label and (one in shown or one.name not in spread)]
        said = f"The {len(shown)} largest of {len(spread)} are shown." if len(shown) < len(spread) else ""
        heading = told.contrast if label is None else f"class {label}"
        panels.append(figures.forest(heading, shown, spread, span, confidence, numbers, said))
    note = f"{told.contrast}; {confidence:.0%} intervals. Covariance: {told.covariance}."
    if len(names) > MOST_CLASSES + 1:
        note += f" The first {len(labels)} classes of {len(names)} are shown."
    _panels(report, "Coefficients", panels, note)
    if len(model.history_):
        _panels(
            report,
            "The way of the solver",
            [figures.way(model.history_)],
            told.certificate[:1].upper() + told.certificate[1:],
        )

    weight = None if sample_weight is None else read_weight(sample_weight, len(target))
    found = evaluate(log_q, target, log_input=True, weights=weight)
    measures = [[n.strip(), v if isinstance(v, Estimate) else round(v, 3)] for n, v in found.rows()]
    report.table("Measures", ["measure", "value"], measures, note=f"{found.n:,} rows, in nats where they have a unit.")
    report.reliability("Reliability", {"this model": (np.exp(log_q), target)})
    report.surprising("Most surprising", surprises(log_q, target, names, texts, images, most), _surprise_note(target))
    return report


def largest(coefficients: Sequence[Any], most: int = MOST_COEFFICIENTS) -> list[Any]:
    """The coefficients that stand out most, by |z| (by size, where none has a standard error), in their own order."""
    if len(coefficients) <= most:
        return list(coefficients)
    sure = any(math.isfinite(one.z) for one in coefficients)
    key = [abs(one.z if sure else one.estimate) for one in coefficients]
    chosen = np.argsort(-np.nan_to_num(np.array(key), nan=-1.0), kind="stable")[:most]
    return [coefficients[i] for i in sorted(chosen)]


def surprises(
    log_q: np.ndarray,
    target: np.ndarray,
    names: Sequence[str],
    texts: Sequence[str] | None = None,
    images: Any = None,
    most: int = 24,
) -> list[Surprise]:
    """The rows with the greatest KL divergence of the prediction from the target: of labels, their surprisal."""
    n = len(log_q)
    if target.ndim == 1:
        kl = -log_q[np.arange(n), target]
        label = target
    else:
        held = target > 0
        kl = (np.where(held, target, 0) * (np.log(np.where(held, target, 1)) - np.where(held, log_q, 0))).sum(axis=1)
        label = target.argmax(axis=1)
    best = log_q.argmax(axis=1)
    return [
        Surprise(
            label=names[label[i]],
            predicted=names[best[i]],
            probability=float(np.exp(log_q[i, label[i]])),
            surprisal=float(-log_q[i, label[i]]),
            image=None if images is None else images[i],
            text=(f"row {i}" if texts is None else texts[i]) + (f", KL {kl[i]:.3g} nats" if target.ndim == 2 else ""),
            confidence=float(np.exp(log_q[i, best[i]])),
        )
        for i in np.argsort(-kl, kind="stable")[:most]
    ]


def _spread(X: Any) -> np.ndarray:
    """(D,) standard deviations."""
    if not scipy.sparse.issparse(X):
        return X.std(axis=0, dtype=np.float64)
    mean = np.asarray(X.mean(axis=0, dtype=np.float64)).ravel()
    square = np.asarray(X.multiply(X).mean(axis=0, dtype=np.float64)).ravel()
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def _panels(report: Report, heading: str, panels: list[Any], note: str) -> None:
    """A section of figures; a heat map's is one without more ado."""
    report._add("heatmap", heading, panels=panels, columns=[], rows=[], note=note)


def _surprise_note(target: np.ndarray) -> str:
    if target.ndim == 1:
        return "Ordered by surprisal, the negative log-probability of the label."
    return "Ordered by the KL divergence of the prediction from the target; the true class is the target's largest."
