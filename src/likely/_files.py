"""Files and folders that appear whole or not at all.

Everything is written under a hidden name beside its destination and renamed when it is complete. A run that is killed
leaves at worst such a hidden leftover (`.NAME.partial-…`), which nothing reads and anybody may delete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = ".likely"


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error, and removed otherwise.

    The temporary name keeps the suffix, so that writers which go by it see the right one.

    Raises: FileExistsError where `path` exists and `overwrite` was not asked for; IsADirectoryError for a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with new_file(Path(folder) / "a.txt") as path:
    ...         _ = path.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    path = _destination(path)
    refuse_file(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_file(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise what `new_file` would raise: to be asked before work that takes long.

    Raises: FileExistsError where `path` exists and `overwrite` was not asked for; IsADirectoryError for a folder.
    """
    path = _destination(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or ask for it to be overwritten")


@contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it when the block ends without an error, and removed otherwise.

    A folder made here carries the file `.likely`. Only such a folder, or an empty one, is ever overwritten: a mistyped
    `--out ~ --overwrite` deletes nothing. What was in the old folder is gone once the new one stands in its place.

    Raises: FileExistsError where `path` exists and `overwrite` was not asked for, or where it was not made here.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with new_folder(Path(parent) / "run") as folder:
    ...         _ = (folder / "a.txt").write_text("whole")
    ...     sorted(p.name for p in (Path(parent) / "run").iterdir())
    ['.likely', 'a.txt']
    """
    path = _destination(path)
    refuse_folder(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "partial")
    temporary.mkdir()
    try:
        (temporary / MARKER).write_text(
            "Written by likely, which may replace this folder when asked to overwrite it.\n"
        )
        yield temporary
        _put_in_place(temporary, path, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_folder(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise what `new_folder` would raise: to be asked before work that takes long.

    Raises: FileExistsError where `path` exists and `overwrite` was not asked for, or where it was not made here.
    """
    path = _destination(path)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; give the name of a folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists already; choose another folder or ask for it to be overwritten")
    if not (path / MARKER).is_file():
        raise FileExistsError(f"{path} was not written by likely and is never overwritten; choose another folder")


def _put_in_place(temporary: Path, path: Path, overwrite: bool) -> None:
    """Rename a finished folder to its name; an old one is first moved aside, and moved back if that fails."""
    refuse_folder(path, overwrite)
    if not path.exists() or not any(path.iterdir()):
        os.replace(temporary, path)
        return
    old = _beside(path, "old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _destination(path: str | os.PathLike[str]) -> Path:
    """The absolute path; a link is followed, so that what it points to is replaced and the link stays."""
    return Path(path).expanduser().resolve()


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.stem}.{what}-{secrets.token_hex(4)}{path.suffix}")
