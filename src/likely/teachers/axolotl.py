"""Axolotl's files of a teacher's log-probabilities, read.

A prepared file has, beside `input_ids` and `labels`, a row of `target_token_ids`, `target_logprobs` and `target_mask`
for each token.  Its row j is the distribution of token j + 1; that of older versions, which shifted when they trained,
is of token j.  A file as a server leaves it has a column of log-probabilities whose last row is of the last token, and
which begins where the server did.

Shapes: L tokens of an example, n of them with a target, S stored entries.

Source: https://github.com/axolotl-ai-cloud/axolotl, `src/axolotl/integrations/kd`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from likely._checks import require
from likely.teachers.formats import Reader, Taught, columns_of, labelled, lists_of, numbers_of, rows_of

TOKENS = ("input_ids", "prompt_token_ids")
_PADDING = -1e8  # an entry of -1e9 or of -inf fills up a list


def axolotl(path: Path) -> dict[str, Reader]:
    """The readers of a file or folder by the alignment that they assume: "next" and "same", or "last" alone.

    * `target_token_ids`, `target_logprobs`, `target_mask` and `input_ids`: either row j is the distribution of token
      j + 1, "next", or of token j, "same".
    * a column of log-probabilities (`logprobs`, `prompt_logprobs`, …): its last row is of the last token. A row is
      null, a list of `{"token": "token_id:7", "logprob": -0.1}`, a mapping `{"7": {"logprob": -0.1}}` or, beside
      `target_token_ids`, a list of numbers.

    Raises: ValueError naming the file and what is missing.
    """
    names = columns_of(path)
    if "target_logprobs" in names:
        wanted, extras = (TOKENS[0], "target_token_ids", "target_logprobs"), ("labels", "target_mask")

        def prepared(ahead: int) -> Reader:
            return lambda: (_prepared(where, row, ahead) for where, row in rows_of(path, wanted, extras))

        return {"next": prepared(1), "same": prepared(0)}
    fields = [name for name in names if name.endswith("logprobs")]
    require(
        len(fields) == 1,
        f"{path}: has the columns {', '.join(names)}; there is no target_logprobs, and then one column is needed whose "
        f"name ends with 'logprobs' (found: {', '.join(fields) or 'none'})",
    )
    tokens = [name for name in TOKENS if name in names]
    require(
        bool(tokens),
        f"{path}: has no input_ids, so that nothing says which token a row is of; `axolotl preprocess` writes them",
    )
    pair, beside = (tokens[0], fields[0]), ("labels", "target_token_ids")
    return {"last": lambda: (_served(where, row, *pair) for where, row in rows_of(path, pair, beside))}


def _prepared(where: str, row: Mapping[str, Any], ahead: int) -> Taught:
    token = numbers_of(row["input_ids"], f"{where}: input_ids")
    logprobs, entries = lists_of(row["target_logprobs"], f"{where}: target_logprobs")
    ids, also = lists_of(row["target_token_ids"], f"{where}: target_token_ids")
    require(len(entries) == len(token), f"{where}: target_logprobs has {len(entries)} rows for {len(token)} tokens")
    require(np.array_equal(also, entries), f"{where}: target_token_ids is not shaped like target_logprobs")
    logprobs = logprobs.astype(np.float64)
    said = logprobs > _PADDING
    said |= np.isnan(logprobs)  # to be refused by its name
    if row.get("target_mask") is not None:
        mask, masked = lists_of(row["target_mask"], f"{where}: target_mask")
        require(np.array_equal(masked, entries), f"{where}: target_mask is not shaped like target_logprobs")
        said &= mask.astype(bool)
    of = np.repeat(np.arange(len(token)), entries) + ahead  # the token that an entry speaks of
    due = np.append(labelled(row, token, where), False)[np.minimum(of, len(token))]
    position, kept = np.unique(of[said & due], return_counts=True)
    misfits = int((said & ~due).sum())
    return Taught.of(where, token, position, kept, ids[said & due].astype(np.int64), logprobs[said & due], misfits)


def _served(where: str, row: Mapping[str, Any], tokens: str, field: str) -> Taught:
    token = numbers_of(row[tokens], f"{where}: {tokens}")
    served = row[field] if isinstance(row[field], Sequence) else row[field].to_pylist()
    front = len(token) - len(served)
    require(front >= 0, f"{where}: {field} has {len(served)} rows for {len(token)} tokens; cut both alike")
    parallel: Any = row.get("target_token_ids")
    if parallel is not None:
        parallel = parallel if isinstance(parallel, Sequence) else parallel.to_pylist()
        same = len(parallel) == len(served)
        require(same, f"{where}: target_token_ids has {len(parallel)} rows where {field} has {len(served)}")
    due = labelled(row, token, where)
    position: list[int] = []
    entries: list[int] = []
    pairs: list[tuple[int, float]] = []
    for j, one in enumerate(served):
        if one and due[front + j]:
            name = f"{where}: {field} of token {front + j}"
            found = [_pair(entry, name) for entry in _entries(one, parallel[j] if parallel else None, name)]
            position.append(front + j)
            entries.append(len(found))
            pairs += found
    ids = np.array([pair[0] for pair in pairs], dtype=np.int64)
    logprobs = np.array([pair[1] for pair in pairs], dtype=np.float64)
    return Taught.of(where, token, np.array(position, np.int64), np.array(entries, np.int64), ids, logprobs)


def _entries(one: Any, parallel: Any, name: str) -> list[tuple[Any, Any]]:
    """The classes and log-probabilities of one token, as they stand."""
    if isinstance(one, Mapping):
        return [(key, value.get("logprob") if isinstance(value, Mapping) else value) for key, value in one.items()]
    if parallel is not None:
        require(len(parallel) == len(one), f"{name}: has {len(one)} numbers for {len(parallel)} classes")
        return list(zip(parallel, one))
    wrong = [entry for entry in one if not isinstance(entry, Mapping)]
    require(not wrong, f"{name}: holds {wrong[:1]}; an entry is {{'token': 'token_id:7', 'logprob': -0.1}}")
    return [(entry.get("token"), entry.get("logprob")) for entry in one]


def _pair(entry: tuple[Any, Any], name: str) -> tuple[int, float]:
    try:
        return int(str(entry[0]).removeprefix("token_id:")), float(entry[1])
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {entry!r} is no token's number with its log-probability") from None
