"""A disk that is nearly full, for tests."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def little_room(size: int | None = None) -> Iterator[Callable[[int], None]]:
    """A limit on the size of files stands for a full disk; from the start, or when what is given sets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
