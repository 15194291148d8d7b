"""Several processes that train one model: which of them writes, how they share work, and how an error ends all.

`broadcast`, `gather`, `raise_if_any` and `raise_together` are collective: every process has to call them, in the same
order. One that leaves the order, as by raising alone, has the others wait until they time out.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sailkit.errors import UserError

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)  # one process may load or save a large model while the others wait


def is_main_process() -> bool:
    """Whether this process prints and writes: of the processes that a launcher started, a single one does."""
    return os.environ.get("RANK", "0") in ("", "0")


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them; by default it is alone.

    Attributes:
        rank: The index of this process; process 0 owns the run folder.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process opens the run folder, writes and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The main process's value, in all processes."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in all processes."""
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))

    def shard(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The items that this process works on, and whether each of them counts.

        All processes get equally many; where the items do not divide evenly, the last is repeated and does not count.
        A forward pass through a sharded model is a collective call, so every process has to make as many.
        """
        indices = range(self.rank, math.ceil(len(items) / self.count) * self.count, self.count)
        return [(items[min(i, len(items) - 1)], i < len(items)) for i in indices]

    def raise_if_any(self, error: str | None) -> None:
        """End all processes if one has an error; the main process reports it.

        Args:
            error: What went wrong in this process, or None.

        Raises:
            UserError: In the main process.
            SystemExit: In the others.
        """
        if errors := [message for message in self.gather([error]) if message is not None]:
            if self.is_main:
                raise UserError(errors[0])
            time.sleep(1)  # a launcher kills all processes when one has ended: that has to be the one that reports
            raise SystemExit(2)

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """A block whose UserError in one process ends all; there may be no collective call inside."""
        message = None
        try:
            yield
        except UserError as error:
            message = str(error)
        self.raise_if_any(message)


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Connect the processes that a launcher started.

    Yields:
        The processes; a single one without a launcher.
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
        # On the CPU, a process that waits for one that has ended gets this error; the one that ended has reported why.
        if "by peer" in str(error):
            raise SystemExit(1) from None
        raise
    if created:
        torch.distributed.destroy_process_group()
