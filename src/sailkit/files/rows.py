"""Validate rows of files against the dataclasses of their records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from sailkit.errors import UserError

Record = TypeVar("Record")
_TYPES = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a JSON object",
    "dataclass": "a JSON object",
}


def parse_row(record: type[Record], row: Mapping[str, Any], where: str) -> Record:
    """Parse a row of a file into a record; unknown keys are ignored.

    Args:
        record: A dataclass.
        row: The row.
        where: Its file and line.

    Raises:
        UserError: A field is missing or has the wrong type; the field is named.
    """
    from pydantic import ValidationError

    try:
        return cast(Record, _adapter(cast(Any, record)).validate_python(row))
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors(include_url=False)[0], row)}") from None


@cache
def _adapter(record: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record)


def _explain(error: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    kind = str(error["type"])
    if kind == "missing":
        there = f" (found: {', '.join(sorted(row)) or 'nothing'})" if len(error["loc"]) == 1 else ""
        return f"no field {name!r}{there}"
    if kind == "unexpected_keyword_argument":
        return f"unknown field {name!r}"
    if kind == "literal_error":
        return f"field {name!r} should be {error['ctx']['expected']}, not {error['input']!r}"
    if (wanted := _TYPES.get(kind.removesuffix("_type").removesuffix("_parsing"))) is not None:
        return f"field {name!r} should be {wanted}, found {type(error['input']).__name__}"
    return f"field {name!r}: {str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}"
