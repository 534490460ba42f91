"""Who distils: a teacher's forward pass, its capture, and one training step each, in a process of its own.

A contestant is built once per process and answers one command a line with one line of JSON: `time` runs once, `peak`
answers the scratch of further runs in bytes.  A step is forward, backward and AdamW.  Every student starts from the
same weights and sees the same batch, so that the first steps of those that learn from the whole teacher have one loss,
`T² · KL(teacher ‖ student)`; one whose loss is another solves another problem, and is listed as not run.

Shapes: N rows, C classes, B examples, L tokens, D features.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import Scratch
from benchmarks.worker import PEAKS, answer
from likely.data.texts import Document, Tokens
from likely.integrations.transformers import DistillationTrainer
from likely.networks.hf import HuggingFace
from likely.teachers.capture import capture
from likely.teachers.record import Record

TEMPERATURE = 2.0
KEEPS = ("dense", "top:12", "top:12+tail", "samples:12", "hybrid:8+4")
RECORDS = KEEPS


@dataclass(frozen=True)
class Size:
    """A causal language model for a laptop: hidden size and layers of student and teacher, and a batch of tokens."""

    vocabulary: int = 32_000
    student: tuple[int, int] = (256, 4)
    teacher: tuple[int, int] = (576, 6)
    batch: int = 4
    length: int = 256

    @property
    def rows(self) -> int:
        return self.batch * (self.length - 1)

    def __str__(self) -> str:
        student, teacher = ("×".join(map(str, one)) for one in (self.student, self.teacher))
        return f"student {student}, teacher {teacher}, {self.rows:,} rows of {self.vocabulary:,} classes"


def model(size: Size, which: str) -> Any:
    """A Llama of this size, its embedding and its last layer tied; the same weights every time."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    hidden, layers = tuple(size.student if which == "student" else size.teacher)
    torch.manual_seed(0 if which == "student" else 1)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64), num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=size.length, tie_word_embeddings=True, use_cache=False,
        initializer_range=0.05, pad_token_id=None, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tokens(size: Size) -> Tensor:
    return torch.randint(size.vocabulary, (size.batch, size.length), generator=torch.Generator().manual_seed(2))


def examples(size: Size) -> Tokens:
    """The batch as the examples of a record."""
    documents = (Document(ids, ids, None, str(at)) for at, ids in enumerate(tokens(size).numpy()))
    return Tokens.of(documents, max_length=size.length)


def network(size: Size) -> HuggingFace:
    return HuggingFace(model(size, "teacher"), "teacher", "tokens")


@dataclass
class Made:
    """A contestant that is ready: what is timed, what tidies up after it, and the parameters that get gradients."""

    run: Callable[[], float]
    tidy: Callable[[], None] = lambda: None
    parameters: list[Tensor] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- the teacher alone


def forward(size: Size, folder: Path) -> Made:
    """The teacher's own forward pass, logits and all, as `transformers` runs it."""
    teacher, ids_BL = model(size, "teacher").eval(), tokens(size)

    @torch.no_grad()
    def run() -> float:
        return float(teacher(input_ids=ids_BL).logits[0, 0, 0])

    return Made(run)


def capturing(keep: str) -> Callable[[Size, Path], Made]:
    """The record of the same batch, into files that are flushed."""

    def build(size: Size, folder: Path) -> Made:
        teacher, data, numbers = network(size), examples(size), itertools.count()

        def run() -> float:
            made = capture(teacher, data, keep, folder / str(next(numbers)), batch_size=size.batch)
            return float(made.manifest.rows)

        def tidy() -> None:
            for one in folder.iterdir():
                shutil.rmtree(one)

        return Made(run, tidy)

    return build


# ------------------------------------------------------------------------------------------------------ training steps


def stepping(size: Size, loss: Callable[[Any], tuple[Tensor, float]], student: Any | None = None) -> Made:
    """A step: `loss(student)` gives the loss to differentiate and the number to report."""
    own = model(size, "student").train() if student is None else student
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4)

    def run() -> float:
        value, reported = loss(own)
        value.backward()
        optimizer.step()
        return reported

    return Made(run, lambda: optimizer.zero_grad(set_to_none=True), list(own.parameters()))


def trained(size: Size, folder: Path, **keywords: Any) -> Made:
    """A step of `DistillationTrainer`."""
    transformers = importlib.import_module("transformers")
    arguments = transformers.TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    student, ids_BL = model(size, "student").train(), tokens(size)
    trainer = DistillationTrainer(student, args=arguments, temperature=TEMPERATURE, **keywords)
    batch = {"input_ids": ids_BL, "labels": ids_BL, "example": torch.arange(size.batch)}

    def loss(own: Any) -> tuple[Tensor, float]:
        value, pieces = trainer.compute_loss(own, dict(batch), return_outputs=True)
        return value, TEMPERATURE**2 * float(pieces.get("soft_kl", 0.0))

    return stepping(size, loss, student)


def labels(size: Size, folder: Path) -> Made:
    return trained(size, folder, hard_weight=1.0, soft_weight=0.0)


def live(hard: float) -> Callable[[Size, Path], Made]:
    def build(size: Size, folder: Path) -> Made:
        return trained(size, folder, teacher=model(size, "teacher"), hard_weight=hard, soft_weight=1 - hard)

    return build


def recorded(keep: str) -> Callable[[Size, Path], Made]:
    def build(size: Size, folder: Path) -> Made:
        path = folder / "record"
        capture(network(size), examples(size), keep, path, temperature=TEMPERATURE, batch_size=size.batch)
        tail = {"top:12": "uniform", "top:12+tail": "bucket"}.get(keep)
        return trained(size, folder, record=Record.open(path), tail=tail, hard_weight=0.0, soft_weight=1.0)

    return build


def body(size: Size, folder: Path) -> Made:
    """The student without its last layer and its loss: what every step contains."""
    ids_BL = tokens(size)

    def loss(own: Any) -> tuple[Tensor, float]:
        value = own.model(input_ids=ids_BL).last_hidden_state.sum()
        return value, 0.0

    return stepping(size, loss)


def theirs(size: Size, folder: Path) -> Made:
    """Labels as `transformers` has them: whole logits, in float32."""
    ids_BL = tokens(size)

    def loss(own: Any) -> tuple[Tensor, float]:
        return own(input_ids=ids_BL, labels=ids_BL).loss, 0.0

    return stepping(size, loss)


Divergence = Callable[[Any, Any, Tensor], Tensor]


def against(divergence: Callable[[], Divergence]) -> Callable[[Size, Path], Made]:
    """A step on `divergence()(student, teacher, tokens)`."""

    def build(size: Size, folder: Path) -> Made:
        of, teacher, ids_BL = divergence(), model(size, "teacher").eval().requires_grad_(False), tokens(size)

        def loss(own: Any) -> tuple[Tensor, float]:
            value = of(own, teacher, ids_BL)
            return value, float(value.detach())

        return stepping(size, loss)

    return build


def plain() -> Divergence:
    """As most people write it: whole logits of both, `F.kl_div`, `batchmean` over the rows, T²."""

    def of(student: Any, teacher: Any, ids_BL: Tensor) -> Tensor:
        with torch.no_grad():
            t_BLC = teacher(input_ids=ids_BL).logits[:, :-1]
        z_BLC = student(input_ids=ids_BL).logits[:, :-1]
        log_q_NC = F.log_softmax(z_BLC.flatten(0, 1) / TEMPERATURE, dim=-1)
        p_NC = F.softmax(t_BLC.flatten(0, 1) / TEMPERATURE, dim=-1)
        return F.kl_div(log_q_NC, p_NC, reduction="batchmean") * TEMPERATURE**2

    return of


def hidden(student: Any, teacher: Any, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        t_BLD = teacher.model(input_ids=ids_BL).last_hidden_state[:, :-1]
    return student.model(input_ids=ids_BL).last_hidden_state[:, :-1], t_BLD


def liger() -> Divergence:
    module = importlib.import_module("liger_kernel.chunked_loss")
    own = module.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=TEMPERATURE**2, beta=0.0, temperature=TEMPERATURE, compiled=False
    )

    def of(student: Any, teacher: Any, ids_BL: Tensor) -> Tensor:
        z_BLD, t_BLD = hidden(student, teacher, ids_BL)
        heads = student.lm_head.weight, teacher.lm_head.weight
        return own(z_BLD.flatten(0, 1), heads[0], t_BLD.flatten(0, 1), heads[1], ids_BL[:, 1:].flatten())

    return of


def trl_whole() -> Divergence:
    own = importlib.import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss

    def of(student: Any, teacher: Any, ids_BL: Tensor) -> Tensor:
        with torch.no_grad():
            t_BLC = teacher(input_ids=ids_BL).logits[:, :-1]
        z_BLC = student(input_ids=ids_BL).logits[:, :-1]
        given = {"labels": ids_BL[:, 1:], "beta": 0, "temperature": TEMPERATURE}
        return TEMPERATURE**2 * own(z_BLC, t_BLC, **given)

    return of


def trl_chunked() -> Divergence:
    own = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss

    def of(student: Any, teacher: Any, ids_BL: Tensor) -> Tensor:
        z_BLD, t_BLD = hidden(student, teacher, ids_BL)
        heads = student.lm_head.weight, teacher.lm_head.weight
        found = own(z_BLD, t_BLD, *heads, torch.ones_like(ids_BL[:, 1:]), beta=0.0, temperature=TEMPERATURE)
        return TEMPERATURE**2 * found[0]

    return of


@dataclass(frozen=True)
class Contestant:
    build: Callable[[Size, Path], Made]
    trains: bool = True
    divergence: bool = False
    """Whether its first loss is `T² · KL` from the whole teacher."""


CONTESTANTS = {
    "forward": Contestant(forward, trains=False),
    **{f"capture {keep}": Contestant(capturing(keep), trains=False) for keep in KEEPS},
    "body": Contestant(body),
    "labels": Contestant(labels),
    **{f"record {keep}": Contestant(recorded(keep), divergence=keep == "dense") for keep in RECORDS},
    "live": Contestant(live(0.0), divergence=True),
    "live and labels": Contestant(live(0.5), divergence=True),
    "transformers labels": Contestant(theirs),
    "plain KL": Contestant(against(plain), divergence=True),
    "Liger": Contestant(against(liger), divergence=True),
    "TRL whole logits": Contestant(against(trl_whole), divergence=True),
    "TRL chunked": Contestant(against(trl_chunked), divergence=True),
}


# -------------------------------------------------------------------------------------------------- one in its process


class Worker:
    def __init__(self, name: str, size: Size, folder: Path) -> None:
        self.contestant, self.size, self.folder = CONTESTANTS[name], size, folder
        self.made: Made | None = None
        self.scratch: Scratch | None = None

    def run(self) -> tuple[dict[str, float], float]:
        assert self.made is not None
        wall, cpu = time.perf_counter(), time.process_time()
        reported = self.made.run()
        return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, reported

    def prepare(self) -> dict[str, Any]:
        self.made = self.contestant.build(self.size, self.folder)
        _, first = self.run()
        self.made.tidy()
        self.scratch = Scratch()
        return {"loss": first if self.contestant.divergence else None}

    def time(self) -> dict[str, Any]:
        return self.run()[0]

    def peak(self) -> dict[str, Any]:
        assert self.made is not None
        assert self.scratch is not None
        for _ in range(PEAKS):
            self.scratch.begin()
            self.run()
            grads = [p.grad for p in self.made.parameters if p.grad is not None]
            self.scratch.end(sum(g.nbytes for g in grads))
            del grads
            self.made.tidy()
        return {"scratch": self.scratch.bytes, "exact": self.scratch.exact}

    def rest(self) -> None:
        if self.made is not None:
            self.made.tidy()


def main(given: str) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr and not between the replies
    spec = json.loads(given)
    torch.set_num_threads(spec["threads"])
    with tempfile.TemporaryDirectory(prefix="likely-benchmark-") as folder:
        worker = Worker(spec["contestant"], Size(**spec["size"]), Path(folder))
        commands = {name: getattr(worker, name) for name in ("prepare", "time", "peak")}
        for line in sys.stdin:
            reply = answer(commands[line.strip()])
            worker.rest()
            replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
