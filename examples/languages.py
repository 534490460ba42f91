"""A language identifier distilled into a softmax of hashed n-grams, on the strings that Django's interface is made of.

The teacher, `py3langid` (BSD-3), knows 140 languages; the strings (Django, BSD-3) come with the language that they were
translated into.  A student of few labels, of many, of the teacher alone and of both are measured on messages that
none of them has seen: the teacher is worth more than a few labels, and less than many.

    python -m examples.languages [--small] [--out FOLDER]

Shapes: N strings, C languages, G n-grams of a batch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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

SHORTEST = 20
"""Characters of a string: shorter ones are names of places and units, which are the same in many languages."""
FEWEST = 150
"""Strings of a language."""
BUCKETS = 2**16


def strings(languages: int | None = None) -> Labelled:
    """Django's translated strings, each with its language, and grouped by the message that it translates.

    Args:
        languages: only that many, those with most strings.
    """
    root = fetch("django") / "django"
    known = set(_identifier().labels)
    found: dict[tuple[str, str], str] = {}
    for path in sorted(root.glob("**/locale/*/LC_MESSAGES/django.po")):
        language = path.parts[-3].split("_")[0]  # pt_BR is Portuguese too
        for message, text in _messages(path.read_text(encoding="utf-8")):
            if language in known and len(text) >= SHORTEST and text != message:
                found.setdefault((language, text), message)
    counts = Counter(language for language, _ in found)
    kept = {language for language, count in counts.most_common(languages) if count >= FEWEST}
    classes = tuple(sorted(kept))
    texts = [text for language, text in found if language in kept]
    labels = np.array([classes.index(language) for language, _ in found if language in kept])
    messages = [message for (language, _), message in found.items() if language in kept]
    numbers = {message: number for number, message in enumerate(sorted(set(messages)))}
    groups = np.array([numbers[message] for message in messages])
    return Labelled.of(texts, _texts, [text.encode() for text in texts], labels=labels, groups=groups, classes=classes)


def _texts(items: Sequence[str]) -> dict[str, Any]:
    return {"text": list(items)}


def _messages(catalogue: str) -> Iterator[tuple[str, str]]:
    """The messages of a gettext catalogue with their translations, of plurals the first; those without are left out."""
    for block in catalogue.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            begins = re.match(r"(msg\w+(?:\[\d\])?)\s+(?=\")", line)
            if begins:
                name, line = begins[1], line[begins.end() :]
                fields[name] = ""
            if line.startswith('"'):
                fields[name] += ast.literal_eval(line)
        translated = fields.get("msgstr") or fields.get("msgstr[0]")
        if fields.get("msgid") and translated:
            yield fields["msgid"], translated


@functools.cache
def _identifier() -> Any:
    folder = str(fetch("py3langid"))
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.import_module("py3langid.langid")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


class Identifier:
    """The teacher: py3langid among the languages that occur."""

    max_length: int | None = None
    module: nn.Module | None = None

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes: tuple[str, ...] | int = classes
        self.identity = Identity("entry", "examples.languages:teacher", PACKAGES["py3langid"].sha256)
        self._at = {language: at for at, language in enumerate(classes)}

    def head(self, batch: Batch) -> Logits:
        p_NC = np.zeros((len(batch.inputs["text"]), len(self._at)))
        for row, text in zip(p_NC, batch.inputs["text"]):
            for language, probability in _identifier().rank(text):
                if language in self._at:
                    row[self._at[language]] = probability
        return Logits(torch.from_numpy(p_NC).log().float())  # −inf where it is 0; the head divides by what is left

    def save(self, folder: Path) -> None:
        raise NotImplementedError("the language identifier is fetched, not saved")


def teacher(examples: Labelled) -> Identifier:
    """The Python entry `examples.languages:teacher`."""
    assert examples.classes is not None
    return Identifier(examples.classes)


class Ngrams(nn.Module):
    """A softmax of the n-grams of 1, 2 and 3 characters in a string, each in one of 2¹⁶ buckets: `z = Σ W[g] / √G`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.EmbeddingBag(BUCKETS, classes, mode="sum")
        nn.init.zeros_(self.weight.weight)

    def forward(self, text: Sequence[str]) -> Tensor:
        bags = [ngrams(one) for one in text]
        sizes = torch.tensor([len(bag) for bag in bags])
        offsets_N = sizes.cumsum(0) - sizes
        share_G = (1 / sizes.sqrt()).repeat_interleave(sizes)
        return self.weight(torch.from_numpy(np.concatenate(bags)), offsets_N, per_sample_weights=share_G)


@functools.cache
def ngrams(text: str) -> np.ndarray:
    """The buckets of a string's n-grams, each once."""
    padded = f" {text.lower()} "
    found = {padded[at : at + n].encode() for n in (1, 2, 3) for at in range(len(padded) - n + 1)}
    return np.unique(np.array([zlib.crc32(one) % BUCKETS for one in found], dtype=np.int64))


def student(examples: Labelled) -> Ngrams:
    """The Python entry `examples.languages:student`."""
    assert examples.classes is not None
    return Ngrams(len(examples.classes))


# ------------------------------------------------------------------------------------------------- the demonstration

FEW, ONLY, ALL, BOTH, TEACHER = "5 labels", "teacher only", "all labels", "labels and teacher", "teacher"
LABELS = 5
FOLDS = 5


def few(examples: Labelled, seed: int) -> Labelled:
    """A few strings of each language, drawn at random."""
    drawn = np.random.default_rng(seed).permutation(len(examples))
    chosen = [at for c in range(len(examples.classes or ())) for at in drawn[examples.labels[drawn] == c][:LABELS]]
    return examples.subset(sorted(chosen))


def parted(examples: Labelled, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The strings of a fold's messages, and all others."""
    order = np.random.default_rng(0).permutation(np.unique(examples.groups))
    in_fold = np.isin(examples.groups, order[fold::FOLDS])
    return np.flatnonzero(in_fold), np.flatnonzero(~in_fold)


def one_fold(examples: Labelled, record: Record, fold: int, rates: Sequence[float], out: Path) -> dict[str, Measured]:
    """Train on the messages of the other folds, choose the learning rate on some of them, and measure on this one."""
    test, others = parted(examples, fold)
    chosen_by, learnt = (others[part].tolist() for part in split(examples.groups[others], (0.1,), fold))
    data, validation = examples.subset(learnt), examples.subset(chosen_by)
    records = [RecordPart(record, examples, part) for part in (learnt, chosen_by)]
    weights = {FEW: (1, 0), ONLY: (0, 1), ALL: (1, 0), BOTH: (0.5, 0.5)}
    live, tested, measured = teacher(examples), examples.subset(test.tolist()), {}
    for name, (hard, soft) in weights.items():
        grid = [
            Settings(
                hard_weight=hard,
                soft_weight=soft,
                learning_rate=rate,
                weight_decay=0,
                clip=0,
                batch_size=128,
                max_steps=3 * len(data) // 128,  # the same number of steps for everyone
                seed=fold,
            )
            for rate in rates
        ]
        tuned = tune(
            f"{fold} {name}",
            lambda: load_network("examples.languages:student", examples=data, trainable=True, seed=fold),
            few(data, fold) if name == FEW else data,
            grid,
            out,
            teacher=records[0] if soft else None,
            validation=validation,
            validation_teacher=records[1] if soft else None,
            progress=False,
        )
        measured[name] = measure(tuned.network, tested, teacher=live, batch_size=512)
    return {TEACHER: measure(live, tested, teacher=live, batch_size=512), **measured}


def by_language(measured: Mapping[str, Measured], examples: Labelled) -> tuple[list[str], list[list[Any]]]:
    """Where the teacher alone costs most against all labels, and where least: differences of the NLL by language."""
    assert examples.classes is not None
    label_N, gap_N = measured[ALL].label, measured[ONLY].nll - measured[ALL].nll
    gain_N, group_N = measured[FEW].nll - measured[ONLY].nll, measured[ALL].group
    rows: list[list[Any]] = []
    for c, language in enumerate(examples.classes):
        own = label_N == c
        if own.any():
            costs, gains = (estimate(value_N[own], groups=group_N[own]) for value_N in (gap_N, gain_N))
            rows.append([language, int(own.sum()), gains, costs, measured[TEACHER].correct[own].mean().round(3)])
    rows.sort(key=lambda row: -row[3].mean)
    columns = ["language", "strings", "gain over 5 labels", "cost against all labels", "accuracy of the teacher"]
    return columns, rows if len(rows) <= 20 else [*rows[:10], *rows[-10:]]


def run(out: Path, small: bool = False) -> Comparison:
    """The whole demonstration: its tables on the terminal, its report and its runs in a folder."""
    examples = strings(languages=10 if small else None)
    record = capture(teacher(examples), examples, "dense", out / "record", batch_size=256)
    rates, folds = ((0.1,), (0,)) if small else ((0.03, 0.1), range(FOLDS))
    found = [one_fold(examples, record, fold, rates, out / "runs") for fold in folds]
    measured = {name: joined([one[name] for one in found]) for name in found[0]}
    return present(
        "Languages: what a teacher is worth",
        {
            "teacher": "py3langid, among the languages that occur",
            "student": f"a softmax of hashed n-grams, {BUCKETS:,} buckets",
            "data": f"{len(examples):,} strings of Django's interface in {len(examples.classes or ())} languages",
            "measured": f"on messages that the students have not seen, {len(folds)} of {FOLDS} folds",
            FEW: f"{LABELS} labels a language",
        },
        {
            "Where the teacher wins": compare({name: measured[name] for name in (TEACHER, FEW, ONLY)}, reference=FEW),
            "Where the teacher hurts": compare(measured, reference=ALL),
        },
        out,
        {"By language, in nats": by_language(measured, examples)},
        "nll",
        **words(examples.subset([at for fold in folds for at in parted(examples, fold)[0].tolist()])),
    )


if __name__ == "__main__":
    command(run, "languages")
