"""Draws the plots of the documentation from the names that its pages compute: `python docs/plots.py`.

Needs matplotlib, which is in the test extra. The pages are run as the test suite runs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch.func import grad, hessian

matplotlib.use("Agg")
STYLE: Any = {
    "svg.hashsalt": "likely",  # the same picture gives the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "white",  # GitHub shows the pictures on black, too
}
BLUE, ORANGE, GREY = "#1f6fb4", "#d1662a", "#666666"
PAPER: Any = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}  # behind a text that stands on a curve


def law_of_large_numbers(names: dict[str, Any], path: Path) -> None:
    n = np.unique(np.geomspace(10, 1_000_000, 200).astype(int))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
        for log_p, log_q, colour, label in (
            (names["log_p"], names["log_q"], BLUE, "pairs drawn from $P$"),
            (names["log_p_flat"], names["log_q_flat"], ORANGE, "each letter $x$ equally often"),
        ):
            ratio = (log_p - log_q).numpy()
            mean = np.cumsum(ratio)[n - 1] / n
            spread = np.sqrt(np.maximum(np.cumsum(ratio**2)[n - 1] / n - mean**2, 0) / n)
            axes.fill_between(n, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.2, linewidth=0)
            axes.plot(n, mean, color=colour, label=label)
        for value, label in (
            (names["KL"], "the divergence of the joint distributions"),
            (names["conditional_kl"].mean(), "the conditional divergence under equal $P(x)$"),
        ):
            axes.axhline(float(value), color=GREY, linestyle="--", linewidth=1)
            axes.text(9e5, float(value) + 0.035, f"{float(value):.3f}, {label}", color=GREY, fontsize=8, ha="right")
        axes.set(xscale="log", xlim=(10, 1e6), ylim=(0, 1.2))
        axes.set(xlabel="number of pairs", ylabel="mean log ratio ± 2 s.e., nats")
        axes.legend(loc="upper right")
        _save(figure, path)


def separation(names: dict[str, Any], path: Path) -> None:
    """Newton's method from zero on the petals of section 5 and on breast cancer."""
    features, cancer = names["load_breast_cancer"](return_X_y=True)
    features = torch.cat([torch.ones(len(cancer), 1), torch.tensor(names["scale"](features))], 1).double()

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda theta: (torch.nn.functional.softplus(x @ theta) - y * (x @ theta)).mean()

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
        for x, y, colour, label in (
            (names["X"], names["y"], BLUE, "petals (not separable)"),
            (features, torch.tensor(cancer), ORANGE, "breast cancer (separable)"),
        ):
            loss, theta = loss_of(x, y), torch.zeros(x.shape[1], dtype=torch.float64)
            losses, norms = [float(loss(theta))], [0.0]
            for _ in range(22):
                theta = theta - torch.linalg.solve(hessian(loss)(theta), grad(loss)(theta))
                losses.append(float(loss(theta)))
                norms.append(float(theta.norm()))
            left.plot(losses, color=colour, marker=".", label=label)
            right.plot(norms, color=colour, marker=".", label=label)
        left.set(yscale="log", xlabel="Newton steps", title="mean cross-entropy, nats")
        right.set(yscale="symlog", xlabel="Newton steps", title="norm of the weights", ylim=(0, 5e4))
        left.legend(loc="lower left")
        _save(figure, path)


def next_token(names: dict[str, Any], path: Path) -> None:
    curve = np.array(names["curve"])
    tokens = names["BATCH"] * np.arange(1, len(curve) + 1)
    smooth = np.convolve(curve, np.ones(15) / 15, "valid")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        axes.plot(tokens, curve, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(tokens[7:-7], smooth, color=BLUE, label="training batches (mean of 15)")
        for name, style, colour in (
            ("unigrams", ":", GREY),
            ("bigrams", "--", GREY),
            ("neural, 4 tokens", "-", ORANGE),
        ):
            mean = float(names["surprisals"][name].mean())
            axes.axhline(mean, linestyle=style, color=colour, linewidth=1.2)
            axes.text(
                tokens[-1],
                mean + 0.06,
                f"{name}, held out: {mean:.2f}",
                ha="right",
                fontsize=8,
                color=colour,
                bbox=PAPER,
            )
        axes.set(xlabel="training tokens seen", ylabel="cross-entropy, nats a token", xlim=(0, tokens[-1]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.82))
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


PLOTS: dict[str, tuple[str, Callable[[dict[str, Any], Path], None]]] = {
    "law-of-large-numbers.svg": ("objective.md", law_of_large_numbers),
    "separation.svg": ("objective.md", separation),
    "next-token.svg": ("next-token.md", next_token),
}


def main() -> None:
    docs = Path(__file__).resolve().parent
    sys.path.insert(0, str(docs.parent))
    from tests.test_docs import names_of

    for name, (page, plot) in PLOTS.items():
        plot(names_of(docs / page), docs / "images" / name)
        print(docs / "images" / name)


if __name__ == "__main__":
    main()
