"""Estimators in folders: JSON and plain tensors, which `likely.load` reads as a model too.

The folder holds what `likely.networks.model` writes, `model.json` and `model.safetensors`, with an encoder that takes
the columns as they are, and beside them `estimator.json` and `estimator.safetensors`: parameters, what the fit found,
and what the standard errors are made of. Nothing in it is ever executed.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from likely._checks import require
from likely._files import new_folder
from likely.data import Encoder, NumericColumn

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier

FORMAT = 1
KINDS = ("LogisticRegression", "SoftmaxRegression")


def save(model: LinearClassifier, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a fitted estimator to a new folder, which appears whole or not at all.

    Raises: FileExistsError where the folder exists and `overwrite` was not asked for. ValueError for classes that JSON
        cannot hold: they are text, numbers or booleans.
    """
    names = model._feature_names()
    require(len(set(names)) == len(names), "feature_names_in_: two features have one name, so no table can hold them")
    parameters = {name: _plain(value, name) for name, value in model.get_params(deep=False).items()}
    fitted = {n: _plain(v, n) for n, v in vars(model).items() if n.endswith("_") and not isinstance(v, np.ndarray)}
    inference = {n: _plain(v, n) for n, v in model._inference.items() if not isinstance(v, np.ndarray)}
    description = {
        "format": FORMAT,
        "likely": importlib.metadata.version("likely"),
        "estimator": type(model).__name__,
        "parameters": parameters,
        "classes": _plain(model.classes_, "classes_"),
        "class_dtype": model.classes_.dtype.str,
        "named": hasattr(model, "feature_names_in_"),
        "features": names,
        "fitted": fitted,
        "inference": inference,
    }
    network = "binary" if model._binary else "linear"
    as_model = {
        "format": 1,
        "likely": description["likely"],
        "network": network,
        "dtype": "float64",
        "classes": description["classes"],
        "encoder": Encoder(tuple(NumericColumn(name) for name in names)).to_dict(),
        "metadata": {"trained_by": "penalised maximum likelihood" if model.penalty_ else "maximum likelihood"},
    }
    tensors = {f"fit.{n}": v for n, v in vars(model).items() if isinstance(v, np.ndarray) and v.dtype == np.float64}
    tensors |= {f"inference.{n}": v for n, v in model._inference.items() if isinstance(v, np.ndarray)}
    with new_folder(path, overwrite) as folder:
        _write(folder / "model.json", as_model)
        _write(folder / "estimator.json", description)
        (folder / "model.safetensors").write_bytes(
            to_bytes({"weight": np.ascontiguousarray(model.coef_), "bias": np.ascontiguousarray(model.intercept_)})
        )
        (folder / "estimator.safetensors").write_bytes(
            to_bytes({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        )


def load(path: str | os.PathLike[str]) -> Any:
    """The estimator that `save` wrote to a folder, with everything that `predict` and `summary` need.

    Raises: FileNotFoundError where there is no such folder; ValueError where it holds no estimator, or a damaged one.

    >>> import tempfile
    >>> from likely.estimators import LogisticRegression
    >>> model = LogisticRegression().fit([[0.0], [0.0], [1.0], [1.0]] * 2, [0, 1, 0, 1, 0, 0, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(folder)
    ...     bool((load(folder).coef_ == model.coef_).all())
    True
    """
    from likely import estimators

    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder that an estimator was saved to")
    for name in ("estimator.json", "estimator.safetensors"):
        require((folder / name).is_file(), f"{folder}: holds no {name}; give a folder that an estimator was saved to")
    try:
        saved = json.loads((folder / "estimator.json").read_text(encoding="utf-8"))
        require(saved["format"] == FORMAT, f"its format is {saved['format']}; this version of likely reads {FORMAT}")
        require(saved["estimator"] in KINDS, f"it is a {saved['estimator']}, which is no estimator")
        model = getattr(estimators, saved["estimator"])(**_read_parameters(saved["parameters"]))
        tensors = load_file(folder / "estimator.safetensors")
        for name, value in saved["fitted"].items():
            setattr(model, name, _back(value))
        model._inference = {name: _back(value) for name, value in saved["inference"].items()}
        for name, value in tensors.items():
            place, _, key = name.partition(".")
            if place == "fit":
                setattr(model, key, value)
            else:
                model._inference[key] = value
        model.classes_ = np.asarray(saved["classes"], dtype=np.dtype(saved["class_dtype"]))
        if saved["named"]:
            model.feature_names_in_ = np.asarray(saved["features"], dtype=object)
        require(model.coef_.shape[1] == len(saved["features"]), "its coefficients are not those of its features")
        return model
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: is no estimator that can be read ({type(error).__name__}: {reason})") from None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any, name: str) -> Any:
    """A value as JSON has it; arrays inside, numbers that are not finite and dicts are marked."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fi" and name.endswith("_") and name != "classes_":
        return {"array": [_plain(one, "") for one in value.ravel().tolist()], "shape": value.shape}
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {"pairs": [[_plain(k, name), _plain(v, name)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if name == "device":
        return str(value)
    if name == "random_state":
        return None
    raise ValueError(f"{name}: a {type(value).__name__} cannot be saved; it is text, a number or a boolean")


def _back(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.array([_back(one) for one in value["array"]]).reshape(value["shape"])
    if isinstance(value, dict):
        return float(value["float"]) if "float" in value else {_back(k): _back(v) for k, v in value["pairs"]}
    return [_back(one) for one in value] if isinstance(value, list) else value


def _read_parameters(saved: dict[str, Any]) -> dict[str, Any]:
    return {name: _back(value) for name, value in saved.items()}
