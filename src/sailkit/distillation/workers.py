"""Computes many items in processes beside this one; what comes of an item depends on that item alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

from sailkit.errors import UserError

_MOST_WORKERS = 8
_TOKENS = 100_000  # supervised tokens that are worth a process; to tokenise and to project them takes seconds
_PREFETCHED = 32  # items of each process that are computed ahead


def worker_count(tokens: int) -> int:
    """The number of processes for so many supervised tokens: one for each core, or none for few tokens.

    Processes that a launcher started on this machine share its cores.
    """
    if sys.platform != "linux":  # elsewhere processes are not forked, and a script without a main guard would run again
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = min(_MOST_WORKERS, cores, tokens // _TOKENS)
    return workers if workers > 1 else 0


def in_order(compute: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Generator[Any]:
    """What a function gives for each item, in order.

    Args:
        compute: The function; it is forked with all that it refers to.
        items: Its arguments.
        workers: Number of processes; with 0, this one computes.

    Raises:
        UserError: The first that the function raises.
    """
    if not workers:
        yield from map(compute, items)
        return
    from torch import Generator
    from torch.utils.data import DataLoader

    def of_batch(batch: list[Any]) -> Any:
        try:
            return compute(batch[0])
        except UserError as error:  # a loader would prepend the worker's traceback to its message
            return error

    # With a generator of its own, it does not draw from torch's random state, on which the training depends.
    loader = iter(
        DataLoader(
            items, collate_fn=of_batch, num_workers=workers, generator=Generator(),  # type: ignore[arg-type]
            multiprocessing_context="fork", prefetch_factor=_PREFETCHED,
        )
    )  # fmt: skip
    try:
        for result in loader:
            if isinstance(result, UserError):
                raise result
            yield result
    finally:
        del loader  # ends its processes, which a traceback that holds this frame would keep
