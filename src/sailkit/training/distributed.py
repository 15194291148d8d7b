"""Several processes that train one model: who writes, who does which part, and how an error in one ends all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sailkit.errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)  # one process may load or save a large model while the others wait


def is_main_process() -> bool:
    """Whether this process speaks to the person at the terminal: of those that a launcher started, one does."""
    return os.environ.get("RANK", "0") in ("", "0")


@dataclass(frozen=True)
class Processes:
    """The processes of one run, as each of them sees it; one alone is the plain case.

    Attributes:
        rank: Which of them this is; 0 owns the run folder.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one opens, writes and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """What the first process passes, in all of them."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        broadcast_object_list(held)
        return held[0]

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in all of them."""
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))

    def shard(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This process's share, and whether each item counts.

        All get equally many, the last item once more where they do not come out even: the passes through a sharded
        model are made together.
        """
        places = range(self.rank, -(-len(items) // self.count) * self.count, self.count)
        return [(items[min(i, len(items) - 1)], i < len(items)) for i in places]

    def raise_if_any(self, error: str | None) -> None:
        """End all processes where one has an error; the first says it.

        Args:
            error: What went wrong here, or None.

        Raises:
            UserError: In the first process.
            SystemExit: In the others, which have nothing to add.
        """
        if found := [one for one in self.gather([error]) if one is not None]:
            if self.is_main:
                raise UserError(found[0])
            time.sleep(1)  # a launcher ends all when it sees the first end; let that be the one that speaks
            raise SystemExit(2)

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """What one process cannot do, all give up together; there may be no exchange inside."""
        error = None
        try:
            yield
        except UserError as one:
            error = str(one)
        self.raise_if_any(error)


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Meet the processes that a launcher started.

    Yields:
        All of them; one where there is no launcher.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield Processes()
        return
    import torch
    from accelerate import PartialState

    ours = not torch.distributed.is_initialized()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    try:
        yield Processes(state.process_index, state.num_processes)
    except RuntimeError as error:
        # On the CPU, those who wait for a process that has ended are told so; that one has said why.
        if "by peer" in str(error):
            raise SystemExit(1) from None
        raise
    if ours:
        torch.distributed.destroy_process_group()
