"""A report with every kind of section, on the handwritten digits, and text that must stay text."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from likely.evaluation import Report, Surprise, evaluate

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> & 'quotes'"


def full_report() -> Report:
    """Every kind of section, each with a hostile name somewhere."""
    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=200).fit(x[:300] / 16, y[:300])
    q = model.predict_proba(x[300:] / 16)
    held, surprisal = y[300:], -np.log(q[np.arange(len(q)), y[300:]])
    most = np.argsort(-surprisal)[:6]
    step = np.arange(0, 50, 5)
    curve: dict[str, Any] = {"step": step, "cross_entropy": 0.4 + 2 * np.exp(-step / 8), "entropy": 0.1}
    report = Report(f"Digits {HOSTILE}", f"Summary {HOSTILE}")
    report.text(f"Text {HOSTILE}", ["One paragraph.", f"Another {HOSTILE}"])
    report.table(
        f"Table {HOSTILE}",
        ["model", f"column {HOSTILE}", "KL", "rows"],
        [["hard", evaluate(q, held).cross_entropy, np.inf, 12345], [HOSTILE, -0.5, np.nan, -3]],
        note=f"Note {HOSTILE}",
    )
    report.curves("Curves", {HOSTILE: curve, "with training": curve | {"train": curve["cross_entropy"] * 0.9}})
    report.reliability("Reliability", {HOSTILE: (q, held), "to the model itself": (q, q)})
    report.confusion("Confusion", HOSTILE, held, q.argmax(1), [HOSTILE, *range(1, 10)])
    many = [f"{HOSTILE} {c}" for c in range(30)]
    report.confusion("Many classes", "large", np.arange(60) % 30, np.arange(60) % 29, many)
    cards = [
        Surprise(
            label=int(held[i]),
            predicted=int(q[i].argmax()),
            probability=float(q[i, held[i]]),
            surprisal=float(surprisal[i]),
            image=x[300 + i].reshape(8, 8),
            text=HOSTILE,
        )
        for i in most
    ]
    return report.surprising("Surprises", cards)
