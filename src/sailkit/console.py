"""Print to the terminal, with control characters removed from all text, and show progress."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from sailkit.distributed import is_main_process
from sailkit.text import clean

if TYPE_CHECKING:
    from rich.console import Console


class CleanStream:
    """Wraps a text stream and cleans the text that is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write cleaned text; a leading carriage return, as of progress bars, is kept."""
        back = text.startswith("\r")
        self.stream.write("\r" * back + clean(text[back:], layout=True))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def clean_streams() -> Iterator[None]:
    """Clean everything that is printed within the context, also by libraries."""
    streams = [cast(TextIO, CleanStream(stream)) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield


def console(stream: TextIO | None = None, *, stderr: bool = False, width: int | None = None) -> Console:
    """Create a rich console that cleans text, but keeps its own colours and cursor movements.

    Args:
        stream: The stream to write to; standard output by default.
        stderr: Write to standard error instead.
        width: Characters per line; by default those of the terminal.
    """
    stream = stream or (sys.stderr if stderr else sys.stdout)
    # A pipe or a log has no width: do not squeeze tables.
    width = width or (None if stream.isatty() else 140)
    # Bypass CleanStream, which would remove the control sequences of rich.
    file = getattr(stream, "stream", stream)
    return _clean_console()(file=file, highlight=False, emoji=False, soft_wrap=not stderr, width=width)


@functools.cache
def _clean_console() -> type[Console]:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class CleanConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(clean(segment.text, layout=True), segment.style)

    return CleanConsole


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a cleaned traceback, as `sys.excepthook`; it may quote untrusted text."""
    sys.stderr.write(clean("".join(traceback.format_exception(kind, error, trace)), layout=True))


def notice(text: str, *, everywhere: bool = False) -> None:
    """Print a message to standard error, in the main process alone or in every process that calls this."""
    if everywhere or is_main_process():
        print(clean(text, layout=True), file=sys.stderr, flush=True)


class Ticker(Protocol):
    """The function that a stage calls as it advances."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Advance the count; a note, such as the speed, is shown behind it."""


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Ticker]:
    """Show progress on standard error: a bar with the time left on a terminal, plain lines elsewhere.

    Args:
        what: A short label, such as `scoring`.
        total: Total number of steps.
        done: Steps done by an earlier run.

    Yields:
        A function to call with the number of steps since the last call, and optionally a note.
    """
    if os.environ.get("SAILKIT_PROGRESS") == "off" or total <= done:
        yield lambda steps=1, note="": None
        return
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        description, note = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}"))
        columns = (description, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        with Progress(*columns, console=console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done, note="")
            yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)
        return
    start = last = time.monotonic()
    count = done

    def tick(steps: int = 1, note: str = "") -> None:
        nonlocal count, last
        count += steps
        now = time.monotonic()
        if now - last >= 5 or (count == total and now - start >= 2):
            remaining = (now - start) / max(count - done, 1) * (total - count)
            notice(f"{what}: {count}/{total}, {note + ', ' if note else ''}{remaining:.0f} s left")
            last = now

    yield tick
