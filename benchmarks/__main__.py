"""`python -m benchmarks NAME [options]`.

A benchmark is a module of this package with `main(arguments)` and a line in `BENCHMARKS`.
"""

from __future__ import annotations

import importlib
import signal
import sys

BENCHMARKS = {
    "head": "a linear layer and its loss: time, memory and error against torch, torch.compile, Liger and optax",
    "losses": "losses on given logits: cross-entropy, probabilities, teacher logits, binary",
    "estimators": "logistic and softmax regression: time to a suboptimality, and memory, against scikit-learn",
    "distill": "language models: the cost of a teacher's record, and of a step from a record or a live teacher",
}


def main(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in BENCHMARKS:
        return importlib.import_module(f"benchmarks.{name}").main(rest)
    print("usage: python -m benchmarks NAME [options]\n")
    for known, what in BENCHMARKS.items():
        print(f"  {known:12}{what}")
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers end and temporary files go
    sys.exit(main(sys.argv[1:]))
