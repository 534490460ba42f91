"""A trained classifier: what reads the columns, the network, the classes, and how it came about.

Shapes: N rows, C classes, D features.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from likely._checks import require
from likely._files import new_folder
from likely.data import Encoder, key_of
from likely.networks.layers import build

FORMAT = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(eq=False)
class Model:
    """A classifier on tables: `p(class | row) = softmax(network(encoder(row)))`.

    Args:
        encoder: from the columns of a table to the (N, D) matrix.
        network: "linear", "binary" or "mlp:H", as `likely.networks.layers.build` reads it.
        module: that network, in float32 or float64; it maps (N, D) to (N, C), or to (N, 1) where it is "binary".
        classes: C classes, text, numbers or booleans.
        metadata: how it was trained; whatever JSON can hold. `target` lists the columns that were the target, those of
            probabilities in the order of the classes.

    >>> from likely.networks.layers import build
    >>> encoder = Encoder.fit({"x": [0.0, 1.0]})
    >>> model = Model(encoder, "linear", build("linear", 1, 3), ("a", "b", "c"))
    >>> model.predict_proba({"x": [0.5]}).round(3)
    array([[0.333, 0.333, 0.333]])
    """

    encoder: Encoder
    network: str
    module: torch.nn.Module
    classes: Sequence[Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module.eval()
        self.classes = tuple(c.item() if isinstance(c, np.generic) else c for c in self.classes)
        require(self.dtype in DTYPES.values(), f"module: is {self.dtype}; a model is saved in float32 or float64")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's parameters."""
        return next(self.module.parameters()).dtype

    @property
    def keys(self) -> list[str]:
        """The classes as text: what follows `p_` in the name of a column of probabilities."""
        return [key_of(one) for one in self.classes]

    def logits(self, data: Any, unseen: str = "error") -> np.ndarray:
        """The (N, C) logits, in float64.

        Args:
            data: a path, a pyarrow table, a pandas or polars frame, a dict of columns, or an (N, columns) array of the
                raw features in the order of `encoder.names`.
            unseen: what becomes of a level that the model has never seen, "error" or "zero" (see `Encoder.transform`).

        Raises: ValueError naming the column and the row of what cannot be used.
        """
        x_ND = torch.from_numpy(self.encoder.transform(data, unseen)).to(self.dtype)
        with torch.no_grad():
            z_NC = self.module(x_ND).double()
        if self.network == "binary":
            z_NC = torch.cat([torch.zeros_like(z_NC), z_NC], dim=1)
        return z_NC.numpy()

    def predict_log_proba(self, data: Any, unseen: str = "error") -> np.ndarray:
        """The (N, C) log-probabilities in nats, `z − logsumexp(z)`; arguments and errors are those of `logits`."""
        return torch.log_softmax(torch.from_numpy(self.logits(data, unseen)), dim=1).numpy()

    def predict_proba(self, data: Any, unseen: str = "error") -> np.ndarray:
        """The (N, C) probabilities of the classes, in their order; arguments and errors are those of `logits`."""
        return torch.softmax(torch.from_numpy(self.logits(data, unseen)), dim=1).numpy()

    def predict(self, data: Any, unseen: str = "error") -> np.ndarray:
        """The most probable class of each row, in its own type; arguments and errors are those of `logits`."""
        return np.array(self.classes)[self.logits(data, unseen).argmax(axis=1)]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write `model.safetensors` and `model.json` to a new folder, which appears whole or not at all.

        Raises: FileExistsError where the folder exists and `overwrite` was not asked for.
        """
        with new_folder(path, overwrite) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the two files into a folder that somebody else is making, as `new_folder` does."""
        # A hand-made module may have tied or sliced weights; safetensors wants each of its own, in one piece.
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.module.state_dict().items()
        }
        (folder / "model.safetensors").write_bytes(save(tensors))
        description = {
            "format": FORMAT,
            "likely": importlib.metadata.version("likely"),
            "network": self.network,
            "dtype": str(self.dtype).removeprefix("torch."),
            "classes": list(self.classes),
            "encoder": self.encoder.to_dict(),
            "metadata": self.metadata,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def load(path: str | os.PathLike[str]) -> Model:
    """The model that `Model.save`, `likely fit` or `likely distill` wrote to a folder.

    Nothing is executed: the folder holds JSON and plain tensors.

    Raises: FileNotFoundError where there is no such folder; ValueError where it holds no model, or a damaged one.

    >>> import tempfile
    >>> encoder = Encoder.fit({"x": [0.0, 1.0]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Model(encoder, "linear", build("linear", 1, 2), (False, True)).save(folder)
    ...     load(folder).classes
    (False, True)
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder that a model was saved to")
    for name in ("model.json", "model.safetensors"):
        require((folder / name).is_file(), f"{folder}: holds no {name}; give the folder that a model was saved to")
    try:
        saved = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        require(saved["format"] == FORMAT, f"its format is {saved['format']}; this version of likely reads {FORMAT}")
        encoder = Encoder.from_dict(saved["encoder"])
        classes = tuple(saved["classes"])
        module = build(saved["network"], len(encoder.feature_names), len(classes), dtype=DTYPES[saved["dtype"]])
        module.load_state_dict(load_file(folder / "model.safetensors"))
        return Model(encoder, saved["network"], module, classes, saved["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: is no model that can be read ({type(error).__name__}: {reason})") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and other mappings, as JSON has them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"metadata: a {type(value).__name__} cannot be written as JSON")
