"""Rows of supervised fine-tuning data as tokens, of which some are learnt.

Legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from likely._checks import require
from likely.data.examples import IGNORED
from likely.data.texts import Document, encode, token_bytes


def tuning_document(row: Mapping[str, Any], tokenizer: Any, name: str) -> Document:
    """A row of supervised fine-tuning data, laid out as TRL's `SFTTrainer` has it.

    * `input_ids`, with `labels` (−100: not learnt), or `completion_mask` or `assistant_masks` (0: not learnt), if any.
    * `prompt` and `completion`, two texts: only the completion is learnt, and the end-of-sequence token after it.
    * `prompt` and `completion`, two lists of messages: by the chat template; only the completion is learnt.
    * `messages`: by the chat template; if that marks the assistant's words (`{% generation %}`), they alone are learnt.

    A token that holds the end of a prompt and the beginning of its completion is learnt.

    Raises: ValueError naming the row, for what is none of these, or without the tokenizer that it takes.

    Source: https://huggingface.co/docs/trl/dataset_formats
    """
    if row.get("input_ids") is not None:
        return _given_tokens(row, name)
    require(tokenizer is not None, f"{name}: holds text; give a tokenizer (--tokenizer)")
    if row.get("messages") is not None:
        return _conversation(_messages(row["messages"]), tokenizer, name)
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is not None and completion is not None and not isinstance(prompt, str):
        asked = _rendered(_messages(prompt), tokenizer, name, add_generation_prompt=True)
        whole = _rendered(_messages([*prompt, *completion]), tokenizer, name)
        same = next((at for at, (one, other) in enumerate(zip(asked, whole)) if one != other), len(asked))
        return _completed(same, whole, tokenizer, name, special=False)
    require(
        isinstance(prompt, str) and isinstance(completion, str),
        f"{name}: has neither input_ids nor messages, nor both prompt and completion",
    )
    assert isinstance(prompt, str)
    return _completed(len(prompt), prompt + str(completion), tokenizer, name, special=True)


def _given_tokens(row: Mapping[str, Any], name: str) -> Document:
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    labels = ids if row.get("labels") is None else np.asarray(row["labels"], dtype=np.int64)
    for mask in ("completion_mask", "assistant_masks"):
        if row.get(mask) is not None:
            kept = np.asarray(row[mask])
            require(len(kept) == len(ids), f"{name}: {mask} has {len(kept)} entries where input_ids has {len(ids)}")
            labels = np.where(kept != 0, labels, IGNORED)
    require(len(labels) == len(ids), f"{name}: labels has {len(labels)} entries where input_ids has {len(ids)}")
    there = np.asarray(row["attention_mask"]) != 0 if row.get("attention_mask") is not None else np.full(len(ids), True)
    return Document(ids[there], labels[there], None, name)


def _conversation(messages: Any, tokenizer: Any, name: str) -> Document:
    text = _rendered(messages, tokenizer, name)
    ((ids, ends),) = encode([(name, text)], tokenizer, special=False)
    labels = ids
    if "generation %}" in str(tokenizer.chat_template).replace("-%}", "%}"):
        marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        require(
            list(marked["input_ids"]) == ids.tolist(), f"{name}: its tokens depend on how the chat template is rendered"
        )
        labels = np.where(np.asarray(marked["assistant_masks"]) != 0, ids, IGNORED)
    return Document(ids, labels, token_bytes(text, ends), name)


def _completed(prompt: int, whole: str, tokenizer: Any, name: str, *, special: bool) -> Document:
    """The tokens of a text, of which those that reach beyond the characters of the prompt are learnt."""
    ((ids, ends),) = encode([(name, whole)], tokenizer, special=special)
    sizes = token_bytes(whole, ends)
    labels = np.where(np.maximum.accumulate(ends) > prompt, ids, IGNORED)
    end = tokenizer.eos_token_id
    if special and end is not None and (not len(ids) or ids[-1] != end):
        ids, labels, sizes = np.append(ids, end), np.append(labels, end), np.append(sizes, 0)
    return Document(ids, labels, sizes, name)


def _rendered(messages: Any, tokenizer: Any, name: str, **more: Any) -> str:
    has = bool(getattr(tokenizer, "chat_template", None))
    require(has, f"{name}: holds messages, and the tokenizer no chat template")
    return tokenizer.apply_chat_template(messages, tokenize=False, **more)


def _messages(given: Any) -> list[dict[str, Any]]:
    """A conversation as a template takes it: what a table had to fill in is left out again."""
    return [{key: value for key, value in one.items() if value is not None} for one in given]
