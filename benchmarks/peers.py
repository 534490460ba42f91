"""Peers that may not be installed: Liger-Kernel's chunked distillation in pure PyTorch, optax under `jax.jit`, and on
CUDA the fused losses on labels of Liger-Kernel and cut-cross-entropy.

They are imported by name at run time, so that the benchmark needs neither.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import (
    CONTESTANTS,
    Bind,
    Call,
    Contestant,
    NotRun,
    Outcome,
    differentiated,
    plain_labels_only,
)
from benchmarks.problems import SMOOTHING, TEMPERATURE, Case, Problem


def absent(*packages: str) -> str | None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(missing)} is not installed" if missing else None


def cuda_only(package: str) -> Callable[[Case], str | None]:
    def refuses(case: Case) -> str | None:
        if not case.on_cuda:
            return "runs on CUDA only"
        return absent(package) or plain_labels_only(case)

    return refuses


def no_liger(case: Case) -> str | None:
    if not case.has_teacher_head:
        return "its pure PyTorch losses are distillation from a teacher's head; the others need Triton"
    return absent("liger_kernel")


def no_optax(case: Case) -> str | None:
    return "is run on the CPU only" if case.on_cuda else absent("jax", "optax")


def liger(compiled: bool, rows: int = 1024) -> Callable[[Case], Bind]:
    """The generalised Jensen–Shannon divergence with `beta=0`, which is KL(teacher ‖ student); it applies no T²."""

    def build(case: Case) -> Bind:
        module = importlib.import_module("liger_kernel.chunked_loss")
        hard = 0.5 if case.target == "half-teacher" else 0.0
        loss = module.LigerFusedLinearJSDLoss(
            weight_hard_loss=hard,
            weight_soft_loss=(1 - hard) * TEMPERATURE**2,
            beta=0.0,
            temperature=TEMPERATURE,
            compiled=compiled,
            chunk_size=rows,
        )

        def run(problem: Problem) -> Tensor:
            y = problem["y"] if hard else problem["x"].new_zeros(case.rows, dtype=torch.int64)  # it wants labels anyway
            return loss(problem["x"], problem["weight"], problem["x_teacher"], problem["weight_teacher"], y)

        return differentiated(run)

    return build


def liger_labels(case: Case) -> Bind:
    module = importlib.import_module("liger_kernel.transformers")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return differentiated(lambda problem: loss(problem["weight"], problem["x"], problem["y"]))


def cut(case: Case) -> Bind:
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return differentiated(lambda problem: loss(problem["x"], problem["weight"], problem["y"]))


def optax(case: Case) -> Bind:
    """optax's losses on materialised logits under `jax.jit(jax.value_and_grad(...))`."""
    jax, ox = importlib.import_module("jax"), importlib.import_module("optax")
    jnp = jax.numpy

    def distillation(z: Any, teacher: Any) -> Any:
        log_q = jax.nn.log_softmax(z / TEMPERATURE)
        p = jax.nn.softmax(teacher / TEMPERATURE)
        return ox.kl_divergence(log_q, p).mean() * TEMPERATURE**2

    def loss(leaves: tuple[Any, ...], t: dict[str, Any]) -> Any:
        z = leaves[0] @ leaves[1].T if case.has_head else leaves[0]
        match case.target:
            case "labels":
                return ox.softmax_cross_entropy_with_integer_labels(z, t["y"]).mean()
            case "smoothed":
                one_hot = jax.nn.one_hot(t["y"], case.classes, dtype=z.dtype)
                return ox.softmax_cross_entropy(z, ox.smooth_labels(one_hot, SMOOTHING)).mean()
            case "probabilities":
                return ox.softmax_cross_entropy(z, t["p"]).mean()
            case "teacher-logits":
                return distillation(z, t["z_teacher"])
            case "teacher-head":
                return distillation(z, t["x_teacher"] @ t["weight_teacher"].T)
            case "top-32":
                tail = (1 - t["kept"].sum(-1, keepdims=True)) / max(1, case.classes - t["kept"].shape[-1])
                p = jnp.broadcast_to(tail, z.shape).astype(z.dtype)
                p = p.at[jnp.arange(len(p))[:, None], t["index"]].set(t["kept"].astype(z.dtype))
                return ox.softmax_cross_entropy(z, p).mean()
            case "half-teacher":
                hard = ox.softmax_cross_entropy_with_integer_labels(z, t["y"]).mean()
                return 0.5 * hard + 0.5 * distillation(z, t["x_teacher"] @ t["weight_teacher"].T)
            case "binary":
                return ox.sigmoid_binary_cross_entropy(z, t["y"]).mean()
        raise NotRun(f"does not solve {case.target}")

    step = jax.jit(jax.value_and_grad(loss))

    def bind(problem: Problem) -> Call:
        arrays = {
            name: jax.dlpack.from_dlpack((t.int() if t.dtype == torch.int64 else t).detach())
            for name, t in problem.tensors.items()
        }
        names = ("x", "weight") if case.has_head else ("z",)
        leaves = tuple(arrays.pop(name) for name in names)

        def call() -> Outcome:
            value, gradients = jax.block_until_ready(step(leaves, arrays))
            return float(value), list(gradients)

        return call

    return bind


def as_tensor(gradient: Any) -> Tensor:
    """A gradient of any contestant as a tensor."""
    return gradient if isinstance(gradient, Tensor) else torch.from_dlpack(gradient)


PEERS = [
    Contestant("Liger", "peer", liger(compiled=False), refuses=no_liger),
    Contestant("Liger compiled", "peer", liger(compiled=True), compiles=True, refuses=no_liger),
    Contestant("Liger compiled 256", "peer", liger(compiled=True, rows=256), compiles=True, refuses=no_liger),
    Contestant("Liger fused labels", "peer", liger_labels, compiles=True, refuses=cuda_only("liger_kernel")),
    Contestant("cut-cross-entropy", "peer", cut, compiles=True, refuses=cuda_only("cut_cross_entropy")),
    Contestant("optax jit", "peer", optax, compiles=True, materialises=2, refuses=no_optax),
]
ALL: dict[str, Contestant] = {one.name: one for one in [*CONTESTANTS, *PEERS]}
