"""The errors that a user can fix; any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake that the user can fix: what, where and how to fix it, in one line (the CLI exits 2).

    An argument is named in backquotes, as `max_length` or `chat='off'`; the CLI writes it as a flag.
    """


class ProcessError(UserError):
    """An error of a single process while the others may wait for it, so that none can collect the errors of all.

    The CLI prints it in whichever process has it; it prints other errors in the main process alone.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """List the known names, and suggest the one that was probably meant.

    Args:
        word: What the user wrote.
        known: The names that are accepted.

    Returns:
        The end of an error line, such as `did you mean 'direct'? (known: direct, fair)`.
    """
    names = sorted(known)
    hint = did_you_mean(word, names)
    return f"{hint and hint + ' '}(known: {', '.join(names)})"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ask whether the known name that is closest to a word was meant; empty if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def at_least_one(**options: int | None) -> None:
    """Refuse a count below 1.

    Args:
        options: The values, by the arguments' names; None passes.

    Raises:
        UserError: An option is below 1.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"`{name}` should be at least 1, not {value}")


def between_zero_and_one(**options: float | None) -> None:
    """Refuse a share or probability below 0 or above 1.

    Args:
        options: The values, by the arguments' names; None passes.

    Raises:
        UserError: An option is outside.
    """
    for name, value in options.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"`{name}` should be between 0 and 1, not {value}")


def missing_extra(extra: str, needed_for: str) -> UserError:
    """The error for an optional dependency that is not installed, with the command that installs it."""
    return UserError(f"{needed_for} needs an extra: run  pip install 'sailkit[{extra}]'")


@contextlib.contextmanager
def required_extra(extra: str, needed_for: str) -> Iterator[None]:
    """Import libraries of an extra within this context.

    Args:
        extra: The extra of the package that installs them.
        needed_for: The feature that needs them.

    Raises:
        UserError: A library is not installed.
    """
    try:
        yield
    except ImportError:
        raise missing_extra(extra, needed_for) from None
