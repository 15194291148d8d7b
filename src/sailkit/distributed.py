"""Coordinate the processes of a launcher: the main process, sharded work, and errors that end all of them.

All methods of `Processes` but `shard` are collective: every process has to call them in the same order. If one skips a
call, for example by raising an error alone, the others wait until they time out.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from sailkit.errors import UserError

T = TypeVar("T")
Item = TypeVar("Item")
_TIMEOUT = timedelta(hours=2)  # one process may load or save a large model while the others wait
_LOOK_AGAIN = 1.0  # seconds


def is_main_process() -> bool:
    """Whether this is the main process, the only one of a launcher's processes that prints and writes."""
    return os.environ.get("RANK", "0") in ("", "0")


def process_count() -> int:
    """Number of processes of the launcher; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


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


def passes_are_collective(model: Any) -> bool:
    """Whether every forward pass of a model needs the other processes, because its weights are divided among them.

    Such a pass has to be made by all processes or by none. With DDP the weights are whole, and the processes depend on
    each other in the backward pass only.

    Args:
        model: A torch module.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()):
        return True
    # DTensors without FSDP are tensor parallelism; DeepSpeed marks the parameters that ZeRO-3 divides.
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


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

    def map(
        self, work: Callable[[Item], T], items: Sequence[Item], workers: int | None = None, threads: int = 1
    ) -> Generator[T, None, None]:
        """Divide work among the processes, and yield all results, in order, in all of them.

        The processes meet after each item. If they met once, at the end, one that has finished would wait in that
        collective call for as long as the slowest works, and the call would time out.

        Args:
            work: Computes the result of an item, without collective calls; a UserError ends all processes.
            items: All items, the same in all processes.
            workers: Number of processes that work, the main process first; by default all.
            threads: Number of items that a process computes at a time; see `map_in_threads`.
        """
        workers = workers or self.count
        mine = items[self.rank :: workers] if self.rank < workers else ()
        computed = map_in_threads(work, mine, threads) if threads > 1 else map(work, mine)
        for _ in range(0, len(items), workers):
            results: list[T] = []
            with self.raise_together():
                results += itertools.islice(computed, 1)  # none where the items do not divide evenly
            yield from self.gather(results)

    def raise_if_different(self, settings: Mapping[str, Any]) -> None:
        """End all processes if one has other settings than the main process, as on a machine with other software."""
        main = self.broadcast(settings)
        differ = [name for name in {**main, **settings} if settings.get(name) != main.get(name)]
        values = "; ".join(f"{name}: {settings.get(name)} there, {main.get(name)} here" for name in differ)
        self.raise_if_any(f"process {self.rank} is unlike the main process ({values})" if differ else None)

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
    def raise_together(self, flag: Path | None = None) -> Iterator[None]:
        """A context in which a UserError of any process ends all; it must not contain collective calls.

        Args:
            flag: For work of the main process that may take hours: a file that it creates at the end, until which the
                others sleep, because a collective call would time out. All processes must see its folder.
        """
        if self.count == 1:
            yield
            return
        message = None
        try:
            yield
        except UserError as error:
            message = str(error)
        if flag is None:
            self.raise_if_any(message)
            return
        if self.is_main:
            flag.touch()
        while not flag.exists():  # if the main process dies, the launcher ends this one
            time.sleep(_LOOK_AGAIN)
        try:
            self.raise_if_any(message)
        finally:
            if self.is_main:
                flag.unlink(missing_ok=True)

    def from_main(self, work: Callable[[], T]) -> T:
        """Call a function in the main process alone, and return its value in all processes; its UserError ends all."""
        value = None
        with self.raise_together():
            if self.is_main:
                value = work()
        return self.broadcast(cast(T, value))


def map_in_threads(work: Callable[[Item], T], items: Iterable[Item], threads: int) -> Generator[T, None, None]:
    """Compute items in threads, and yield the results in order.

    A thread that waits for a device lets the others prepare its next work.

    Args:
        work: Computes the result of an item.
        items: The items; they are read as they are needed.
        threads: Number of items that are being computed, or are computed and not yielded yet.

    Raises:
        Exception: Of the first item whose work failed, after the items that have begun.
    """
    begun: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) == threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def joined_processes() -> Processes:
    """The process group that a caller has connected to with `process_group`."""
    if process_count() == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState()
    return Processes(state.process_index, state.num_processes)


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Connect to the processes that a launcher started.

    Yields:
        The process group; a group of one without a launcher.
    """
    if process_count() == 1:
        yield Processes()
        return
    import torch
    from accelerate import PartialState

    created = not torch.distributed.is_initialized()
    PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)
    try:
        yield joined_processes()
    except RuntimeError as error:
        # With gloo (CPU), a collective call raises this if a peer has ended, which has reported the cause.
        if "by peer" in str(error):
            raise SystemExit(1) from None
        raise
    if created:
        torch.distributed.barrier()  # none ends while another still uses the connection
        torch.distributed.destroy_process_group()
