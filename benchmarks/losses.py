"""Losses on given logits, forward and backward: cross-entropy, probabilities, teacher logits, and binary.

The limit is one pass over the logits and the target that writes a gradient into memory that is there already.
"""

from __future__ import annotations

from benchmarks.running import cases, parser, run

SIZES = ("4096x32000", "10000000")
QUICK = ("64x1000", "10000")
TARGETS = ("labels", "smoothed", "probabilities", "teacher-logits")


def main(arguments: list[str]) -> int:
    options = parser("losses", __doc__, TARGETS, quick="--quick" in arguments).parse_args(arguments)
    return run("losses", options, cases(options, QUICK if options.quick else SIZES))
