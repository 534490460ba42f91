"""Small networks: a softmax, or one hidden layer, on n-grams of texts and of files, on pixels, on features.

Legend: B examples, N rows, C classes, D features, H hidden units, T characters or bytes of a batch, G n-grams of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from likely._checks import require
from likely.data.examples import Batch, Examples
from likely.data.files import PADDING
from likely.heads import Head, Linear, Logits
from likely.networks import Identity, weights_hash
from likely.networks.entry import save_module

BUCKETS = 2**16
LONGEST_GRAM = 3
KINDS = ("text", "bytes", "pixel_values", "features")
"""What a batch may hold for them to read."""
# Odd numbers without a pattern: the first digits of the golden ratio, and the multipliers of SplitMix64.
_PLACES = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)


def ngram_buckets(
    code_T: NDArray[np.uint32], lengths_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The buckets of the n-grams of 1 to 3 characters of each example, each bucket once, in their order.

    The hash is a function of the characters alone, equal on every machine: their codes times fixed odd numbers, summed
    with n, and mixed by SplitMix64's finaliser; its last 16 bits are the bucket.

    Args:
        code_T: (T,) the characters of all examples, one after another.
        lengths_B: (B,) how many each example has.

    Returns: the buckets, (G,) int64, and how many each example has, (B,) int64.

    >>> buckets_G, counts_B = ngram_buckets(np.array([97, 97, 98], np.uint32), np.array([2, 1]))
    >>> counts_B.tolist()                                           # a, aa; b
    [2, 1]

    Source: Weinberger et al., Feature hashing for large scale multitask learning (2009).
    """
    T = len(code_T)
    row_T = np.repeat(np.arange(len(lengths_B), dtype=np.int64), lengths_B)
    end_T = np.repeat(np.cumsum(lengths_B), lengths_B)
    code_T = code_T.astype(np.uint64)
    sum_T = np.zeros(T, dtype=np.uint64)
    found = []
    for n in range(1, LONGEST_GRAM + 1):
        sum_T[: T - n + 1] += (code_T[n - 1 :] + np.uint64(1)) * _PLACES[n - 1]
        there_T = np.arange(T) + n <= end_T
        found.append((row_T[there_T] << 16) | _mixed(sum_T[there_T] + np.uint64(n)))
    keys_G = np.unique(np.concatenate(found))
    return keys_G & (BUCKETS - 1), np.bincount(keys_G >> 16, minlength=len(lengths_B))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.int64]:
    x = (x ^ (x >> np.uint64(30))) * _PLACES[1]
    x = (x ^ (x >> np.uint64(27))) * _PLACES[2]
    return ((x ^ (x >> np.uint64(31))) & np.uint64(BUCKETS - 1)).astype(np.int64)


def _characters(texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The code points of texts in lower case, a space before and after each, and how many each has."""
    padded = [f" {text.lower()} " for text in texts]
    code_T = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    return code_T, np.array([len(text) for text in padded], dtype=np.int64)


class _Net(nn.Module):
    """The parameters, under names that a file keeps."""

    mean: Tensor
    scale: Tensor

    def __init__(self, reads: str, size: int, hidden: int | None, classes: int) -> None:
        super().__init__()
        width = classes if hidden is None else hidden
        self.grams = reads in ("text", "bytes")
        self.first: nn.EmbeddingBag | nn.Linear
        if self.grams:
            self.first = nn.EmbeddingBag(BUCKETS, width, mode="sum")
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.first = nn.Linear(size, width)
        if reads == "features":
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("scale", torch.ones(size))
        self.out = None if hidden is None else nn.Linear(hidden, classes)
        if hidden is None:  # a convex problem, which starts where every class is as probable
            for parameter in self.parameters():
                nn.init.zeros_(parameter)


class Small:
    """`linear`, `z = W x + b`, or `mlp:H`, `z = W₂ tanh(W₁ x + b₁) + b₂`, as a Network.

    Of texts and files, x has an entry `1/√G` for each of the G buckets, of 2¹⁶, that their n-grams fall into; of a text
    they are taken in lower case.  Pixels are `4 x − 2`.  Features are standardised by the examples it was made with.
    A linear network starts at zero, the other one at random.

    Args:
        kind: "linear" or "mlp:H".
        reads: "text", "bytes", "pixel_values" or "features".
        classes: the names of the classes.
        size: of a picture's pixels in all, or of the features; 0 for n-grams.
    """

    max_length: int | None = None

    def __init__(self, kind: str, reads: str, classes: tuple[str, ...] | int, size: int = 0) -> None:
        _, _, hidden = kind.partition(":")
        require(hidden == "" or int(hidden) > 0, f"{kind}: has no hidden unit; give one or more")
        self.kind, self.reads, self.size = kind, reads, size
        self.classes: tuple[str, ...] | int = classes
        number = classes if isinstance(classes, int) else len(classes)
        self.module: Any = _Net(reads, size, int(hidden) if hidden else None, number).eval()

    @property
    def identity(self) -> Identity:
        return Identity(self.kind.partition(":")[0], self.kind, weights_hash(self.module.state_dict()))

    def head(self, batch: Batch) -> Head:
        """The rows of a batch.

        Raises: ValueError for inputs of another kind or size.
        """
        held = ", ".join(batch.inputs)
        require(self.reads in batch.inputs, f"{self.kind}: reads {self.reads}, and the examples hold {held}")
        net, given = self.module, batch.inputs[self.reads]
        if net.grams:
            x = self._bags(given)
        else:
            x = self._dense(given)
            if net.out is None:
                return Linear(x, net.first.weight, net.first.bias)
            x = net.first(x)
        return Logits(x) if net.out is None else Linear(torch.tanh(x), net.out.weight, net.out.bias)

    def _bags(self, given: Any) -> Tensor:
        """`W₁ x + b₁` of n-grams."""
        if self.reads == "text":
            code_T, lengths_B = _characters(list(given))
        else:
            bytes_BL = given.cpu().numpy()
            there_BL = bytes_BL != PADDING
            code_T, lengths_B = bytes_BL[there_BL].astype(np.uint32), there_BL.sum(axis=1)
        buckets_G, counts_B = ngram_buckets(code_T, lengths_B)
        net = self.module
        weight_G = torch.from_numpy(np.repeat(1 / np.sqrt(np.maximum(counts_B, 1)), counts_B))
        index_G, starts_B = torch.from_numpy(buckets_G), torch.from_numpy(np.cumsum(counts_B) - counts_B)
        device = net.bias.device
        bags = net.first(index_G.to(device), starts_B.to(device), weight_G.to(net.bias))
        return bags + net.bias

    def _dense(self, given: Tensor) -> Tensor:
        net = self.module
        x_BD = given.flatten(1)
        require(x_BD.shape[1] == self.size, f"{self.kind}: reads {self.size} numbers, an example has {x_BD.shape[1]}")
        if self.reads == "pixel_values":
            return 4 * x_BD.to(net.first.weight) - 2
        return ((x_BD.to(net.mean.device) - net.mean) / net.scale).to(net.first.weight.dtype)

    def standardise(self, examples: Examples) -> None:
        """Take the features' means and standard deviations from these examples; a constant one is only centred."""
        parts = [range(at, min(at + 4096, len(examples))) for at in range(0, len(examples), 4096)]
        x_ED = torch.cat([examples.batch(part).inputs["features"].double() for part in parts])
        scale_D = x_ED.std(dim=0, correction=0)
        constant_D = (x_ED == x_ED[0]).all(dim=0) | (scale_D == 0)
        self.module.mean.copy_(x_ED.mean(dim=0))
        self.module.scale.copy_(torch.where(constant_D, 1.0, scale_D))

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `network.json`."""
        about = {"kind": self.kind, "reads": self.reads, "size": self.size, "classes": self.classes}
        save_module(self.module, folder, about)


def small_network(
    kind: str,
    examples: Examples | None,
    classes: tuple[str, ...] | None = None,
    *,
    seed: int = 0,
    trainable: bool = True,
) -> Small:
    """`linear` or `mlp:H` on what the examples hold.

    Raises: ValueError without examples, or where these hold nothing that it reads, or no names of classes.
    """
    require(examples is not None, f"{kind}: is made for the examples that it reads; give them")
    assert examples is not None
    first = examples.batch([0]).inputs
    reads = next((name for name in KINDS if name in first), None)
    require(reads is not None, f"{kind}: reads {', '.join(KINDS)}, and the examples hold {', '.join(first)}")
    assert reads is not None
    classes = classes or examples.classes
    require(classes is not None, f"{kind}: does not know its classes: the examples have no label; name them (classes)")
    assert classes is not None
    size = 0 if reads in ("text", "bytes") else first[reads][0].numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Small(kind, reads, classes, size)
    if reads == "features":
        network.standardise(examples)
    network.module.requires_grad_(trainable)
    return network


def saved_network(folder: Path, *, trainable: bool = False) -> Small:
    """The network that `Small.save` wrote.

    Raises: ValueError where the folder holds another one, or a damaged one.
    """
    unread = f"{folder}: holds no network that can be read"
    try:
        about: Mapping[str, Any] = dict(json.loads((folder / "network.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{unread} ({error})") from None
    entry = about.get("name") if about.get("kind") == "entry" else None
    require(
        entry is None,
        f"{folder}: was made by the entry {entry!r}, which is only run where it is named; if it is yours, give "
        f"package.module:function={folder}",
    )
    try:
        require(about["format"] == 1, f"its format is {about['format']}; this version of likely reads 1")
        require(re.fullmatch(r"linear|mlp:\d+", about["kind"]) is not None, f"its kind is {about['kind']!r}")
        classes = about["classes"] if isinstance(about["classes"], int) else tuple(about["classes"])
        network = Small(about["kind"], about["reads"], classes, about["size"])
        network.module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{unread} ({' '.join(str(error).split())[:300]})") from None
    network.module.requires_grad_(trainable)
    return network
