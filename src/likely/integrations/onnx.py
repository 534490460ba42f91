"""Fitted estimators as ONNX graphs, which run without Python.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from likely._checks import require
from likely._files import new_file

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier

OPSET, IR_VERSION = 17, 8


def to_onnx(
    model: LinearClassifier,
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: Any = np.float32,
    overwrite: bool = False,
) -> Any:
    """A fitted estimator as an ONNX model: input `X` (n, D), outputs `label` (n,) and `probabilities` (n, K).

    `probabilities = softmax(X · coefᵀ + intercept)`; labels are text, 64-bit integers or booleans. Only
    operators of the standard set are used.

    Args:
        path: where to write the model, too; the file appears whole or not at all.
        dtype: float32, or float64 for the same digits as `predict_proba`.

    Returns: an `onnx.ModelProto`.

    Raises: ImportError where onnx is not installed. ValueError for classes of another kind.
        FileExistsError where `path` exists and `overwrite` was not asked for.

    Source: https://onnx.ai/onnx/operators/
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ImportError(f"an export needs onnx: pip install 'likely[onnx]' ({error})") from None
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model)
    kind = np.dtype(dtype)
    require(kind in (np.float32, np.float64), f"dtype: is {kind}; it is float32 or float64")
    coef, intercept = model.coef_, model.intercept_
    if len(coef) == 1:  # the second class's log odds beside a zero: a softmax of two
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.r_[0.0, intercept]
    classes = model.classes_.tolist()
    if all(isinstance(one, str) for one in classes):
        kind_of_label, labels = TensorProto.STRING, np.array(classes, dtype=object)
    elif all(isinstance(one, bool) for one in classes):
        kind_of_label, labels = TensorProto.BOOL, np.array(classes)
    else:
        whole = all(isinstance(one, int) or (isinstance(one, float) and one.is_integer()) for one in classes)
        require(whole, "classes_: are neither text nor whole numbers nor booleans, which ONNX has for labels")
        kind_of_label, labels = TensorProto.INT64, np.array([int(one) for one in classes], dtype=np.int64)
    element = TensorProto.FLOAT if kind == np.float32 else TensorProto.DOUBLE
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["classes", "index"], ["label"], axis=0),
        ],
        type(model).__name__,
        [helper.make_tensor_value_info("X", element, ["n", coef.shape[1]])],
        [
            helper.make_tensor_value_info("label", kind_of_label, ["n"]),
            helper.make_tensor_value_info("probabilities", element, ["n", len(classes)]),
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(coef.T, dtype=kind), "weight"),
            numpy_helper.from_array(np.ascontiguousarray(intercept, dtype=kind), "bias"),
            numpy_helper.from_array(labels, "classes"),
        ],
    )
    made = helper.make_model(
        graph, producer_name="likely", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(made)
    if path is not None:
        with new_file(path, overwrite) as temporary:
            temporary.write_bytes(made.SerializeToString())
    return made
