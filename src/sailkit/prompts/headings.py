"""Breaks up what looks like a part of the prompt in the text of search results and of questions."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from sailkit.prompts.styles import wording
from sailkit.records import TrainingExample


@cache
def _heading() -> re.Pattern[str]:
    names = "|".join(re.escape(name).replace(r"\ ", "[ \t]++") for name in wording()["headings"])
    # Possessive quantifiers: with backtracking, a million hashes would take hours.
    return re.compile(rf"(?<!#)#{{2,}}+(?=[ \t]*+(?:{names})[ \t]*+:)", re.IGNORECASE)


def escape_headings(text: str) -> str:
    """Break up text that looks like a heading of the prompt: `### Response:` becomes `# # # Response:`."""
    return _heading().sub(lambda match: " ".join(match.group()), text)


# What a model may take for the end of a line.
_LINE_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"


@cache
def _line_start(style: str) -> re.Pattern[str]:
    """How lines of the prompt itself begin: a numbered search result, and in `chat` a heading."""
    frames = wording()["chat"].values() if style == "chat" else ()
    names = [name for frame in frames for name in re.findall(r"^(\w[\w ]*:)", frame, re.MULTILINE)]
    starts = "|".join([r"\(\d+\)", *map(re.escape, names)])
    return re.compile(rf"(?:^|(?<=[{_LINE_ENDS}]))(?=[^\S\n\r]*(?:{starts}))", re.IGNORECASE)


def escape_result(text: str, style: str, *, begins_line: bool = True) -> str:
    """Break up what looks like a heading or another search result in the text of a search result.

    Headings are escaped; a line that begins as a line of the prompt does is quoted: `(2) Title` becomes `> (2) Title`.

    Args:
        text: Title or text of a search result.
        style: The style of the prompt.
        begins_line: Whether the text begins a line of the prompt; a title follows its number.
    """
    return _quoted(escape_headings(text), style, begins_line)


def quote_numbers(text: str, *, begins_line: bool = True) -> str:
    """Quote lines that begin as a numbered search result in the text of a search result; see `escape_result`.

    Args:
        text: Title or text of a search result.
        begins_line: See `escape_result`.
    """
    return _quoted(text, "", begins_line)


def _quoted(text: str, style: str, begins_line: bool) -> str:
    return _line_start(style).sub(lambda match: "> " if begins_line or match.start() else "", text)


def escaped(example: TrainingExample) -> TrainingExample:
    """The example with nothing in its question and search results that looks like a part of the prompt.

    In the byte-exact style `sail` nothing is changed.
    """
    style = example.style
    if style == "sail":
        return example
    results = tuple(
        replace(
            result,
            title=escape_result(result.title, style, begins_line=False),
            body=escape_result(result.body, style),
        )
        for result in example.results
    )
    question, more = escape_headings(example.instruction), escape_headings(example.input)
    return replace(example, instruction=question, input=more, results=results)


def count_headings(text: str) -> int:
    """Count what looks like a heading of the prompt in a text."""
    return len(_heading().findall(text))
