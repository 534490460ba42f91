"""A character model that ships inside a package, rebuilt in torch from its weights; and a student for it.

`textgenrnn` 2.0.0 (MIT) reads the 40 characters before a place, with an embedding and two LSTM layers, takes an average
of what they give over the 40 places, weighted by attention, and predicts one of 465 classes.  Its weights are in an
HDF5 file in the layout of cuDNN's LSTM: each gate's matrix lies there as torch wants it, cut from a wider array, and
there are two biases, which are added.

Shapes: N rows, T = 40 places of a window, E = 100 numbers of an embedding, H = 128 of a layer, D = E + 2 H.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.fetch import fetch
from likely import Linear
from likely.data.examples import Batch
from likely.data.texts import Document, Tokens
from likely.networks import Identity

WINDOW = 40
BLOCK = 256  # windows at a time, whose states fit the cache
PADDING = 0  # the class before a text begins
START = "<s>"  # and the one that begins and ends it


class Windows(nn.Module):
    """The network's body: from windows of characters to what its output layer reads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 100)
        self.layers = nn.ModuleList([nn.LSTM(100, 128, batch_first=True), nn.LSTM(128, 128, batch_first=True)])
        self.attention = nn.Linear(356, 1, bias=False)
        self.output = nn.Linear(356, classes)

    def forward(self, window_NT: Tensor) -> Tensor:
        """(N, D) from (N, T) characters."""
        parts = [self.embedding(window_NT)]
        for layer in self.layers:
            parts.append(layer(parts[-1])[0])
        x_NTD = torch.cat(parts, dim=-1)
        share_NT1 = self.attention(x_NTD).softmax(dim=1)
        return (share_NT1 * x_NTD).sum(dim=1)


def rebuilt(file: Path) -> Windows:
    """The network with the weights of an HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"the character model's weights are read with h5py: pip install h5py ({error})") from None
    with h5py.File(file, "r") as weights:

        def read(layer: str, name: str) -> Tensor:
            return torch.from_numpy(np.asarray(weights[f"{layer}/{layer}/{name}:0"], dtype=np.float32))

        embedding = read("embedding", "embeddings")
        net = Windows(len(embedding))
        state = {
            "embedding.weight": embedding,
            "attention.weight": read("attention", "attention_W").T,
            "output.weight": read("output", "kernel").T,
            "output.bias": read("output", "bias"),
        }
        for i, layer in enumerate(("rnn_1", "rnn_2")):
            # cuDNN's two biases are those of the input and of the recurrence.
            bias_ih, bias_hh = read(layer, "bias").chunk(2)
            state |= {
                f"layers.{i}.weight_ih_l0": gates(read(layer, "kernel")),
                f"layers.{i}.weight_hh_l0": gates(read(layer, "recurrent_kernel")),
                f"layers.{i}.bias_ih_l0": bias_ih,
                f"layers.{i}.bias_hh_l0": bias_hh,
            }
    net.load_state_dict({name: value.contiguous() for name, value in state.items()})
    return net.eval().requires_grad_(False)


def gates(kernel_X4H: Tensor) -> Tensor:
    """(4 H, X) as torch has it, from the array (X, 4 H) whose four parts hold the gates' (H, X) in memory."""
    width = kernel_X4H.shape[1] // 4
    return torch.cat([gate_XH.reshape(width, -1) for gate_XH in kernel_X4H.split(width, dim=1)])


def package() -> Path:
    return fetch("textgenrnn") / "textgenrnn-2.0.0" / "textgenrnn"


def vocabulary() -> dict[str, int]:
    """Characters and their classes, 1 … 464; 0 is padding."""
    return dict(json.loads((package() / "textgenrnn_vocab.json").read_text(encoding="utf-8")))


class Characters:
    """The teacher: its head for each place of a text is a linear layer on what it made of the 40 characters before."""

    max_length: int | None = None
    module: nn.Module | None = None

    def __init__(self, net: Windows, name: str = "textgenrnn") -> None:
        self.net = net
        self.classes: tuple[str, ...] | int = net.output.out_features
        digest = hashlib.sha256()
        for key, value in sorted(net.state_dict().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        self.identity = Identity("entry", name, digest.hexdigest())

    @torch.no_grad()
    def head(self, batch: Batch) -> Linear:
        ids_BL = batch.inputs["input_ids"]
        padded = nn.functional.pad(ids_BL, (WINDOW - 1, 0), value=PADDING)
        window_NT = padded.unfold(1, WINDOW, 1).reshape(-1, WINDOW)
        if batch.rows is not None:
            window_NT = window_NT[batch.rows]
        hidden_ND = torch.cat([self.net(part_nT) for part_nT in window_NT.split(BLOCK)])
        return Linear(hidden_ND, self.net.output.weight, self.net.output.bias)

    def save(self, folder: Path) -> None:
        raise NotImplementedError("the character model is fetched, not saved")


def teacher(examples: Any = None) -> Characters:
    """The Python entry `examples.character_model:teacher`."""
    return Characters(rebuilt(package() / "textgenrnn_weights.hdf5"))


class Student(nn.Module):
    """A student that sees eight characters: from (B, L) of them to (B, L, C) logits, each of those up to its place."""

    def __init__(self, classes: int, width: int = 24, hidden: int = 96, sees: int = 8) -> None:
        super().__init__()
        self.sees = sees
        self.embedding = nn.Embedding(classes, width)
        self.layer = nn.Conv1d(width, hidden, sees)
        self.output = nn.Linear(hidden, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        padded = nn.functional.pad(input_ids, (self.sees - 1, 0), value=PADDING)
        return self.output(self.layer(self.embedding(padded).mT).relu().mT)


def student(examples: Any = None) -> Student:
    """The Python entry `examples.character_model:student`."""
    return Student(len(vocabulary()) + 1)


def characters(texts: Iterable[tuple[str, str]], length: int = 128) -> Tokens:
    """Texts with their names as stretches of characters; each text begins with the class that stands before one.

    Characters that the model does not know are left out.
    """
    known = vocabulary()

    def document(name: str, text: str) -> Document:
        kept = [character for character in text if character in known]
        ids = np.array([known[START], *(known[character] for character in kept)])
        return Document(ids, ids, np.array([0, *(len(character.encode()) for character in kept)]), name)

    return Tokens.of((document(name, text) for name, text in texts), max_length=length)
