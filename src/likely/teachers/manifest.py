"""The manifest of a teacher's record: what was recorded, how, and the files that it lies in.

Legend: E examples, N rows.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely._checks import require
from likely.networks import Identity
from likely.teachers.keep import Keep

FORMAT = 1
MANIFEST, JOURNAL = "manifest.json", "journal.jsonl"


@dataclass(frozen=True)
class Shard:
    """A file of a record: its examples stand in their order after those of the shard before it."""

    name: str
    row_counts: tuple[tuple[int, int], ...]
    """The rows of its examples as runs: (rows, how many examples in succession have so many)."""
    bytes: int
    sha256: str

    @property
    def examples(self) -> int:
        return sum(times for _, times in self.row_counts)

    @property
    def rows(self) -> int:
        return sum(rows * times for rows, times in self.row_counts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "examples": self.examples,
            "rows": self.rows,
            "row_counts": self.row_counts,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Shard:
        runs = tuple((int(rows), int(times)) for rows, times in saved["row_counts"])
        return cls(str(saved["name"]), runs, int(saved["bytes"]), str(saved["sha256"]))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("likely", "torch", "numpy", "pyarrow")}


@dataclass(frozen=True)
class Manifest:
    """What a record is of, and how it was taken.

    Args:
        keep: what was kept of each row.
        classes: the names of the classes in the order of the teacher's logits, or their number.
        teacher: the network, with the hash of its weights.
        temperature: T of `p = softmax(z / T)`.
        data: the fingerprint of the examples in their order; None where a record from elsewhere does not say.
        tokenizer: SHA-256 of the tokenizer that made the data's tokens, None without one.
        seed: of the draws; None where none were made here.
        rounding: every rounding that the numbers have undergone.
        versions: of the packages that took the record.
        shards: its files in order.

    Example:
        >>> manifest = Manifest(Keep.parse("top:2"), ("cat", "dog", "owl"), Identity("entry", "m:f", "00"))
        >>> manifest.to_dict()["classes"]["number"], manifest.to_dict()["gradient"]
        (3, 'biased')
        >>> Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
        True
    """

    keep: Keep
    classes: tuple[str, ...] | int
    teacher: Identity
    temperature: float = 1.0
    data: str | None = None
    tokenizer: str | None = None
    seed: int | None = None
    rounding: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=_versions)
    shards: tuple[Shard, ...] = ()

    @property
    def number(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def gradient(self) -> str:
        """Whether the gradient of a student's loss on the record is "biased" or "unbiased", before any rounding."""
        return self.keep.gradient

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        named = None if isinstance(self.classes, int) else list(self.classes)
        return {
            "format": FORMAT,
            "keep": str(self.keep),
            "gradient": self.gradient,
            "teacher": self.teacher.to_dict(),
            "temperature": self.temperature,
            "classes": {
                "number": self.number,
                "names": named,
                "sha256": None if named is None else digest(named),
            },
            "data": {
                "sha256": self.data,
                "tokenizer": self.tokenizer,
                "order": "examples as the data have them, rows of an example as it has them",
                "examples": self.examples,
                "rows": self.rows,
            },
            "seed": self.seed,
            "dtypes": self.keep.dtypes(self.number),
            "rounding": list(self.rounding),
            "versions": dict(self.versions),
            "shards": [shard.to_dict() for shard in self.shards],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Manifest:
        require(saved["format"] == FORMAT, f"its format is {saved['format']}; this version of likely reads {FORMAT}")
        names, teacher = saved["classes"]["names"], saved["teacher"]
        return cls(
            keep=Keep.parse(saved["keep"]),
            classes=int(saved["classes"]["number"]) if names is None else tuple(names),
            teacher=Identity(**{one.name: teacher[one.name] for one in fields(Identity)}),
            temperature=float(saved["temperature"]),
            data=saved["data"]["sha256"],
            tokenizer=saved["data"]["tokenizer"],
            seed=saved["seed"],
            rounding=tuple(saved["rounding"]),
            versions=dict(saved["versions"]),
            shards=tuple(Shard.from_dict(shard) for shard in saved["shards"]),
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished record.

    Raises:
        FileNotFoundError: no record is there, or one that is not finished.
        ValueError: the manifest is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / JOURNAL).is_file()
        raise FileNotFoundError(
            f"{folder}: the record is not finished; run the capture again with the same settings, it goes on from there"
            if unfinished
            else f"{folder}: holds no record (there is no {MANIFEST})"
        )
    try:
        saved = json.loads(path.read_bytes())
        said = saved.pop("sha256")
        require(said == digest(saved), "its checksum is wrong")
        return Manifest.from_dict(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the manifest is damaged or was changed ({error}); take the record again") from None


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def expand(shards: Sequence[Shard]) -> NDArray[np.int64]:
    """The rows of every example of the shards, (E,)."""
    runs = np.array([run for shard in shards for run in shard.row_counts], dtype=np.int64).reshape(-1, 2)
    return np.repeat(runs[:, 0], runs[:, 1])
