"""Write results batch by batch to a JSON Lines file that is its own checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from sailkit.console import progress
from sailkit.errors import UserError
from sailkit.files import jsonl

Item = TypeVar("Item")


def write_batches(
    path: Path,
    batches: Sequence[Sequence[Item]],
    item_id: Callable[[Item], str],
    compute: Callable[[Sequence[Sequence[Item]]], Generator[Sequence[jsonl.JsonObject], None, None]],
    activity: str,
) -> int:
    """Compute the planned batches that a file does not contain yet, and append their rows batch by batch.

    Args:
        path: The file; rows of an earlier run are kept.
        batches: The whole plan, including batches that an earlier run has written.
        item_id: Returns the id of an item, which is `id` in its row.
        compute: Yields the rows of each remaining batch, in order.
        activity: Label of the progress bar, such as `scoring`.

    Returns:
        Number of rows that the file contained before.

    Raises:
        UserError: The rows there are not the first rows of this plan, or the file cannot be written.
    """
    log = BatchLog(path, [[item_id(item) for item in batch] for batch in batches])
    rows_before, remaining = log.rows_done, batches[log.done :]
    with (
        contextlib.closing(log),
        progress(activity, sum(map(len, batches)), rows_before) as tick,
        contextlib.closing(compute(remaining)) as computed,
    ):
        for batch, rows in zip(remaining, computed, strict=True):
            log.append(rows)
            tick(len(batch))
    return rows_before


class BatchLog:
    """An append-only JSON Lines file that is its own checkpoint.

    Rows arrive in planned batches. A killed run leaves complete batches and at most one incomplete one, which is
    removed and computed again as a whole, because the low bits of a row depend on its batch.
    """

    def __init__(self, path: Path, plan: Sequence[Sequence[str]]) -> None:
        """Open the file, and truncate it to complete batches.

        Args:
            path: The file; it need not exist.
            plan: Ids of the items of each batch, in the order of writing.

        Raises:
            UserError: The rows there are not the first rows of this plan.
        """
        self.path = path
        self.done = 0
        self.rows_done = 0
        self._size = 0
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        for batch in plan:
            part = lines[self.rows_done : self.rows_done + len(batch)]
            for offset, (line, expected) in enumerate(zip(part, batch, strict=False)):
                number = self.rows_done + offset + 1
                try:
                    actual = json.loads(line)["id"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}: damaged; remove the run folder to start again") from None
                if actual != expected:
                    raise UserError(f"{path}, line {number}: found id {actual!r} where {expected!r} was planned")
            if len(part) < len(batch):
                break
            self.done += 1
            self.rows_done += len(batch)
            self._size += sum(map(len, part))
        try:
            self._stream = path.open("ab")
            if self._stream.seek(0, os.SEEK_END) > self._size:  # truncating changes the time also of a complete file
                self._stream.truncate(self._size)
        except OSError as error:
            raise jsonl.writing_failed(path, error) from None

    def append(self, rows: Sequence[jsonl.JsonObject]) -> None:
        """Write one batch and flush it to the disk; on failure, the file is truncated to complete batches."""
        data = jsonl.encode("".join(jsonl.dumps(row) + "\n" for row in rows))
        try:
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            # Close first: closing later would flush the buffer into the space that truncation has just freed.
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise jsonl.writing_failed(self.path, error) from None
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._stream.close()
