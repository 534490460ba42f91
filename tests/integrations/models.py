"""Small models and data for the tests of the Trainer, a step whose gradient is kept, and the loss by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from likely.heads import Logits
from likely.integrations.transformers import DistillationTrainer, SFTCollator
from likely.networks import Identity
from likely.teachers.keep import Keep, keep_rows
from likely.teachers.manifest import Manifest
from likely.teachers.record import Record
from likely.teachers.store import Writer

C, T = 53, 2.0
transformers.utils.logging.set_verbosity_error()


def llama(hidden: int = 16, seed: int = 0, classes: int = C, **keywords: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=classes, hidden_size=hidden, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3, **keywords,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double()


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=C, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0)
    config.eos_token_id, config.initializer_range = 0, 0.3
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    return transformers.GPT2LMHeadModel(config).double()


def uneven(lengths: tuple[int, ...] = (3, 17, 30, 2)) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, C, (n,), generator=draw).tolist() for n in lengths]
    return [{"input_ids": row, "labels": [-100, *row[1:]], "example": at} for at, row in enumerate(ids)]


DATA = uneven()


class Grads(transformers.TrainerCallback):
    """Keeps the gradient of every step, before it is used."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def trainer(
    student: Any, folder: Path, data: Any = None, *, batch: int = 4, parts: int = 1, args: Any = None, **keywords: Any
) -> Any:
    """A Trainer of one step with the learning rate 0, whose gradients and logs are kept."""
    settings = {
        "per_device_train_batch_size": batch // parts, "gradient_accumulation_steps": parts, "max_steps": 1,
        "learning_rate": 0.0, "max_grad_norm": 0.0, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "per_device_eval_batch_size": 2,
    }  # fmt: skip
    own = transformers.TrainingArguments(output_dir=str(folder), **{**settings, **(args or {})})
    keywords.setdefault("data_collator", SFTCollator(0))
    data = DATA if data is None else data
    new: Any = DistillationTrainer(student, args=own, train_dataset=data, eval_dataset=data, **keywords)
    new.grads = Grads()
    new.add_callback(new.grads)
    return new


def stepped(*given: Any, **named: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    one = trainer(*given, **named)
    one.train()
    return one.state.log_history[0], one.grads.found[0]


def by_hand(student: Any, teacher: Any, data: Any, hard: float, soft: float, beta: float = 0.0) -> dict[str, Tensor]:
    """The loss and its pieces from whole logits, example by example, and one division."""
    z, t, y = [], [], []
    for example in data:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
        learnt = labels[1:] != -100
        z.append(student(input_ids=ids).logits[0, :-1][learnt])
        y.append(labels[1:][learnt])
        if teacher is not None:
            with torch.no_grad():
                t.append(teacher(input_ids=ids).logits[0, :-1][learnt])
    z_NC, y_N = torch.cat(z), torch.cat(y)
    found = {"hard_cross_entropy": F.cross_entropy(z_NC, y_N)}
    loss = hard * found["hard_cross_entropy"]
    if teacher is not None:
        log_q, log_p = F.log_softmax(z_NC / T, -1), F.log_softmax(torch.cat(t) / T, -1)
        p, q = log_p.exp(), log_q.exp()
        log_m = (beta * p + (1 - beta) * q).log()
        found["soft_cross_entropy"] = -(p * log_q).sum(-1).mean()
        found["teacher_entropy"] = -(p * log_p).sum(-1).mean()
        found["soft_kl"] = (p * (log_p - log_q)).sum(-1).mean()
        found["soft_reverse_kl"] = (q * (log_q - log_p)).sum(-1).mean()
        mixed = beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)
        found["soft_jensen_shannon"] = mixed.mean()
        name = {0.0: "soft_cross_entropy", 1.0: "soft_reverse_kl"}.get(beta, "soft_jensen_shannon")
        loss = loss + soft * T**2 * found[name]
    return {"loss": loss, **found}


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * float(1 + gradient.abs().max()))


def classifier(seed: int = 0, **keywords: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(  # type: ignore[call-arg]
        vocab_size=C, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5, **keywords,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).double()


def classified(soft: bool) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(4, 3, generator=draw, dtype=torch.float64), -1)
    labels = [row.tolist() for row in p] if soft else [0, 2, 1, 1]
    return [
        {"input_ids": torch.randint(C, (6,), generator=draw).tolist(), "labels": label if not soft else np.array(label)}
        for label in labels
    ]


def recorded(teacher: Any, keep: str, folder: Path, data: Any = DATA, temperature: float = T) -> Record:
    """A record of a teacher on fine-tuning data, taken as `capture` takes it."""
    counts = [sum(y != -100 for y in example["labels"][1:]) for example in data]
    manifest = Manifest(Keep.parse(keep), C, Identity("entry", "m:f", "00"), temperature=temperature)
    writer = Writer(folder, manifest, counts)
    for shard in writer.unfinished:
        logits = []
        for example in data[writer.examples(shard)]:
            learnt = torch.tensor(example["labels"][1:]) != -100
            with torch.no_grad():
                logits.append(teacher(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1][learnt])
        writer.put(shard, keep_rows(Logits(torch.cat(logits)), manifest.keep, temperature=temperature))
    writer.finish()
    return Record.open(folder)
