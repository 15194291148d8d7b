"""The errors that a user can fix; any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints


class UserError(Exception):
    """A mistake that the user can fix: what, where and how to fix it, in one line (the CLI exits 2).

    An argument is named in backquotes, as `max_length` or `chat='off'`; the CLI writes it as a flag.
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
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}(known: {', '.join(names)})"


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


def check_choices(stage: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse values that a `Literal` annotation excludes; the command line checks them, a Python call does not.

    Args:
        stage: The function with the annotations.
        values: The values of its parameters; None passes.

    Raises:
        UserError: A value is not one of its parameter's choices.
    """
    for name, hint in get_type_hints(stage).items():
        literals = [member for member in (hint, *get_args(hint)) if get_origin(member) is Literal]
        choices = [choice for literal in literals for choice in get_args(literal)]
        if choices and (value := values.get(name)) is not None and value not in choices:
            raise UserError(f"`{name}` takes {', '.join(choices)}, not {value!r}")


def missing_extra(extra: str, needed_for: str) -> UserError:
    """The error for an optional dependency that is not installed, with the command that installs it."""
    return UserError(f"{needed_for} needs an extra: run  pip install 'sailkit[{extra}]'")
