"""Recording a teacher: what it says of every row of some examples, kept for a student to be trained on.

Legend: E examples, N rows, C classes, B examples of a batch, L tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from likely._checks import require
from likely.data.examples import Batch, Examples
from likely.networks import Network
from likely.teachers.keep import Keep, Rows, bytes_per_row, keep_rows
from likely.teachers.manifest import Manifest
from likely.teachers.record import Record
from likely.teachers.store import Writer

__all__ = ["bytes_per_row", "capture"]

Progress = Callable[[int, int], None]
"""Called with the examples and the rows done so far."""


def capture(
    network: Network,
    examples: Examples,
    keep: Keep | str,
    out: str | os.PathLike[str],
    *,
    temperature: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
    shard_rows: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """Record what a teacher says of the rows of some examples: `p = softmax(z / T)`, or what `keep` says of it.

    The teacher runs in eval mode and without a graph, and its N × C logits are never held at once: rows of its head are
    taken in blocks of at most 32 MiB. A capture that was killed, or that ran out of disk, goes on where it stood when
    the same call is made again, with nothing lost or doubled, and ends in the same files to the bit. What is drawn of a
    row depends on the seed and the row's number alone; the batch size reaches the record only through the rounding of
    the teacher's own logits. A record that is whole already is returned as it is.

    Args:
        network: the teacher; it gives a head of C classes for a batch.
        examples: E examples in order. One without rows is recorded as such, and not shown to the teacher.
        keep: "dense", "top:K", "top:K+tail", "samples:N" or "hybrid:K+N".
        out: a new folder, or one with the beginning of this record.
        temperature: T.
        batch_size: B.
        seed: of the draws.
        shard_rows: a shard ends with the example that brings it to so many rows; by default about a 64th of them all.
        progress: called with the examples and the rows done, at the start and after each batch.

    Returns:
        The record, opened.

    Raises:
        ValueError: a teacher that gives NaN (the example and the row are named), or has another tokenizer than the
            data; an example that is longer than the network reads; a folder with the beginning of another record, the
            difference being named; arguments that make no sense.
        FileExistsError: a folder with something else in it.
        OSError: the disk is full.

    Example:
        A teacher of three classes that says the same of everything:

        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> from likely.heads import Logits
        >>> from likely.networks import Identity
        >>> teacher = SimpleNamespace(classes=("a", "b", "c"), max_length=None, module=None,
        ...     identity=Identity("entry", "m:f", "00"),
        ...     head=lambda batch: Logits(torch.zeros(len(batch.labels), 3)))
        >>> examples = SimpleNamespace(fingerprint="11", tokenizer=None, row_counts=np.array([1, 1]),
        ...     batch=lambda at: Batch({}, torch.zeros(len(at), dtype=torch.long), torch.tensor(at)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = capture(teacher, examples, "samples:4", folder)
        ...     record.manifest.gradient, record.entropy([0, 1])
        ('unbiased', tensor([1.0986, 1.0986]))
    """
    keep = Keep.parse(keep)
    require(
        math.isfinite(temperature) and temperature > 0,
        f"temperature: is {temperature}; it is a positive number",
    )
    require(batch_size > 0, f"batch_size: is {batch_size}; it is at least 1")
    require(0 <= seed < 2**63, f"seed: is {seed}; it is a whole number of at least 0")
    row_counts = np.asarray(examples.row_counts, dtype=np.int64)
    require(int(row_counts.sum()) > 0, "examples: hold no row, so that there is nothing to record")
    identity = network.identity
    require(
        identity.tokenizer is None or examples.tokenizer is None or identity.tokenizer == examples.tokenizer,
        f"examples: their tokens are of a tokenizer of SHA-256 {str(examples.tokenizer)[:12]}…, and the teacher's is "
        f"{str(identity.tokenizer)[:12]}…; make the tokens with the teacher's tokenizer",
    )
    if network.max_length is not None and int(row_counts.max()) > network.max_length:
        at = int(row_counts.argmax())
        raise ValueError(_too_long(at, int(row_counts[at]), network.max_length))
    manifest = Manifest(
        keep=keep,
        classes=network.classes if isinstance(network.classes, int) else tuple(network.classes),
        teacher=identity,
        temperature=float(temperature),
        data=examples.fingerprint,
        tokenizer=examples.tokenizer,
        seed=seed,
        rounding=keep.rounding(),
    )
    writer = Writer(Path(out), manifest, row_counts, shard_rows=shard_rows)
    ends = np.cumsum(row_counts)

    def done(examples_of_shard: int = 0, rows_of_shard: int = 0) -> None:
        if progress is not None:
            shards = writer.done.values()
            progress(
                sum(shard.examples for shard in shards) + examples_of_shard,
                sum(shard.rows for shard in shards) + rows_of_shard,
            )

    done()
    with at_rest(network.module):
        for number in writer.unfinished:
            part = writer.examples(number)
            # An example without rows has nothing to be shown for, and may have nothing to show.
            shown = np.flatnonzero(row_counts[part]) + part.start
            rows: list[Rows] = [_none(keep, manifest.number)]
            for at in range(0, len(shown), batch_size):
                indices = shown[at : at + batch_size].tolist()
                first = int(ends[indices[0]] - row_counts[indices[0]])
                rows.append(_rows(network, examples, indices, manifest, first))
                done(indices[-1] + 1 - part.start, int(ends[indices[-1]] - ends[part.start] + row_counts[part.start]))
            writer.put(number, Rows.join(rows))
            done()
    writer.finish()
    return Record.open(out)


def _rows(network: Network, examples: Examples, indices: Sequence[int], manifest: Manifest, first_row: int) -> Rows:
    """What is kept of the rows of one batch."""
    batch = examples.batch(indices)
    device = None if network.module is None else next((p.device for p in network.module.parameters()), None)
    batch = batch if device is None else batch.to(device)
    require_lengths(batch, indices, network.max_length)
    row_counts = np.asarray(examples.row_counts)[list(indices)]
    expected = int(row_counts.sum())
    require(
        len(batch.labels) == expected,
        f"examples: the batch of {indices[0]} … {indices[-1]} has {len(batch.labels)} rows where row_counts says "
        f"{expected}",
    )
    head = network.head(batch)
    require(
        head.rows == expected and head.classes == manifest.number,
        f"the teacher gives {head.rows} rows of {head.classes} classes for examples {indices[0]} … {indices[-1]}, "
        f"where {expected} rows of {manifest.number} classes are due",
    )

    def where(row: int) -> str:
        at = int(np.searchsorted(np.cumsum(row_counts), row, side="right"))
        return f"example {indices[at]}, row {row - int(row_counts[:at].sum())} of it"

    return keep_rows(
        head.detached(),
        manifest.keep,
        temperature=manifest.temperature,
        seed=manifest.seed or 0,
        first_row=first_row,
        where=where,
    )


def _none(keep: Keep, classes: int) -> Rows:
    """No rows at all, with the columns of the kind: what a shard of empty examples holds."""
    dtypes = keep.dtypes(classes)

    def column(name: str, *shape: int) -> np.ndarray | None:
        return np.empty((0, *shape), dtype=dtypes[name]) if name in dtypes else None

    return Rows(
        np.empty(0, dtype=np.int64),
        ids=column("target_token_ids"),
        logprobs=column("target_logprobs", keep.logprobs(classes)),
        counts=column("target_counts"),
        tail=column("tail_mass"),
        entropy=column("entropy"),
    )


def require_lengths(batch: Batch, indices: Sequence[int], most: int | None) -> None:
    """No example is longer than the network reads."""
    tokens = batch.inputs.get("input_ids", batch.inputs.get("bytes"))
    if most is None or not isinstance(tokens, Tensor) or tokens.shape[1] <= most:
        return
    mask = batch.inputs.get("attention_mask")
    lengths = mask.sum(dim=1) if isinstance(mask, Tensor) else torch.full((len(tokens),), tokens.shape[1])
    raise ValueError(_too_long(indices[int(lengths.argmax())], tokens.shape[1], most))


def _too_long(example: int, length: int, most: int) -> str:
    return (
        f"examples: number {example} has {length} tokens where the network reads {most}; cut it into pieces "
        "(max_length=) when the data are loaded"
    )


@contextmanager
def at_rest(module: torch.nn.Module | None) -> Iterator[None]:
    """The network in eval mode and without a graph; what was in training mode is so again afterwards."""
    training = [] if module is None else [part for part in module.modules() if part.training]
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
