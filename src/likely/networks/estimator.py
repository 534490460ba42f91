"""Saved estimators as teachers: those of `likely`, what `likely fit` writes, and scikit-learn's in skops files.

Legend: N rows, C classes, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely._checks import require
from likely.data.examples import Batch, Examples
from likely.data.targets import key_of
from likely.heads import Logits
from likely.networks import Identity, file_hash
from likely.networks.model import Model, load


class EstimatorNetwork:
    """A fitted classifier, known by its probabilities: of features (N, D), or of texts where the examples are texts.

    A skops file is read only if all of its types are such as skops trusts by itself: nothing of it is run.

    Args:
        path: the folder of a `likely` estimator or of `likely fit`, or a .skops file.
        examples: what it is to read; the names of their features are to be those that it was fitted on, in order.

    Raises:
        ImportError: without skops.
        ValueError: a file that cannot be read or holds types that are not trusted; no classifier; other features.
    """

    max_length: int | None = None
    module: torch.nn.Module | None = None

    def __init__(self, path: Path, *, examples: Examples | None = None) -> None:
        self.path = Path(path)
        self.model: Model | None = None
        if (self.path / "model.json").is_file() and not (self.path / "estimator.json").is_file():
            self.estimator: Any = load(self.path)
            self.model = self.estimator
            self._identity = Identity(
                "estimator",
                self.path.name,
                file_hash(*(self.path / f"model.{kind}" for kind in ("json", "safetensors"))),
            )
        elif self.path.is_dir():
            from likely.estimators.storage import load as load_estimator

            self.estimator = load_estimator(self.path)
            self._identity = Identity(
                "estimator",
                self.path.name,
                file_hash(*(self.path / name for name in ("estimator.json", "estimator.safetensors"))),
            )
        else:
            self.estimator = _from_skops(self.path)
            self._identity = Identity("estimator", self.path.name, file_hash(self.path))
        theirs = getattr(examples, "features", None)
        if self.model is not None:
            self.classes: tuple[str, ...] | int = tuple(self.model.keys)
            own: Any = self.model.encoder.names
        else:
            fits = hasattr(self.estimator, "predict_proba") and hasattr(self.estimator, "classes_")
            kind = type(self.estimator).__name__
            require(fits, f"{self.path}: holds a {kind}, which gives no probabilities of classes")
            self.classes = tuple(key_of(one) for one in self.estimator.classes_.tolist())
            own = getattr(self.estimator, "feature_names_in_", None)
        if own is not None and theirs is not None and list(own) != list(theirs):
            at = next(
                (at for at, (one, other) in enumerate(zip(own, theirs)) if one != other), min(len(own), len(theirs))
            )
            shown = [repr(names[at]) if at < len(names) else "none" for names in (list(own), list(theirs))]
            raise ValueError(f"{self.path}: its feature {at} is {shown[0]}, and that of the examples {shown[1]}")

    @property
    def identity(self) -> Identity:
        return self._identity

    def head(self, batch: Batch) -> Logits:
        """The rows of a batch: logarithms of the estimator's probabilities, −∞ where they are 0."""
        if "features" in batch.inputs:
            given: Any = batch.inputs["features"].detach().cpu().double().numpy()
            names = getattr(self.estimator, "feature_names_in_", None)
            if self.model is not None:
                given = dict(zip(self.model.encoder.names, given.T))
            elif names is not None and self.path.suffix == ".skops":
                given = _named(given, names)
        else:
            held = ", ".join(batch.inputs)
            require("text" in batch.inputs, f"{self.path}: reads features or texts, and the examples hold {held}")
            given = batch.inputs["text"]
        p_NC = np.asarray(self.estimator.predict_proba(given), dtype=np.float64)
        log_NC = np.log(p_NC, where=p_NC > 0, out=np.full_like(p_NC, -np.inf))
        return Logits(torch.from_numpy(np.where(np.isnan(p_NC), np.nan, log_NC)).to(batch.labels.device))

    def save(self, folder: Path) -> None:
        raise NotImplementedError(f"{self.path}: is saved already, and is not trained")


def _named(x_ND: np.ndarray, names: Any) -> Any:
    """What scikit-learn takes without a warning where it was fitted on a table."""
    try:
        import pandas as pd
    except ImportError:
        return x_ND
    return pd.DataFrame(x_ND, columns=names)


def _from_skops(path: Path) -> Any:
    try:
        from skops import io
    except ImportError as error:
        raise ImportError(f"{path}: is read with skops: pip install 'likely[skops]' ({error})") from None
    try:
        unknown = io.get_untrusted_types(file=path)
        require(not unknown, f"holds {', '.join(unknown[:4])}, which skops does not trust")
        return io.load(path, trusted=[])
    except Exception as error:  # a damaged file raises whatever zipfile, json or skops raise
        raise ValueError(f"{path}: cannot be read as skops ({' '.join(str(error).split())[:300]})") from None
