"""A linear head and its loss, forward and backward, against the peers, the limit of the matrix products and float64.

Every case, dtype and target takes hours.  `--cases`, `--dtypes`, `--targets`, `--contestants`, `--threads` and
`--settings` choose a part, `--quick` a small one, and `--curve` measures instead how the scratch memory grows with the
number of rows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from benchmarks import report, rounds
from benchmarks.comparison import Run
from benchmarks.peers import ALL
from benchmarks.problems import TARGETS, Case
from benchmarks.running import cases, parser, run, wide_console

SIZES = ("1024x256x32000", "2048x768x50257", "512x2048x128256", "8192x64x1000", "4096x16x4096")
CUDA_SIZES = ("8192x4096x128256",)
QUICK = ("64x16x1000",)
CURVE_ROWS = (1024, 4096, 16384, 65536)
CURVE_CONTESTANTS = ("likely", "likely minimal", "eager", "torch chunked", "torch chunked 256", "torch chunked 512")


def curve(options: argparse.Namespace) -> int:
    """Scratch memory against the number of rows at D = 64 and C = 32,000; one contestant at a time, one call."""
    console = wide_console()
    features, classes = (8, 500) if options.quick else (64, 32_000)
    names = [name for name in options.contestants if name in CURVE_CONTESTANTS]
    runs: list[Run] = []
    for dtype in options.dtypes:
        for rows in [n // 64 for n in CURVE_ROWS] if options.quick else CURVE_ROWS:
            case = Case(rows, features, classes, dtype, "labels", options.device)
            with rounds.prepared(case, reference=False) as folder:
                for name in names:
                    needed = ALL[name].materialises * rows * classes * 4
                    if needed > 0.8 * rounds.available_memory():
                        reason = f"would hold about {needed / 2**30:.0f} GiB"
                        absent = Run(asdict(case), 1, "default", name, ALL[name].kind, not_run=reason)
                        runs.append(absent)
                        continue
                    runs += rounds.measure(case, folder, [name], threads=1, setting="default", rounds=0, accuracy=False)
    report.print_curve(runs, console)
    path = report.write(
        {"benchmark": "curve", "machine": report.machine(), "runs": [r.json() for r in runs]}, options.out, "curve"
    )
    picture = report.plot_curve(runs, options.out)
    console.print(f"written: {path}, {picture}", highlight=False, soft_wrap=True)
    return 0


def main(arguments: list[str]) -> int:
    options_of = parser("head", __doc__, TARGETS, quick="--quick" in arguments)
    options_of.add_argument("--curve", action="store_true", help="scratch memory for up to 65,536 rows")
    options = options_of.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        options_of.error(f"--device {options.device}: this machine has none that PyTorch knows")
    if options.curve:
        return curve(options)
    sizes = SIZES if options.device == "cpu" else CUDA_SIZES
    return run("head", options, cases(options, QUICK if options.quick else sizes))
