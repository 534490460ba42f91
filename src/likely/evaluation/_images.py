"""Arrays as pictures: a PNG in a data URI, from the standard library alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from likely._checks import require


def data_uri(image: Any) -> str:
    """A 2-D array of grey values, or (H, W, 3) of colours, scaled from its minimum (black) to its maximum (white).

    Raises: ValueError for another shape, an empty picture or values that are not finite.

    >>> data_uri([[0.0, 1.0]])[:22]
    'data:image/png;base64,'

    Source: Portable Network Graphics (PNG) Specification, third edition (W3C).
    """
    x = np.asarray(image, dtype=np.float64)
    require(
        x.size > 0 and (x.ndim == 2 or (x.ndim == 3 and x.shape[2] == 3)),
        f"image: has shape {x.shape}; give (H, W) or (H, W, 3)",
    )
    require(bool(np.isfinite(x).all()), "image: holds NaN or an infinite value")
    low, high = float(x.min()), float(x.max())
    level = np.zeros_like(x) if high == low else (x - low) / (high - low)
    bytes_HW = np.rint(level * 255).astype(np.uint8).reshape(x.shape[0], -1)
    # Each line of a PNG begins with the number of its filter: 0, none.
    lines = np.pad(bytes_HW, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 8, 0 if x.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
