"""Tiny models of `transformers` with random weights, a tokenizer trained on the spot, and texts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

TEXTS = [
    "the cat sat on the mat",
    "a dog — naïve, 漢字 and 😀 — ran",
    "it rains; the cat\nsleeps",
    "öfter ein Hund als keine Katze",
]
VOCABULARY = 300


def tokenizer(eos: bool = True) -> Any:
    """A byte-level BPE, as GPT-2's, of 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    special = {"eos_token": "<end>", "pad_token": "<pad>"} if eos else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **special)


def causal(kind: str = "Llama", seed: int = 0, **more: Any) -> Any:
    """A causal language model: hidden states of 16, two layers."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    if kind == "GPT2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    if kind == "Gemma2":
        sizes |= {"head_dim": 8, "query_pre_attn_scalar": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    torch.manual_seed(seed)
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, name)(config)
    with torch.no_grad():  # larger than usual, so that logits are not all alike
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.eval()


def text_classifier(classes: tuple[str, ...] = ("calm", "wild", "odd"), seed: int = 0) -> Any:
    """A BERT with dropout, which only shows where it is not in eval mode."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        hidden_dropout_prob=0.4,
        id2label=dict(enumerate(classes)),
        label2id={name: at for at, name in enumerate(classes)},
    )
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(config).eval()


def image_classifier(classes: int = 3) -> Any:
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        id2label={at: f"LABEL_{at}" for at in range(classes)},
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def saved(folder: Path, model: Any, own: Any = None, **more: Any) -> Path:
    """A model in a folder, with its tokenizer."""
    model.save_pretrained(folder, **more)
    if own is not None:
        own.save_pretrained(folder)
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
