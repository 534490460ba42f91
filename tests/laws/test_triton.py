"""The Triton row pass: its laws under the interpreter, in a process of its own, and its compilation without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import likely
from likely.kernels import triton, triton_rows

ROOT = Path(__file__).parents[2]


def test_the_laws_hold_under_the_interpreter() -> None:
    """Triton learns of the interpreter when it is imported, so the laws have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/laws/triton_laws.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout


def test_without_a_cuda_device_the_pass_says_so() -> None:
    pytest.importorskip("triton")
    terms = [(likely.labels([0], 3), 1.0)]
    assert triton.refuses(likely.Logits(torch.zeros(1, 3)), terms) == "the tensors are on cpu, not on a CUDA device"


def test_without_triton_the_pass_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    terms = [(likely.labels([0], 3), 1.0)]
    assert triton.refuses(likely.Logits(torch.zeros(1, 3)), terms) == "the package triton is not installed"


TILES = [(90, "*fp32", "*bf16"), (90, "*bf16", "*bf16"), (80, "*fp16", "*fp32")]
POINTERS = {"index_ptr": "*i64", "t_ptr": "*bf16"}


def compile_for(capability: int, kernel: Any, flags: dict[str, Any], z: str, g: str, stored: int | None) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature, constants = {}, {}
    known = {**flags, **({} if stored is None else {"K": stored})}
    for parameter in kernel.params:
        name = parameter.name
        if name in known:
            signature[name], constants[(parameter.num,)] = "constexpr", known[name]
        elif name.endswith("_ptr"):
            signature[name] = {"z_ptr": z, "g_ptr": g, **POINTERS}.get(name, "*fp32")
        else:
            signature[name] = "fp32" if name == "temperature" else "i32"
    made = ASTSource(kernel, signature, constants)
    return compile(made, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "z", "g"), TILES)
def test_compiles_for_gpus(capability: int, z: str, g: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to machine code, by Triton's own assembler; nothing is run."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = triton_rows.compiled()
    for on in (False, True):
        shared = {"GRADIENT": True, "ADD": on, "Z_LOSS": on, "BLOCK": 1024}
        sparse = {**shared, "FLOOR": on, "BASE": on, "STORE": 16}
        assert compile_for(capability, kernels.sparse, sparse, z, g, None if on else 1).asm["cubin"]
        dense = {**shared, "TEACHER": on, "CLASS_WEIGHT": not on, "KNOWN": True}
        assert compile_for(capability, kernels.dense, dense, z, g, None).asm["cubin"]
