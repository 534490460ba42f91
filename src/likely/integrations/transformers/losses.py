"""Functions for the `compute_loss_func` of a `transformers.Trainer`.

Shapes: B examples, L tokens, N rows (predictions), C classes (of a language model: its vocabulary).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from likely._checks import require
from likely.data.texts import next_token_rows
from likely.forms import Target
from likely.heads import Logits
from likely.objective import objective
from likely.targets import labels as labels_target
from likely.targets import probabilities


def causal_lm_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Any = None, *, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """A `compute_loss_func` for causal language models: the cross-entropy of each next token, in nats.

    `loss = Σ −log q(label of position i + 1 | logits of position i) / num_items_in_batch`, over the labels that are not
    −100.  The model's own logits stay in their dtype; sums are in float32.  To do without those logits, which the model
    has formed when this is called, take `DistillationTrainer(hard_weight=1, soft_weight=0)`.

    Args:
        outputs: the model's outputs, with `logits` (B, L, C).
        labels: (B, L), not shifted; −100 where nothing is to be learnt.
        num_items_in_batch: the labels of the whole batch, of which this may be a part; by default those counted here.
        smoothing: the share of each target that is spread over all C classes.
        z_loss: the weight of the mean squared log-normaliser, which is added.

    Returns: one number; 0, with a gradient of 0, where no label counts.

    Raises: ValueError without labels, or for labels of another shape.

    >>> import torch, types
    >>> outputs = types.SimpleNamespace(logits=torch.zeros(1, 3, 8))
    >>> round(float(causal_lm_loss(outputs, torch.tensor([[1, 2, -100]]))), 4)                   # log 8
    2.0794

    Source: `transformers.Trainer(compute_loss_func=)`; `transformers.loss.loss_utils.ForCausalLMLoss`.
    """
    logits_BLC = logits_of(outputs)
    require(labels is not None, "labels: are missing; the batch needs a column `labels`")
    require(
        labels.shape == logits_BLC.shape[:2],
        f"labels: have shape {tuple(labels.shape)} where the logits have {tuple(logits_BLC.shape)}",
    )
    rows_N, labels_N = next_token_rows(labels)
    head = Logits(logits_BLC.flatten(0, 1)[rows_N])
    target = labels_target(labels_N, head.classes, smoothing=smoothing)
    return objective(head, target, total=num_items_in_batch, z_loss=z_loss)[0]


def classification_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Any = None, *, smoothing: float = 0.0
) -> Tensor:
    """A `compute_loss_func` for classifiers: the cross-entropy to labels or to probabilities, in nats.

    Args:
        outputs: the model's outputs, with `logits` (B, C).
        labels: (B,) integers, −100 where there is none; or (B, C) probabilities: votes, a teacher's softmax.
        num_items_in_batch: what the Trainer counted: labels, or the entries of the probabilities, C for each example.
        smoothing: of labels, the share that is spread over all C classes.

    Returns: the mean over the examples of the whole batch.

    Raises: ValueError for probabilities that are none; the worst row is named.

    >>> import torch, types
    >>> outputs = types.SimpleNamespace(logits=torch.zeros(1, 2))
    >>> round(float(classification_loss(outputs, torch.tensor([[0.7, 0.3]]))), 4)                # log 2
    0.6931

    Source: `transformers.Trainer(compute_loss_func=)`.
    """
    head = Logits(logits_of(outputs))
    require(labels is not None, "labels: are missing; the batch needs a column `labels`")
    total = num_items_in_batch
    if total is not None and labels.dim() == 2:
        total = total / labels.shape[1]
    return objective(head, labels_or_probabilities(labels, head.classes, smoothing), total=total)[0]


def logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits


def labels_or_probabilities(labels: Tensor, classes: int, smoothing: float) -> Target:
    if labels.dim() == 2:
        require(not smoothing, "smoothing: is for labels; probabilities say themselves how sure they are")
        return probabilities(labels)
    return labels_target(labels, classes, smoothing=smoothing)
