"""Files and folders appear whole or not at all, and nothing of a user's is lost."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from likely._files import MARKER, new_file, new_folder, refuse_folder


def content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != MARKER}


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fail_in_folder(path: Path) -> None:
    with new_folder(path, overwrite=True) as folder:
        (folder / "a").write_text("new")
        raise ZeroDivisionError


def fail_in_file(path: Path) -> None:
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "run") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "run").exists()
    assert content(tmp_path / "deep" / "run") == {"a": "1"}
    assert visible(tmp_path / "deep") == ["run"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    for make in (fail_in_folder, fail_in_file):
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "run")
    assert visible(tmp_path) == []


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_in_folder(tmp_path / "run")
    assert content(tmp_path / "run") == {"a": "old"}
    assert visible(tmp_path) == ["run"]


def test_a_folder_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "run"):
        pytest.fail("work was begun that could not be written")
    assert content(tmp_path / "run") == {"a": "old"}
    with new_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert content(tmp_path / "run") == {"b": "new"}
    assert visible(tmp_path) == ["run"]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("precious")
    with pytest.raises(FileExistsError, match="was not written by likely"):
        refuse_folder(tmp_path / "home", overwrite=True)
    with (
        pytest.raises(FileExistsError, match="was not written by likely"),
        new_folder(tmp_path / "home", overwrite=True),
    ):
        pass
    assert content(tmp_path / "home") == {"thesis": "precious"}


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("1")
    assert content(tmp_path / "run") == {"a": "1"}


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"), new_folder(tmp_path / "file", overwrite=True):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"), new_file(tmp_path / "folder", overwrite=True):
        pass
    assert visible(tmp_path) == ["file", "folder"]


def test_somebody_who_was_faster_keeps_the_folder(tmp_path: Path) -> None:
    slow = new_folder(tmp_path / "run")
    (slow.__enter__() / "a").write_text("late")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("early")
    with pytest.raises(FileExistsError, match="exists already"):
        slow.__exit__(None, None, None)
    assert content(tmp_path / "run") == {"a": "early"}


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    with new_folder(tmp_path / "latest", overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "latest").is_symlink()
    assert content(tmp_path / "run") == {"a": "new"}


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run"):
        pass
    (tmp_path / "usual").mkdir()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


KILLED = """
    import sys, time
    from pathlib import Path
    from likely._files import new_file, new_folder
    kind, path, overwrite = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "overwrite"
    with (new_folder if kind == "folder" else new_file)(path, overwrite) as temporary:
        part = temporary / "a" if kind == "folder" else temporary
        part.write_text("half of it")
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", ["nothing", "overwrite"])
def test_a_killed_run_leaves_no_half_result(tmp_path: Path, kind: str, before: str) -> None:
    path = tmp_path / "run.txt"
    if before == "overwrite":
        with (new_folder if kind == "folder" else new_file)(path) as temporary:
            (temporary / "a" if kind == "folder" else temporary).write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), kind, str(path), before]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")]
    if before == "nothing":
        assert left == []
    else:
        assert left == ["run.txt"]
        assert (path / "a" if kind == "folder" else path).read_text() == "old"
    # What is left over does not stand in the way of the next run.
    with (new_folder if kind == "folder" else new_file)(path, overwrite=True) as temporary:
        (temporary / "a" if kind == "folder" else temporary).write_text("new")
    assert (path / "a" if kind == "folder" else path).read_text() == "new"
