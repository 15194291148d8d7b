"""Load plug-ins: a user's searcher, labeler, model or task, named as `module:attribute`."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class _Described:
    """Adds the fingerprint of a plug-in's source to its description, so that changed code cannot continue a run."""

    def __init__(self, plugin: Any, name: str, source: str | None) -> None:
        self._plugin = plugin
        self._source = {"plugin": name, "plugin_source_sha256": source}

    def describe(self) -> dict[str, Any]:
        return {**self._plugin.describe(), **self._source}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plugin, name)


def is_plugin(name: str) -> bool:
    """Whether a name has the form `module:attribute`."""
    return _NAME.fullmatch(name) is not None


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
        The object; its `describe` also holds the sha256 of the file that defines it.

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
    members = [*getattr(protocol, "__annotations__", ()), *(key for key in vars(protocol) if not key.startswith("_"))]
    if missing := [member for member in members if not hasattr(plugin, member)]:
        raise UserError(f"{name} is no {protocol.__name__}: it lacks {', '.join(missing)}")
    try:
        source = jsonl.file_fingerprint([inspect.getfile(type(plugin))])
    except (OSError, TypeError):
        source = None
    return _Described(plugin, name, source)
