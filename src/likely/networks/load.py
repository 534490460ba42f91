"""A network by its name: what stands on a command line for a teacher or for a student."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likely._checks import require
from likely.data.examples import Examples
from likely.networks import Network, require_readable

PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".pt2", ".ckpt", ".bin")
"""Files that run code when they are read."""
ENTRY = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)(?:=(.+))?")
SMALL = re.compile(r"linear|mlp:\d+")


def load_network(
    name: str | os.PathLike[str],
    *,
    examples: Examples | None = None,
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    trainable: bool = False,
    seed: int = 0,
    dtype: Any = None,
    truncate: bool = False,
    output: str | None = None,
) -> Network:
    """The network of a name, in eval mode.

    ==========================  =======================================================================================
    name                        what it is
    ==========================  =======================================================================================
    a folder with config.json   a Hugging Face model from its safetensors; to be trained it may have none, or be the
                                config file alone, and starts from random weights of the seed
    a *.gguf file               a Hugging Face causal language model
    a *.onnx file               a model for onnxruntime
    a folder, a *.skops file    an estimator saved by `likely`, what `likely fit` wrote, or one of scikit-learn's
    `linear`, `mlp:H`           a small network on what the examples hold (`likely.networks.small`)
    a folder with network.json  such a one, saved
    `package.module:function`   what that function makes of the examples: a Network, or a torch module that maps the
                                inputs to logits. Its module is imported, and only when it is named so
    `package….:function=FOLDER` the same, with the weights that such a network was saved with in the folder
    ==========================  =======================================================================================

    Nothing is fetched, and no code is run that a file holds: pickles are refused.

    Args:
        name: one of those above.
        examples: what it is to read. A small network needs them; of any other it is checked that it can read them.
        classes: the names of the classes, or a file of them (a JSON list, or one a line); by default the network's own,
            else those of the examples.
        trainable: whether its parameters ask for gradients; a model of a folder is then in float32.
        seed: of random weights.
        dtype: of a Hugging Face model, by default that of its file (float32 to be trained).
        truncate: let a text classifier cut texts that are longer than it reads.
        output: "logits" or "probabilities", what an ONNX model gives; by default it is seen in the first batch.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: what cannot be read or does not fit the examples, naming the difference.
        ImportError: the extra that it takes is not installed, or an entry's module is not there.

    Example:
        >>> from likely.data.examples import Labelled
        >>> texts = Labelled.of(["fine"], lambda items: {"text": items}, [b"fine"], classes=("bad", "good"))
        >>> load_network("linear", examples=texts).head(texts.batch([0])).logits()
        tensor([[0., 0.]])
    """
    named = read_classes(classes)
    text = os.fspath(name)
    path = Path(text)
    if SMALL.fullmatch(text):
        from likely.networks.small import small_network

        return small_network(text, examples, named, seed=seed, trainable=trainable)
    entry = None if path.exists() else ENTRY.fullmatch(text)
    if entry is not None:
        from likely.networks.entry import entry_network

        weights = None if entry[2] is None else Path(entry[2])
        return entry_network(entry[1], examples, named, weights=weights, trainable=trainable, seed=seed)
    require(
        path.exists(),
        f"{text}: is no file or folder here, and nothing is fetched; a network is a folder, a file, linear, mlp:H, or "
        "package.module:function",
        FileNotFoundError,
    )
    suffix = path.suffix.lower()
    require(
        suffix not in PICKLES,
        f"{text}: is a pickle, which runs code when read; save it as safetensors, ONNX or skops, or name an entry",
    )
    network = _from_path(path, examples, named, trainable, seed, dtype, truncate, output)
    require_readable(network, examples, text)
    return network


def _from_path(
    path: Path,
    examples: Examples | None,
    classes: tuple[str, ...] | None,
    trainable: bool,
    seed: int,
    dtype: Any,
    truncate: bool,
    output: str | None,
) -> Network:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from likely.networks.onnx import OnnxNetwork

        require(not trainable, _FIXED.format(path))
        return OnnxNetwork(path, classes=classes, examples=examples, output=output)
    if suffix == ".skops" or any((path / name).is_file() for name in ("estimator.json", "model.json")):
        from likely.networks.estimator import EstimatorNetwork

        require(not trainable, _FIXED.format(path))
        return EstimatorNetwork(path, examples=examples)
    if (path / "network.json").is_file():
        from likely.networks.small import saved_network

        return saved_network(path, trainable=trainable)
    if suffix in (".gguf", ".json") or (path / "config.json").is_file():
        from likely.networks.pretrained import hugging_face

        return hugging_face(path, examples, classes, trainable=trainable, seed=seed, dtype=dtype, truncate=truncate)
    raise ValueError(
        f"{path}: holds no network that is known here: config.json of a Hugging Face model, network.json, "
        "estimator.json or model.json; or give a file .onnx, .skops or .gguf"
    )


_FIXED = "{}: can be a teacher, and cannot be trained"


def path_of(name: str) -> Path | None:
    """The file or folder that a network of this name is read from, None where there is none.

    >>> path_of("linear"), str(path_of("my.models:student=."))
    (None, '.')
    """
    entry = None if Path(name).exists() else ENTRY.fullmatch(name)
    path = Path(name if entry is None or entry[2] is None else entry[2])
    return path if path.exists() else None


def read_classes(given: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """The names of classes: as given, or from a file, which is a JSON list, an object of numbers, or a name a line.

    Raises: FileNotFoundError; ValueError for a file of something else, or a name that stands twice.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        require(path.is_file(), f"classes: {path} is no file", FileNotFoundError)
        text = path.read_text(encoding="utf-8")
        try:
            names: Any = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line]
        except ValueError as error:
            raise ValueError(f"classes: {path} is no JSON ({error})") from None
        if isinstance(names, dict):  # {"0": "cat", "1": "dog"}
            keys = [str(number) for number in range(len(names))]
            require(sorted(names) == sorted(keys), f"classes: {path} is an object, and not of the numbers of classes")
            names = [names[key] for key in keys]
        require(isinstance(names, list), f"classes: {path} holds no list of names")
        given = [str(one) for one in names]
    classes = tuple(given)
    twice = next((name for at, name in enumerate(classes) if name in classes[:at]), None)
    require(twice is None, f"classes: {twice!r} stands twice")
    return classes
