"""Folders that are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.files.folders import atomic_folder, cache_once


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".lock")


def test_a_folder_replaces_another_one_when_it_is_whole(tmp_path):
    folder = tmp_path / "parent" / "model"
    for text in ("first", "second"):
        with atomic_folder(folder) as unfinished:
            (unfinished / text).write_text(text)
            (unfinished / "sub").mkdir()
    assert names(tmp_path / "parent") == ["model", "model/second", "model/sub"]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_after_an_error_the_earlier_folder_is_there_and_nothing_else(tmp_path, error):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("earlier")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "model") as unfinished:  # noqa: PT012
        (unfinished / "weights").write_text("half")
        raise error
    assert names(tmp_path) == ["model", "model/weights"]
    assert (tmp_path / "model" / "weights").read_text() == "earlier"


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from sailkit.files.folders import atomic_folder
with atomic_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert any(name.endswith("half") for name in names(tmp_path))
    with atomic_folder(tmp_path / "model") as unfinished:
        (unfinished / "whole").write_text("whole")
    assert names(tmp_path) == ["model", "model/whole"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*/file/model: Not a directory; try elsewhere$"):  # noqa: SIM117
        with atomic_folder(tmp_path / "file" / "model", "; try elsewhere"):
            pass
    with pytest.raises(UserError, match=r"cannot write .*SAILKIT_CACHE names another folder, for a disk[a-z ]*$"):
        cache_once(tmp_path / "file" / "index", lambda folder: None)


def test_of_many_that_want_a_folder_of_the_cache_one_writes_it(tmp_path):
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "index").write_text("index")

    threads = [threading.Thread(target=cache_once, args=(tmp_path / "cache" / "index", write)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert names(tmp_path / "cache") == ["index", "index/index"]
