"""A record that takes the place of another."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from likely.teachers.manifest import JOURNAL, MANIFEST

EXAMPLES = "examples.parquet"
"""The examples of a record that came from elsewhere, beside it in its folder."""


def require_replaceable(folder: Path) -> None:
    """There is no such folder, or it holds a record, finished or begun, and nothing else.

    Raises:
        FileExistsError: it holds anything that is no part of a record, or is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "letter.txt").write_text("dear")
        ...     require_replaceable(Path(folder))
        Traceback (most recent call last):
        ...
        FileExistsError: ... holds letter.txt, which is no part of a record; choose another folder
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the name of a folder")
    for one in sorted(folder.iterdir()):
        own = one.name in (MANIFEST, JOURNAL, EXAMPLES) or one.match("part-*.parquet") or one.match(".*.partial-*")
        if not own or one.is_dir():
            raise FileExistsError(f"{folder} holds {one.name}, which is no part of a record; choose another folder")


@contextmanager
def replaced(folder: Path, wanted: bool = True) -> Iterator[None]:
    """The record in a folder stands aside while another is begun in its place; if none is, it comes back.

    A run that is killed leaves it under a hidden name beside the folder (`.NAME.old-…`), which anybody may delete.

    Args:
        wanted: whether it is to be replaced at all.

    Raises:
        FileExistsError: as `require_replaceable`.
    """
    if not wanted or not folder.exists():
        yield
        return
    require_replaceable(folder)
    folder = folder.resolve()  # of a link, what it points to is replaced
    old = folder.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
    os.replace(folder, old)
    try:
        yield
    finally:
        if (folder / MANIFEST).exists() or (folder / JOURNAL).exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            if folder.exists():  # an empty one
                folder.rmdir()
            os.replace(old, folder)
