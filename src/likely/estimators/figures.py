"""The figures of a fit: a forest of coefficients with intervals, and the way of the solver.

Shapes: S steps.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from likely.estimators.summary import Coefficient
from likely.evaluation.figures import BLUE, INK, MUTED, ORANGE, Panel, _axis, _layout

LONGEST = 28


def forest(
    title: str,
    rows: Sequence[Coefficient],
    spread: Mapping[str, float],
    span: tuple[float, float],
    confidence: float,
    numbers: Sequence[Coefficient],
    note: str = "",
) -> Panel:
    """Coefficients times the standard deviations of their columns, with intervals; a dashed line marks 0.

    Args:
        rows: what is drawn, a line each. spread: the standard deviation of each column. span: of the axis, the same
            for figures that are to be compared. numbers: what stands in the table, in the units of the columns.
    """
    import plotly.graph_objects as go

    known = [math.isfinite(one.low) for one in rows]
    scale = [spread[one.name] for one in rows]
    # Two long names may be cut to the same text, so the axis holds numbers, which are shown as names.
    place = [str(i) for i in range(len(rows))]
    names = {i: html.escape(_cut(one.name), quote=False) for i, one in zip(place, rows)}
    figure = go.Figure()
    figure.add_scatter(
        x=[one.estimate * s for one, s in zip(rows, scale)],
        y=place,
        mode="markers",
        marker={"color": BLUE, "size": 8},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(one.high - one.estimate) * s if k else 0 for one, k, s in zip(rows, known, scale)],
            "arrayminus": [(one.estimate - one.low) * s if k else 0 for one, k, s in zip(rows, known, scale)],
            "color": BLUE,
            "thickness": 1.4,
            "width": 4,
        },
        customdata=[[html.escape(one.name, quote=False), one.estimate, _interval(one)] for one in rows],
        hovertemplate="%{customdata[0]}<br>coefficient %{customdata[1]:.4g}%{customdata[2]}"
        "<br>per standard deviation %{x:.4g}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": MUTED, "dash": "dash", "width": 1})
    figure.update_layout(_layout("logit per standard deviation", ""), height=90 + 26 * len(rows))
    figure.update_xaxes(range=list(span))
    figure.update_yaxes(type="category", autorange="reversed", labelalias=names, showgrid=False)
    table = [(one.name, one.estimate, one.standard_error, one.z, one.p, one.low, one.high) for one in numbers]
    away = sum(k and (one.low > 0 or one.high < 0) for one, k in zip(rows, known))
    said = f"{title}: {len(rows)} coefficients with their {confidence:.0%} intervals, of which {away} leave 0 out."
    columns = ("", "coefficient", "standard error", "z", "p", "low", "high")
    return Panel(title, figure, f"{said} {note}".strip(), columns, table)


def span(rows: Sequence[Coefficient], spread: Mapping[str, float]) -> tuple[float, float]:
    """An axis that holds 0 and all intervals, with a margin."""
    ends = [0.0]
    for one in rows:
        known = [v for v in (one.estimate, one.low, one.high) if math.isfinite(v)]
        ends += [v * spread[one.name] for v in known]
    margin = 0.05 * ((max(ends) - min(ends)) or 1.0)
    return min(ends) - margin, max(ends) + margin


def way(history_S4: np.ndarray) -> Panel:
    """The loss less its last value, and the certified gap, at each step of the solver, on a logarithmic scale."""
    import plotly.graph_objects as go

    step, loss, gap, seconds = history_S4.T
    above = loss - loss.min()
    figure = go.Figure()
    line = {
        "mode": "lines+markers",
        "x": step.tolist(),
        "hovertemplate": "%{y:.3g} nats<extra>%{fullData.name}</extra>",
    }
    positive = [float(v) if v > 0 else None for v in above]
    certified = [float(v) if v > 0 and math.isfinite(v) else None for v in gap]
    figure.add_scatter(y=positive, name="loss above its last value", line={"color": BLUE, "width": 2.5}, **line)
    figure.add_scatter(y=certified, name="certified gap", line={"color": ORANGE, "width": 2, "dash": "dot"}, **line)
    figure.update_layout(_layout("iteration", "nats"), hovermode="x unified", height=340, showlegend=True)
    figure.update_layout(legend={"orientation": "h", "y": 1.12, "x": 0, "font": {"color": INK}})
    figure.update_yaxes(_axis("nats"), type="log", exponentformat="power", dtick=_decades(positive + certified))
    figure.update_xaxes(tickformat="d", dtick=max(1, -(-len(above) // 10)))
    end = f"{gap[-1]:.2g} nats" if math.isfinite(gap[-1]) else "unknown: there is no certificate"
    said = f"The loss goes from {loss[0]:.6g} to {loss[-1]:.6g} nats; the certified gap ends at {end}."
    rows = [(int(i), f, g, s) for i, f, g, s in zip(step, loss, gap, seconds)]
    return Panel("Loss and certified gap", figure, said, ("iteration", "loss", "certified gap", "seconds"), rows)


def _decades(values: Sequence[Any]) -> int:
    known = [math.log10(v) for v in values if v]
    return max(1, math.ceil((max(known) - min(known)) / 7)) if known else 1


def _interval(one: Coefficient) -> str:
    return "" if not math.isfinite(one.low) else f" ({one.low:.4g} … {one.high:.4g})"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
