"""What is in a teacher's record: whether it is whole, how sure the teacher was, and how much of its mass was kept.

Shapes: N rows, K classes kept exactly, B bins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from likely._estimates import Estimate, estimate
from likely.teachers.keep import Keep, Rows
from likely.teachers.manifest import Manifest
from likely.teachers.record import Record
from likely.teachers.store import read_shard

if TYPE_CHECKING:
    from likely.evaluation import Report
    from likely.evaluation.figures import Panel

QUANTILES = (0.05, 0.5, 0.95)
BINS = 40
_SAMPLES = "the draws of a row do not say its largest probability"
_RENORMALISED = 1e-3  # float16 leaves that much of a row that was made to sum to one


@dataclass(frozen=True, eq=False)
class Quantity:
    """A number of each row.

    Args:
        name: what it is.
        unit: "nats", or empty for a probability.
        value: (N,).
        mean: its mean, with a standard error clustered by example.
        explained: what it says, in a sentence.
    """

    name: str
    unit: str
    value: NDArray[np.float64]
    mean: Estimate
    explained: str

    def quantiles(self) -> list[float]:
        return [float(one) for one in np.quantile(self.value, QUANTILES)]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` found: every shard is whole.

    Args:
        manifest: what the record says of itself.
        bytes: of its shards on disk.
        entries: the mean number of stored classes of a row.
        quantities: the entropy, the mass of the most probable class and that of the tail, as far as they are known.
        remarks: what cannot be said of this record, and what its truncation costs, in sentences.
    """

    manifest: Manifest
    bytes: int
    entries: float
    quantities: tuple[Quantity, ...]
    remarks: tuple[str, ...]

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what the manifest says."""
        own, keep = self.manifest, self.manifest.keep
        names = None if isinstance(own.classes, int) else ", ".join(own.classes[:4]) + ", …" * (own.number > 4)
        shards = "1 shard" if len(own.shards) == 1 else f"{len(own.shards):,} shards"
        named = " without names" if names is None else f": {names}"
        return [
            ("kind", f"{keep}, its gradient is {keep.gradient}"),
            ("teacher", f"{own.teacher.kind} {own.teacher.name}, SHA-256 {own.teacher.sha256[:12]}…"),
            ("temperature", f"T = {own.temperature:g}"),
            ("classes", f"{own.number:,}{named}"),
            ("data", f"{own.examples:,} examples, {_hash(own.data, 'not said which')}"),
            ("tokenizer", _hash(own.tokenizer, "none")),
            ("rows", f"{own.rows:,}, {self.entries:.4g} classes stored of each"),
            ("size", f"{readable(self.bytes)} in {shards}, {self.bytes / own.rows:.4g} bytes a row"),
            ("checksums", "the shard is whole" if len(own.shards) == 1 else f"all {shards} are whole"),
        ]

    columns = ("", "mean", *(f"{q:.0%}" for q in QUANTILES))

    def table(self) -> list[list[Any]]:
        """A row for each quantity: its mean with a standard error, and quantiles over the rows."""
        return [
            [f"{one.name}, {one.unit}" if one.unit else one.name, one.mean, *one.quantiles()] for one in self.quantities
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "manifest": {name: part for name, part in self.manifest.to_dict().items() if name != "shards"},
            "bytes": self.bytes,
            "bytes_per_row": self.bytes / self.manifest.rows,
            "stored_per_row": self.entries,
            "quantities": {
                one.name: {
                    "unit": one.unit,
                    "mean": one.mean.mean,
                    "standard_error": one.mean.standard_error,
                    **{f"quantile_{q:g}": value for q, value in zip(QUANTILES, one.quantiles())},
                }
                for one in self.quantities
            },
            "remarks": list(self.remarks),
        }

    def report(self, title: str = "") -> Report:
        """The page: the facts, the table, and a histogram of each quantity.

        Raises: ImportError without the extra `likely[report]`.
        """
        from likely.evaluation import Report

        report = Report(title or f"The record of {self.manifest.teacher.name}", " ".join(self.remarks))
        report.table("The record", ["", "value"], self.facts(), note="; ".join(self.manifest.rounding))
        report.table("Its rows", self.columns, self.table(), note="Standard errors are clustered by example.")
        panels = [histogram(one) for one in self.quantities]
        # A section of panels and nothing else.
        return report._add("heatmap", "Distributions over the rows", panels=panels, columns=[], rows=[])


def inspect(record: Record | str | os.PathLike[str]) -> Inspection:
    """Read a record through: compare its checksums, and tell what it holds.

    Raises:
        FileNotFoundError: no record, or one that is not finished.
        ValueError: a damaged manifest or shard, named.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from likely.heads import Logits
        >>> from likely.networks import Identity
        >>> from likely.teachers.keep import keep_rows
        >>> from likely.teachers.store import Writer
        >>> manifest = Manifest(Keep.parse("top:1+tail"), 3, Identity("entry", "m:f", "00"))
        >>> z = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = Writer(Path(folder), manifest, [1, 1])
        ...     writer.put(0, keep_rows(Logits(z), manifest.keep))
        ...     _ = writer.finish()
        ...     found = inspect(folder)
        >>> for name, mean, *_ in found.table():
        ...     print(name, mean)
        entropy, nats 0.60 ± 0.23
        largest probability 0.79 ± 0.12
        mass outside the stored classes 0.21 ± 0.12
    """
    record = record if isinstance(record, Record) else Record.open(record)
    manifest, keep = record.manifest, record.manifest.keep
    entropies, tops, tails, entries = [], [], [], 0
    for shard in manifest.shards:
        rows = read_shard(record.folder, shard, keep, manifest.number)
        entries += int(rows.entries.sum())
        if rows.entropy is not None:
            entropies.append(rows.entropy)
        if rows.logprobs is not None:
            tops.append(np.exp(rows.logprobs.max(axis=1).astype(np.float64)))
        if keep.top:
            tails.append(_tail(rows))
    example_N = np.repeat(np.arange(manifest.examples), record.row_counts)
    quantities, remarks = [], []

    def add(name: str, unit: str, parts: Sequence[NDArray[Any]], explained: str) -> Quantity:
        value = np.concatenate(parts).astype(np.float64)
        quantities.append(Quantity(name, unit, value, estimate(value, groups=example_N), explained))
        return quantities[-1]

    if entropies:
        add("entropy", "nats", entropies, "of the teacher's whole distribution: the floor of a student's cross-entropy")
    else:
        remarks.append("The teacher's entropy is not recorded: KL divergences are of the stored classes and the tail.")
    if tops:
        add("largest probability", "", tops, "that of the teacher's most probable class")
    else:
        remarks.append(f"The largest probability is unknown: {_SAMPLES}.")
    if tails:
        _add_tail(keep, np.concatenate(tails), manifest, add, remarks)
    size = sum(shard.bytes for shard in manifest.shards)
    return Inspection(manifest, size, entries / manifest.rows, tuple(quantities), tuple(remarks))


def _tail(rows: Rows) -> NDArray[np.float64]:
    """(N,) the mass outside the K classes, as recorded, or what is missing to one."""
    if rows.tail is not None:
        return rows.tail.astype(np.float64)
    assert rows.logprobs is not None
    return np.maximum(1 - np.exp(rows.logprobs.astype(np.float64)).sum(axis=1), 0)


def _add_tail(keep: Keep, tail_N: NDArray[np.float64], manifest: Manifest, add: Any, remarks: list[str]) -> None:
    if keep.kind == "top" and not keep.tail and keep.top < manifest.number and float(tail_N.max()) < _RENORMALISED:
        remarks.append(
            "Every row sums to 1, so that the record was renormalised, or has no tail to speak of: the mass outside "
            "the stored classes is unknown."
        )
        return
    where = "drawn from" if keep.draws else "not stored class by class"
    add("mass outside the stored classes", "", [tail_N], f"what the {keep.top} largest leave over; it is {where}")
    if keep.kind == "top":
        lost_N = -np.log1p(-tail_N)
        remarks.append(
            f"What truncation costs, if the tail is left out: the renormalised target is {lost_N.mean():.4g} nats from "
            f"the teacher (KL = −log P, the mean over the rows), and gives its classes {np.exp(lost_N).mean():.4g} "
            "times their probability."
        )


def histogram(quantity: Quantity) -> Panel:
    """The shares of the rows in bins of equal width, with the mean as a dashed line."""
    import plotly.graph_objects as go

    from likely.evaluation.figures import BLUE, INK, Panel, _layout

    top = 1.0 if not quantity.unit else max(float(quantity.value.max()), 1e-3)
    count_B, edges = np.histogram(quantity.value, bins=BINS, range=(0.0, top))
    share_B, width = count_B / len(quantity.value), top / BINS
    axis = f"{quantity.name}, {quantity.unit}" if quantity.unit else quantity.name
    figure = go.Figure()
    figure.add_bar(
        x=(edges[:-1] + width / 2).tolist(),
        y=share_B.tolist(),
        width=width * 0.92,
        marker_color=BLUE,
        customdata=[[low, high, int(n)] for low, high, n in zip(edges, edges[1:], count_B)],
        hovertemplate="%{customdata[0]:.3f} … %{customdata[1]:.3f}<br>%{y:.1%} of the rows (%{customdata[2]:,})"
        "<extra></extra>",
    )
    figure.add_vline(x=quantity.mean.mean, line={"color": INK, "dash": "dash", "width": 1.5})
    figure.update_layout(_layout(axis, "share of the rows"), bargap=0)
    figure.update_xaxes(range=[-width / 2, top + width / 2])
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    low, middle, high = quantity.quantiles()
    description = (
        f"Histogram of the {quantity.name} over {len(quantity.value):,} rows, {quantity.explained}. Mean "
        f"{quantity.mean.mean:.3g} (dashed), median {middle:.3g}, 90 % of the rows between {low:.3g} and {high:.3g}."
    )
    rows = [
        (f"{a:.3g} – {b:.3g}", int(n), float(share)) for a, b, n, share in zip(edges, edges[1:], count_B, share_B) if n
    ]
    return Panel(quantity.name, figure, description, (axis, "rows", "share"), rows)


def _hash(sha256: str | None, none: str) -> str:
    return none if sha256 is None else f"SHA-256 {sha256[:12]}…"


def readable(size: float) -> str:
    """Bytes as people read them.

    >>> readable(812), readable(5_100_000)
    ('812 bytes', '5.1 MB')
    """
    for unit, bytes_of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_of:
            return f"{size / bytes_of:.3g} {unit}"
    return f"{size:.0f} bytes"
