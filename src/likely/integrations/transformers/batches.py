"""Batches of supervised fine-tuning data, as TRL lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from likely._checks import require, require_rows
from likely.data.examples import IGNORED
from likely.data.texts import Tokens
from likely.data.tuning import tuning_document

MASKS = ("completion_mask", "assistant_masks")
"""Columns that say, token by token, what is to be learnt (1) and what is not (0)."""


def as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def learnt(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example whose masks of what is to be learnt have gone into its labels.

    >>> learnt({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]})
    {'input_ids': [5, 6, 7], 'labels': [-100, 6, 7]}
    """
    masks = {name: as_list(example[name]) for name in MASKS if example.get(name) is not None}
    found = {name: value for name, value in example.items() if name not in MASKS}
    if masks:
        labels = as_list(example.get("labels", example["input_ids"]))
        for name, mask in masks.items():
            require_rows(name, len(mask), len(labels), "an example")
            labels = [label if kept else IGNORED for label, kept in zip(labels, mask)]
        found["labels"] = labels
    return found


@dataclass
class SFTCollator:
    """Pads tokenised examples of supervised fine-tuning as TRL lays them out, to the right.

    An example has `input_ids`, and what is to be learnt of them as `labels` (−100 elsewhere), or as `completion_mask`
    or `assistant_masks` (1 to learn, 0 to leave), or all of them.  Padding is never learnt.

    Args:
        pad_token_id: any token; its positions have `attention_mask` 0 and label −100.
        max_length: cuts longer examples.

    >>> batch = SFTCollator(0)([{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, {"input_ids": [8, 9]}])
    >>> batch["labels"].tolist()
    [[-100, 6, 7], [8, 9, -100]]

    Source: TRL's `SFTTrainer` and its `DataCollatorForLanguageModeling`.
    """

    pad_token_id: int
    max_length: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for example in map(learnt, examples):
            ids = as_list(example["input_ids"])[: self.max_length]
            found["input_ids"].append(ids)
            found["attention_mask"].append([1] * len(ids))
            found["labels"].append(as_list(example.get("labels", ids))[: self.max_length])
        pads = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        longest = max(map(len, found["input_ids"]), default=0)
        return {
            name: torch.tensor([row + [pads[name]] * (longest - len(row)) for row in rows], dtype=torch.long)
            for name, rows in found.items()
        }


def sft_rows(examples: Tokens, index_column: str = "example") -> list[dict[str, Any]]:
    """The examples that a record was taken of, as rows for a Trainer: `input_ids`, `labels`, and the example's number.

    >>> import numpy as np
    >>> from likely.data.texts import Document
    >>> ids = np.array([5, 6, 7])
    >>> sft_rows(Tokens.of([Document(ids, ids, None, "one")]))[0]["example"]
    0
    """
    parts = [slice(start, start + length) for start, length in zip(examples.starts, examples.lengths)]
    return [
        {"input_ids": examples.ids[part].tolist(), "labels": examples.labels[part].tolist(), index_column: number}
        for number, part in enumerate(parts)
    ]


def data_fingerprint(dataset: Any, index_column: str, examples: int) -> str | None:
    """`Tokens.fingerprint` of all the rows of a data set in the order of their numbers.

    None where it cannot be known: there are not so many rows, they hold no tokens, or are numbered with gaps.
    """
    listed = hasattr(dataset, "__len__") and not isinstance(dataset, Mapping)
    if not listed or len(dataset) != examples:
        return None
    rows = [dataset[at] for at in range(len(dataset))]
    if not all("input_ids" in row and index_column in row for row in rows):
        return None
    rows.sort(key=lambda row: int(row[index_column]))
    if [int(row[index_column]) for row in rows] != list(range(len(rows))):
        return None
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    documents = (tuning_document(row, None, f"row {at}") for at, row in enumerate(rows))
    return Tokens.of(documents, max_length=max(2, longest)).fingerprint


@dataclass
class Prepared:
    """A collator around another: masks go into the labels, and the examples' numbers past the collator inside.

    Raises: ValueError where the collator inside makes more labels than the examples have, as those do that copy the
        tokens: it would have prompts learnt.
    """

    collator: Callable[[list[Any]], Any]
    column: str

    def __call__(self, examples: Sequence[Any]) -> Any:
        if not all(isinstance(example, Mapping) for example in examples):
            return self.collator(list(examples))
        numbered = [self.column in example for example in examples]
        whole = [learnt(example) for example in examples]
        batch = self.collator([{k: v for k, v in example.items() if k != self.column} for example in whole])
        if all("input_ids" in example and isinstance(example.get("labels"), Sequence) for example in whole):
            given = sum(label != IGNORED for example in whole for label in example["labels"])
            made = (batch["labels"] != IGNORED) & (batch.get("attention_mask", torch.ones(())) != 0)
            require(
                int(made.sum()) <= given,
                f"data_collator: makes {int(made.sum())} labels of the {given} that the examples have; take one that "
                "keeps `labels`, such as SFTCollator",
            )
        if any(numbered):
            require(all(numbered), f"index_column: only some examples of a batch have {self.column!r}, their number")
            batch[self.column] = torch.tensor([int(example[self.column]) for example in examples])
        return batch
