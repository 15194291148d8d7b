"""Builds prompts before rendering: parts, turns, and templates filled with values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sailkit.errors import UserError, nearest
from sailkit.files.yaml_files import packaged_yaml
from sailkit.prompts.headings import quote_numbers
from sailkit.records import SearchResult


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt.

    Attributes:
        text: Its text.
        trusted: True for templates; only these may contain special tokens.
        shortenable: True for the titles and bodies of search results.
        constant: True if the text is the same in every prompt of a run: the wording and worked examples.
    """

    text: str
    trusted: bool = True
    shortenable: bool = False
    constant: bool = False


def as_text(parts: Sequence[Part]) -> str:
    """Join the texts of parts."""
    return "".join(part.text for part in parts)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system` (first turn only), `user`, `assistant`, or `text` for a complete prompt that is not framed
            further.
        parts: Its content.
        begun: Whether this (last) turn is the beginning of the answer, which the model continues.
    """

    role: str
    parts: tuple[Part, ...]
    begun: bool = False

    @property
    def text(self) -> str:
        """The turn as plain text."""
        return as_text(self.parts)


Prompt = tuple[Message, ...]


def frames() -> dict[str, Any]:
    """The literals around the wording of a task."""
    return packaged_yaml("prompts/prompts.yaml")


_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


def fill(template: str, values: Mapping[str, str | Sequence[Part]], constant: bool = True) -> tuple[Part, ...]:
    """Fill a template's `{fields}`; fields inside a value are not filled.

    Args:
        template: Trusted text with `{name}` fields.
        values: Untrusted text, or parts that are inserted unchanged.
        constant: Whether every prompt of a run contains this template.

    Raises:
        UserError: The template has a field that is not among the values.
    """
    parts: list[Part] = []
    for i, piece in enumerate(_FIELD.split(template)):
        if i % 2 == 0:
            parts.append(Part(piece, constant=constant))
        elif piece not in values:
            raise UserError(f"a prompt has the unknown field {{{piece}}}; {nearest(piece, values)}")
        else:
            value = values[piece]
            parts += [Part(value, trusted=False)] if isinstance(value, str) else value
    return tuple(part for part in parts if part.text)


def evidence_parts(results: Sequence[SearchResult]) -> tuple[Part, ...]:
    """Search results as a numbered list, out of which no further result comes; only the texts may be shortened."""
    if not results:
        return (Part(frames()["no_results"]),)
    parts: list[Part] = []
    for number, result in enumerate(results, start=1):
        frame = frames()["result" if result.title else "result_untitled"]
        texts = (
            quote_numbers(result.title, begins_line=False),
            quote_numbers(result.body, begins_line=bool(result.title)),
        )
        title, body = (Part(text, trusted=False, shortenable=True) for text in texts)
        parts += [Part("\n")] if parts else []
        parts += fill(frame, {"number": [Part(str(number))], "title": [title], "body": [body]}, constant=False)
    return tuple(parts)


def step_prompt(
    template: str,
    text: str,
    answers: Sequence[str],
    results: Sequence[SearchResult] = (),
    previous: str | Sequence[str] = "",
    shots: Sequence[Message] = (),
    system: str = "",
    examples: Sequence[Part] = (),
) -> Prompt:
    """Build the conversation of one model call.

    Args:
        template: The wording.
        text: The text to judge.
        answers: The answer words, listed for `{answers}`.
        results: Search results for `{evidence}`.
        previous: The previous reply, for `{previous}`; or all earlier replies, also for `{reply_1}` and so on.
        shots: Worked examples as earlier turns.
        system: The system text; it may list the answer words.
        examples: Worked examples for `{examples}`.
    """
    replies = [previous] if isinstance(previous, str) else previous
    listed = [Part(frames()["answers_join"].join(answers), constant=True)]
    values: dict[str, str | Sequence[Part]] = {
        "text": text.strip(),
        "answers": listed,
        "evidence": evidence_parts(results),
        "previous": replies[-1].strip() if replies else "",
        "examples": examples,
        **{f"reply_{number}": reply.strip() for number, reply in enumerate(replies, start=1)},
    }
    first = [Message("system", fill(system, {"answers": listed}))] if system else []
    turns = [Message(turn.role, tuple(replace(part, constant=True) for part in turn.parts)) for turn in shots]
    return (*first, *turns, Message("user", fill(template, values)))


def system_in_user_turn(prompt: Prompt) -> Prompt:
    """Move the system text to the beginning of the first user turn, for models without a system role."""
    system, user, *rest = prompt
    return (replace(user, parts=(*system.parts, Part("\n\n", constant=True), *user.parts)), *rest)
