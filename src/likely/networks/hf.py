"""Models of `transformers`: causal language models, and classifiers of texts and of pictures.

Legend: B examples, L tokens, N rows, C classes (of a language model: its vocabulary), D features.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely._checks import require
from likely.data.examples import Batch
from likely.data.texts import tokenizer_hash
from likely.heads import Head, Linear, Logits
from likely.networks import Identity, weights_hash

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


# ------------------------------------------------------------------------------------------------ a model as a head


@dataclass(frozen=True)
class Reader:
    """How a model's rows of logits are had: a causal language model's from its hidden states and its last layer.

    Args:
        classes: C.
        last: the last layer of a causal language model, None for a classifier.
        scale: what its products are multiplied by.
        softcap: the bound of the logits.
    """

    classes: int
    last: torch.nn.Linear | None = None
    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of(model: Any, name: str) -> Reader:
        """The way that gives the model's own logits of a few tokens.

        Raises: ValueError where none does: its logits are something else than a linear layer's, scaled or soft-capped.
        """
        if not is_causal({base.__name__ for base in type(model).__mro__}):
            return Reader(int(model.config.num_labels))
        last = model.get_output_embeddings()
        require(
            isinstance(last, torch.nn.Linear),
            f"{name}: its last layer is a {type(last).__name__}; it is to be an nn.Linear, whose weight can be read",
        )
        reader = Reader(last.out_features, last)
        hidden_ND, logits_NC = reader._probe(model)
        for scale, softcap in _finishes(model.config):
            found = replace(reader, scale=scale, softcap=softcap)
            same_NC = found._head(hidden_ND).logits().float()
            nearness = float(logits_NC.abs().max()) * _TOLERANCE[hidden_ND.dtype]
            if torch.allclose(same_NC, logits_NC, rtol=0, atol=nearness):
                return found
        raise ValueError(
            f"{name}: {type(model).__name__} makes its logits from its last layer in a way that is not known here; "
            "take a model whose logits are a linear layer's, scaled or soft-capped"
        )

    @torch.no_grad()
    def _probe(self, model: Any) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of a few tokens."""
        assert self.last is not None
        training = model.training
        model.eval()
        tokens_BL = torch.arange(4, device=self.last.weight.device)[None] % self.classes
        with _hidden_states(self.last, keep_logits=True) as caught:
            logits_BLC = _logits(model(input_ids=tokens_BL))
        model.train(training)
        return caught[0].flatten(0, -2), logits_BLC.flatten(0, 1).float()

    def _head(self, x_ND: Tensor) -> Head:
        assert self.last is not None
        x_ND = x_ND if self.scale == 1 else x_ND * self.scale
        return Linear(x_ND, self.last.weight, self.last.bias, self.softcap).autocast()

    def head(self, model: Any, inputs: Mapping[str, Any], rows_N: Tensor | None) -> Head:
        """The rows of these inputs: of a language model `Linear`, no logits being formed; else `Logits`."""
        if self.last is None or rows_N is None:
            z_NC = _logits(model(**inputs))
            require(z_NC.dim() == 2, f"logits: have shape {tuple(z_NC.shape)}; a classifier's are (examples, classes)")
            return Logits(z_NC)
        if "use_cache" in inspect.signature(model.forward).parameters:
            inputs = {**inputs, "use_cache": False}
        with _hidden_states(self.last) as caught:
            model(**inputs)
        return self._head(caught[0].flatten(0, -2)[rows_N])


def is_causal(names: set[str]) -> bool:
    """Whether one of these classes is a causal language model of `transformers`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    return bool(names & set(causal.values()))


def _finishes(config: Any) -> Iterator[tuple[float, float | None]]:
    """What models do to the products of their last layer, as (scale, soft cap): the one that fits is taken."""
    yield 1.0, None
    for name, power in (("logit_scale", 1), ("logits_scaling", -1), ("lm_head_multiplier", 1)):
        if getattr(config, name, None):
            yield float(getattr(config, name)) ** power, None
    if getattr(config, "final_logit_softcapping", None):
        yield 1.0, float(config.final_logit_softcapping)


def _logits(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits


@contextmanager
def _hidden_states(last: torch.nn.Linear, keep_logits: bool = False) -> Iterator[list[Tensor]]:
    """Catches what a forward pass gives to its last layer, and leaves that layer no row to make logits of."""
    caught: list[Tensor] = []

    def catch(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        caught.append(given[0])
        return None if keep_logits else (given[0][..., :0, :],)

    handle = last.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()
    require(len(caught) == 1, f"model: ran its last layer {len(caught)} times in a forward pass; it is to run it once")


# ---------------------------------------------------------------------------------------------------- as a network


class HuggingFace:
    """A model of `transformers` as a Network; `likely.networks.pretrained` loads one.

    Args:
        module: the model, in eval mode.
        name: of its folder.
        task: "tokens", "text" or "pictures".
        tokenizer: that of its texts, None where it has none.
        classes: names of the classes, by default those of its configuration; of a language model its vocabulary's size.
        truncate: cut texts that are longer than it reads, which otherwise are an error.
        pictures: its preprocessor's settings: `image_mean`, `image_std` and the like.
        frozen: its weights will not change, so that their hash is computed once.

    Raises: ValueError where the logits of a language model cannot be had from its hidden states.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        task: str,
        *,
        tokenizer: Any = None,
        classes: tuple[str, ...] | None = None,
        truncate: bool = False,
        pictures: Mapping[str, Any] | None = None,
        frozen: bool = True,
    ) -> None:
        self.module: Any = module.eval()
        self.name, self.task, self.tokenizer, self.truncate = name, task, tokenizer, truncate
        self.pictures = dict(pictures or {})
        self.reader = Reader.of(module, name)
        self.classes: tuple[str, ...] | int = self.reader.classes
        if task != "tokens":
            self.classes = classes or _named(module.config)
        self.max_length: int | None = _longest(module.config, tokenizer) if task != "pictures" else None
        self._frozen = frozen
        self._hashes: dict[str, str] = {}

    @property
    def identity(self) -> Identity:
        if "weights" not in self._hashes or not self._frozen:
            self._hashes["weights"] = weights_hash(self.module.state_dict())
        if self.tokenizer is not None and "tokenizer" not in self._hashes:
            self._hashes["tokenizer"] = tokenizer_hash(self.tokenizer)
        return Identity("transformers", self.name, self._hashes["weights"], self._hashes.get("tokenizer"))

    def head(self, batch: Batch) -> Head:
        """The rows of a batch.

        Raises: ValueError for inputs of another kind, and for an example that is longer than the model reads.
        """
        device = next(self.module.parameters()).device
        if self.task == "pictures":
            return self.reader.head(self.module, {"pixel_values": self._standardised(batch.inputs, device)}, None)
        wanted = "input_ids" if self.task == "tokens" else "text"
        require(wanted in batch.inputs, f"{self.name}: reads {wanted}, and the examples hold {', '.join(batch.inputs)}")
        inputs = batch.inputs if self.task == "tokens" else self._tokens(batch.inputs["text"])
        self._require_length(inputs, batch)
        chosen = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask") if name in inputs}
        return self.reader.head(self.module, chosen, batch.rows)

    def _require_length(self, inputs: Mapping[str, Any], batch: Batch) -> None:
        length = inputs["input_ids"].shape[1]
        if self.max_length is None or length <= self.max_length:
            return
        cure = "cut it shorter (--max-length)" if self.task == "tokens" else "let it be cut (--truncate)"
        place = int(inputs["attention_mask"].sum(dim=1).argmax())
        example = batch.example[place] if batch.rows is None else batch.example[batch.rows // length == place][0]
        raise ValueError(
            f"example {int(example)}: has {length} tokens, and {self.name} reads {self.max_length}; {cure}"
        )

    def _tokens(self, texts: list[str]) -> Mapping[str, Any]:
        return self.tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=self.truncate,
            max_length=self.max_length if self.truncate else None,
            verbose=False,
        )

    def _standardised(self, inputs: Mapping[str, Any], device: torch.device) -> Tensor:
        """Pixels from 0 to 1 as the model's preprocessor would have them."""
        require("pixel_values" in inputs, f"{self.name}: reads pictures, and the examples hold {', '.join(inputs)}")
        x = inputs["pixel_values"].to(device)
        own = self.pictures
        x = x * (255 * own.get("rescale_factor", 1 / 255)) if own.get("do_rescale", True) else x * 255
        if own.get("do_normalize", "image_mean" in own):
            mean, std = (torch.tensor(own[key], device=device).view(-1, 1, 1) for key in ("image_mean", "image_std"))
            x = (x - mean) / std
        return x.to(next(self.module.parameters()).dtype)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `config.json` and the tokenizer's files."""
        with quiet():
            self.module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.pictures:
            (folder / "preprocessor_config.json").write_text(json.dumps(self.pictures, indent=2) + "\n")


def _named(config: Any) -> tuple[str, ...] | int:
    """The names of a classifier's classes, or their number where they are only numbered."""
    names = [str(config.id2label[at]) for at in range(config.num_labels)]
    numbered = names == [f"LABEL_{at}" for at in range(len(names))]
    return len(names) if numbered or len(set(names)) < len(names) else tuple(names)


def _longest(config: Any, tokenizer: Any) -> int | None:
    """The tokens that a model reads at most, by its positions and its tokenizer."""
    config = config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]
    return min(known, default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the reports of `transformers`, whose findings are said here, or are errors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
