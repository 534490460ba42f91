"""How far a training run is: a bar on a terminal, and TensorBoard's events."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def bar(wanted: bool, start: int, steps: int) -> Iterator[Any]:
    """A bar with the loss and the time left, on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    loss = TextColumn("loss {task.fields[loss]:.4f}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as shown:
        task = shown.add_task("training", total=steps, completed=start, loss=math.nan)
        yield lambda metrics: shown.update(task, completed=metrics["step"], loss=metrics["loss"])


@contextmanager
def tensorboard(out: Path, start: int) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"tensorboard is not installed: pip install 'likely[tensorboard]' ({error})") from None
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)
    try:
        yield writer
    finally:
        writer.close()


def write_scalars(board: Any, metrics: dict[str, Any], step: int) -> None:
    for name, value in metrics.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                board.add_scalar(f"{name}/{inner}", number, step)
        elif name != "step":
            board.add_scalar(f"train/{name}", value, step)
