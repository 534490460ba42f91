"""ONNX models as teachers, run by onnxruntime.

Legend: B examples, N rows, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely._checks import require
from likely.data.examples import Batch, Examples
from likely.heads import Logits
from likely.networks import Identity, file_hash

OUTPUTS = ("logits", "probabilities")
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(string)": np.object_,
}


class OnnxNetwork:
    """A classifier in an ONNX file.

    Its inputs are those of a batch of the same names; a model of one input takes the only one that a batch has.  Its
    output is the first of floating point with a row for each example.  Whether that is logits or probabilities is seen
    in the first batch, unless it is said: rows of numbers from 0 to 1 that sum to one are probabilities, whose
    logarithm the head then holds, −∞ where they are 0.

    Args:
        path: the file.
        classes: the names of the classes; by default the model's own metadata `classes` (a JSON list), else they
            are only numbered: whether the examples' stand in the same order cannot be known.
        examples: what it is to read.
        output: "logits" or "probabilities".
        prepare: from the inputs of a batch to those of the model, where the two are not the same.

    Raises:
        ImportError: without onnxruntime.
        ValueError: a file that is no model; outputs of another kind; classes that are not as many as its outputs.
    """

    max_length: int | None = None
    module: torch.nn.Module | None = None

    def __init__(
        self,
        path: Path,
        *,
        classes: tuple[str, ...] | None = None,
        examples: Examples | None = None,
        output: str | None = None,
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        require(output in (None, *OUTPUTS), f"output: is {output!r}; it is one of {', '.join(OUTPUTS)}")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{path}: is read with onnxruntime: pip install 'likely[onnx]' ({error})") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        path = Path(path)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common type of their own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: is no ONNX model that can be run ({reason})") from None
        self.path, self.output, self.prepare = path, output, prepare
        found = [one.name for one in self.session.get_outputs() if one.type in list(_DTYPES)[:3]]
        kinds = ", ".join(one.type for one in self.session.get_outputs())
        require(bool(found), f"{path}: its outputs are {kinds}; one is to be a tensor of numbers")
        self._outputs = found
        number = None
        if examples is not None:
            number = self._run(examples.batch([0])).shape[1]
        number = number or self._declared()
        own = self.session.get_modelmeta().custom_metadata_map.get("classes")
        if classes is None and own is not None:
            classes = tuple(str(name) for name in json.loads(own))
        require(number is not None or classes is not None, f"{path}: does not say how many classes it has; name them")
        if classes is not None and number is not None:
            require(len(classes) == number, f"classes: are {len(classes)} where {path} gives {number} numbers a row")
        self.classes: tuple[str, ...] | int = classes if classes is not None else int(number or 0)
        self._identity = Identity("onnx", path.name, file_hash(path, *sorted(path.parent.glob(f"{path.name}[._]data"))))

    def _declared(self) -> int | None:
        for one in self.session.get_outputs():
            if one.name in self._outputs and len(one.shape) == 2 and isinstance(one.shape[1], int):
                return one.shape[1]
        return None

    @property
    def identity(self) -> Identity:
        return self._identity

    def head(self, batch: Batch) -> Logits:
        """The rows of a batch.

        Raises: ValueError for inputs that the model does not take; NaN; probabilities that are none.
        """
        out_NC = self._run(batch)
        if self.output is None:
            self.output = "probabilities" if _are_probabilities(out_NC) else "logits"
        if self.output == "probabilities":
            require(
                _are_probabilities(out_NC),
                f"{self.path}: its first batch was of probabilities, and a row of this one is none; say what it gives "
                "(output=)",
            )
            out_NC = np.log(out_NC, where=out_NC > 0, out=np.full_like(out_NC, -np.inf))
        return Logits(torch.from_numpy(out_NC).to(batch.labels.device))

    def _run(self, batch: Batch) -> np.ndarray:
        given = dict(batch.inputs if self.prepare is None else self.prepare(batch.inputs))
        wanted = self.session.get_inputs()
        if len(wanted) == 1 and wanted[0].name not in given and len(given) == 1:
            given = {wanted[0].name: next(iter(given.values()))}
        absent = [one.name for one in wanted if one.name not in given]
        require(
            not absent,
            f"{self.path}: takes {', '.join(one.name for one in wanted)}, and the examples hold {', '.join(given)}",
        )
        feed = {one.name: _array(given[one.name], one.type) for one in wanted}
        try:
            outputs = self.session.run(self._outputs, feed)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.path}: cannot run on the examples ({reason})") from None
        N = len(batch.labels)
        for out in outputs:
            if out.ndim == 2 and len(out) == N:
                return np.ascontiguousarray(out, dtype=np.float64 if out.dtype == np.float64 else np.float32)
        shapes = ", ".join(str(out.shape) for out in outputs)
        raise ValueError(f"{self.path}: gives {shapes} of {N} examples; one output is to be (examples, classes)")

    def save(self, folder: Path) -> None:
        raise NotImplementedError(f"{self.path}: is a file already, and is not trained")


def _array(value: Any, kind: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=object)
    return array.astype(_DTYPES.get(kind, array.dtype))


def _are_probabilities(out_NC: np.ndarray) -> bool:
    """Whether each row is a distribution, as 32-bit numbers have it.

    >>> _are_probabilities(np.array([[0.5, 0.5], [1, 0]])), _are_probabilities(np.array([[0.5, 0.6]]))
    (True, False)
    """
    return bool((out_NC >= 0).all() and (np.abs(out_NC.sum(axis=1, dtype=np.float64) - 1) < 1e-3).all())
