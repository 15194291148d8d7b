"""Adapt signatures of stages for the command line and recipes: remove types that only Python can pass."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from cyclopts import Parameter, Token

_WORDS = (str, int, float, bool, Path, types.NoneType)  # types that a command-line argument can have


def for_command_line(stage: Callable[..., Any], *more: inspect.Parameter) -> Callable[..., Any]:
    """Restrict a stage's parameters to types that a command line can pass.

    Args:
        stage: The stage; types such as models or results in memory are removed from its annotations.
        more: Parameters to append.

    Returns:
        A function that calls the stage, with signature and annotations for cyclopts.
    """

    @functools.wraps(stage)
    def call(*args: Any, **kwargs: Any) -> Any:
        return stage(*args, **kwargs)

    hints = typing.get_type_hints(stage, include_extras=True)
    signature = inspect.signature(stage)
    written = {name: _whole_numbers(_writable(hint)) for name, hint in hints.items() if name != "return"}
    parameters = [*(p.replace(annotation=written[p.name]) for p in signature.parameters.values()), *more]
    call.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    call.__annotations__ = {**{p.name: p.annotation for p in parameters}, "return": None}
    return call


def _writable(hint: Any) -> Any:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_writable(members[0]), *members[1:])]
    if origin in (Union, types.UnionType):
        written = [_writable(member) for member in members if _is_writable(member)]
        # Where both Path and str are accepted, keep the first, which the help shows.
        texts = [member for member in written if member in (str, Path)]
        return Union[tuple(member for member in written if member not in texts[1:])]  # noqa: UP007
    if origin is list:
        return list[_writable(members[0])]  # type: ignore[misc]
    return hint


def _whole_numbers(hint: Any) -> Any:
    """A hint for whole numbers with a converter that refuses 2.7, which cyclopts would round."""
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    members = typing.get_args(bare) if typing.get_origin(bare) in (Union, types.UnionType) else (bare,)
    return Annotated[hint, Parameter(converter=_whole_number)] if {*members} - {types.NoneType} == {int} else hint


def _whole_number(_: Any, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"should be a whole number, not {tokens[0].value!r}") from None


def _is_writable(hint: Any) -> bool:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple, Union, types.UnionType):
        return any(_is_writable(member) for member in members)
    return origin is Literal or hint in _WORDS
