"""A causal language model distilled on Python's standard library, online and from sparse records of equal size.

The teacher is SmolLM2-135M; the student has 7 million parameters.  How much further from its teacher than one that
learns from all of it, in nats, does a record leave it that keeps a dozen entries of a row?  Records of the largest
classes are biased, and no number of tokens helps them; records of draws are not.  The small setting is the same with a
character model for the teacher.

    python -m examples.language_model [--small] [--out FOLDER]

Shapes: N rows, D features of the teacher's hidden states.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples import character_model, smollm2
from examples.comparing import command, joined, present
from likely.data.examples import Batch
from likely.data.texts import Tokens, load_tokenizer, plain_documents, tokenizer_hash
from likely.heads import Linear
from likely.networks import Network
from likely.networks.load import load_network
from likely.teachers.capture import capture
from likely.teachers.record import Record
from likely.training.comparison import Comparison, compare
from likely.training.measure import Measured, measure
from likely.training.network_report import words
from likely.training.network_run import tune
from likely.training.settings import Settings

FULL, LABELS = "the whole teacher", "labels"
TAILS = {"top": "renormalise", "top+tail": "bucket"}
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "pydoc_data")


@dataclass(frozen=True)
class Setting:
    """Sizes: documents and characters of each to learn and to be tested on, and records of about equal bytes a row."""

    keep: tuple[str, ...]
    seeds: tuple[int, ...]
    learnt: tuple[int, int]
    tested: tuple[int, int]
    training: dict[str, Any]


WHOLE = Setting(
    keep=("top:12", "top:12+tail", "samples:64", "hybrid:8+4"),
    seeds=(0, 1, 2),
    learnt=(120, 3000),
    tested=(40, 1200),
    training={"learning_rate": 1e-3, "batch_size": 2, "epochs": 2},
)
SMALL = Setting(
    keep=("top:4", "top:4+tail", "samples:12", "hybrid:2+3"),
    seeds=(0,),
    learnt=(60, 300),
    tested=(30, 150),
    training={"learning_rate": 1e-2, "batch_size": 8, "epochs": 6},
)


def sources(count: int, characters: int, skip: int = 0) -> list[tuple[str, str]]:
    """The beginnings of some modules of this Python's standard library, in an order that their names decide."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [path.relative_to(root) for path in root.rglob("*.py") if not set(path.parts) & set(LEFT_OUT)]
    found.sort(key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())
    texts = ((path.as_posix(), (root / path).read_text(encoding="utf-8", errors="ignore")) for path in found)
    long = [(name, text[:characters]) for name, text in texts if len(text) >= 1000]
    return long[skip : skip + count]


Parts = tuple[Network, Tokens, Tokens, str, Callable[[Sequence[int]], str]]
"""The teacher, what is learnt from it, what it is measured on, the student, and what makes a text of tokens."""


class Remembered:
    """A teacher whose hidden states are kept, in memory: its body runs once over each example, its head every time.

    Four records, three students of the whole teacher and every measurement ask for the same rows; of a row with D
    features they keep 2 D bytes, where its logits would take a hundred thousand.
    """

    module: torch.nn.Module | None = None

    def __init__(self, network: Network) -> None:
        self.classes, self.max_length, self.identity = network.classes, network.max_length, network.identity
        self._network = network
        self._rows: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def head(self, batch: Batch) -> Linear:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        keys = [own[there != 0].numpy().tobytes() for own, there in zip(ids, mask)]
        if any(key not in self._rows for key in keys):
            head = self._network.head(batch)
            assert isinstance(head, Linear)
            self._last = head
            counts = torch.unique_consecutive(batch.example, return_counts=True)[1]
            self._rows |= zip(keys, head.x.split(counts.tolist()))
        return Linear(torch.cat([self._rows[key] for key in keys]), self._last.weight, self._last.bias)

    def save(self, folder: Path) -> None:
        self._network.save(folder)


def smollm2_and_data(setting: Setting, out: Path) -> Parts:
    """The teacher and its data; the student is a configuration of transformers in the folder."""
    folder = smollm2.folder()
    tokenizer = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("dtype", "_model_name_or_path", "pad_token_id"):
        config.pop(name, None)
    config |= {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 64}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    student = out / "student.json"
    student.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def tokens(texts: Sequence[tuple[str, str]]) -> Tokens:
        return Tokens.of(plain_documents(texts, tokenizer), max_length=129, tokenizer=tokenizer_hash(tokenizer))

    learnt, tested = sources(*setting.learnt), sources(*setting.tested, skip=setting.learnt[0])
    return load_network(folder), tokens(learnt), tokens(tested), str(student), tokenizer.decode


def characters_and_data(setting: Setting) -> Parts:
    """The character model and its data; the student is a Python entry."""
    learnt, tested = sources(*setting.learnt), sources(*setting.tested, skip=setting.learnt[0])
    data, test = character_model.characters(learnt), character_model.characters(tested)
    known = {number: character for character, number in character_model.vocabulary().items()}

    def decode(numbers: Sequence[int]) -> str:
        return "".join(known.get(number, "\N{REPLACEMENT CHARACTER}") for number in numbers)

    return character_model.teacher(), data, test, "examples.character_model:student", decode


def one_seed(
    student: str, data: Tokens, teacher: Network, records: dict[str, Record], setting: Setting, seed: int, out: Path
) -> dict[str, Network]:
    """A student of the whole teacher, of each record, and of the labels, all from one start and in one order."""
    found = {}
    for name in (FULL, *records, LABELS):
        settings = Settings(
            hard_weight=float(name == LABELS),
            soft_weight=float(name != LABELS),
            tail=TAILS.get(name.partition(":")[0] + "+tail" * name.endswith("+tail")),
            seed=seed,
            **setting.training,
        )
        began = time.perf_counter()
        found[name] = tune(
            f"{seed} {name}",
            lambda: load_network(student, examples=data, trainable=True, seed=seed),
            data,
            [settings],
            out,
            teacher=None if name == LABELS else records.get(name, teacher),
            progress=False,
        ).network
        print(f"seed {seed}, {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def run(out: Path, small: bool = False) -> Comparison:
    """The whole demonstration: its tables on the terminal, its report and its runs in a folder."""
    setting = SMALL if small else WHOLE
    out.mkdir(parents=True, exist_ok=True)
    network, data, test, student, decode = characters_and_data(setting) if small else smollm2_and_data(setting, out)
    teacher = Remembered(network)
    print(f"{data.row_counts.sum():,} tokens to learn, {test.row_counts.sum():,} to be tested on", flush=True)
    records = {}
    for keep in setting.keep:
        began = time.perf_counter()
        records[keep] = capture(teacher, data, keep, out / "records" / keep.replace(":", "-"))
        print(f"record {keep}: {time.perf_counter() - began:.0f} s", flush=True)
    measured: dict[str, list[Measured]] = {}
    for seed in setting.seeds:
        students = one_seed(student, data, teacher, records, setting, seed, out / "runs")
        for name, one in students.items():
            measured.setdefault(name, []).append(measure(one, test, teacher=teacher, batch_size=8))
    whole = {name: joined(of) for name, of in measured.items()}
    return present(
        "A language model: what a record's truncation costs",
        {
            "teacher": "a character model" if small else "SmolLM2-135M",
            "data": f"the standard library of Python {platform.python_version()}: {data.row_counts.sum():,} tokens to "
            f"learn, {test.row_counts.sum():,} of other modules to be measured on",
            "training": f"{setting.training}, seeds {setting.seeds}",
            FULL: "the student of the teacher itself, beside which what the others lack is shown",
        },
        {"Excess over full distillation": compare(whole, reference=FULL)},
        out,
        {"Records": sizes(records, data), "Excess KL by seed, in nats": by_seed(measured)},
        "kl",
        **words(test.subset([*range(len(test))] * len(setting.seeds)), decode),
    )


def sizes(records: dict[str, Record], data: Tokens) -> tuple[list[str], list[list[Any]]]:
    """What each record takes on disk, and whether its gradient is biased."""
    rows = int(data.row_counts.sum())
    taken = {name: sum(shard.bytes for shard in record.manifest.shards) / rows for name, record in records.items()}
    return ["record", "bytes a token, on disk", "gradient"], [
        [name, round(taken[name], 1), record.manifest.gradient] for name, record in records.items()
    ]


def by_seed(measured: dict[str, list[Measured]]) -> tuple[list[str], list[list[Any]]]:
    """The KL in excess of the student of the whole teacher that began from the same seed, in nats."""
    rows = []
    for name, of in measured.items():
        if name != FULL:
            excess = [float(np.mean(np.asarray(one.kl) - np.asarray(full.kl))) for one, full in zip(of, measured[FULL])]
            rows.append([name, *(round(value, 4) for value in excess)])
    return ["", *(f"seed {seed}" for seed in range(len(measured[FULL])))], rows


if __name__ == "__main__":
    command(run, "language-model")
