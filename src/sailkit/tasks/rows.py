"""Reads the examples of a task from a table, a folder of texts, a data set on the hub, or memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.hub import hub_rows, is_hub_name
from sailkit.files.tables import has_cells, is_companion, read_table, with_ids, with_nested
from sailkit.records import Example, SearchResult
from sailkit.tasks.groups import grouped_by_evidence
from sailkit.tasks.spec import DataSpec, EvidenceFields, Fields

_MEMORY = Path("`examples`")  # stands for the file in errors about rows from memory


class DataFrame(Protocol):
    """The part of a pandas data frame that is used, so that pandas need not be installed."""

    def to_dict(self, orient: str) -> Any:
        """The rows as dicts, with the orientation `records`."""


Examples = Sequence[Example] | Sequence[Mapping[str, Any]] | DataFrame


def table_rows(path: Path, spec: DataSpec) -> Iterator[tuple[Example, str]]:
    """Read the examples of a file or of a data set on the hub, each with its file and line for errors."""
    fields = spec.fields
    assert fields is not None
    if spec.table:
        rows = _joined_rows(path, spec)
        path /= spec.table
    elif path.is_dir():
        raise UserError(f"{path} is a folder; this task reads one .jsonl, .csv or .parquet file")
    else:
        rows = hub_rows(str(path), ("test", "validation", "train")) if is_hub_name(path) else read_table(path)
    text_of = jsonl.filled_field if has_cells(path) else jsonl.text_field
    yield from _with_groups(_examples(rows, fields, spec, path, text_of), fields)


def _joined_rows(folder: Path, spec: DataSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a folder's table, each with the search results that a second table has for its text."""
    assert spec.table is not None
    assert spec.fields is not None
    if folder.is_file():
        raise UserError(f"{folder} is a file; this task reads {spec.table} in a folder")
    evidence = spec.fields.evidence
    if evidence is None or evidence.table is None:
        yield from read_table(folder / spec.table)
        return
    path, key = folder / evidence.table.path, evidence.table.key
    entries: dict[str, list[dict[str, Any]]] = {}
    for line, entry in read_table(path):
        entries.setdefault(jsonl.text_field(entry, key, path, line), []).append(entry)
    for line, row in read_table(folder / spec.table):
        text = with_nested(row, [spec.fields.text]).get(spec.fields.text)
        yield line, {**row, str(evidence.list): entries.get(str(text), [])}


def memory_rows(rows: Examples, spec: DataSpec) -> Iterator[tuple[Example, str]]:
    """Read examples from memory, each with its row number for errors.

    Args:
        rows: Examples; or mappings or a data frame, with the fields of the task's data, or with `text`, `label` and
            optionally `id`, `group` and `evidence` (a list of texts).
        spec: The layout of the task's data.
    """
    if not isinstance(rows, Sequence) and not hasattr(rows, "iloc"):
        kind = type(rows).__name__
        raise UserError(f"`examples` should be a list or a pandas data frame, not a {kind}; write  list(...)")
    if not isinstance(rows, Sequence):
        rows = [{name: _plain(cell) for name, cell in row.items()} for row in rows.to_dict("records")]
    if all(isinstance(row, Example) for row in rows):
        for number, example in enumerate(rows, start=1):
            assert isinstance(example, Example)
            yield replace(example, group=example.group or example.id), f"{_MEMORY}, row {number}"
        return
    numbered = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"{_MEMORY}, row {number}: expected a mapping, found {type(row).__name__}")
        numbered.append((number, dict(row)))
    fields = spec.fields
    if fields is None or (numbered and fields.text not in with_nested(numbered[0][1], fields.names())):
        names = {*numbered[0][1]} if numbered else set()
        fields = Fields(
            text="text",
            label="label",
            group="group" if "group" in names else None,
            evidence=EvidenceFields(list="evidence") if "evidence" in names else None,
        )
    if fields.evidence and fields.evidence.list:  # a row of a data frame without evidence has no list
        numbered = [
            (number, row | {fields.evidence.list: []} if row.get(fields.evidence.list, "") is None else row)
            for number, row in numbered
        ]
    yield from _with_groups(_examples(numbered, fields, spec, _MEMORY, jsonl.text_field), fields)


def _plain(cell: Any) -> Any:
    """A cell of a data frame as in a file: lists are arrays there, and missing values NaN."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _examples(
    rows: Iterable[tuple[int, dict[str, Any]]],
    fields: Fields,
    spec: DataSpec,
    path: Path,
    text_of: Callable[[dict[str, Any], str, Path, int], str],
) -> Iterator[tuple[Example, str]]:
    named = with_ids([(line, with_nested(row, fields.names())) for line, row in rows], fields.id, path)
    groups = {str(row[fields.group]) for _, row in named if fields.group and fields.group in row}
    for line, row in named:
        label = row.get(fields.label)
        if fields.label not in row:
            jsonl.text_field(row, fields.label, path, line)
        name = jsonl.filled_field(row, fields.id, path, line)
        group = "" if fields.groups_by_evidence or not fields.group else jsonl.text_field(row, fields.group, path, line)
        example = Example(
            id=name,
            text=text_of(row, fields.text, path, line),
            label=_mapped(label, spec.label_values, None if label is None else _spelled(label)),
            evidence=_evidence(row, fields.evidence, path, line) if fields.evidence else (),
            stances=_stances(row, fields.evidence) if fields.evidence else (),
            group=group if group.strip() else f"item {name}" if name in groups else name,
        )
        yield example, f"{path}, line {line}"


def _mapped(value: Any, values: Mapping[str, str], default: str | None = None) -> str | None:
    """The label of a value of the data; booleans may be spelled as in JSON or as in Python."""
    return values.get(_spelled(value), values.get(str(value), default))


def _spelled(value: Any) -> str:
    """A label as YAML and JSON write it: true, not Python's True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_groups(rows: Iterable[tuple[Example, str]], fields: Fields) -> Iterable[tuple[Example, str]]:
    if not fields.groups_by_evidence:
        return rows
    examples, lines = zip(*rows, strict=True) if (rows := list(rows)) else ((), ())
    return zip(grouped_by_evidence(examples), lines, strict=True)


def _evidence(row: Mapping[str, Any], fields: EvidenceFields, path: Path, line: int) -> tuple[SearchResult, ...]:
    if fields.list is None:
        cells = (name for name in fields.columns if row.get(name, "") is not None)
        texts = [jsonl.text_field(dict(row), name, path, line) for name in cells]
        return tuple(SearchResult(body=text, rank=rank) for rank, text in enumerate(filter(str.strip, texts), start=1))
    entries = row.get(fields.list)
    if not isinstance(entries, list):
        raise UserError(
            f"{path}, line {line}: field {fields.list!r} should be a list of search results; "
            "columns of text are named as  evidence: [COLUMN, COLUMN]"
        )
    if fields.body is None:
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{path}, line {line}: {fields.list} holds more than texts; name their text with `body`")
        return tuple(SearchResult(body=text, rank=n) for n, text in enumerate(filter(str.strip, entries), start=1))
    results: list[SearchResult] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(body := entry.get(fields.body), str):
            raise UserError(f"{path}, line {line}: {fields.list}[{index}] has no text field {fields.body!r}")
        title, url = (str((entry.get(name) if name else None) or "") for name in (fields.title, fields.url))
        if body.strip():  # without text it is no evidence, and all such passages would count as the same
            results.append(SearchResult(body=body, title=title, url=url, rank=len(results) + 1))
    return tuple(results)


def _stances(row: Mapping[str, Any], fields: EvidenceFields) -> tuple[str | None, ...]:
    """The label that each search result supports; empty unless every result has a stance."""
    entries = [entry for entry in row[str(fields.list)] if entry[fields.body].strip()] if fields.stance else []
    values = [entry.get(fields.stance) for entry in entries]
    return () if None in values else tuple(_mapped(value, fields.stances) for value in values)


def folder_rows(path: Path, spec: DataSpec) -> Iterator[tuple[Example, str]]:
    """Read the examples of a folder of texts, each with its file for errors."""
    label_file = spec.label_file
    assert label_file is not None
    assert spec.folder is not None
    texts = path / spec.folder
    if not texts.is_dir():
        raise UserError(f"{path} has no folder {spec.folder}; `data` should name the folder that holds it")
    labels: dict[str, str] = {}
    ids = jsonl.UniqueIds()
    for line, row in read_table(path / label_file.path):
        where = path / label_file.path
        item = jsonl.text_field(row, label_file.id, where, line)
        ids.add(item, f"{where}, line {line}")
        labels[item] = jsonl.text_field(row, label_file.label, where, line)
    # List the folder and look up the labels, so that no id from a file ever becomes a path.
    for file in sorted(path for path in texts.glob("*.txt") if not is_companion(path)):
        if file.stem not in labels:
            raise UserError(f"{file}: no row with {label_file.id} {file.stem!r} in {path / label_file.path}")
        try:
            text = file.read_text("utf-8-sig").strip()
        except OSError as error:
            raise jsonl.reading_failed(file, error) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 text ({error.reason})") from None
        if not text:
            raise UserError(f"{file}: empty; a text is needed")
        label = labels[file.stem]
        yield Example(file.stem, text, spec.label_values.get(label, label), group=file.stem), str(file)
