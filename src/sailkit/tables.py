"""Tables as people keep them: JSON Lines, JSON lists, CSV and parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sailkit import jsonl, runs
from sailkit.errors import UserError, missing_extra

_LONGEST_FIELD = 2**31 - 1  # characters; the library's own limit is 131,072


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines (also gzipped), JSON list, CSV or parquet file with their numbers from 1.

    The header of a CSV is its line 1.
    """
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                for row in _csv_rows(reader):
                    if None in row or None in row.values():
                        raise UserError(f"{path}, line {reader.line_num}: not as many fields as the header has")
                    yield reader.line_num, row
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as UTF-8 CSV ({error})") from None
    elif path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("parquet", f"reading {path}") from None
        try:
            with path.open("rb") as stream:
                yield from enumerate(pyarrow.parquet.read_table(stream).to_pylist(), start=1)
        except (OSError, pyarrow.ArrowException) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"cannot read {path}: {reason}") from None
    elif path.suffix == ".json":
        yield from enumerate(_json_list(path), start=1)
    else:
        yield from jsonl.read(path)


def with_ids(
    rows: Sequence[tuple[int, dict[str, Any]]], name: str, path: str | Path
) -> list[tuple[int, dict[str, Any]]]:
    """Rows with an id: where no row has the field, each row's number from 1, and one line says so."""
    if not rows or any(name in row for _, row in rows):
        return list(rows)
    runs.notice(f"{path}: no field {name!r}; the number of each row, from 1, is its id")
    return [(line, {**row, name: str(number)}) for number, (line, row) in enumerate(rows, start=1)]


def _csv_rows(reader: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    """Rows whose fields may be long: the library's limit is lifted for our reads, and for nobody else's."""
    while True:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8"), parse_constant=jsonl.refuse_constant)
    except OSError as error:
        raise jsonl.reading_failed(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
    return rows
