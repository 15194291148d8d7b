"""What a server's answer says: the body of a completion, or of an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sailkit.models.masking import NO_KEY, KeyMask
from sailkit.text import without_surrogates

_ROUNDING = 1e-3  # of a log-probability of nearly 0
_SHOWN = 4000  # characters of a body that is no JSON, of which a line is made
# Errors that are about what one request holds, by their codes and in words; any other may be about every request.
_ABOUT_ITEM = re.compile(
    r"content[ _-]?(?:filter|polic|management)|responsible ?ai|moderation|safety|flagged|inappropriate|harmful"
    r"|data_?inspection|context[ _-]?(?:length|window|size)|maximum (?:context|input|prompt)|too (?:long|many tokens)"
    r"|string_above_max_length|max_model_len"
)
_ABOUT_LIMIT = re.compile(r"max_(?:completion_|new_)?tokens\W.{0,40}too large")
_CONTEXT = re.compile(r"context[ _-]?(?:length|window|size)\D{0,20}(\d+)")
# How servers say that they do not know a parameter, or take no other value than their own.
_UNSUPPORTED = r"(?:un|not |n't )(?:support|permit|allow|recogni[sz]ed|known)|only the default|deprecated|extra inputs"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of a server's answer.

    Attributes:
        text: The message's content; several parts of text are joined.
        finish_reason: Why the server stopped.
        prompt_tokens: As the server counted them; 0 where it does not say.
        completion_tokens: Likewise.
        top_logprobs: Tokens at the first generated position and their log-probabilities; empty where not given.
        model: What the server calls itself.
        system_fingerprint: And its configuration.
        refusal: Why there is no answer to this item, in the server's or the model's words; None where there is one.
        thought: What the model thought before, where the server tells it from the answer.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    top_logprobs: list[tuple[str, float]] = field(default_factory=list)
    model: str | None = None
    system_fingerprint: str | None = None
    refusal: str | None = None
    thought: str | None = None


class PassingError(Exception):
    """A failure that another try may mend.

    Attributes:
        wait: How long the server asks to be left alone.
        replied: The server got the request and replied to it, though not with an answer.
    """

    def __init__(self, what: str, wait: float = 0.0, *, replied: bool = False) -> None:
        super().__init__(what)
        self.wait = wait
        self.replied = replied


class ItemRefusedError(Exception):
    """The server refuses what one request holds, and no other."""


def read_choice(text: str, mask: KeyMask = NO_KEY) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of an answer, and the first of its choices, without the key if the server echoes it.

    Raises:
        ItemRefusedError: It is an error that is about what the request holds; some servers give it with status 200.
        PassingError: It is no answer.
    """
    try:
        # Half a surrogate pair is JSON, but cannot be written as UTF-8.
        data = json.loads(without_surrogates(json.dumps(json.loads(text), ensure_ascii=False)))
        data = mask.value(data)
    except (ValueError, RecursionError):
        what = f"an answer that is not JSON: {short(mask.text(text[:_SHOWN]))}"
        raise PassingError(what, replied=True) from None
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        if is_about_item(text):
            raise ItemRefusedError(error_message(text, mask))
        raise PassingError(f"an answer without choices: {error_message(text, mask)}", replied=True)
    return data, choice


def read_completion(text: str, mask: KeyMask = NO_KEY) -> Answer:
    """Read the body of a chat completion.

    Raises:
        ItemRefusedError: It is an error that is about what the request holds.
        PassingError: It is none.
    """
    data, choice = read_choice(text, mask)
    message = choice.get("message")
    finish_reason = _text(choice.get("finish_reason"))
    filtered = finish_reason == "content_filter"
    parts = _parts(message if isinstance(message, dict) else {} if filtered else {"content": 0})
    if parts is None:
        raise PassingError(f"an answer without a message: {short(mask.text(text[:_SHOWN]))}", replied=True)
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    said, thought, refusal = ("".join(parts[kind]) for kind in ("text", "thought", "refusal"))
    return Answer(
        text=said,
        finish_reason=finish_reason,
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        top_logprobs=_first_position(choice),
        model=_text(data.get("model")),
        system_fingerprint=_text(data.get("system_fingerprint")),
        refusal=refusal or ("content_filter" if filtered else None),
        thought=thought or _hidden(counts, said, finish_reason),
    )


def _parts(message: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """A message's text, thought and refusal, or None where its content is nothing that is known."""
    found: dict[str, list[str]] = {"text": [], "thought": [], "refusal": []}
    for name in ("reasoning_content", "reasoning"):  # of vLLM and others; some give both, with the same text
        if isinstance(value := message.get(name), str) and not found["thought"]:
            found["thought"].append(value)
    if isinstance(message.get("refusal"), str):
        found["refusal"].append(message["refusal"])
    content = message.get("content")
    if isinstance(content, str):
        found["text"].append(content)
    elif isinstance(content, list):
        for part in content:
            for kind, text in _part(part):
                found[kind].append(text)
        if content and not any(found.values()):
            return None
    elif content is not None:
        return None
    return found


def _part(part: object) -> Iterator[tuple[str, str]]:
    """Kind and text of one part of a content in parts; nothing where it is of another kind."""
    if isinstance(part, str):
        yield "text", part
    if not isinstance(part, dict):
        return
    for name, kind in (("text", "text"), ("refusal", "refusal"), ("thinking", "thought"), ("reasoning", "thought")):
        if isinstance(part.get(name), str):
            yield kind, part[name]
        elif kind == "thought" and isinstance(part.get(name), list):  # Mistral's are in parts themselves
            for inner in part[name]:
                if isinstance(inner, dict) and isinstance(inner.get("text"), str):
                    yield kind, inner["text"]


def _hidden(counts: Mapping[str, Any], text: str, finish_reason: str | None) -> str | None:
    """What stands for a thought that the server keeps to itself, where it took all the room."""
    details = counts.get("completion_tokens_details")
    tokens = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    return f"({tokens} tokens, not shown)" if tokens and not text and finish_reason == "length" else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _first_position(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest tokens at the first generated position; nothing where they are not given in the usual form."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    if any(logprob > _ROUNDING for _, logprob in found):
        return []  # no probability is above 1: whatever these are, they are not what was asked for
    return [(token, logprob) for token, logprob in found if math.isfinite(logprob)]


def error_message(text: str, mask: KeyMask = NO_KEY) -> str:
    """The message in an error's body, or the body, in one short line."""
    try:
        data = mask.value(json.loads(text))
        error = data.get("error") or data.get("detail") or data.get("message")
        return short(str(error.get("message") or error) if isinstance(error, dict) else str(error or text))
    except (ValueError, AttributeError, RecursionError):
        return short(mask.text(text[:_SHOWN]))


def is_about_item(text: str, most_tokens: int = 0) -> bool:
    """Whether an error is about what its request holds, such as a content filter's, by the error's codes or words.

    Args:
        text: The error's body.
        most_tokens: The longest answer that was asked for: where it alone fills the context, no item is at fault.
    """
    try:
        data = json.loads(text)
        error = data.get("error") or data.get("detail") or data
    except (ValueError, AttributeError, RecursionError):
        error = text[:_SHOWN]
    message = " ".join(_words(error)).casefold()
    context = _CONTEXT.search(message)
    if _ABOUT_LIMIT.search(message) or (context and most_tokens >= int(context[1])):
        return False
    return bool(_ABOUT_ITEM.search(message))


def _words(error: object) -> Iterator[str]:
    """What says which kind of error it is: the message and the codes, and not what is quoted of the request."""
    if isinstance(error, str):
        yield error
    elif isinstance(error, dict):
        for name in ("message", "msg", "code", "type", "innererror", "metadata", "reasons", "raw"):
            yield from _words(error.get(name))
    elif isinstance(error, list):
        for part in error:
            yield from _words(part)


def is_unsupported(text: str, parameter: str) -> bool:
    """Whether an error says that the server does not take a parameter, or not with this value."""
    try:
        data = json.loads(text)
        error = data.get("error") or data.get("detail") or data
    except (ValueError, AttributeError, RecursionError):
        error = text[:_SHOWN]
    if isinstance(error, dict) and error.get("param") == parameter:
        return True
    message = " ".join(_words(error)).casefold()
    name, between = rf"\b{re.escape(parameter)}\b", ".{0,60}?"
    return bool(re.search(f"{name}{between}(?:{_UNSUPPORTED})|(?:{_UNSUPPORTED}){between}{name}", message))


def short(text: str) -> str:
    """A text in one line of at most 200 characters."""
    line = " ".join(text.split()) or "(nothing said)"
    return line if len(line) <= 200 else f"{line[:197]}..."
