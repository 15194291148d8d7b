"""Read instructions in common formats; read and write rows of instructions with their search results."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from sailkit import runs
from sailkit.errors import UserError, at_least_one, nearest
from sailkit.files import jsonl
from sailkit.files.hub import hub_rows, is_hub_name
from sailkit.files.tables import read_table, with_nested
from sailkit.records import Instruction, Searched, SearchOutcome, SearchResult
from sailkit.text import without_surrogates

RESULTS = "results.jsonl"
_FIELDS = ("id", "instruction", "input", "output")
_PREAMBLE = re.compile(r"(?:Below is an instruction[^\n]*\n++)?")


def read_instructions(
    source: str | Path, fields: Sequence[str] | None = None, limit: int | None = None
) -> list[Instruction]:
    """Read instructions from a file or the hub.

    Known without `fields`: Alpaca's `{instruction, input, output}`, self-instruct's `instances`, and
    `{prompt, completion}` with or without Alpaca's headings. A row without an id gets its number, from 1.

    Args:
        source: A table (see `sailkit.files.tables.read_table`), or a name on the hub (`OWNER/NAME[:SPLIT]`).
        fields: `ours=theirs` for any of id, instruction, input, output.
        limit: Use only the first LIMIT.

    Raises:
        UserError: The source is missing or empty, a row cannot be read, or an id is used twice; the line is named.
    """
    at_least_one(limit=limit)
    names = _field_names(fields)
    path = Path(source)
    rows = hub_rows(str(source), ("train",)) if is_hub_name(source) else read_table(path)
    instructions: list[Instruction] = []
    ids = jsonl.UniqueIds()
    for line, row in islice(rows, limit):
        where = f"{source}, line {line}"
        instructions.append(_instruction(row, names, len(instructions) + 1, where))
        ids.add(instructions[-1].id, where)
    if not instructions:
        raise UserError(f"{source}: no instructions")
    return instructions


def _field_names(fields: Sequence[str] | None) -> dict[str, str]:
    names = {}
    for pair in (pair for text in fields or () for pair in text.split(",")):
        ours, _, theirs = pair.partition("=")
        if ours not in _FIELDS or not theirs:
            raise UserError(f"`fields` {pair!r}: write ours=theirs; {nearest(ours, _FIELDS)}")
        names[ours] = theirs
    return names


def _instruction(row: Mapping[str, Any], names: Mapping[str, str], number: int, where: str) -> Instruction:
    values = dict(row)
    if "instruction" not in names and "instruction" not in row and isinstance(row.get("prompt"), str):
        values |= _alpaca_fields(row["prompt"]) or {"instruction": row["prompt"]}
        values |= {"output": row["completion"]} if "completion" in row else {}
    elif isinstance(row.get("instances"), list) and row["instances"] and isinstance(row["instances"][0], dict):
        values = {**row["instances"][0], **values}
    row = with_nested(row, names.values())
    for name in names.values():
        if name not in row:
            raise UserError(f"{where}: no field {name!r} (found: {', '.join(sorted(row)) or 'nothing'})")
    values |= {ours: row[theirs] for ours, theirs in names.items()}
    if "instruction" not in values:
        raise UserError(
            f"{where}: no field 'instruction' (found: {', '.join(sorted(row)) or 'nothing'}); "
            "say which with `fields` instruction=NAME,output=NAME"
        )
    identity = str(number) if values.get("id") is None else _text(values["id"], "id", where)
    if not identity.strip():
        raise UserError(f"{where}: field 'id' is empty; fill it, or remove the column")
    texts = [_text(values.get(name), name, where) for name in _FIELDS[1:]]
    return Instruction(identity, *texts)


def _alpaca_fields(prompt: str) -> dict[str, str] | None:
    """Parse instruction and input from Alpaca's prompt, as in prompt/completion files; None for another prompt."""
    preamble, first_heading, rest = prompt.partition("### Instruction:")
    body, last_heading, response = rest.rpartition("\n### Response:")
    if not first_heading or not last_heading or response.strip() or not _PREAMBLE.fullmatch(preamble):
        return None
    instruction, _, text = body.partition("\n### Input:")
    return {"instruction": instruction.lstrip().rstrip("\n"), "input": text.lstrip().rstrip("\n")}


def _text(value: object, name: str, where: str) -> str:
    """A field as text; null is an empty text, and several answers are joined."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "; ".join(value)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: field {name!r} should be text, found {type(value).__name__}")
    return jsonl.check_text(str(value), name, where)


def make_result(source: str, rank: int, title: object, body: object, url: object = "", at: str = "") -> SearchResult:
    """Make a search result from an engine's fields: what is not text becomes empty, a lone surrogate a `?`."""
    title, body, url = (without_surrogates(text) if isinstance(text, str) else "" for text in (title, body, url))
    title = title if title.strip() else ""
    return SearchResult(body=body, title=title, url=url, source=source, rank=rank, retrieved_at=at)


def with_text(results: Iterable[SearchResult]) -> tuple[SearchResult, ...]:
    """The results whose body has more than white space and control characters."""
    return tuple(result for result in results if any(c.isprintable() and not c.isspace() for c in result.body))


def searched_row(searched: Searched) -> jsonl.JsonObject:
    """A row of `results.jsonl`."""
    row: jsonl.JsonObject = {
        **asdict(searched.instruction),
        "results": [asdict(result) for result in searched.results],
        "searches": searched.searches,
    }
    return row | ({"dropped_results": searched.dropped_results} if searched.dropped_results else {})


def read_searched(source: str | Path) -> list[Searched]:
    """Read instructions with their search results.

    Args:
        source: A run folder of `search`, or a file of rows `{id, instruction, input, output, results}`. A row whose
            `results` is null was not searched; results without text are dropped and counted.

    Raises:
        UserError: The file is missing, malformed or empty; file and line are named.
    """
    path = Path(source)
    path = path / RESULTS if path.is_dir() else path
    rows: list[Searched] = []
    ids = jsonl.UniqueIds()
    for line, row in read_table(path):
        where = f"{path}, line {line}"
        instruction = _instruction(row, {}, len(rows) + 1, where)
        ids.add(instruction.id, where)
        if "results" not in row:
            raise UserError(f"{where}: no field 'results'; run  sailkit search  first")
        all_results = _results(row["results"], where)
        results = with_text(all_results)
        dropped = row.get("dropped_results") or 0
        if not isinstance(dropped, int):
            raise UserError(f"{where}: field 'dropped_results' should be a number")
        dropped += len(all_results) - len(results)
        rows.append(Searched(instruction, results, _searches(row, where), dropped))
    if not rows:
        raise UserError(f"{path}: no rows")
    if len(rows) < _planned_rows(path):
        raise runs.not_finished(path.parent, "search")
    return rows


def _planned_rows(path: Path) -> int:
    """Number of rows of a finished run of search, by its manifest; 0 if the file belongs to no run."""
    with contextlib.suppress(UserError):
        manifest = runs.read_manifest(path.parent) if path.name == RESULTS else {}
        if manifest.get("stage") == "search":
            return int(manifest["settings"]["n"])
    return 0


def _results(value: object, where: str) -> list[SearchResult]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UserError(f"{where}: field 'results' should be a list of objects, or null")
    results = []
    for position, entry in enumerate(value, start=1):
        rank = entry.get("rank")
        rank = position if rank is None else rank
        if not isinstance(rank, int):
            raise UserError(f"{where}: results[{position - 1}]: rank should be a whole number")
        source, at = (str(entry.get(name) or "") for name in ("source", "retrieved_at"))
        results.append(make_result(source, rank, entry.get("title"), entry.get("body"), entry.get("url"), at))
    return results


def _searches(row: Mapping[str, Any], where: str) -> dict[str, SearchOutcome]:
    known = get_args(SearchOutcome)
    value = row.get("searches")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(outcome in known for outcome in value.values()):
        raise UserError(f"{where}: field 'searches' should give each engine one of {', '.join(known)}")
    return value
