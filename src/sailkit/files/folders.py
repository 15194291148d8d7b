"""Write folders atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from sailkit.files import jsonl

_CACHE_ADVICE = "; SAILKIT_CACHE names another folder, for a disk with more room"


@contextlib.contextmanager
def atomic_folder(folder: Path, advice: str = "") -> Iterator[Path]:
    """Write a folder atomically: it appears, or replaces an earlier one, only once it is complete.

    The caller ensures that a single process writes the folder.

    Args:
        folder: The folder; an earlier one is kept if writing fails.
        advice: Added to the error if it cannot be written.

    Yields:
        A temporary folder beside it to write into.

    Raises:
        UserError: The folder cannot be written, for example because the disk is full.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
    try:
        with jsonl.writing(folder, advice):
            unfinished.mkdir(parents=True)
            yield unfinished
            for file in filter(Path.is_file, unfinished.rglob("*")):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def cache_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder of the cache unless it exists; a lock admits one process at a time.

    Args:
        folder: The folder.
        write: Writes the files into the temporary folder that it is given.

    Raises:
        UserError: It cannot be written.
    """
    with jsonl.writing(folder, _CACHE_ADVICE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                for entry in folder.parent.iterdir():
                    if entry.name.startswith(f".{folder.name}."):  # left by a killed process: we hold the lock
                        shutil.rmtree(entry, ignore_errors=True)
                with atomic_folder(folder, _CACHE_ADVICE) as unfinished:
                    write(unfinished)
