"""A classifier of file types distilled into a small model of bytes, on the files of pinned packages.

The teacher is Magika's ONNX model (Apache-2.0): 214 types from the first and the last kilobyte of a file.  The student
is a small convolution.  It is trained on the teacher's distributions, and beside it a
twin at an equal budget on the teacher's decisions alone, its most probable types as labels; fidelity is shown by class.

    python -m examples.file_types [--small] [--out FOLDER]

Shapes: N files, L = 2,048 places, C types.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.comparing import command, joined, present
from examples.fetch import PACKAGES, fetch
from likely import Logits
from likely.data.examples import Batch, Labelled
from likely.forms import Dense
from likely.measures import estimate
from likely.networks import Identity
from likely.networks.load import load_network
from likely.teachers.capture import capture
from likely.teachers.record import Record
from likely.training.comparison import Comparison, compare
from likely.training.measure import Measured, measure
from likely.training.network_report import words
from likely.training.network_run import tune
from likely.training.parts import RecordPart, split
from likely.training.settings import Settings

BLOCK, ENDS, PADDING = 4096, 1024, 256
SOURCES = ("django", "textgenrnn", "py3langid", "magika", "pygments", "mutagen", "pillow")
SMALL_SOURCES = ("django", "textgenrnn", "mutagen")
PER_FOLDER = 40
"""Files of one name's ending in one package's folder, so that no translation's catalogues are all of the data."""


def _model() -> Path:
    return fetch("magika") / "magika" / "models" / "standard_v3_3"


@functools.cache
def types() -> tuple[str, ...]:
    config = json.loads((_model() / "config.min.json").read_text(encoding="utf-8"))
    return tuple(config["target_labels_space"])


def ends(content: bytes) -> NDArray[np.int16]:
    """What Magika reads of a file, (L,): the first kilobyte and the last, without the blanks around; 256 is padding.

    Source: Fratantonio et al., Magika: AI-powered content-type detection, 2024.
    """
    first = content[:BLOCK].lstrip()[:ENDS]
    last = content[-BLOCK:].rstrip()[-ENDS:]
    read = np.full(2 * ENDS, PADDING, dtype=np.int16)
    read[: len(first)] = np.frombuffer(first, dtype=np.uint8)
    read[2 * ENDS - len(last) :] = np.frombuffer(last, dtype=np.uint8)
    return read


def files(sources: Sequence[str] = SOURCES, limit: int | None = None) -> Labelled:
    """The files of packages, each content once, in an order that the contents decide; each file is a document.

    Their types are the teacher's to say: no file has a label.
    """
    found: dict[str, tuple[NDArray[np.int16], str]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    for source in sources:
        root = fetch(source)
        for path in sorted(root.rglob("*")):
            if not path.is_file() or path.stat().st_size < 16:
                continue
            inside = path.relative_to(root)
            kind = (source, inside.parent.parts[:2], path.suffix)
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= PER_FOLDER:
                content = path.read_bytes()
                found[hashlib.sha256(content).hexdigest()] = ends(content), inside.as_posix()
    order = sorted(found)[:limit]  # by checksum: as good as drawn, and the same everywhere
    items, names = zip(*(found[checksum] for checksum in order))
    return Labelled.of(items, _bytes, [item.tobytes() for item in items], classes=types(), names=names)


def _bytes(items: Sequence[NDArray[np.int16]]) -> dict[str, Tensor]:
    return {"bytes": torch.from_numpy(np.stack(items).astype(np.int64))}


class Magika:
    """The teacher, known by its probabilities."""

    max_length: int | None = None
    module: nn.Module | None = None

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"an ONNX teacher needs onnxruntime: pip install 'likely[onnx]' ({error})") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(_model() / "model.onnx"), options)
        self.classes: tuple[str, ...] | int = types()
        self.identity = Identity("onnx", "magika standard_v3_3", PACKAGES["magika"].sha256)

    def head(self, batch: Batch) -> Logits:
        given = {"bytes": batch.inputs["bytes"].numpy().astype(np.int32)}
        p_NC = self._session.run(["target_label"], given)[0]
        return Logits(torch.from_numpy(p_NC).log())

    def save(self, folder: Path) -> None:
        raise NotImplementedError("Magika is fetched, not saved")


def teacher(examples: Any = None) -> Magika:
    """The Python entry `examples.file_types:teacher`."""
    return Magika()


class Bytes(nn.Module):
    """A small convolution over bytes, and a softmax of the strongest answer of each filter at either end of a file."""

    def __init__(self, classes: int, width: int = 16, filters: int = 128, stretch: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, width, padding_idx=PADDING)
        self.filters = nn.Conv1d(width, filters, stretch, stride=stretch // 2)
        self.start = nn.Linear(64 * width, filters)  # magic numbers stand at the start, at places of their own
        self.output = nn.Linear(3 * filters, classes)

    def forward(self, bytes: Tensor) -> Tensor:
        x_NLE = self.embedding(bytes)
        answers_NFL = self.filters(x_NLE.transpose(1, 2)).relu()
        strongest = [half.amax(dim=-1) for half in answers_NFL.chunk(2, dim=-1)]
        return self.output(torch.cat([*strongest, self.start(x_NLE[:, :64].flatten(1)).relu()], dim=-1))


def student(examples: Labelled) -> Bytes:
    """The Python entry `examples.file_types:student`."""
    return Bytes(len(types()))


# ------------------------------------------------------------------------------------------------- the demonstration

SOFT, HARD = "distributions", "decisions"


def decided(examples: Labelled, record: Record) -> Labelled:
    """The same files with the teacher's most probable type for a label."""
    target = record.target(range(len(examples)))
    assert isinstance(target, Dense)
    assert target.head is not None
    return replace(examples, labels=target.head.logits().argmax(dim=-1).numpy())


def by_type(measured: Mapping[str, Measured], most: int = 30) -> tuple[list[str], list[list[Any]]]:
    """The fidelity of both students on the files of each type that the teacher names, the most frequent ones first."""
    of, document_N = measured[SOFT].label, measured[SOFT].group
    counts = np.bincount(of, minlength=len(types()))
    rows: list[list[Any]] = []
    for c in np.argsort(-counts, kind="stable")[:most]:
        own = of == c
        documents = len(np.unique(document_N[own]))
        if documents > 1:
            values = [
                estimate(value_N[own], groups=document_N[own])
                for one in (measured[SOFT], measured[HARD])
                for value_N in (np.asarray(one.kl), 100.0 * np.asarray(one.agreement))
            ]
            rows.append([types()[c], documents, *values])
    return ["type", "files", *(f"{what}, {name}" for name in (SOFT, HARD) for what in ("KL", "agreement %"))], rows


def run(out: Path, small: bool = False) -> Comparison:
    """The whole demonstration: its tables on the terminal, its report and its runs in a folder."""
    examples = files(SMALL_SOURCES, 300) if small else files()
    live = teacher()
    record = capture(live, examples, "dense", out / "record", batch_size=32)
    examples = decided(examples, record)
    tested, chosen_by, learnt = split(examples.groups, (0.25, 0.1))
    data = examples.subset(learnt)
    parts = {name: RecordPart(record, examples, part) for name, part in (("train", learnt), ("choose", chosen_by))}
    measured: dict[str, list[Measured]] = {SOFT: [], HARD: []}
    for seed in (0,) if small else (0, 1, 2):
        for name, found in measured.items():
            soft = name == SOFT
            grid = [
                Settings(
                    hard_weight=float(not soft),
                    soft_weight=float(soft),
                    learning_rate=2e-3,
                    weight_decay=decay,
                    epochs=8 if small else 15,
                    seed=seed,
                )
                for decay in ((0.1,) if small else (0.1, 1.0))
            ]
            tuned = tune(
                f"{seed} {name}",
                functools.partial(
                    load_network, "examples.file_types:student", examples=data, trainable=True, seed=seed
                ),
                data,
                grid,
                out / "runs",
                teacher=parts["train"] if soft else None,
                validation=examples.subset(chosen_by),
                validation_teacher=parts["choose"] if soft else None,
                progress=False,
            )
            part = RecordPart(record, examples, tested)
            found.append(measure(tuned.network, examples.subset(tested), teacher=part, batch_size=64))
    whole = {name: joined(found) for name, found in measured.items()}
    return present(
        "File types: fidelity by class",
        {
            "teacher": "Magika standard_v3_3, an ONNX file",
            "student": "a small convolution over bytes",
            "data": f"{len(learnt):,} files of pinned packages to learn, {len(tested):,} others to be measured on",
            SOFT: "a student of the teacher's distributions",
            HARD: "its twin, of the teacher's decisions; these are the labels here",
        },
        {"Distributions or decisions": compare(whole, reference=HARD)},
        out,
        {"By type, KL in nats": by_type(whole)},
        "kl",
        **words(examples.subset(tested * len(measured[SOFT]))),
    )


if __name__ == "__main__":
    command(run, "file-types")
