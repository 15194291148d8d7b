"""Check the arguments of a stage, so that a call from Python is as safe as one from the command line."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union

from cyclopts import Parameter

from sailkit.errors import UserError, did_you_mean
from sailkit.packaged import is_sample, sample_path

P = ParamSpec("P")
R = TypeVar("R")


def renamed(old: str) -> Parameter:
    """An annotation for an argument that had another name, which is still accepted.

    Args:
        old: The earlier name: in Python and recipes an argument, on the command line a flag that the help leaves out.
    """
    return Parameter(alias=f"--{old.replace('_', '-')}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check and convert the arguments of a stage before it runs.

    A path may be text or `sample:NAME`, and a list of one entry may be the entry. Choices and numbers are checked, in
    options too. Arguments may have their earlier names (see `renamed`).

    Raises:
        UserError: An argument is none of the choices, or of the wrong type.
    """
    hints: dict[str, Any] = {}
    names: dict[str, str] = {}  # earlier name -> name

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:
            hints.update(typing.get_type_hints(function, include_extras=True))
            names.update(_earlier_names(hints))
        given = {_current(name, names, kwargs): value for name, value in kwargs.items()}
        try:
            bound = inspect.signature(function).bind(*args, **given)
        except TypeError:
            return function(*args, **kwargs)  # Python says it best
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_convert(name, each, hints[name]) for each in value)
            else:
                bound.arguments[name] = _convert(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return call


def _current(name: str, names: dict[str, str], given: dict[str, Any]) -> str:
    current = names.get(name, name)
    return name if current in given else current  # both names: Python refuses the earlier one


def _earlier_names(hints: dict[str, Any]) -> dict[str, str]:
    annotations = ((name, getattr(hint, "__metadata__", ())) for name, hint in hints.items())
    parameters = ((name, each) for name, metadata in annotations for each in metadata if isinstance(each, Parameter))
    return {flag[2:].replace("-", "_"): name for name, each in parameters for flag in each.alias or ()}


def _convert(name: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    origins = {typing.get_origin(member): member for member in members}
    if value is None and types.NoneType in members:
        return None
    if list in origins and isinstance(value, (str, Path)) and not {str, Path} & {*members}:
        value = [value]
    if isinstance(value, tuple) and list in origins:
        value = list(value)
    if isinstance(value, list) and list in origins:
        return [_convert(name, entry, typing.get_args(origins[list])[0]) for entry in value]
    if isinstance(value, (str, Path)) and is_sample(value) and {str, Path} & {*members}:
        value = sample_path(value) if Path in members else str(sample_path(value))
    if isinstance(value, str) and Path in members and str not in members:
        return Path(value)
    if Literal in origins:
        choices = typing.get_args(origins[Literal])
        if value not in choices:
            meant = did_you_mean(str(value), choices)
            raise UserError(f"`{name}` takes {', '.join(choices)}, not {value!r}{meant and '; ' + meant}")
    elif len(kinds := [member for member in members if member is not types.NoneType]) == 1:
        _check_scalar(name, value, kinds[0])
    if is_dataclass(hint):  # options; their fields are checked, and stay as they are
        own = typing.get_type_hints(type(value), include_extras=True)
        for field in fields(value):
            _convert(field.name, getattr(value, field.name), own[field.name])
    return value


def _check_scalar(name: str, value: Any, kind: Any) -> None:
    numbers = {bool: (bool, "true or false"), int: (Integral, "a whole number"), float: (Real, "a number")}
    if kind in numbers:
        accepted, words = numbers[kind]
        if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
            raise UserError(f"`{name}` should be {words}, not {value!r}")
    elif kind in (str, Path) and isinstance(value, (bool, int, float, list, tuple, dict)):
        raise UserError(f"`{name}` should be text, not {value!r}")
    elif isinstance(kind, type) and is_dataclass(kind) and not isinstance(value, kind):
        raise UserError(f"`{name}` should be a {kind.__name__}, not {value!r}")
