"""Texts for causal language models: documents as stretches of tokens, and which outputs predict what.

Legend: E examples (stretches), T tokens of all documents, B examples of a batch, L tokens of an example, N rows.

A stretch has at most `max_length` tokens.  The next one of its document begins with its last token, so that each token
of a document but the first is predicted exactly once, and a document's bytes are counted exactly once.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from likely._checks import require
from likely.data.examples import IGNORED, Batch

LONGEST = 1024
"""Tokens of a stretch, where neither the caller nor the tokenizer sets a limit below it."""


def next_token_rows(labels_BL: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which outputs of a causal language model are predictions, and what each is to predict.

    Output i predicts token i + 1: it is a row where that token's label is not −100, and both tokens are there.

    Args:
        labels_BL: (B, L) int64, in the places of the tokens themselves (not shifted); −100 for what is not predicted.
        attention_mask: (B, L), 0 where a token is padding.

    Returns: the rows among the B · L outputs, flattened, (N,) int64, and their labels, (N,) int64.

    Raises: ValueError for other shapes.

    >>> labels_BL = torch.tensor([[5, -100, 6, 7], [5, 6, 0, 0]])
    >>> rows_N, labels_N = next_token_rows(labels_BL, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    >>> rows_N.tolist(), labels_N.tolist()
    ([1, 2, 4], [6, 7, 6])

    Source: the shift of `transformers.loss.loss_utils.ForCausalLMLoss`.
    """
    require(labels_BL.dim() == 2, f"labels: have shape {tuple(labels_BL.shape)}; they are (examples, tokens)")
    counted_BL = labels_BL[:, 1:] != IGNORED
    if attention_mask is not None:
        require(
            attention_mask.shape == labels_BL.shape,
            f"attention_mask: has shape {tuple(attention_mask.shape)} where labels have {tuple(labels_BL.shape)}",
        )
        there_BL = attention_mask != 0
        counted_BL = counted_BL & there_BL[:, 1:] & there_BL[:, :-1]
    example_N, place_N = counted_BL.nonzero(as_tuple=True)
    return example_N * labels_BL.shape[1] + place_N, labels_BL[example_N, place_N + 1]


# ------------------------------------------------------------------------------------------------------ tokenizers


def load_tokenizer(path: Any) -> Any:
    """The tokenizer of a Hugging Face folder, a `tokenizer.json` or a GGUF file; one that is loaded is given back.

    Raises: FileNotFoundError; ImportError without transformers; ValueError where there is none, or it needs code.
    """
    if hasattr(path, "encode") and hasattr(path, "decode") and not isinstance(path, str):
        return path
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError(f"a tokenizer is read with transformers: pip install 'likely[hf]' ({error})") from None
    path = Path(path)
    require(path.exists(), f"tokenizer: {path} does not exist; nothing is fetched", FileNotFoundError)
    try:
        if path.suffix == ".json":
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        folder = path.parent if gguf else path
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **gguf)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"tokenizer: {path} holds none that can be read ({reason})") from None


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides which tokens a text has: vocabulary, merges, special tokens, and the steps around them.

    Padding and truncation, which a user sets, do not count, and neither does the form of the files: the same tokenizer
    in two folders has one hash.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        saved = json.loads(backend.to_str())
        told = {
            name: saved.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")
        }
    else:
        told = {
            "kind": type(tokenizer).__name__,
            "vocab": tokenizer.get_vocab(),
            "special": tokenizer.all_special_tokens,
        }
    canonical = json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


# -------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, eq=False)
class Document:
    """The tokens of one document.

    Args:
        ids: (T,) int64.
        labels: (T,) int64, what is to be predicted in the place of each token, `IGNORED` where nothing is.
        bytes: (T,) int64, the UTF-8 bytes of text that each token stands for; None where they are not known.
        name: what it is called in messages.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    bytes: NDArray[np.int64] | None
    name: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """Stretches of documents for a causal language model; each row predicts a token from those before it.

    Args:
        ids: (T,) the tokens of all documents, one after another.
        labels: (T,) what is to be predicted in their places, `IGNORED` where nothing is.
        bytes: (T,) the UTF-8 bytes of each token, None where they are not known.
        starts: (E,) the first token of each stretch.
        lengths: (E,) its tokens.
        groups: (E,) its document, by its number in what was read.
        tokenizer: SHA-256 of the tokenizer, None where it is not known.
        skipped: how many documents were left out because nothing in them is to be predicted.
        names: what the stretches are called in messages.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    bytes: NDArray[np.int64] | None
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    groups: NDArray[np.int64]
    tokenizer: str | None
    skipped: int = 0
    names: tuple[str, ...] | None = None
    classes = None

    @classmethod
    def of(cls, documents: Iterable[Document], *, max_length: int = LONGEST, tokenizer: str | None = None) -> Tokens:
        """Documents cut into stretches of at most `max_length` tokens.

        A stretch in which nothing is to be predicted is left out: of a document of a single token, which has nothing
        before it, or of a long prompt.  A document that is left out whole is counted, and a warning says how many.

        Raises: ValueError where nothing is left, or `max_length` is below 2.
        """
        require(max_length >= 2, f"max_length: is {max_length}; a stretch has 2 tokens or more, one to predict")
        parts: list[Document] = []
        stretches: list[tuple[int, int, int, str]] = []
        empty: list[str] = []
        total = 0
        for number, one in enumerate(documents):
            counted = np.concatenate([[0], np.cumsum(one.labels != IGNORED)])
            before = len(stretches)
            for start in range(0, max(len(one.ids) - 1, 0), max_length - 1):
                end = min(start + max_length, len(one.ids))
                if counted[end] > counted[start + 1]:
                    stretches.append((total + start, end - start, number, f"{one.name}, tokens {start}–{end - 1}"))
            if len(stretches) == before:
                empty.append(one.name)
                continue
            parts.append(one)
            total += len(one.ids)
        require(bool(parts), "examples: hold no token to predict; each document is empty, or has a single token")
        if empty:
            shown = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
            warnings.warn(f"{len(empty)} documents hold no token to predict and are left out: {shown}", stacklevel=3)
        known = [one.bytes for one in parts if one.bytes is not None]
        starts, lengths, groups = np.array([s[:3] for s in stretches], dtype=np.int64).T.copy()
        return cls(
            np.concatenate([one.ids for one in parts]),
            np.concatenate([one.labels for one in parts]),
            np.concatenate(known) if len(known) == len(parts) else None,
            starts,
            lengths,
            groups,
            tokenizer,
            len(empty),
            tuple(s[3] for s in stretches),
        )

    @cached_property
    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """What is predicted, and its bytes, before each token."""
        counted = self.labels != IGNORED
        rows = np.concatenate([[0], np.cumsum(counted)])
        return rows, None if self.bytes is None else np.concatenate([[0], np.cumsum(self.bytes * counted)])

    @property
    def row_counts(self) -> NDArray[np.int64]:
        rows = self._sums[0]
        return rows[self.starts + self.lengths] - rows[self.starts + 1]

    @property
    def byte_counts(self) -> NDArray[np.int64] | None:
        """(E,), the bytes of the tokens that are predicted: over a document all its bytes but those of its first token.

        A token's bytes are those between the end of what was tokenised before it and its own end, by the tokenizer's
        offsets; what lies after the last token counts for that.  A character that is several tokens counts for the
        first of them.
        """
        sums = self._sums[1]
        return None if sums is None else sums[self.starts + self.lengths] - sums[self.starts + 1]

    @cached_property
    def fingerprint(self) -> str:
        held = hashlib.sha256()
        for start, length in zip(self.starts, self.lengths):
            part = slice(start, start + length)
            held.update(int(length).to_bytes(8, "little"))
            held.update(self.ids[part].astype("<i4").tobytes() + (self.labels[part][1:] != IGNORED).tobytes())
        return held.hexdigest()

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Sequence[int]) -> Batch:
        """These stretches, padded on the right with token 0, which has `attention_mask` 0 and no label."""
        at = np.asarray(indices, dtype=np.int64)
        lengths_B = self.lengths[at]
        L = int(lengths_B.max(initial=0))
        there_BL = np.arange(L) < lengths_B[:, None]
        places = np.where(there_BL, self.starts[at][:, None] + np.arange(L), 0)
        ids_BL = torch.from_numpy(np.where(there_BL, self.ids[places], 0))
        labels_BL = torch.from_numpy(np.where(there_BL, self.labels[places], IGNORED))
        mask_BL = torch.from_numpy(there_BL.astype(np.int64))
        rows_N, labels_N = next_token_rows(labels_BL, mask_BL)
        example_N = torch.from_numpy(at)[rows_N // max(L, 1)]
        return Batch({"input_ids": ids_BL, "attention_mask": mask_BL}, labels_N, example_N, rows_N)

    def before(self, example: int, row: int, most: int = 24) -> NDArray[np.int64]:
        """The tokens of a stretch that stand before the one which a row of it predicts, `most` of them at most."""
        start = int(self.starts[example])
        counted = np.flatnonzero(self.labels[start + 1 : start + int(self.lengths[example])] != IGNORED)
        at = start + 1 + int(counted[row])
        return self.ids[max(start, at - most) : at]

    def subset(self, indices: Sequence[int]) -> Tokens:
        at = np.asarray(indices, dtype=np.int64)
        names = None if self.names is None else tuple(self.names[i] for i in at)
        return replace(self, starts=self.starts[at], lengths=self.lengths[at], groups=self.groups[at], names=names)


# ------------------------------------------------------------------------------------------------- from text to tokens


def plain_documents(texts: Iterable[tuple[str, str]], tokenizer: Any) -> Iterable[Document]:
    """Texts with their names as documents, with the special tokens that the tokenizer puts around a text by itself."""
    texts = iter(texts)
    while block := list(islice(texts, 256)):
        for (name, text), (ids, ends) in zip(block, encode(block, tokenizer)):
            yield Document(ids, ids, token_bytes(text, ends), name)


def encode(
    texts: Sequence[tuple[str, str]], tokenizer: Any, *, special: bool = True
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The tokens of texts, and the character of the text at which each of them ends."""
    require(
        getattr(tokenizer, "is_fast", False),
        f"tokenizer: {type(tokenizer).__name__} does not say where its tokens stand; take a fast one (tokenizer.json)",
    )
    for name, text in texts:
        utf8(text, name)
    found = tokenizer(
        [text for _, text in texts],
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,
    )
    for ids, offsets in zip(found["input_ids"], found["offset_mapping"]):
        ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
        yield np.asarray(ids, dtype=np.int64), ends


def token_bytes(text: str, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The UTF-8 bytes of each token, from where in the text each of them ends."""
    if not len(ends):
        return ends
    furthest = np.maximum.accumulate(ends)
    furthest[-1] = len(text)
    if not text.isascii():
        code = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        widths = 1 + (code > 0x7F).astype(np.int64) + (code > 0x7FF) + (code > 0xFFFF)
        furthest = np.concatenate([[0], np.cumsum(widths)])[furthest]
    return np.diff(furthest, prepend=0)


def utf8(text: str, name: str) -> bytes:
    """The bytes of a text.

    Raises: ValueError naming the text that has none: half of a surrogate pair is no character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: is no text: half a surrogate pair at character {error.start}") from None
