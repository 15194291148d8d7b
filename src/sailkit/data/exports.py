"""Read and write training examples as structured rows, TRL's prompt/completion, or SAIL's conversations.

The last two formats are text: they keep only title and body of a search result, and a body can contain the format's own
delimiters (`(2) ` after an empty line). `export` counts the rows that do not survive a round trip.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl
from sailkit.files.rows import parse_row
from sailkit.files.tables import read_table
from sailkit.prompts.headings import escaped
from sailkit.prompts.render import as_text
from sailkit.prompts.sail import (
    STYLES,
    completion,
    prompt_parts,
    read_verification,
    user_turn,
    verification,
)
from sailkit.prompts.styles import wording
from sailkit.records import SearchResult, TrainingExample

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
DROPPED = "dropped.jsonl"  # rows that were left out, each with the reason


def example_row(example: TrainingExample) -> jsonl.JsonObject:
    """A structured row of `train.jsonl`."""
    return asdict(example)


def sail_row(example: TrainingExample) -> jsonl.JsonObject:
    """A row of SAIL's `SAIL_train.json`, always in the published wording."""
    published = replace(example, style="sail")
    turns = [
        {"from": "human", "value": as_text(user_turn(published))},
        {"from": "gpt", "value": completion(published)},
    ]
    return {"id": example.id, "conversations": turns, **_unjudged(example)}


def trl_row(example: TrainingExample) -> jsonl.JsonObject:
    """A row of TRL's prompt/completion: messages in style `chat`, else text (TRL appends the EOS token)."""
    if example.style == "chat":
        prompt: Any = [{"role": "user", "content": as_text(user_turn(example))}]
        reply: Any = [{"role": "assistant", "content": completion(example)}]
    else:
        prompt, reply = as_text(prompt_parts(example)), wording()["text"]["gap"] + completion(example)
    # TRL ignores `style`; it is needed to read back rows without search results, whose text does not show the style.
    return {"id": example.id, "style": example.style, "prompt": prompt, "completion": reply, **_unjudged(example)}


def _unjudged(example: TrainingExample) -> jsonl.JsonObject:
    """A field that marks completions without a verification sentence; without it, readers expect one."""
    return {"judged": False} if example.results and not example.judgements else {}


def in_text(example: TrainingExample) -> TrainingExample:
    """The example reduced to what its text format keeps: title and body of results, with headings escaped."""
    example = escaped(example)
    results = tuple(SearchResult(result.body, title=result.title) for result in example.results)
    response = example.response if example.style == "sail" else example.response.strip()
    return replace(example, results=results, response=response)


def export(examples: Sequence[TrainingExample], form: str, stem: Path) -> dict[str, Any]:
    """Write examples in the format of another program.

    Args:
        examples: The examples.
        form: `trl` (JSON Lines), `trl-parquet`, or `sail` (a JSON list).
        stem: The path of the file, without its suffix.

    Returns:
        `file`, `rows`, and `ambiguous`: how many rows do not survive a round trip.
    """
    rows = [sail_row(example) if form == "sail" else trl_row(example) for example in examples]
    if form == "sail":
        path = stem.with_name(f"{stem.name}.sail.json")
        jsonl.write_atomic(path, "[" + ",\n".join(map(jsonl.dumps, rows)) + "]\n")
    elif form == "trl":
        path = stem.with_name(f"{stem.name}.trl.jsonl")
        jsonl.write_rows(path, rows)
    else:
        path = stem.with_name(f"{stem.name}.trl.parquet")
        jsonl.write_atomic(path, _parquet(rows))
    ambiguous = 0
    for example, row in zip(examples, rows, strict=True):
        expected = in_text(replace(example, style="sail") if form == "sail" else example)
        try:
            ambiguous += read_row(row, "") != expected
        except UserError:
            ambiguous += 1
    return {"file": path.name, "rows": len(rows), "ambiguous": ambiguous}


def _parquet(rows: Sequence[jsonl.JsonObject]) -> bytes:
    with required_extra("parquet", "writing parquet"):
        import pyarrow
        import pyarrow.parquet
    stream = io.BytesIO()
    names = {name: None for row in rows for name in row}  # pyarrow infers columns from the first row alone
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**names, **row} for row in rows]), stream)
    return stream.getvalue()


def read_examples(path: str | Path) -> list[TrainingExample]:
    """Read training examples, as structured rows or in a format that `export` writes.

    Args:
        path: A run folder of `build` (its training rows), or a `.jsonl`, `.json` or `.parquet` file.

    Raises:
        UserError: The file is missing or empty, or a row has none of these formats; file and line are named.
    """
    path = Path(path)
    path = path / TRAIN if path.is_dir() else path
    examples: list[TrainingExample] = []
    ids = jsonl.UniqueIds()
    for line, row in read_table(path):
        example = read_row({"id": str(len(examples)), **row}, f"{path}, line {line}")
        ids.add(example.id, f"{path}, line {line}")
        examples.append(example)
    if not examples:
        raise UserError(f"{path}: no training examples")
    return examples


def read_row(row: Mapping[str, Any], where: str) -> TrainingExample:
    """Parse a row in any of the formats.

    Raises:
        UserError: The row has none of them.
    """
    judged = row.get("judged") is not False
    if "conversations" in row:
        texts = _turns(row["conversations"], ("human", "gpt"), "from", "value", where)
        return _from_text(str(row["id"]), texts, "sail", judged, where)
    if "prompt" in row and "completion" in row:
        prompt, reply = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(reply, list):
            texts = _turns([*prompt, *reply], ("user", "assistant"), "role", "content", where)
            return _from_text(str(row["id"]), texts, "chat", judged, where)
        return _from_prompt(str(row["id"]), prompt, reply, row.get("style"), judged, where)
    return _from_fields(row, where)


def _turns(value: object, roles: tuple[str, str], role: str, text: str, where: str) -> list[str]:
    turns = value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else []
    if tuple(turn.get(role) for turn in turns) != roles:
        raise UserError(f"{where}: a conversation should have one turn of {roles[0]} and one of {roles[1]}")
    return [jsonl.check_text(turn.get(text), text, where) for turn in turns]


def _from_prompt(name: str, prompt: object, reply: object, style: object, judged: bool, where: str) -> TrainingExample:
    words = wording()["text"]
    head, tail, gap = words["head"], words["tail"], words["gap"]
    fits = isinstance(prompt, str) and prompt.startswith(head) and prompt.endswith(tail)
    if not (fits and isinstance(prompt, str) and isinstance(reply, str) and reply.startswith(gap)):
        raise UserError(f"{where}: not a prompt and completion of sailkit's; its text styles and chat are read")
    user, completion_text = prompt[len(head) : len(prompt) - len(tail)], reply[len(gap) :]
    # A row without `style` is recognised by the wording of its verification sentence.
    for candidate in ("sail-fixed", "sail"):
        example = _parse(name, user, completion_text, candidate, judged) if style in (None, candidate) else None
        if example is not None:
            return example
    raise _not_read(where)


def _from_text(name: str, turns: Sequence[str], style: str, judged: bool, where: str) -> TrainingExample:
    example = _parse(name, turns[0], turns[1], style, judged)
    if example is None:
        raise _not_read(where)
    return example


def _not_read(where: str) -> UserError:
    return UserError(f"{where}: the text does not have the form of search results, instruction and flags")


@cache
def _frame(style: str) -> re.Pattern[str]:
    """A pattern for the user turn of a style, with a group for each field."""
    frame = wording()["chat" if style == "chat" else "text"]
    given = re.escape(frame["input"]).replace(re.escape("{input}"), "(?P<input>.*?)")
    pattern = re.escape(frame["human"]).replace(re.escape("{input}"), f"(?:{given})?")
    for name in ("results", "instruction"):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>.*?)")
    return re.compile(pattern, re.DOTALL)


def _parse(name: str, user: str, reply: str, style: str, judged: bool) -> TrainingExample | None:
    match = _frame(style).fullmatch(user)
    if match is None:
        return None
    results = _read_results(match["results"])
    judgements = None if results is None else read_verification(reply, len(results)) if judged else ()
    if results is None or judgements is None:
        return None
    sentence = verification(judgements, style)
    opening = sentence + wording()["behind_verification"] if sentence else ""
    if not reply.startswith(opening):
        return None
    response = reply[len(opening) :]
    return TrainingExample(
        name, match["instruction"], match["input"] or "", results, tuple(judgements), response, style
    )


def _read_results(text: str) -> tuple[SearchResult, ...] | None:
    words = wording()
    if text == words["no_results"]:
        return ()
    opening, between = words["result"].split("{title}")[0], words["results_join"]
    if not text.startswith(opening.format(number=1)):
        return None
    bodies: list[str] = []
    position: int | None = 0
    while position is not None:
        start = position + len(opening.format(number=len(bodies) + 1))
        end = text.find(between + opening.format(number=len(bodies) + 2), start)
        bodies.append(text[start : end if end >= 0 else None])
        position = end + len(between) if end >= 0 else None
    pairs = [body.partition("\n") for body in bodies]
    return tuple(SearchResult(body, title=title) for title, _, body in pairs)


def _without_nulls(value: object) -> object:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _from_fields(row: Mapping[str, Any], where: str) -> TrainingExample:
    # Rows of other programs may have null for a missing URL, rank or time.
    results = [_without_nulls(result) for result in row["results"]] if isinstance(row.get("results"), list) else None
    example = parse_row(TrainingExample, {**row, "results": results} if results is not None else row, where)
    for name in ("id", "instruction", "input", "response"):
        jsonl.check_text(getattr(example, name), name, where)
    for index, result in enumerate(example.results):
        jsonl.check_text(result.title, f"results.{index}.title", where)
        jsonl.check_text(result.body, f"results.{index}.body", where)
    if example.style not in STYLES:
        raise UserError(f"{where}: style should be one of {', '.join(STYLES)}, not {example.style!r}")
    if len(example.judgements) not in (0, len(example.results)):
        raise UserError(f"{where}: field 'judgements' should have one verdict per result, or be empty")
    return example
