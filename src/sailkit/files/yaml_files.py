"""Read YAML with booleans and numbers as in YAML 1.2, and one-line errors."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError

from sailkit.errors import UserError
from sailkit.files import jsonl

_BOOL, _INT, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp"))


class _Loader(yaml.SafeLoader):
    """As in YAML 1.2: only true and false are booleans, `no`, dates and 1:30 are text, 1e-5 is a number.

    Keys are unique.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                keys.add(key.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (_BOOL, _INT, _FLOAT, _TIME)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_DIGITS = list("-+.0123456789")
_Loader.add_implicit_resolver(_INT, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), _DIGITS)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    _DIGITS,
)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)  # 010 is ten, and octal in YAML 1.1


_Loader.add_constructor(_INT, _construct_int)


def parse_yaml(text: str, where: str | Path) -> Any:
    """Parse a YAML text.

    Args:
        text: The text.
        where: Source of the text, for errors.

    Raises:
        UserError: The text is not YAML, or nested too deeply.
    """
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # the last three as of `!!int x`
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where}: YAML nested too deeply") from None


@cache
def packaged_yaml(name: str) -> dict[str, Any]:
    """The content of a YAML file of the package, by its path in it."""
    content: dict[str, Any] = parse_yaml((resources.files("sailkit") / name).read_text("utf-8"), name)
    return content


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: The file cannot be read or is not YAML.
    """
    try:
        return parse_yaml(Path(path).read_text("utf-8-sig"), path)
    except OSError as error:
        raise jsonl.reading_failed(path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: not UTF-8 text ({error.reason})") from None
