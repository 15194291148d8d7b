"""Reads the bodies of responses, completions and errors, in the variants of different servers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sailkit.models.masking import NO_KEY, KeyMask
from sailkit.text import without_surrogates

_ROUNDING = 1e-3  # how far a log-probability may exceed 0
_MAX_BODY = 4000  # characters of a body that is not JSON that are searched for the key; one line is shown
# Codes and words of errors about the content of a request; any other error may be about every request.
_ABOUT_ITEM = re.compile(
    r"content[ _-]?(?:filter|polic|management)|responsible ?ai|moderation|safety|flagged|inappropriate|harmful"
    r"|data_?inspection|context[ _-]?(?:length|window|size)|maximum (?:context|input|prompt)|too (?:long|many tokens)"
    r"|string_above_max_length|max_model_len"
)
_ABOUT_LIMIT = re.compile(r"max_(?:completion_|new_)?tokens\W.{0,40}too large")
_CONTEXT = re.compile(r"context[ _-]?(?:length|window|size)\D{0,20}(\d+)")
# Words of errors about a parameter that a server does not know, or whose value cannot be changed.
_UNSUPPORTED = r"(?:un|not |n't )(?:support|permit|allow|recogni[sz]ed|known)|only the default|deprecated|extra inputs"


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion, as it is cached.

    Attributes:
        text: The message's content; several parts of text are joined.
        finish_reason: Why the server stopped.
        prompt_tokens: The server's count; 0 if it gives none.
        completion_tokens: The same for the completion.
        top_logprobs: Tokens at the first generated position and their log-probabilities; empty if not given.
        model: The server's name for the model.
        system_fingerprint: The server's name for its configuration.
        refusal: Why the server or the model refused; None if there is an answer.
        thought: The reasoning before the answer, if the server separates the two.
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
    """A transient failure, to be retried.

    Attributes:
        wait: Seconds that the server asks to wait.
        replied: Whether the server replied to the request, though not with an answer.
    """

    def __init__(self, what: str, wait: float = 0.0, *, replied: bool = False) -> None:
        super().__init__(what)
        self.wait = wait
        self.replied = replied


class ItemRefusedError(Exception):
    """The server refuses a request because of its content."""


def read_choice(text: str, mask: KeyMask = NO_KEY) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the body of a completion and its first choice, with the key masked.

    Raises:
        ItemRefusedError: The body is an error about the content of the request; some servers send it with status 200.
        PassingError: The body is not a completion.
    """
    try:
        # Half a surrogate pair is JSON, but cannot be written as UTF-8.
        data = json.loads(without_surrogates(json.dumps(json.loads(text), ensure_ascii=False)))
        data = mask.value(data)
    except (ValueError, RecursionError):
        what = f"an answer that is not JSON: {short(mask.text(text[:_MAX_BODY]))}"
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
        ItemRefusedError: It is an error about the content of the request.
        PassingError: It is not a completion.
    """
    data, choice = read_choice(text, mask)
    message = choice.get("message")
    finish_reason = _text(choice.get("finish_reason"))
    filtered = finish_reason == "content_filter"
    parts = _parts(message if isinstance(message, dict) else {} if filtered else {"content": 0})
    if parts is None:
        raise PassingError(f"an answer without a message: {short(mask.text(text[:_MAX_BODY]))}", replied=True)
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    answer, thought, refusal = ("".join(parts[kind]) for kind in ("text", "thought", "refusal"))
    return Answer(
        text=answer,
        finish_reason=finish_reason,
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        top_logprobs=_first_position(choice),
        model=_text(data.get("model")),
        system_fingerprint=_text(data.get("system_fingerprint")),
        refusal=refusal or ("content_filter" if filtered else None),
        thought=thought or _hidden(counts, answer, finish_reason),
    )


def _parts(message: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """A message's text, thought and refusal; None if the structure of its content is unknown."""
    parts: dict[str, list[str]] = {"text": [], "thought": [], "refusal": []}
    for name in ("reasoning_content", "reasoning"):  # vLLM and others; some send both, with the same text
        if isinstance(value := message.get(name), str) and not parts["thought"]:
            parts["thought"].append(value)
    if isinstance(message.get("refusal"), str):
        parts["refusal"].append(message["refusal"])
    content = message.get("content")
    if isinstance(content, str):
        parts["text"].append(content)
    elif isinstance(content, list):
        for part in content:
            for kind, text in _part(part):
                parts[kind].append(text)
        if content and not any(parts.values()):
            return None
    elif content is not None:
        return None
    return parts


def _part(part: object) -> Iterator[tuple[str, str]]:
    """Kind and text of one part of a content that is a list; nothing for a part of an unknown kind."""
    if isinstance(part, str):
        yield "text", part
    if not isinstance(part, dict):
        return
    for name, kind in (("text", "text"), ("refusal", "refusal"), ("thinking", "thought"), ("reasoning", "thought")):
        if isinstance(part.get(name), str):
            yield kind, part[name]
        elif kind == "thought" and isinstance(part.get(name), list):  # Mistral nests thoughts in a list of parts
            for inner in part[name]:
                if isinstance(inner, dict) and isinstance(inner.get("text"), str):
                    yield kind, inner["text"]


def _hidden(counts: Mapping[str, Any], text: str, finish_reason: str | None) -> str | None:
    """A note in place of a thought that the server hides, if it used up all tokens of the answer."""
    details = counts.get("completion_tokens_details")
    tokens = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    return f"({tokens} tokens, not shown)" if tokens and not text and finish_reason == "length" else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _first_position(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest tokens at the first generated position; nothing if they are missing or not log-probabilities."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        logprobs = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    if any(logprob > _ROUNDING for _, logprob in logprobs):
        return []  # a probability above 1: these numbers are no log-probabilities
    return [(token, logprob) for token, logprob in logprobs if math.isfinite(logprob)]


def error_message(text: str, mask: KeyMask = NO_KEY) -> str:
    """The message in the body of an error, or else the body, as one short line."""
    try:
        data = mask.value(json.loads(text))
        error = data.get("error") or data.get("detail") or data.get("message")
        error = error or mask.text(text[:_MAX_BODY])
        return short(str(error.get("message") or error) if isinstance(error, dict) else str(error))
    except (ValueError, AttributeError, RecursionError):
        return short(mask.text(text[:_MAX_BODY]))


def is_about_item(text: str, most_tokens: int = 0) -> bool:
    """Whether the codes or words of an error are about the content of its request, such as those of a content filter.

    Args:
        text: The error's body.
        most_tokens: Token limit of the answer; if it alone fills the context, the content is not the reason.
    """
    error = _error_of(text)
    message = " ".join(_words(error)).casefold()
    context = _CONTEXT.search(message)
    if _ABOUT_LIMIT.search(message) or (context and most_tokens >= int(context[1])):
        return False
    return bool(_ABOUT_ITEM.search(message))


def _error_of(text: str) -> Any:
    """The error in a JSON body; else the beginning of the text."""
    try:
        data = json.loads(text)
        return data.get("error") or data.get("detail") or data
    except (ValueError, AttributeError, RecursionError):
        return text[:_MAX_BODY]


def _words(error: object) -> Iterator[str]:
    """The message and the codes of an error, without what it quotes of the request."""
    if isinstance(error, str):
        yield error
    elif isinstance(error, dict):
        for name in ("message", "msg", "code", "type", "innererror", "metadata", "reasons", "raw"):
            yield from _words(error.get(name))
    elif isinstance(error, list):
        for part in error:
            yield from _words(part)


def is_unsupported(text: str, parameter: str) -> bool:
    """Whether an error is about a parameter that the server does not support, or not with this value."""
    error = _error_of(text)
    if isinstance(error, dict) and error.get("param") == parameter:
        return True
    message = " ".join(_words(error)).casefold()
    name, between = rf"\b{re.escape(parameter)}\b", ".{0,60}?"
    return bool(re.search(f"{name}{between}(?:{_UNSUPPORTED})|(?:{_UNSUPPORTED}){between}{name}", message))


def short(text: str) -> str:
    """A text in one line of at most 200 characters."""
    line = " ".join(text.split()) or "(nothing said)"
    return line if len(line) <= 200 else f"{line[:197]}..."
