"""The figures of a report: plotly's, as JSON, each with its numbers as a table beside it.

Colours are the custom properties of the style sheet, `var(--blue)`, which the page resolves in light and in dark. The
user's text is escaped, since plotly reads a little HTML in labels.

Shapes: S steps, N rows, C classes, B bins.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from likely._checks import require, require_rows
from likely.evaluation.calibration import Reliability

BLUE, WASH, ORANGE, INK, MUTED, GRID = (f"var(--{name})" for name in ("blue", "wash", "orange", "ink", "muted", "grid"))


@dataclass(frozen=True)
class Panel:
    """One drawing: the figure, what it shows in words for those who cannot see it, and its numbers."""

    title: str
    figure: Any
    description: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default_factory=list)

    @property
    def json(self) -> str:
        """The figure as JSON that may stand inside a script element."""
        return str(self.figure.to_json()).replace("<", "\\u003c")  # no "</script>" ends the element early


def curves(curves: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """A panel for each learning curve; all share the scale of their nats, so that they can be compared."""
    read = {name: _curve(name, curve) for name, curve in curves.items()}
    finite = [x_S[np.isfinite(x_S)] for curve in read.values() for key, x_S in curve.items() if key != "step"]
    top = max((float(x.max()) for x in finite if x.size), default=1.0)
    bottom = min(0.0, min((float(x.min()) for x in finite if x.size), default=0.0))
    return [_curve_panel(name, curve, [bottom, top + 0.04 * (top - bottom)]) for name, curve in read.items()]


def _curve(name: str, curve: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for key in ("step", "cross_entropy", "entropy"):
        require(key in curve, f"curves: {name!r} lacks {key!r}; give step, cross_entropy and entropy (0 for labels)")
    step_S = np.asarray(curve["step"], dtype=np.float64)
    require(step_S.ndim == 1 and step_S.size > 0, f"curves: {name!r} has no steps to draw")
    read = {"step": step_S}
    for key in ("cross_entropy", "entropy", "train"):
        if curve.get(key) is not None:
            x_S = np.asarray(curve[key], dtype=np.float64)
            read[key] = np.full_like(step_S, float(x_S)) if x_S.ndim == 0 else x_S
            require_rows(f"curves: {key!r} of {name!r}", read[key].size, step_S.size, "'step'")
    return read


def _curve_panel(name: str, curve: Mapping[str, np.ndarray], span: list[float]) -> Panel:
    import plotly.graph_objects as go

    step_S, ce_S, entropy_S = curve["step"], curve["cross_entropy"], curve["entropy"]
    kl_S = ce_S - entropy_S
    hover = "%{y:.4f} nats<extra>%{fullData.name}</extra>"
    figure = go.Figure()
    line = {"mode": "lines", "x": step_S.tolist(), "hovertemplate": hover}
    figure.add_scatter(y=entropy_S.tolist(), name="entropy (the floor)", line={"color": INK, "dash": "dash"}, **line)
    figure.add_scatter(
        y=ce_S.tolist(),
        name="cross-entropy",
        line={"color": BLUE, "width": 2.5},
        fill="tonexty",
        fillcolor=WASH,
        customdata=kl_S.tolist(),
        **(line | {"hovertemplate": "%{y:.4f} nats, of which KL %{customdata:.4f}<extra>cross-entropy</extra>"}),
    )
    if "train" in curve:
        figure.add_scatter(y=curve["train"].tolist(), name="training", line={"color": ORANGE, "dash": "dot"}, **line)
    figure.update_layout(_layout("step", "nats"), hovermode="x unified")
    figure.update_yaxes(range=span)

    lowest = int(np.nanargmin(ce_S)) if np.isfinite(ce_S).any() else 0
    numbers = [
        (label, int(step_S[i]) if step_S[i].is_integer() else float(step_S[i]), ce_S[i], entropy_S[i], kl_S[i])
        for label, i in (("first", 0), ("lowest", lowest), ("last", -1))
    ]
    description = (
        f"Learning curve of {name}: cross-entropy goes from {ce_S[0]:.3g} to {ce_S[-1]:.3g} nats, "
        f"the entropy is {entropy_S[-1]:.3g}, and the gap between them, the KL divergence, ends at {kl_S[-1]:.3g}."
    )
    return Panel(name, figure, description, ("", "step", "cross-entropy", "entropy", "KL"), numbers)


def reliability(name: str, r: Reliability) -> Panel:
    """Accuracy against confidence with Wilson intervals, above the number of rows in each bin."""
    from plotly.subplots import make_subplots

    held_B = r.count > 0
    x_B, y_B = r.confidence[held_B], r.accuracy[held_B]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.78, 0.22], vertical_spacing=0.06)
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": MUTED, "dash": "dash"}, hoverinfo="skip", row=1, col=1
    )
    figure.add_scatter(
        x=x_B.tolist(),
        y=y_B.tolist(),
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 7},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (r.high[held_B] - y_B).tolist(),
            "arrayminus": (y_B - r.low[held_B]).tolist(),
            "color": BLUE,
            "thickness": 1.2,
            "width": 3,
        },
        customdata=[[int(n), low, high] for n, low, high in zip(r.count[held_B], r.low[held_B], r.high[held_B])],
        hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f} (%{customdata[1]:.3f} … %{customdata[2]:.3f})"
        "<br>%{customdata[0]} rows<extra></extra>",
        row=1,
        col=1,
    )
    width_B = np.diff(r.edges)
    figure.add_bar(
        x=(r.edges[:-1] + width_B / 2).tolist(),
        y=r.count.tolist(),
        width=(width_B * 0.92).tolist(),
        marker_color=BLUE,
        opacity=0.55,
        hovertemplate="%{y} rows<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_layout(_layout("confidence", "accuracy"), bargap=0, height=420)
    figure.update_xaxes(_axis(None), range=[-0.02, 1.02], showticklabels=False, row=1, col=1)
    figure.update_yaxes(_axis("accuracy"), range=[-0.02, 1.02], row=1, col=1)
    figure.update_xaxes(_axis("confidence"), range=[-0.02, 1.02], row=2, col=1)
    figure.update_yaxes(_axis("rows"), nticks=3, row=2, col=1)

    rows = [
        (f"{r.edges[b]:.2f} – {r.edges[b + 1]:.2f}", int(r.count[b]), r.confidence[b], r.accuracy[b], r.gap[b])
        for b in np.flatnonzero(held_B)
    ]
    floor = "" if r.floor is None else f" (a calibrated model would show {r.floor:.2g} by chance)"
    description = f"Reliability diagram of {name}: calibration error {r.error}{floor}, {int(r.count.sum()):,} rows."
    return Panel(name, figure, description, ("confidence in", "rows", "mean confidence", "accuracy", "gap"), rows)


def confusion(name: str, share_CC: np.ndarray, classes: Sequence[str]) -> Panel:
    """A heat map of the shares of each true class, for as many classes as no table can show."""
    import plotly.graph_objects as go

    # Two long names may be cut to the same text, so the axes hold numbers, which are shown as names.
    names = [html.escape(c, quote=False) for c in classes]
    cut = {str(i): html.escape(c if len(c) <= 20 else f"{c[:19]}…", quote=False) for i, c in enumerate(classes)}
    figure = go.Figure()
    figure.add_heatmap(
        z=share_CC.tolist(),
        x=list(cut),
        y=list(cut),
        customdata=[[[true, predicted] for predicted in names] for true in names],
        zmin=0,
        zmax=1,
        colorscale=[[0, "var(--surface)"], [1, BLUE]],
        colorbar={"thickness": 10, "outlinewidth": 0, "tickformat": ".0%"},
        hovertemplate="true %{customdata[0]}<br>predicted %{customdata[1]}<br>%{z:.1%} of the true<extra></extra>",
    )
    figure.update_layout(_layout("predicted", "true"), height=640)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, labelalias=cut)
    figure.update_xaxes(type="category", showgrid=False, labelalias=cut)
    right = float(np.nanmean(np.diag(share_CC)))
    description = f"Confusion matrix of {name} with {len(classes)} classes; mean recall {right:.3f}."
    return Panel(name, figure, description)


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "template": None,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--font)", "color": INK, "size": 13},
        "margin": {"l": 56, "r": 12, "t": 10, "b": 46},
        "height": 300,
        "showlegend": False,
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": GRID, "font": {"color": INK}, "namelength": -1},
        "xaxis": _axis(x),
        "yaxis": _axis(y),
    }


def _axis(title: str | None) -> dict[str, Any]:
    return {
        "title": {"text": title or "", "standoff": 8},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
    }
