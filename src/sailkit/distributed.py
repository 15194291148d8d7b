"""Coordinate the processes of a launcher: the main process, sharded work, and errors that end all of them.

`broadcast`, `gather`, `raise_if_any` and `raise_together` are collective: every process has to call them in the same
order. If one skips a call, for example by raising an error alone, the others wait until they time out.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sailkit.errors import UserError

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)  # one process may load or save a large model while the others wait


def is_main_process() -> bool:
    """Whether this is the main process, the only one of a launcher's processes that prints and writes."""
    return os.environ.get("RANK", "0") in ("", "0")


def warn_of_idle_gpus(visible: int, verb: str) -> None:
    """Warn that a process that no launcher started uses a single GPU, if more are visible.

    Args:
        visible: Number of visible GPUs.
        verb: The verb to start on all of them.
    """
    if visible > 1:
        warnings.warn(
            f"{visible} GPUs are visible, and one process uses one of them; "
            f"for all of them, start with  accelerate launch -m sailkit {verb} ...",
            RuntimeWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class Processes:
    """The process group seen from one process; by default a group of one.

    Attributes:
        rank: The index of this process; process 0 owns the run folder.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process opens the run folder, writes and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the main process's value in all processes."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes in all processes."""
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))

    def shard(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The items for this process, each with whether it counts.

        All processes get the same number; if the items do not divide evenly, the last is repeated and does not count.
        A forward pass through a sharded model is collective, so every process has to make the same number of them.
        """
        indices = range(self.rank, math.ceil(len(items) / self.count) * self.count, self.count)
        return [(items[min(i, len(items) - 1)], i < len(items)) for i in indices]

    def raise_if_any(self, error: str | None) -> None:
        """End all processes if any has an error; the main process reports it.

        Args:
            error: The error message of this process, or None.

        Raises:
            UserError: In the main process.
            SystemExit: In the others.
        """
        if errors := [message for message in self.gather([error]) if message is not None]:
            if self.is_main:
                raise UserError(errors[0])
            time.sleep(1)  # a launcher kills all processes once one ends; let the main process report first
            raise SystemExit(2)

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """A context in which a UserError of any process ends all; it must not contain collective calls."""
        message = None
        try:
            yield
        except UserError as error:
            message = str(error)
        self.raise_if_any(message)


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Connect to the processes that a launcher started.

    Yields:
        The process group; a group of one without a launcher.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield Processes()
        return
    import torch
    from accelerate import PartialState

    created = not torch.distributed.is_initialized()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)
    try:
        yield Processes(state.process_index, state.num_processes)
    except RuntimeError as error:
        # With gloo (CPU), a collective call raises this if a peer has ended, which has reported the cause.
        if "by peer" in str(error):
            raise SystemExit(1) from None
        raise
    if created:
        torch.distributed.destroy_process_group()
