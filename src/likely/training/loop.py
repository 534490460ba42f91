"""The training loop: a student of labels, of a teacher, or of both, for whatever gives a head.

Legend: E examples, B examples of a step, N rows of a step, n rows of a micro-batch, C classes.

A step of the optimiser takes `batch_size` examples, `micro_batch` at a time.  Every part of the loss is divided by the
rows of the whole step, so that micro-batches change the memory and not the loss.  The order of the examples and the
random numbers of a step come from the seed and the step's number, so that a run which goes on from a checkpoint is the
run that was not interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from likely._checks import require
from likely.data.examples import Examples
from likely.networks import Network
from likely.training import checkpoints
from likely.training.goal import Goal
from likely.training.progress import bar, tensorboard, write_scalars
from likely.training.schedule import indices_of, learning_rate, seed_of
from likely.training.settings import Settings, difference, read_yaml

if TYPE_CHECKING:
    from likely.teachers.record import Record

FREE = ("save_every", "keep_checkpoints", "tensorboard")
"""Settings that do not change what is computed: a run may go on with others."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What `train` gives; the student itself was trained in place.

    Args:
        steps: of the optimiser.
        formula: the loss, in numbers.
        validation: the means over the validation part after the last step, in nats; empty without one.
        out: the folder with `settings.yaml`, `metrics.jsonl` and `checkpoints/`.
        resumed: the step that this call went on from, 0 where it began.
    """

    steps: int
    formula: str
    validation: dict[str, float]
    out: Path
    resumed: int

    def metrics(self) -> list[dict[str, Any]]:
        """One entry for each step: its loss and the parts of it, in nats, and whatever was measured after it."""
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def train(
    student: Network,
    examples: Examples,
    settings: Settings,
    *,
    teacher: Network | Record | None = None,
    validation: Examples | None = None,
    validation_teacher: Network | Record | None = None,
    out: Path,
    progress: bool = True,
) -> Trained:
    """Train a student in place on labels and a teacher; a run that was interrupted goes on where it was saved.

    `loss = hard_weight · CE(labels) + soft_weight · T² · CE(teacher ‖ student at T)`, each part the mean over the rows
    of the step that have a label, or a teacher.  Rows without either cost nothing and count for nothing.

    The optimiser is AdamW with `β = (0.9, 0.999)`; tensors of one dimension, which are biases and norms, do not decay,
    all others do, embeddings among them.  A live teacher is in eval mode, runs under the same mixed precision, and only
    its hidden states are formed where its head is Linear.

    Args:
        student: its `module` is trained.
        examples: in a fixed order.
        teacher: a network, or a record of these examples.
        validation: examples that are measured every `evaluate_every` steps and after the last.
        validation_teacher: by default the teacher, where it is a network.
        out: the folder of the run.  If it holds a run of the same settings, data, student and teacher, that is gone on
            with.
        progress: print the formula, and show a bar on a terminal, on stderr.

    Returns: Trained.

    Raises:
        ValueError: what does not fit together; a run in `out` that is another, whose difference is named; a loss that
            is not finite, with the step and what was NaN.
        SystemExit: status 143 after SIGTERM, once a checkpoint is written.
        KeyboardInterrupt: after Ctrl-C, likewise.

    Examples
    --------
    See docs/distillation.md, whose examples run.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    run = _Run(student, examples, settings, teacher, validation, validation_teacher, Path(out), progress)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_devices(run.device)))
        asked = stack.enter_context(_asked_to_stop())
        return run.run(stack, asked)


class _Run:
    def __init__(
        self,
        student: Network,
        examples: Examples,
        settings: Settings,
        teacher: Network | Record | None,
        validation: Examples | None,
        validation_teacher: Network | Record | None,
        out: Path,
        progress: bool,
    ) -> None:
        require(len(examples) > 0, "examples: are none; there is nothing to train on")
        self.student, self.examples, self.settings, self.out = student, examples, settings, out
        self.goal = Goal(student, examples, settings, teacher)
        self.module, self.device = self.goal.module, self.goal.device
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        require(bool(parameters), "student: none of its parameters asks for a gradient; there is nothing to train")
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)
        self.parameters = parameters
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.mixed_precision == "fp16")
        self.steps = settings.max_steps or settings.epochs * -(-len(examples) // settings.batch_size)
        self.validation = validation
        self.validation_goal = None
        if validation is not None:
            if validation_teacher is None and teacher is not None and hasattr(teacher, "head"):
                validation_teacher = teacher
            self.validation_goal = Goal(student, validation, settings, validation_teacher, measured=True)
        self.is_of = {
            "data": examples.fingerprint,
            "labels": _labels_of(examples),
            "student": student.identity.sha256,
            "teacher": self.goal.teacher_id,
        }
        self.progress = progress

    # ---------------------------------------------------------------------------------------------- the whole run

    def run(self, stack: ExitStack, asked: list[int]) -> Trained:
        folder = self.out / "checkpoints"
        start, place, last = self._resume(folder)
        say = functools.partial(print, file=sys.stderr) if self.progress else lambda *_: None
        say(self.goal.formula + (f"  (from step {start:,})" if start else ""))
        done = Trained(self.steps, self.goal.formula, last, self.out, start)
        if start == self.steps:
            return done
        log = stack.enter_context((self.out / "metrics.jsonl").open("r+b"))
        log.truncate(place)
        log.seek(place)
        board = stack.enter_context(tensorboard(self.out, start)) if self.settings.tensorboard else None
        show = stack.enter_context(bar(self.progress, start, self.steps))
        stack.callback(self.module.eval)
        every = self.settings.evaluate_every or -(-self.steps // 5)
        for step in range(start + 1, self.steps + 1):
            metrics = self._step(step)
            final = step == self.steps
            if self.validation_goal is not None and (final or step % every == 0):
                last = metrics["validation"] = self.evaluate()
                say(f"step {step:,} of {self.steps:,}: loss {metrics['loss']:.4f}; validation {_told(last)}")
            log.write(json.dumps(_plain(metrics)).encode() + b"\n")
            log.flush()
            if board is not None:
                write_scalars(board, metrics, step)
            show(metrics)
            if final or asked or step % self.settings.save_every == 0:
                state = {"run": self.is_of, "metrics_bytes": log.tell(), "validation": last, "done": final}
                state["scaler"] = self.scaler.state_dict()
                kept = 1 if final else self.settings.keep_checkpoints
                checkpoints.save(folder, step, self.module, None if final else self.optimizer, state, kept)
            if asked and not final:
                say(f"stopped and saved at step {step:,}; the same call goes on from there")
                raise KeyboardInterrupt if asked[0] == signal.SIGINT else SystemExit(128 + asked[0])
        return Trained(self.steps, self.goal.formula, last, self.out, start)

    def _resume(self, folder: Path) -> tuple[int, int, dict[str, float]]:
        """The step that is done, the bytes of metrics up to it, and what was measured last; a new run begins at 0."""
        self.out.mkdir(parents=True, exist_ok=True)
        written = self.out / "settings.yaml"
        if not written.exists():
            others = sorted(path.name for path in self.out.iterdir() if not path.name.startswith("."))
            require(
                not others,
                f"out: {self.out} holds {', '.join(others[:3])} and no run; choose another folder",
                FileExistsError,
            )
        else:
            own, theirs = self.settings.to_dict(), read_yaml(written)
            changed = difference(*({n: v for n, v in one.items() if n not in FREE} for one in (own, theirs)))
            require(
                changed is None,
                f"out: {self.out} holds another run: {changed}; go on with its settings, or choose another folder",
            )
        self.settings.write(written, overwrite=True)
        (self.out / "metrics.jsonl").touch()
        checkpoints.tidy(folder)
        path = checkpoints.newest(folder)
        if path is None:
            return 0, 0, {}
        state = checkpoints.state_of(path)
        changed = difference(self.is_of, state["run"])
        require(changed is None, f"out: {self.out} holds a run of other things: {changed}; choose another folder")
        written_bytes = (self.out / "metrics.jsonl").stat().st_size
        require(
            written_bytes >= state["metrics_bytes"],
            f"out: {self.out}/metrics.jsonl is shorter than at step {state['step']}; remove {self.out} to begin again",
        )
        checkpoints.load(path, self.module, None if state["done"] else self.optimizer)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return state["step"], state["metrics_bytes"], state["validation"]

    # ------------------------------------------------------------------------------------------------- one step

    def _step(self, step: int) -> dict[str, Any]:
        began = time.perf_counter()
        settings, E = self.settings, len(self.examples)
        epoch, chosen = indices_of(step, E, settings.batch_size, settings.seed)
        self._seed(seed_of(step, settings.seed))
        rate = learning_rate(settings, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = _parts(chosen, settings.micro_batch)
        batches = [self.examples.batch(part) for part in parts]
        rows = sum(len(batch.labels) for batch in batches)
        labelled = sum(self.goal.labelled(batch) for batch in batches)
        sums: dict[str, float] = {}
        for part, batch in zip(parts, batches):
            found = self.goal.backward(batch, part, rows, labelled, self.scaler, step)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
        metrics = {"step": step, "epoch": epoch, "learning_rate": rate, "loss": sums.pop("loss", 0.0), **sums}
        if any(parameter.grad is not None for parameter in self.parameters):  # else nothing counted: nothing changes
            metrics["gradient_norm"] = self._update(step)
        return metrics | {
            "examples": len(chosen),
            "rows": rows,
            "labelled_rows": labelled,
            "seconds": round(time.perf_counter() - began, 6),
        }

    def _seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also leaves a note for each kind of device
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _update(self, step: int) -> float:
        self.scaler.unscale_(self.optimizer)
        longest = self.settings.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, longest))
        if not self.scaler.is_enabled():  # which leaves out a step whose gradient has overflowed
            require(
                math.isfinite(norm),
                f"step {step}: the gradient is {norm}, though the loss is finite; lower the learning rate",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def evaluate(self) -> dict[str, float]:
        """The means over the validation part, in nats, at the settings' temperature."""
        assert self.validation is not None
        assert self.validation_goal is not None
        self.module.eval()
        size = self.settings.micro_batch or self.settings.batch_size
        sums: dict[str, float] = {}
        for part in _parts(range(len(self.validation)), size):
            for name, value in self.validation_goal.measure(self.validation.batch(part), part).items():
                sums[name] = sums.get(name, 0.0) + value
        rows, labelled = sums.pop("rows", 0.0), sums.pop("labelled_rows", 0.0)
        counts = {name: labelled if name.startswith("hard") else rows for name in sums}
        return {name: value / counts[name] for name, value in sums.items() if counts[name]}


def _labels_of(examples: Examples) -> str | None:
    """SHA-256 of the labels, where they are an array of their own and no part of the fingerprint."""
    labels_E = getattr(examples, "labels", None)
    return hashlib.sha256(labels_E.tobytes()).hexdigest() if isinstance(labels_E, np.ndarray) else None


def _told(validation: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in validation.items()) or "of nothing"


def _parts(chosen: Sequence[int], size: int | None) -> list[list[int]]:
    size = size or len(chosen)
    return [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]


# ------------------------------------------------------------------------------------------------- the surroundings


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """The signals that came, of SIGTERM and Ctrl-C; a second one of a kind has its usual effect."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield asked
        return
    usual = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    try:
        for number in usual:
            signal.signal(number, ask)
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
