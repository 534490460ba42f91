"""Opens a page in headless Chromium and tells what became of it.

Without a Chromium the test that asks for a page is skipped aloud; where the environment says CI, it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",  # its sandbox does not run as root, as containers do
    "--disable-dev-shm-usage",  # nor does /dev/shm hold much there
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name resolves: the page is offline
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
)


@dataclass(frozen=True)
class Page:
    """What a page became: its DOM after the scripts ran, and the console's messages (errors among them)."""

    dom: str
    console: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """How often a regular expression is found in the DOM outside of scripts and styles."""
        return len(re.findall(pattern, re.sub(r"(?s)<(script|style)\b.*?</\1>", "", self.dom)))


def chromium() -> str:
    """The path of a Chromium; skips the test aloud where there is none, and fails it in CI."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    message = f"no Chromium found (looked for {', '.join(NAMES)}); on Debian: apt-get install chromium"
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(message)
    warnings.warn(message, stacklevel=2)  # a skip alone is not seen in a quiet run
    pytest.skip(message)


def open_page(
    path: Path, *, width: int = 1280, height: int = 2000, dark: bool = False, screenshot: Path | None = None
) -> Page:
    """Open an HTML file, offline, and return its DOM and console; with `screenshot` also write a PNG of it."""
    address = path.resolve().as_uri()
    size = [f"--window-size={width},{height}", *(["--force-dark-mode"] if dark else [])]
    page = _run([*size, "--dump-dom", address])
    if screenshot is not None:
        screenshot.unlink(missing_ok=True)
        _run([*size, f"--screenshot={screenshot.resolve()}", address])
        assert screenshot.is_file(), f"Chromium wrote no screenshot of {path}"
    # [pid:tid:date:level:CONSOLE:line] "message", source: address (line)
    said = re.findall(r'(?ms)^\[[^\]\n]*\bCONSOLE\b[^\]\n]*\] (".*?", source: [^\n]*)$', page.stderr)
    return Page(dom=page.stdout, console=tuple(said))


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="likely-chromium-", ignore_cleanup_errors=True) as profile:
        command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    assert done.returncode == 0, f"Chromium ended with {done.returncode}:\n{done.stderr[-2000:]}"
    return done
