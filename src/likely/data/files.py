"""Files as examples: their bytes, or the pictures in them, with the folder that they lie in for a label.

Legend: B examples of a batch, L bytes of a file, H and W height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely._checks import require
from likely.data.examples import Labelled
from likely.data.tables import listed, natural_key

PADDING = 256
"""What stands in `bytes` after the end of a file."""
LONGEST = 8192
"""Bytes that are read of a file, half of them from its beginning and half from its end."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, in natural order; hidden ones are left out.

    Raises: ValueError where there is none.
    """
    found = [path for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    require(bool(shown), f"{folder}: holds no file")
    return sorted(shown, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def by_folder(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The files below a folder, labelled by the folder in it that they lie in.

    Returns: the files, their labels (E,), and the classes: those given, or the folders' names in natural order.

    Raises: ValueError for a file in no such folder, or in one that is none of the classes given.
    """
    files = files_below(folder)
    names = [path.relative_to(folder).parts[0] if path.parent != folder else None for path in files]
    loose = next((path for path, name in zip(files, names) if name is None), None)
    require(loose is None, f"{loose}: lies in no folder of a class; put it into one, or list the files in a table")
    found = sorted({str(name) for name in names}, key=natural_key)
    classes = tuple(found if classes is None else classes)
    other = next((name for name in found if name not in classes), None)
    require(other is None, f"{folder}: the folder {other!r} is no class; the classes are {listed(classes)}")
    return files, np.array([classes.index(str(name)) for name in names], dtype=np.int64), classes


def byte_examples(files: Sequence[Path], names: Sequence[str], max_length: int | None = None, **more: Any) -> Labelled:
    """Files as `bytes`, (B, L) int64 of 0 … 255, with 256 after the end of a shorter one.

    Of a file longer than `max_length` bytes (8,192) the first half and the last half of so many are read: what a file
    is shows at its ends.

    Raises: ValueError for an empty file, or a `max_length` below 2.
    """
    most = LONGEST if max_length is None else max_length
    require(most >= 2, f"max_length: is {most}; of a file 2 bytes or more are read")
    contents = [_ends(path, most) for path in files]
    empty = next((name for name, content in zip(names, contents) if not content), None)
    require(empty is None, f"{empty}: is empty; leave it out")
    items = [np.frombuffer(content, dtype=np.uint8) for content in contents]
    return Labelled.of(items, padded_bytes, contents, names=names, **more)


def padded_bytes(items: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """Files of different lengths in one tensor.

    >>> padded_bytes([np.array([7, 8], np.uint8), np.array([9], np.uint8)])["bytes"].tolist()
    [[7, 8], [9, 256]]
    """
    bytes_BL = np.full((len(items), max(map(len, items), default=0)), PADDING, dtype=np.int64)
    for row, item in zip(bytes_BL, items):
        row[: len(item)] = item
    return {"bytes": torch.from_numpy(bytes_BL)}


def _ends(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        head = file.read(most)
        if not file.read(1):
            return head
        file.seek(-(most // 2), 2)
        return head[: most - most // 2] + file.read()


def picture_examples(files: Sequence[Path], names: Sequence[str], size: int | None = None, **more: Any) -> Labelled:
    """Pictures as `pixel_values`, (B, 3, H, W) float32 from 0 to 1; a network standardises them itself.

    They are read when a batch asks for them, and resized to `size` × `size` where that is given (bilinear).

    Raises: ValueError naming the file that is no picture, or has another size than the first where none was given;
        ImportError without pillow.
    """
    image = _pillow()
    require(bool(files), "images: there is none")
    shape = None if size is None else (size, size)
    for path, name in zip(files, names):
        try:
            with image.open(path) as picture:
                found = picture.size
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: is no picture that can be read ({error})") from None
        shape = shape or found
        require(
            size is not None or found == shape,
            f"{name}: is {found[0]} × {found[1]} where {names[0]} is {shape[0]} × {shape[1]}; give a size (--size)",
        )
    assert shape is not None
    of_size = f"{shape}".encode()
    contents: Iterable[bytes] = (of_size + path.read_bytes() for path in files)
    return Labelled.of(list(files), partial(_pixels, shape=shape), contents, names=names, **more)


def _pixels(items: Sequence[Path], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    image = _pillow()
    pixels = np.empty((len(items), shape[1], shape[0], 3), dtype=np.uint8)
    for row, path in zip(pixels, items):
        try:
            with image.open(path) as picture:
                plain = picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path}: is no picture that can be read ({error})") from None
        row[:] = plain if plain.size == shape else plain.resize(shape, image.Resampling.BILINEAR)
    return {"pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255}


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"pictures are read with pillow: pip install 'likely[hf]' ({error})") from None
    return Image


def listed_files(paths: Sequence[Any], root: Path) -> list[Path]:
    """The files that a table lists, those without a root relative to the table's folder.

    Raises: FileNotFoundError naming the row.
    """
    found = []
    for row, path in enumerate(paths):
        require(path is not None, f"row {row}: names no file")
        file = root / str(path)
        require(file.is_file(), f"row {row}: {file} is no file", FileNotFoundError)
        found.append(file)
    return found
