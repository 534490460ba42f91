"""Losses and a Trainer for `transformers`: labels, a live teacher, a teacher's record; one mean over a batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from likely.integrations.transformers.batches import SFTCollator, sft_rows
from likely.integrations.transformers.losses import causal_lm_loss, classification_loss
from likely.integrations.transformers.trainer import Distillation

if TYPE_CHECKING:
    DistillationTrainer = Distillation

__all__ = ["DistillationTrainer", "SFTCollator", "causal_lm_loss", "classification_loss", "sft_rows"]


def __getattr__(name: str) -> Any:
    if name != "DistillationTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _trainer()


@functools.cache
def _trainer() -> type:
    """The Trainer, made when it is first asked for: only then must `transformers` be there."""
    try:
        from transformers import Trainer
    except ImportError as error:
        raise ImportError(f"DistillationTrainer needs transformers: pip install 'likely[hf]' ({error})") from None
    told = {"__doc__": Distillation.__doc__, "__module__": __name__}
    return type("DistillationTrainer", (Distillation, Trainer), told)
