"""One thread for the models of a server, and a queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from fastapi import HTTPException

from sailkit.asking.gate import Limits

T = TypeVar("T")


class Worker(Generic[T]):
    """Computes answers one after the other in a thread, and passes on what each has so far.

    Attributes:
        answered: Number of requests that were answered to their end.
    """

    def __init__(self, answer: Callable[..., T], limits: Limits, stopping: Callable[[], bool]) -> None:
        """Start the thread.

        Args:
            answer: Computes an answer. Called with the arguments of `updates`, with a function that takes the answer so
                far, and with one that returns true once the answer should stop.
            limits: The longest queue, and the seconds for a request.
            stopping: Whether the server stops.
        """
        self.answered = 0
        self._answer, self._limits, self._stopping = answer, limits, stopping
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def updates(self, *request: object) -> AsyncGenerator[tuple[T, bool]]:
        """The answer as it grows, and whether it is complete.

        Args:
            request: The arguments of the function that computes answers.

        Raises:
            HTTPException: The queue is full, or the time was over before the request's turn.
            UserError: The question cannot be answered.
        """
        if self._waiting >= self._limits.queue:
            raise HTTPException(429, "too many requests are waiting; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[T | Exception, bool]] = asyncio.Queue()
        deadline, cancelled = time.monotonic() + self._limits.seconds, threading.Event()

        def stop() -> bool:
            return cancelled.is_set() or self._stopping() or time.monotonic() > deadline

        def in_loop(call: Callable[..., None], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(call, *args)

        def put(update: T | Exception, complete: bool = False) -> None:
            in_loop(queue.put_nowait, (update, complete))

        def work() -> None:
            try:
                if stop():
                    raise HTTPException(503, f"no answer within {self._limits.seconds:g} s", {"Retry-After": "1"})
                put(self._answer(*request, put, stop), True)
            except Exception as error:
                put(error)
            finally:
                in_loop(self._leave)

        self._waiting += 1
        self._thread.submit(work)
        try:
            complete = False
            while not complete:
                update, complete = await queue.get()
                if isinstance(update, Exception):
                    raise update
                self.answered += complete
                yield update, complete
        finally:
            cancelled.set()  # the client may have gone

    def _leave(self) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """Wait for the answer in progress, which stops at its next token."""
        self._thread.shutdown(cancel_futures=True)
