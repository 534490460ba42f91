"""A `transformers.Trainer` that distils; `likely.integrations.transformers.DistillationTrainer` is made of it.

Shapes: B examples, L tokens, N rows (predictions), C classes (of a language model: its vocabulary).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from likely._checks import require
from likely.data.examples import IGNORED
from likely.data.texts import next_token_rows, tokenizer_hash
from likely.divergences import jensen_shannon
from likely.forms import Dense, Target
from likely.heads import Head
from likely.integrations.transformers.batches import MASKS, Prepared, data_fingerprint
from likely.integrations.transformers.losses import labels_or_probabilities, logits_of
from likely.networks.hf import Reader
from likely.objective import Term, objective
from likely.targets import teacher as teacher_target

if TYPE_CHECKING:
    from transformers import Trainer

    from likely.teachers.record import Record
else:
    Trainer = object


class Distillation(Trainer):
    """A `transformers.Trainer` that learns from labels, from a teacher, or from both.

    `loss = hard_weight · CE(labels, q) + soft_weight · T² · CE(p_T, q_T)`, with the student `q`, the teacher `p` and
    `CE = entropy + KL`; with `beta > 0` the second divergence is the generalised Jensen–Shannon of Agarwal et al., at
    `beta = 1` the reverse `KL(q_T ‖ p_T)`.  Each is a mean over all predictions of a step: accumulation over
    micro-batches, however uneven, and several processes give the whole batch's loss and gradient.  Labels of a causal
    language model are shifted here; −100, padding, and the zeros of `completion_mask` and `assistant_masks` are left
    out.  The logits of a language model are never held whole, neither its own nor its teacher's: hidden states and the
    last layer's weight go into one fused pass.  Classifiers work alike, from their logits; their labels may be
    probabilities.

    Args:
        model: the student; by keyword follow these, and all of Trainer's own (`args`, `train_dataset`, …).
        teacher: a model with the student's vocabulary or classes.  It is put into eval mode and frozen.
        record: a teacher's record instead, see `likely capture`.
        eval_record: the record of the evaluation data; without one only the labels are evaluated there.
        tail: for a record of the largest probabilities: "uniform", "renormalise" or "bucket".
        index_column: the column with each example's number in the record.
        hard_weight, soft_weight: of the labels and of the teacher.
        temperature: T; it softens student and teacher alike.
        beta: 0 for the forward divergence, 1 for the reverse; a record that is not dense is for 0.

    Logs, beside Trainer's own: `hard_cross_entropy`; `soft_cross_entropy = teacher_entropy + soft_kl`, where the
    entropy is called `target_entropy` if a record has cut the teacher off; for `beta > 0` instead
    `soft_jensen_shannon` or `soft_reverse_kl`.  They are in nats, without weights and T².  `evaluate` has the same
    names with `eval_`; its means are over predictions, not over batches.

    Raises:
        ValueError: vocabularies, classes or records that do not match; settings that contradict each other; a teacher
            that gives NaN; sequences longer than a model takes.

    Source: Hinton, Vinyals and Dean, 2015; https://huggingface.co/docs/transformers/main_classes/trainer.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        *,
        hard_weight: float,
        soft_weight: float,
        teacher: Any = None,
        record: Record | None = None,
        eval_record: Record | None = None,
        tail: str | None = None,
        index_column: str = "example",
        temperature: float = 1.0,
        beta: float = 0.0,
        **trainer: Any,
    ) -> None:
        require(model is not None, "model: is missing; the student is given as a model, not as model_init")
        require(trainer.get("compute_loss_func") is None, "compute_loss_func: this Trainer has a loss of its own")
        require(teacher is None or record is None, "teacher, record: give one of them")
        taught = teacher is not None or record is not None
        require(min(hard_weight, soft_weight) >= 0, "hard_weight, soft_weight: a weight is not negative")
        require(hard_weight + soft_weight > 0, "hard_weight, soft_weight: are both 0; nothing would be learnt")
        require(taught == (soft_weight > 0), "soft_weight: is to be positive with a teacher or a record, 0 without")
        require(temperature > 0, f"temperature: is {temperature}; it is a positive number")
        require(0 <= beta <= 1, f"beta: is {beta}; it is between 0 (forward) and 1 (reverse)")
        dense = record is None or record.manifest.keep.kind == "dense"
        require(beta == 0 or dense, "beta: this record keeps too little for any divergence but the forward one, 0")
        self.hard_weight, self.soft_weight = hard_weight, soft_weight
        self.temperature, self.beta = temperature, float(beta)
        self.teacher, self.record, self.eval_record, self.tail = teacher, record, eval_record, tail
        self.index_column = index_column
        super().__init__(model, **trainer)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        require(not sharded, "args: the last layer's weight must be whole; run without FSDP and DeepSpeed")
        require(self.args.n_gpu <= 1, "args: several GPUs want a process each; start with torchrun")
        require(not self.args.torch_compile, "args: torch_compile hides the last layer; compile the model's body")
        self.model_accepts_loss_kwargs = True  # which older Trainers ask before they divide by the number of parts
        self._student = Reader.of(self.model, "model")
        if teacher is not None:
            self._teacher = self._frozen(teacher)
        tokenizer = self.processing_class if self._student.last is not None else None
        asked: dict[str, Any] = {
            "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
            "classes": _class_names(self.model) or self._student.classes,
            "temperature": temperature,
        }
        for one, data in ((record, self.train_dataset), (eval_record, self.eval_dataset)):
            if one is not None:
                # The hash of all the data; of a part of them, the rows of each example are compared, batch by batch.
                one.require_matches(**asked, data=data_fingerprint(data, index_column, len(one.row_counts)))
        self.data_collator = Prepared(self.data_collator, index_column)
        self._sums: dict[str, Tensor] = {}
        self._since = self.state.global_step
        self._evaluated: dict[str, Tensor] = {}

    def _frozen(self, teacher: Any) -> Reader:
        student: Any = self.model
        own = {id(p) for p in student.parameters()}
        shared = any(id(p) in own for p in teacher.parameters())
        require(not shared, "teacher: shares parameters with the student; give it a copy (copy.deepcopy)")
        teacher.requires_grad_(False).eval().to(self.args.device)
        reader = Reader.of(teacher, "teacher")
        require(
            (reader.last is None) == (self._student.last is None) and reader.classes == self._student.classes,
            f"teacher: has {reader.classes} classes ({type(teacher).__name__}) where the student has "
            f"{self._student.classes} ({type(self.model).__name__}); vocabularies that differ need an explicit map",
        )
        theirs, ours = _class_names(teacher), _class_names(self.model)
        for at, (one, other) in enumerate(zip(theirs or (), ours or ())):
            require(one == other, f"teacher: its class {at} is {one!r}, the student's {other!r}")
        return reader

    @property
    def formula(self) -> str:
        """The loss in force, in words."""
        parts = [f"{self.hard_weight:g} · CE(labels, q)"] if self.hard_weight else []
        if self.soft_weight:
            soft = {0.0: "CE(p_T, q_T)", 1.0: "KL(q_T ‖ p_T)"}.get(self.beta, f"JSD_{self.beta:g}(p_T, q_T)")
            parts.append(f"{self.soft_weight:g} · T² · {soft}, T = {self.temperature:g}")
        teacher = ""
        if self.record is not None:
            own = self.record.manifest
            tail = "" if self.tail is None else f" with tail={self.tail!r}"
            teacher = f"; p: a record of {own.teacher.name}, {own.keep}{tail}, whose gradient is {own.gradient}"
        teacher = teacher if self.teacher is None else f"; p: {type(self.teacher).__name__}, live"
        return f"loss = {' + '.join(parts)}; means over all predictions of a step, in nats{teacher}"

    def train(self, *given: Any, **named: Any) -> Any:
        if self.is_world_process_zero():
            print(self.formula)
        return super().train(*given, **named)

    # ------------------------------------------------------------------------------------------ counting and columns

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns += [n for n in (*MASKS, self.index_column) if n not in self._signature_columns]

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            _, labels_N = self._rows(batch)
            counts += torch.tensor([float(_labelled(labels_N)), float(len(labels_N))], dtype=torch.float64)
        counts = counts.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return batches, counts

    def _rows(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor]:
        """Which outputs are predictions, None for all of them, and their labels."""
        require(
            batch.get("labels") is not None, "labels: are missing; every batch needs them (−100 where there is none)"
        )
        if self._student.last is None:
            return None, batch["labels"]
        return next_token_rows(batch["labels"], batch.get("attention_mask"))

    # ------------------------------------------------------------------------------------------------------ the loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, pieces, _ = self._loss(model, inputs, num_items_in_batch, self.record)
        several = 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            several = self.accelerator.num_processes  # whose gradients are averaged
        for name, piece in pieces.items():
            self._sums[name] = self._sums.get(name, 0) + piece.detach() * several
        loss = loss * several
        return (loss, pieces) if return_outputs else loss

    def _loss(
        self, model: Any, inputs: Mapping[str, Any], totals: Any, record: Record | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss, its pieces without weights, and how many labels and rows there were."""
        inputs = dict(inputs)
        rows_N, labels_N = self._rows(inputs)
        index = inputs.pop(self.index_column, None)
        inputs.pop("labels")
        with self.accelerator.autocast():
            soft = None
            if self.teacher is not None:
                soft = self._live(inputs, rows_N)
            elif record is not None:
                soft = self._recorded(record, index, rows_N, inputs)
            head = self._student.head(model, _suited(self.model, inputs, "model"), rows_N)
            hard = labels_or_probabilities(labels_N, head.classes, self.args.label_smoothing_factor)
            counts = torch.stack([_labelled(labels_N).double(), hard.count.new_tensor(hard.rows).double()])
            totals = counts if totals is None else torch.as_tensor(totals, device=counts.device).expand(2)
            return self._objective(head, hard, soft, totals, counts)

    def _objective(
        self, head: Head, hard: Target, soft: Target | None, totals: Tensor, counts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        # The objective has one denominator; here labels and the teacher's rows have each their own.
        per_label, per_row = (1 / float(total) if total > 0 else 0.0 for total in totals)
        terms = [Term(hard, weight=self.hard_weight * per_label)]
        if soft is not None and self.beta == 0:
            terms.append(Term(soft, weight=self.soft_weight * per_row, temperature=self.temperature))
        loss, scores = objective(head, terms, total=1)
        pieces = {"hard_cross_entropy": scores[0].mean(totals[0]).cross_entropy}
        if soft is not None and self.beta == 0:
            mean = scores[1].mean(totals[1])
            pieces["soft_cross_entropy"] = mean.cross_entropy
            if soft.entropy_unknown() is None:
                pieces |= {"soft_kl": mean.kl, self._entropy_name: mean.entropy}
        elif soft is not None:
            assert isinstance(soft, Dense)
            assert soft.head is not None
            rows_N = jensen_shannon(head, soft.head, beta=self.beta, temperature=self.temperature)
            pieces[self._divergence_name] = rows_N.sum() * per_row
            loss = loss + self.soft_weight * self.temperature**2 * pieces[self._divergence_name]
        return loss, pieces, counts

    @property
    def _divergence_name(self) -> str:
        return {0.0: "soft_cross_entropy", 1.0: "soft_reverse_kl"}.get(self.beta, "soft_jensen_shannon")

    @property
    def _entropy_name(self) -> str:
        cut = self.record is not None and self.record.manifest.gradient == "biased"
        return "target_entropy" if cut else "teacher_entropy"

    @torch.no_grad()
    def _live(self, inputs: Mapping[str, Any], rows_N: Tensor | None) -> Target:
        self.teacher.eval()  # whatever has become of it since the last step
        head = self._teacher.head(self.teacher, _suited(self.teacher, inputs, "teacher"), rows_N).detached()
        given_NX = head.tensors[0]
        assert given_NX is not None
        wrong = given_NX.isnan().any(dim=-1).nonzero().flatten().tolist()
        require(not wrong, f"teacher: gives NaN at {len(wrong)} rows of a batch, first at row {wrong[:1]}")
        return teacher_target(head)

    def _recorded(
        self, record: Record, index: Tensor | None, rows_N: Tensor | None, inputs: Mapping[str, Any]
    ) -> Target:
        require(
            index is not None, f"index_column: the batch has no {self.index_column!r}; it says which examples these are"
        )
        assert index is not None
        numbers = index.tolist()
        size = len(record.row_counts)
        wrong = next((n for n in numbers if not 0 <= n < size), None)
        require(wrong is None, f"{self.index_column}: has the example {wrong}; the record holds 0 … {size - 1}")
        counts = [1] * len(numbers)
        if rows_N is not None:
            B, L = inputs["input_ids"].shape
            example_N = rows_N // L
            if B == 1 < len(numbers) and "position_ids" in inputs:  # examples one after another, without padding
                example_N = ((inputs["position_ids"].flatten() == 0).cumsum(0) - 1)[rows_N]
            counts = torch.bincount(example_N, minlength=len(numbers)).tolist()
        for n, count in zip(numbers, counts):
            kept = int(record.row_counts[n])
            require(
                kept == count,
                f"record: example {n} has {kept} rows there and {count} here; it was taken of other data, or of these, "
                "cut or masked in another way",
            )
        return _moved(record.target(numbers, tail=self.tail), self.args.device)

    # ------------------------------------------------------------------------------------------------- what is logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sums and "loss" in logs:
            steps = max(1, self.state.global_step - self._since)
            sums = self.accelerator.reduce(torch.stack([s.double() for s in self._sums.values()]), "mean")
            logs |= {name: float(value) / steps for name, value in zip(self._sums, sums)}
            self._sums, self._since = {}, self.state.global_step
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            one = torch.ones((), dtype=torch.float64, device=self.args.device)
            _, sums, counts = self._loss(model, inputs, one, self.eval_record)
            for name, value in {**sums, "counts": counts}.items():
                self._evaluated[name] = self._evaluated.get(name, 0) + value.double()
            loss = self._means(sums, counts)["loss"]
            if prediction_loss_only:
                return loss, None, None
            kept = {k: v for k, v in inputs.items() if k not in ("labels", self.index_column)}
            with self.accelerator.autocast():
                logits = logits_of(model(**kept))  # asked for, and so formed
        return loss, logits, inputs["labels"]

    def _means(self, sums: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        """Means from sums, and the loss of those means."""
        labels, rows = counts.double().clamp_min(1)
        means = {name: value / (labels if name == "hard_cross_entropy" else rows) for name, value in sums.items()}
        loss = self.hard_weight * means["hard_cross_entropy"]
        if self._divergence_name in means:
            loss = loss + self.soft_weight * self.temperature**2 * means[self._divergence_name]
        elif self.soft_weight:
            loss = means["hard_cross_entropy"]  # no record of these examples: the labels alone
        return {"loss": loss, **means}

    def evaluation_loop(self, *given: Any, **named: Any) -> Any:
        self._evaluated = {}
        output: Any = super().evaluation_loop(*given, **named)
        if self._evaluated:
            names = list(self._evaluated)
            flat = self.accelerator.reduce(torch.cat([self._evaluated[name].reshape(-1) for name in names]), "sum")
            sums = dict(zip(names[:-1], flat[:-2]))
            prefix = named.get("metric_key_prefix", "eval")
            output.metrics.update({f"{prefix}_{k}": float(v) for k, v in self._means(sums, flat[-2:]).items()})
        return output


def _labelled(labels: Tensor) -> Tensor:
    """How many rows have a label; probabilities (N, C) are labels of every row."""
    return (labels != IGNORED).sum() if labels.dim() == 1 else labels.new_tensor(len(labels))


def _class_names(model: Any) -> tuple[str, ...] | None:
    """The names of a classifier's classes in their order; None of a language model, or where they are only numbered."""
    if model.get_output_embeddings() is not None:
        return None
    names = tuple(str(model.config.id2label[at]) for at in range(model.config.num_labels))
    return None if any(name.startswith("LABEL_") for name in names) else names


def _suited(model: Any, inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The inputs, without a cache of keys and values, and not longer than the model reads."""
    tokens, longest = inputs.get("input_ids"), getattr(model.config, "max_position_embeddings", None)
    if tokens is not None and longest:
        places = inputs.get("position_ids")
        length = tokens.shape[1] if places is None else int(places.max()) + 1
        require(length <= longest, f"{name}: reads {longest} tokens, and the batch has {length}; cut the examples")
    cached = "use_cache" in inspect.signature(model.forward).parameters
    return {**inputs, "use_cache": False} if cached else dict(inputs)


def _moved(target: Any, device: torch.device) -> Any:
    """A record's target on the device of the student."""
    if isinstance(target, Tensor):
        return target.to(device)
    if is_dataclass(target) and not isinstance(target, type):
        return replace(target, **{f.name: _moved(getattr(target, f.name), device) for f in fields(target)})
    return target
