"""What is printed and written: tables, JSON and plots."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import CLOCKS, Run, compare, holds_in_every_setting, quartiles
from benchmarks.contestants import OURS
from benchmarks.gate import Verdict

MIB = 2**20


def row_pass() -> str:
    """Which row pass of `likely` runs: "plain" PyTorch, or the compiled one and its instruction set."""
    try:
        return str(importlib.import_module("likely.kernels.native").active())
    except (ImportError, AttributeError):
        return "plain"


def products() -> str:
    """Which of PyTorch's libraries multiplies float32 matrices for `likely`: "torch", which is what it takes itself."""
    try:
        return str(importlib.import_module("likely._products").active())
    except (ImportError, AttributeError):
        return "torch"


def machine() -> dict[str, Any]:
    """The processor, its memory settings and the versions, as far as they can be read."""
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    versions = {}
    for name in ("likely", "torch", "numpy", "liger-kernel", "optax", "jax"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "transparent huge pages": huge.read_text().strip() if huge.exists() else "unknown",
        "versions": versions,
        "row pass of likely": row_pass(),
        "float32 products of likely": products(),
    }


def comparisons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Ours against the others, for every case, number of threads, memory setting and clock."""
    found = []
    for _, group in grouped(runs):
        for setting in dict.fromkeys(run.setting for run in group):
            same = [run for run in group if run.setting == setting]
            for by in CLOCKS:
                one = compare(same, OURS, by) or compare(same, f"{OURS} functional", by)
                found += [one] if one else []
    return found


def grouped(runs: Sequence[Run]) -> list[tuple[tuple[Any, ...], list[Run]]]:
    return [(key, list(group)) for key, group in groupby(sorted(runs, key=lambda r: r.group), key=lambda r: r.group)]


def results(runs: Sequence[Run], verdict: Verdict, **about: Any) -> dict[str, Any]:
    """All that is written to JSON; `comparisons` is None when the tests do not allow it."""
    return {
        **about,
        "machine": machine(),
        "tests": asdict(verdict),
        "runs": [run.json() for run in runs],
        "comparisons": comparisons(runs) if verdict.allows_speed_ups else None,
    }


def text(interval: dict[str, Any] | None, others: bool = True) -> str:
    if not interval:
        return "–"
    name = f" {interval['contestant']}" if others else ""
    return f"{interval['median']:.2f} [{interval['low']:.2f}–{interval['high']:.2f}]{name}"


def print_runs(runs: Sequence[Run], console: Console) -> None:
    """Times, memory and errors of every contestant; no comparison."""
    for (sizes, dtype, target, threads), group in grouped(runs):
        for setting in dict.fromkeys(run.setting for run in group):
            table = Table(title=f"{sizes} {dtype}, {target}, {threads} thread(s), {setting}", title_justify="left")
            errors = list(dict.fromkeys(name for run in group for name in run.errors))
            for column in ("contestant", "ms", "quartiles", "scratch MiB", *(f"error of {name}" for name in errors)):
                table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
            absent: dict[str, list[str]] = {}
            for run in (run for run in group if run.setting == setting):
                if run.not_run or not run.seconds:
                    absent.setdefault(str(run.not_run), []).append(run.contestant)
                    continue
                time = quartiles(run.seconds)
                scratch = "" if run.scratch is None else f"{'' if run.scratch_exact else '≤ '}{run.scratch / MIB:.1f}"
                cells = [f"{run.errors[name]:.1e}" if name in run.errors else "" for name in errors]
                spread = f"{1e3 * time.low:.1f}–{1e3 * time.high:.1f}"
                table.add_row(run.contestant, f"{1e3 * time.median:.1f}", spread, scratch, *cells)
            console.print(table)
            for reason, names in absent.items():
                console.print(f"  not run: {', '.join(names)}: {reason}", highlight=False, soft_wrap=True)


def print_comparisons(found: Sequence[dict[str, Any]], console: Console) -> None:
    """How many times faster ours is, median and 95 % interval over rounds, and what holds in every memory setting."""
    table = Table(title=f"{OURS} against the others, and what holds in every memory setting", title_justify="left")
    names = ("case", "setting", "efficiency", "× eager", "× best peer", "scratch / eager's", "error / eager's")
    for column in names:
        table.add_column(column)

    def key(c: dict[str, Any]) -> tuple[str, int, str]:
        case = c["case"]
        sizes = "x".join(str(case[n]) for n in ("rows", "features", "classes") if case[n] > 1)
        return f"{sizes} {case['dtype']} {case['target']}", c["threads"], c["by"]

    for (case, threads, by), group in groupby(sorted(found, key=key), key=key):
        same = list(group)
        for c in same:
            share, error = c.get("scratch of eager's"), c.get("error of eager's")
            table.add_row(
                f"{case}, {threads} thread(s), {by}",
                c["setting"],
                text(c.get("efficiency")),
                text(c.get("eager"), others=False),
                text(c.get("best peer")),
                "–" if share is None else f"{share:.3f}",
                " ".join(f"{name} {value:.2f}" for name, value in (error or {}).items()) or "–",
            )
        if len(same) > 1:
            ends = [holds_in_every_setting(same, name) for name in ("efficiency", "eager", "best peer")]
            table.add_row("", "holds in all", *("–" if end is None else f"≥ {end:.2f}" for end in ends), "", "")
    console.print(table)


def plot(runs: Sequence[Run], folder: Path, name: str) -> list[Path]:
    """Time, scratch and largest error against C, a column per target; a picture per dtype, threads and setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    measured = [run for run in runs if run.seconds and not run.not_run]
    for dtype, threads, setting in sorted({(r.case["dtype"], r.threads, r.setting) for r in measured}):
        some = [r for r in measured if (r.case["dtype"], r.threads, r.setting) == (dtype, threads, setting)]
        targets = list(dict.fromkeys(run.case["target"] for run in some))
        contestants = list(dict.fromkeys(run.contestant for run in some))
        size = (2.5 + 3.4 * len(targets), 9)
        figure, axes = pyplot.subplots(3, len(targets), figsize=size, squeeze=False, layout="constrained")
        colours = [pyplot.get_cmap("tab20")(k) for k in range(20)]
        for column, target in enumerate(targets):
            for k, contestant in enumerate(contestants):
                mine = [r for r in some if (r.case["target"], r.contestant) == (target, contestant)]
                mine.sort(key=lambda r: r.case["classes"])
                rows = [
                    [(r, 1e3 * quartiles(r.seconds).median) for r in mine],
                    [(r, max(r.scratch, 0) / MIB) for r in mine if r.scratch is not None],
                    [(r, max(r.errors.values())) for r in mine if r.errors],
                ]
                style = {"color": colours[k % 20], "marker": "o", "linestyle": "-", "linewidth": 1, "label": contestant}
                for axis, points in zip(axes[:, column], rows):
                    axis.plot([r.case["classes"] for r, _ in points], [y for _, y in points], **style)
            axes[0, column].set_title(target)
            axes[2, column].set_xlabel("classes C")
        for row, label in enumerate(("time, ms", "scratch, MiB", "largest relative error")):
            axes[row, 0].set_ylabel(label)
        for axis in axes.flat:
            axis.set_xscale("log")
            axis.set_yscale("symlog" if axis in axes[1] else "log")
            if axis in axes[1]:
                axis.set_ylim(bottom=0)
        figure.suptitle(f"{name}: {dtype}, {threads} thread(s), {setting}")
        axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        path = folder / f"{name}-{dtype}-{threads}-{setting.replace(' ', '-')}.png"
        figure.savefig(path, bbox_inches="tight", dpi=110)
        pyplot.close(figure)
        written.append(path)
    return written


def print_curve(runs: Sequence[Run], console: Console) -> None:
    """Scratch in MiB, a column per number of rows."""
    rows = sorted({run.case["rows"] for run in runs})
    table = Table("contestant", *(f"N = {n:,}" for n in rows), title="scratch, MiB", title_justify="left")
    for dtype in dict.fromkeys(run.case["dtype"] for run in runs):
        for name in dict.fromkeys(run.contestant for run in runs):
            cells = {
                run.case["rows"]: run.not_run or f"{(run.scratch or 0) / MIB:,.1f}"
                for run in runs
                if (run.contestant, run.case["dtype"]) == (name, dtype)
            }
            table.add_row(f"{name}, {dtype}", *(cells.get(n, "") for n in rows))
    console.print(table)


def plot_curve(runs: Sequence[Run], folder: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(run.case["dtype"] for run in runs))
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(2.5 + 4 * len(dtypes), 4), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes):
        for name in dict.fromkeys(run.contestant for run in runs):
            mine = [r for r in runs if (r.contestant, r.case["dtype"]) == (name, dtype) and r.scratch is not None]
            axis.plot([r.case["rows"] for r in mine], [(r.scratch or 0) / MIB for r in mine], marker="o", label=name)
        axis.set(title=dtype, xlabel="rows N", ylabel="scratch, MiB", xscale="log", yscale="log")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    path = folder / "curve.png"
    figure.savefig(path, bbox_inches="tight", dpi=110)
    pyplot.close(figure)
    return path


def finite(given: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(given, dict):
        return {key: finite(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [finite(value) for value in given]
    return None if isinstance(given, float) and not math.isfinite(given) else given


def write(given: dict[str, Any], folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(finite(given), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
