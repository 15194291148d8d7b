"""Load plug-ins: a user's searcher, labeler, model or task, named as `module:attribute`."""

from __future__ import annotations

import contextlib
import inspect
import json
import operator
import re
import reprlib
import sys
import traceback
import types
import typing
from collections.abc import Collection, Mapping
from functools import wraps
from importlib import import_module
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl

LABELERS = ("similarity", "overlap", "entailment", "judge")  # kinds of built-in labelers
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PLUS = re.compile(rf"\+(?=(?:{'|'.join(LABELERS)})(?:[:+]|$)|{_NAME.pattern}(?:\+|$))")  # before a labeler's name


class _Checked:
    """Checks the values of a plug-in against its protocol."""

    def __init__(self, plugin: Any, protocol: type, name: str, source: Mapping[str, Any]) -> None:
        self._plugin, self._protocol, self._name, self._source = plugin, protocol, name, source

    def describe(self) -> dict[str, Any]:
        described = self._call("describe", self._plugin.describe)
        try:
            json.dumps(described, allow_nan=False, default=operator.index)
        except (TypeError, ValueError) as error:
            raise self._broken("describe() should return JSON values", error) from None
        return {**described, **self._source}

    def __getattr__(self, member: str) -> Any:
        value = getattr(self._plugin, member)
        if member not in vars(self._protocol) or not callable(value):
            return value
        return wraps(value)(lambda *args, **kwargs: self._call(member, value, *args, **kwargs))

    def _call(self, member: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            returned = method(*args, **kwargs)
        except NotImplementedError as error:
            raise UserError(f"{self._name} does not implement {member}(): {error}") from None
        hint = typing.get_type_hints(getattr(self._protocol, member)).get("return", Any)
        if not _fits(returned, hint):
            text = re.sub(r"[\w.]+\.", "", str(hint) if typing.get_origin(hint) else hint.__name__)
            raise self._broken(f"{member}() should return {text}", reprlib.repr(returned))
        if typing.get_origin(hint) is list and args:
            expected, number = len(args[0]), len(returned)
            if member == "plan":
                if sorted(chain.from_iterable(returned)) != list(range(expected)):
                    raise self._broken(f"plan() should put each index below {expected} into exactly one batch")
            elif number != expected:
                raise self._broken(f"{member}() should return {expected} values", f"it returned {number}")
        return returned

    def _broken(self, rule: str, detail: object = "") -> UserError:
        broken = f"{self._name} breaks the protocol {self._protocol.__name__}: {rule}"
        return UserError(f"{broken}: {detail}" if detail else broken)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type; items of lists are checked, those of mappings are not."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        has_items = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
        return has_items and all(_fits(item, members[0]) for item in value)
    if hint is Any or hint is types.NoneType:
        return True
    abstract: dict[Any, Any] = {int: Integral, float: Real, dict: Mapping}
    return isinstance(value, abstract.get(origin or hint, origin or hint))


def is_plugin(name: str) -> bool:
    """Whether a name has the form `module:attribute`."""
    return _NAME.fullmatch(name) is not None


def split_labelers(name: str) -> list[str]:
    """The labelers that are joined by `+` in a name, such as `similarity+entailment:MODEL`; usually the name alone.

    A plus within the name of a model joins nothing, unless the name of a labeler follows it.
    """
    return _PLUS.split(name)


def source_file(name: str) -> Path | None:
    """The file in the working directory that `module:attribute` is imported from, if there is one."""
    if not is_plugin(name):
        return None
    module = Path(*name.partition(":")[0].split("."))
    return next((file for file in (module / "__init__.py", module.with_suffix(".py")) if file.is_file()), None)


def load_attribute(name: str) -> Any:
    """Import `module:attribute`; modules in the working directory take precedence.

    Raises:
        UserError: The module cannot be imported, or lacks the attribute.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise UserError(f"{name}: {error}; modules are looked for in the working directory first") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        raise UserError(f"{name}: {type(error).__name__}: {error} ({file}, line {line})") from error
    if not hasattr(module, attribute):
        known = [key for key in vars(module) if not key.startswith("_")]
        where = getattr(module, "__file__", None) or "built into Python"
        raise UserError(f"{name}: module {module_name} has no {attribute!r}; {nearest(attribute, known)} in {where}")
    return getattr(module, attribute)


def load_plugin(name: str, protocol: type) -> Any:
    """Load an object that satisfies a protocol; a class is called without arguments.

    Args:
        name: `module:attribute`.
        protocol: The protocol, such as `Labeler`.

    Returns:
        The object; its `describe` also holds the sha256 of its module, and of its class where that is in another file.

    Raises:
        UserError: The plug-in cannot be loaded, or lacks a member of the protocol.
    """
    plugin = load_attribute(name)
    if isinstance(plugin, type):
        try:
            inspect.signature(plugin).bind()
        except TypeError as error:
            raise UserError(f"{name}: a class is called without arguments: {error}") from None
        plugin = plugin()
    source = _source_fingerprint(sys.modules[name.partition(":")[0]], type(plugin))
    # The description holds the source, so that changed code cannot continue a run.
    return checked_plugin(plugin, protocol, name, {"plugin": name, "plugin_source_sha256": source})


def _source_fingerprint(*sources: Any) -> str | None:
    """sha256 of the files that define a module and the class of an object in it; None if neither has a file."""
    files: dict[str, None] = {}  # in order, and each once
    for source in sources:
        with contextlib.suppress(OSError, TypeError):  # built into Python
            files[inspect.getfile(source)] = None
    existing = [file for file in files if Path(file).is_file()]
    return jsonl.file_fingerprint(existing) if existing else None


def checked_plugin(plugin: Any, protocol: type, name: str, source: Mapping[str, Any] | None = None) -> Any:
    """An object whose attributes, and what its methods return, are checked against a protocol.

    Args:
        plugin: The object.
        protocol: The protocol.
        name: Name of the object, for errors.
        source: What to add to its description.

    Raises:
        UserError: It lacks a member of the protocol, or an attribute has another type.
    """
    check_members(plugin, protocol, name)
    return _Checked(plugin, protocol, name, source or {})


def check_members(plugin: Any, protocol: type, name: str) -> None:
    """Raise a UserError if an object lacks a member of a protocol, or an attribute has another type."""
    attributes = typing.get_type_hints(protocol)
    members = [*attributes, *(key for key in vars(protocol) if not key.startswith("_"))]
    if missing := [member for member in members if not hasattr(plugin, member)]:
        raise UserError(f"{name} is no {protocol.__name__}: it lacks {', '.join(missing)}")
    for member, hint in attributes.items():
        if not _fits(value := getattr(plugin, member), hint):
            raise UserError(f"{name} is no {protocol.__name__}: {member} should be {hint.__name__}, not {value!r}")
