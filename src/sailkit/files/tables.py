"""Read tables: JSON Lines, JSON lists, CSV and parquet, also gzipped, and the variants that spreadsheets save."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sailkit import runs
from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl, unpacking
from sailkit.files.unpacking import Limit, open_gzip

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_FIELD = 2**31 - 1  # characters; the csv module's default is 131,072
_BATCH = 1024  # rows read at a time from a parquet file
_ABSENT = object()
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}  # the one that gives the most fields, the first on ties
_QUOTES = "a field that begins with a quote ends with one, and quotes within it are doubled"
_NOT_TABLES = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "a spreadsheet; save it as CSV UTF-8"),
    **dict.fromkeys((".zip", ".7z", ".tar", ".tgz"), "an archive; unpack it"),
    **dict.fromkeys((".bz2", ".xz", ".zst"), "compressed in another way than gzip; unpack it"),
    **dict.fromkeys((".pkl", ".pickle", ".arrow", ".feather"), "no table that is read here; save it as parquet"),
}


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a JSON Lines, JSON list, CSV, TSV (each also gzipped) or parquet file; yields line numbers and rows.

    The header of a CSV is line 1. The separator is a comma, a semicolon or a tab; the encoding is UTF-8, or UTF-16 if
    the file begins with its byte order mark.

    Raises:
        UserError: The file cannot be read, or its suffix is not supported; file and line are named.
    """
    kind = table_kind(path)
    if kind in _NOT_TABLES:
        raise UserError(f"{path} is {_NOT_TABLES[kind]}")
    if kind == ".parquet":
        yield from _parquet_rows(path)
    elif kind == ".json":
        yield from _json_rows(path)
    elif kind in _SEPARATORS or (kind == ".txt" and _encoding(path) == "utf-16"):  # a spreadsheet's "Unicode text"
        yield from _csv_rows(path, _SEPARATORS.get(kind, "\t"))
    else:
        yield from jsonl.read_rows(path)


def table_kind(path: Path) -> str:
    """The kind of file by its name: the ending in lower case, without `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]


def is_companion(path: PurePath) -> bool:
    """Whether a file is one of the binary companions that macOS adds to files on other disks and in archives."""
    return path.name.startswith("._")


def has_cells(path: Path) -> bool:
    """Whether a table has cells (CSV), in which a missing text is written as an empty one."""
    return table_kind(path) in (*_SEPARATORS, ".txt")


def with_ids(
    rows: Sequence[tuple[int, dict[str, Any]]], name: str, path: str | Path
) -> list[tuple[int, dict[str, Any]]]:
    """Add ids to rows: if no row has the field, the row number from 1, with a notice."""
    if not rows or any(name in row for _, row in rows):
        return list(rows)
    runs.notice(f"{path}: no field {name!r}; the number of each row, from 1, is its id")
    return [(line, {**row, name: str(number)}) for number, (line, row) in enumerate(rows, start=1)]


def with_nested(row: Mapping[str, Any], names: Iterable[str | None]) -> dict[str, Any]:
    """Add nested fields to a row under their dotted names, such as `doc.claim`."""
    flat = dict(row)
    for name in filter(None, names):
        value: Any = row
        for part in name.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if name not in row and value is not _ABSENT:
            flat[name] = value
    return flat


def _encoding(path: Path) -> str:
    """UTF-8, unless the file begins with UTF-16's byte order mark."""
    try:
        with open_gzip(path) as stream:
            return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    except unpacking.ERRORS as error:
        raise jsonl.reading_failed(path, error) from None


def _csv_rows(path: Path, separators: str) -> Iterator[tuple[int, dict[str, Any]]]:
    encoding = _encoding(path)
    read = 1  # lines read; an unclosed quote swallows the rest of the file
    try:
        with open_gzip(path) as binary, TextIOWrapper(binary, encoding=encoding, newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(separators, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
            reader = csv.DictReader(stream, strict=True, delimiter=delimiter)
            names = reader.fieldnames or []
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise UserError(f"{path}, line 1: column {twice!r} is given twice; rename one of them")
            for row in _long_rows(reader):
                if None in row or None in row.values():
                    raise UserError(f"{path}, line {reader.line_num}: not as many fields as the header has")
                yield reader.line_num, row
                read = reader.line_num
    except unpacking.ERRORS as error:
        raise jsonl.reading_failed(path, error) from None
    except (csv.Error, UnicodeError) as error:
        broken = isinstance(error, csv.Error)
        where, mend = (f"{path}, after line {read}", _QUOTES) if broken else (path, "save it as UTF-8")
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{where}: not readable as {name} CSV ({error}); {mend}") from None


def _long_rows(reader: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    """Read rows with long fields: the csv module's global limit is raised only while a row is read."""
    while True:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with required_extra("parquet", f"reading {path}"):
        import pyarrow.parquet
    try:
        limit, size, number = Limit(path), 0, 0
        with path.open("rb") as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=_BATCH):
                size += batch.nbytes
                limit.check(size)
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON list, or of JSON Lines in a file named `.json`."""
    try:
        with open_gzip(path) as stream:
            data = stream.read()
        rows = json.loads(data.decode(json.detect_encoding(data)), parse_constant=jsonl.refuse_constant)
    except unpacking.ERRORS as error:
        raise jsonl.reading_failed(path, error) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from jsonl.read_rows(path)
            return
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if isinstance(rows, dict) and len(data.splitlines()) == 1:  # JSON Lines with a single row
        yield 1, rows
        return
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def to_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a pandas data frame.

    Raises:
        UserError: pandas is not installed.
    """
    with required_extra("pandas", "a data frame"):
        import pandas as pd
    return pd.DataFrame(list(rows))
