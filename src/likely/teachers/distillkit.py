"""DistillKit's compressed log-probabilities, read.

A row of `compressed_logprobs` holds, one after the other and most probable class first: the first `exact_k`
log-probabilities in `exact_dtype`; a coefficient in `term_dtype` for each polynomial term; and for each residual bin
its scale and its elements, packed to bits, the highest bit first, and filled up to whole bytes.  A row of
`bytepacked_indices` holds the `k` classes, packed to `⌈log₂ d⌉` bits each.  What lies behind `exact_k` is
`Σ coefficient · term(t) + residual` at `t = 0 … k − exact_k − 1`, and with `delta_encoding` all of it are differences,
to be added up.

Shapes: N rows, B bytes, K stored classes, T terms, E elements of a bin.

Source: https://github.com/arcee-ai/DistillKit, `distillkit/compression`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from likely._checks import require
from likely.teachers.formats import Reader, Taught, columns_of, labelled, lists_of, numbers_of, rows_of

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
SPECIAL = {"sqrt": np.sqrt, "exp": np.exp}
CONFIG = "compression_config.yaml"


@dataclass(frozen=True)
class Bin:
    """Residuals that share a scale: `element_bits` each, in steps of `scale`."""

    scale: torch.dtype
    element_bits: int
    elements: int


@dataclass(frozen=True)
class Compression:
    """How a capture was compressed: what `compression_config.yaml` beside its shards says.

    Example:
        >>> settings = Compression.of({"d": 32000, "k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"],
        ...     "exact_dtype": "bfloat16", "term_dtype": "float32", "residual_bins": [], "delta_encoding": False})
        >>> settings.logprob_bytes, settings.index_bytes
        (14, 94)
    """

    classes: int
    stored: int
    exact: int
    exact_dtype: torch.dtype
    terms: tuple[int | str, ...]
    term_dtype: torch.dtype
    bins: tuple[Bin, ...]
    delta: bool
    unit: bool
    """Whether t runs from 0 to 1 instead of 0 to k − exact_k − 1."""

    @classmethod
    def read(cls, path: Path) -> Compression:
        """From a YAML file: the settings themselves, or a training file with `teacher: {logprob_compressor: …}`.

        Raises: ValueError for what is no such file.
        """
        import yaml

        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is no YAML ({str(error).splitlines()[0]})") from None
        for name in ("teacher", "logprob_compressor"):
            if isinstance(settings, Mapping) and name in settings:
                settings = settings[name]
        require(isinstance(settings, Mapping), f"{path}: holds no mapping of compression settings")
        try:
            return cls.of(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Compression:
        """From the settings' mapping. Raises: ValueError naming the setting."""
        bins = tuple(
            Bin(_dtype(one, "scale_dtype"), _whole(one, "element_bits", 1, 64), _whole(one, "num_elements", 1))
            for one in settings.get("residual_bins") or []
        )
        terms = tuple(settings.get("polynomial_terms") or [])
        for term in terms:
            known = term in SPECIAL if isinstance(term, str) else isinstance(term, int)
            require(known, f"polynomial_terms: {term!r} is neither a whole power nor one of {', '.join(SPECIAL)}")
        stored, exact = _whole(settings, "k", 1), _whole(settings, "exact_k", 0)
        require(exact <= stored, f"exact_k: is {exact}, more than k = {stored}")
        filled = sum(one.elements for one in bins)
        require(filled <= stored - exact, f"residual_bins: hold {filled} elements for {stored - exact} values")
        require(exact == stored or bool(terms or bins), "polynomial_terms: neither terms nor residual_bins are given")
        return cls(
            classes=_whole(settings, "d", 2),
            stored=stored,
            exact=exact,
            exact_dtype=_dtype(settings, "exact_dtype", "float32"),
            terms=terms,
            term_dtype=_dtype(settings, "term_dtype", "float32"),
            bins=bins,
            delta=bool(settings.get("delta_encoding", True)),
            unit=bool(settings.get("normalize_t", False)),
        )

    @property
    def index_bits(self) -> int:
        """Bits of a class; the logarithm is that of single precision, as in the source."""
        return int(np.ceil(np.log2(np.float32(self.classes))))

    @property
    def index_bytes(self) -> int:
        return -(-self.stored * self.index_bits // 8)

    @property
    def logprob_bytes(self) -> int:
        packed = sum(one.scale.itemsize + -(-one.elements * one.element_bits // 8) for one in self.bins)
        return self.exact * self.exact_dtype.itemsize + len(self.terms) * self.term_dtype.itemsize + packed

    def index(self, byte_NB: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(N, K) classes of the rows of `bytepacked_indices`."""
        return unpacked(byte_NB, self.index_bits, self.stored)

    def logprobs(self, byte_NB: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, K) log-probabilities of the rows of `compressed_logprobs`, in double precision from what is stored."""
        at = 0

        def take(size: int) -> NDArray[np.uint8]:
            nonlocal at
            part, at = byte_NB[:, at : at + size], at + size
            return part

        def floats(dtype: torch.dtype, count: int) -> NDArray[np.float64]:
            flat = torch.from_numpy(
                take(count * dtype.itemsize).reshape(-1)
            )  # in one dimension, as an empty one may be
            return flat.view(dtype).double().reshape(len(byte_NB), count).numpy()

        exact_NK = floats(self.exact_dtype, self.exact)
        behind_NK = np.zeros((len(byte_NB), self.stored - self.exact))
        if self.terms:
            behind_NK += floats(self.term_dtype, len(self.terms)) @ self._terms().T
        start = 0
        for one in self.bins:
            scale_N1 = floats(one.scale, 1)
            element_NE = unpacked(take(-(-one.elements * one.element_bits // 8)), one.element_bits, one.elements)
            # One bit says ±1; more of them are whole numbers around 0.
            step_NE = 2 * element_NE - 1 if one.element_bits == 1 else element_NE - (1 << (one.element_bits - 1))
            behind_NK[:, start : start + one.elements] += step_NE * scale_N1
            start += one.elements
        value_NK = np.concatenate([exact_NK, behind_NK], axis=1)
        return np.cumsum(value_NK, axis=1) if self.delta else value_NK

    def _terms(self) -> NDArray[np.float64]:
        """(K − exact, T) values of the terms, rounded to the precision in which the coefficients were fitted."""
        count = self.stored - self.exact
        t = np.linspace(0, 1, count) if self.unit else np.arange(count, dtype=np.float64)
        with np.errstate(over="ignore"):
            columns = [SPECIAL[term](t) if isinstance(term, str) else t ** float(term) for term in self.terms]
        return torch.from_numpy(np.stack(columns, axis=1)).to(self.term_dtype).double().numpy()


def distillkit(path: Path, compression: Path | None = None) -> tuple[Reader, Compression]:
    """A reader of DistillKit's shards of `compressed_logprobs`, and how they are compressed.

    Row j of an example is the distribution of token j + 1: one for each token but the first, or, of captures that were
    cut and packed, as many as tokens, the last of which speaks of a token that is not there.

    Raises: ValueError naming the file; FileNotFoundError without a `compression_config.yaml`.
    """
    config = compression or (path if path.is_dir() else path.parent) / CONFIG
    require(
        config.is_file(),
        f"{config}: no such file; the compression settings of the capture are needed to read it",
        FileNotFoundError,
    )
    settings = Compression.read(config)
    old = "packed_indices" in columns_of(path)
    require(not old, f"{path}: is in the older layout (packed_indices, exact_values, coeffs), which is not read")
    wanted, extras = ("input_ids", "compressed_logprobs", "bytepacked_indices"), ("labels", "attention_mask")
    return lambda: (_example(where, row, settings) for where, row in rows_of(path, wanted, extras)), settings


def _example(where: str, row: Mapping[str, Any], settings: Compression) -> Taught:
    token = numbers_of(row["input_ids"], f"{where}: input_ids")
    logprob_NB = _bytes(row["compressed_logprobs"], settings.logprob_bytes, f"{where}: compressed_logprobs")
    index_NB = _bytes(row["bytepacked_indices"], settings.index_bytes, f"{where}: bytepacked_indices")
    rows = len(logprob_NB)
    require(
        rows == len(index_NB) and rows in (len(token) - 1, len(token)),
        f"{where}: has {rows} rows of log-probabilities and {len(index_NB)} of classes for {len(token)} tokens; "
        "there is one for each token but the first",
    )
    due = labelled(row, token, where)
    if row.get("attention_mask") is not None:  # 0 pads; packed examples are numbered 1, 2, …
        segment = numbers_of(row["attention_mask"], f"{where}: attention_mask")
        require(len(segment) == len(token), f"{where}: attention_mask has {len(segment)} for {len(token)} tokens")
        due[1:] &= (segment[1:] == segment[:-1]) & (segment[1:] != 0)
    position = np.flatnonzero(due)
    with np.errstate(over="ignore", invalid="ignore"):
        logprobs = settings.logprobs(logprob_NB[position - 1])
    ids, entries = settings.index(index_NB[position - 1]), np.full(len(position), settings.stored)
    return Taught.of(where, token, position, entries, ids.reshape(-1), logprobs.reshape(-1))


def _bytes(value: Any, width: int, name: str) -> NDArray[np.uint8]:
    """(N, width) bytes from a list of lists."""
    flat, lengths = lists_of(value, name)
    wrong = lengths != width
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{name}: row {at} has {lengths[at]} bytes where the compression settings make it {width}; "
            "are they those of this capture?"
        )
    return flat.astype(np.uint8).reshape(len(lengths), width)


def unpacked(byte_NB: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """(N, count) whole numbers of `bits` bits each, the highest bit first.

    >>> unpacked(np.array([[0b10101100]], dtype=np.uint8), 3, 2).tolist()    # 101 and 011
    [[5, 3]]
    """
    bit_NKb = np.unpackbits(byte_NB, axis=1, count=count * bits).reshape(len(byte_NB), count, bits)
    return bit_NKb @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _dtype(settings: Mapping[str, Any], name: str, default: str | None = None) -> torch.dtype:
    given = settings.get(name, default)
    require(given in DTYPES, f"{name}: is {given!r}; it is one of {', '.join(DTYPES)}")
    return DTYPES[str(given)]


def _whole(settings: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int:
    given = settings.get(name)
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= least and (not most or given <= most)
    require(whole, f"{name}: is {given!r}; it is a whole number, {least} {'or more' if not most else f'to {most}'}")
    return int(given)  # type: ignore[arg-type]
