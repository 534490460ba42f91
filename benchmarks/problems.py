"""What is computed: a case (sizes, dtype, target) and a problem (its tensors).

Legend: N rows, C classes, D features.

The logits have unit variance.  Inputs are rounded to the case's dtype first, and the float64 reference is computed from
the rounded ones, so that an error is one of the computation and never of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SMOOTHING = 0.1
TEMPERATURE = 2.0
STORED = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TARGETS = ("labels", "smoothed", "probabilities", "teacher-logits", "teacher-head", "top-32", "half-teacher")
"""`half-teacher` is half labels and half a teacher's head; a teacher's head has twice the student's width."""


@dataclass(frozen=True)
class Case:
    """N rows of C classes from D features; without features the logits are given; a single class is binary."""

    rows: int
    features: int
    classes: int
    dtype: str
    target: str
    device: str = "cpu"

    @property
    def sizes(self) -> str:
        return "x".join(str(n) for n in (self.rows, self.features, self.classes) if n > 1)

    def __str__(self) -> str:
        return f"{self.sizes} {self.dtype} {self.target}" + f" on {self.device}" * self.on_cuda

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def has_head(self) -> bool:
        return self.features > 0

    @property
    def has_teacher_head(self) -> bool:
        return self.target in ("teacher-head", "half-teacher")

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.classes * self.torch_dtype.itemsize

    def tiny(self) -> Case:
        """The same computation on next to nothing, which loads the libraries that it needs."""
        return Case(16, min(self.features, 8), min(self.classes, 64), self.dtype, self.target, self.device)

    @classmethod
    def parse(cls, sizes: str, dtype: str, target: str, device: str = "cpu") -> Case:
        """`NxDxC` is a head, `NxC` given logits, `N` binary.

        >>> Case.parse("1024x256x32000", "float32", "labels").features
        256
        """
        numbers = [int(n) for n in sizes.split("x")]
        rows, features, classes = {
            3: lambda: numbers,
            2: lambda: [numbers[0], 0, numbers[1]],
            1: lambda: [numbers[0], 0, 1],
        }[len(numbers)]()
        return cls(rows, features, classes, dtype, target if classes > 1 else "binary", device)


@dataclass
class Problem:
    case: Case
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def leaves(self) -> list[Tensor]:
        """What a gradient is wanted for: the features and the weight, or the logits."""
        names = ("x", "weight") if self.case.has_head else ("z",)
        return [self.tensors[name] for name in names]

    def rows(self, at: slice) -> Problem:
        """Some of the rows; the weights are shared."""
        return Problem(self.case, {k: t if "weight" in k else t[at] for k, t in self.tensors.items()})

    def double(self) -> Problem:
        """In float64, on the device of the case."""
        moved = {k: t.to(self.case.device) for k, t in self.tensors.items()}
        return Problem(self.case, {k: t.double() if t.is_floating_point() else t for k, t in moved.items()})

    def save(self, folder: Path) -> None:
        for name, tensor in self.tensors.items():
            save(tensor, folder / f"{name}.bin")

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


def shapes(case: Case) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The tensors of a case, without making them."""
    N, D, C, dtype = case.rows, case.features, case.classes, case.torch_dtype
    inputs: dict[str, tuple[tuple[int, ...], torch.dtype]]
    inputs = {"x": ((N, D), dtype), "weight": ((C, D), dtype)} if case.has_head else {"z": ((N, C), dtype)}
    teacher = {"x_teacher": ((N, 2 * D), dtype), "weight_teacher": ((C, 2 * D), dtype)}
    targets: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
        "labels": {"y": ((N,), torch.int64)},
        "smoothed": {"y": ((N,), torch.int64)},
        "probabilities": {"p": ((N, C), dtype)},
        "teacher-logits": {"z_teacher": ((N, C), dtype)},
        "teacher-head": {**teacher},
        "top-32": {"index": ((N, min(STORED, C)), torch.int64), "kept": ((N, min(STORED, C)), torch.float32)},
        "half-teacher": {"y": ((N,), torch.int64), **teacher},
        "binary": {"y": ((N, C), dtype)},
    }
    return {**inputs, **targets[case.target]}


def make(case: Case, seed: int = 0) -> Problem:
    """Random inputs, the same for a seed wherever they are made."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    def fill(name: str, shape: tuple[int, ...]) -> Tensor:
        match name:
            case "y" if case.target == "binary":
                return torch.randint(2, shape, generator=generator).float()
            case "y":
                return torch.randint(case.classes, shape, generator=generator)
            case "p":
                return normal(shape).mul_(2).softmax(-1)
            case "kept":  # nine tenths of the mass are stored
                return normal(shape).softmax(-1) * 0.9
            case "index":
                first_N1 = torch.randint(case.classes, (case.rows, 1), generator=generator)
                step = max(1, case.classes // shape[1])
                return (first_N1 + step * torch.arange(shape[1])) % case.classes
            case "z_teacher":
                return normal(shape).mul_(2)
            case "weight" | "weight_teacher":
                return normal(shape).mul_(shape[1] ** -0.5)
        return normal(shape)

    return Problem(case, {name: fill(name, shape).to(dtype) for name, (shape, dtype) in shapes(case).items()})


def save(tensor: Tensor, path: Path) -> None:
    if tensor.numel():
        torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A file's tensor, not yet in memory."""
    size = 1
    for n in shape:
        size *= n
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)


def load(case: Case, folder: Path) -> Problem:
    """The saved problem in memory of its own, as torch's allocator gives it, on the device of the case."""
    read = {k: mapped(folder / f"{k}.bin", *what) for k, what in shapes(case).items()}
    return Problem(case, {k: t.to(case.device) if case.on_cuda else t.clone() for k, t in read.items()})
