"""Renders training examples as text and token ids: the prompt, the verification sentence and the response.

The wording is that of SAIL (Luo et al. 2023): `sail` is the published text byte for byte, `sail-fixed` corrects its
mistakes, `chat` uses the model's own chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import product
from typing import Any, Literal, get_args

from sailkit.errors import UserError, nearest
from sailkit.prompts.headings import count_headings, escaped
from sailkit.prompts.render import Message, Part, Prompt, Renderer, as_text, fill
from sailkit.prompts.styles import wording
from sailkit.records import TrainingExample, Verdict


class UnfitExampleError(UserError):
    """An example that cannot be used for training, although others may be."""


class TooLongError(UnfitExampleError):
    """A training example that does not fit even without its search results."""


STYLES = ("sail", "sail-fixed", "chat")
Order = Literal["verify-first", "answer-first"]  # of verification sentence and response in a completion
MOST_VERIFIED = 6  # most search results that a verification sentence judges, in one of 2**6 combinations
_UNLIMITED = 10**12  # tokens; nothing is shortened without a `max_length`
_NO_TEMPLATE = "choose style 'sail' or 'sail-fixed'"
_BEGINNING = 32  # leading characters of a completion that could share a token with the end of the prompt


def check_style(style: str) -> None:
    """Raise a UserError for an unknown style."""
    if style not in STYLES:
        raise UserError(f"no style {style!r}: {nearest(style, STYLES)}")


# The verification sentence


def verification(judgements: Sequence[Verdict], style: str) -> str:
    """The sentence that states which search results are informative; empty if there are no results."""
    check_style(style)
    if not judgements:
        return ""
    words = wording()["verification"][style]
    if len(set(judgements)) == 1:
        return "".join(words[f"{'one' if len(judgements) == 1 else 'all'}_{judgements[0]}"])
    flags = [words["flag"].format(number=number, verdict=verdict) for number, verdict in enumerate(judgements, start=1)]
    useful = [
        words["number"].format(number=n) for n, verdict in enumerate(judgements, start=1) if verdict == "informative"
    ]
    sentence: str = words["mixed"].format(
        flags=_join(flags, words["join"], words["last_join"]),
        results="result" if len(useful) == 1 else "results",
        informative=_join(useful, words["number_join"], words["last_number_join"]),
    )
    return sentence[0].upper() + sentence[1:]


def every_judgement(n: int) -> list[tuple[Verdict, ...]]:
    """All combinations of judgements of n search results."""
    return list(product(get_args(Verdict), repeat=n))


def _join(items: Sequence[str], between: str, last: str) -> str:
    return last.join([between.join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def read_verification(text: str, n: int) -> tuple[Verdict, ...] | None:
    """Read the judgements from a model's reply: the inverse of `verification`, in any style's wording.

    Case and white space are ignored, and the end of the sentence after the judgements may be missing.

    Args:
        text: The reply; it begins with the verification sentence.
        n: Number of search results.

    Returns:
        One verdict for each search result, `()` if n is 0; None if the text does not begin with all verdicts.
    """
    if n == 0:
        return ()
    # No verification sentence is longer, and a long reply should cost no time.
    beginning = " ".join(text[: 200 + 100 * n].split()).lower()
    for style in STYLES:
        words = wording()["verification"][style]
        for verdict in get_args(Verdict):
            claim = words[f"{'one' if n == 1 else 'all'}_{verdict}"][0].lower()
            if re.match(rf"{re.escape(claim)}(?!\w)", beginning):
                return (verdict,) * n
        if verdicts := _read_flags(beginning, n, words):
            return verdicts
    return None


def _read_flags(text: str, n: int, words: Mapping[str, Any]) -> tuple[Verdict, ...] | None:
    """The verdicts of a sentence that lists one for each search result."""
    verdicts: list[Verdict] = []
    position = 0
    for number in range(1, n + 2):
        joins = ("",) if number == 1 else (words["last_join"], words["join"])
        for before, verdict in ((j, v) for j in joins for v in get_args(Verdict)):
            flag = before + words["flag"].format(number=number, verdict=verdict)
            if re.compile(rf"{re.escape(flag)}(?!\w)").match(text, position):
                verdicts.append(verdict)
                position += len(flag)
                break
        else:
            break
    return tuple(verdicts) if len(verdicts) == n else None  # another number: the sentence is about other results


# The text


_Values = dict[str, str | Sequence[Part]]


def user_turn(example: TrainingExample) -> tuple[Part, ...]:
    """Search results, instruction and input: the user turn in `chat`, and the field `human` of SAIL's files.

    Headings inside untrusted text are escaped, and lines of search results that begin as the prompt's own do are
    quoted, unless the style is the byte-exact `sail`.
    """
    check_style(example.style)
    words, example = wording(), escaped(example)
    results: list[Part] = []
    for number, result in enumerate(example.results, start=1):
        values: _Values = {
            "number": [Part(str(number))],
            "title": [Part(result.title, trusted=False, shortenable=True)],
            "body": [Part(result.body, trusted=False, shortenable=True)],
        }
        results += [Part(words["results_join"])] if results else []
        results += fill(words["result"], values, constant=False)
    frame = words["chat" if example.style == "chat" else "text"]
    input_parts = fill(frame["input"], {"input": example.input}, constant=False) if example.input else ()
    values = {
        "results": results or [Part(words["no_results"])],
        "instruction": example.instruction,
        "input": input_parts,
    }
    return fill(frame["human"], values)


def completion(example: TrainingExample) -> str:
    """The completion: the verification sentence, then the response; the field `gpt` of SAIL's files."""
    return as_text(completion_parts(example))


def completion_parts(example: TrainingExample, order: Order = "verify-first") -> tuple[Part, Part]:
    """The segments of the completion in order: the verification sentence, with the space between, and the response."""
    sentence = verification(example.judgements, example.style)
    # Leading white space could merge with the last token of the template; only the byte-exact style keeps it.
    response = example.response if example.style == "sail" else example.response.strip()
    space = wording()["behind_verification"] if sentence else ""
    if order == "answer-first":
        return Part(response, trusted=False), Part(space + sentence, trusted=False)
    return Part(sentence + space, trusted=False), Part(response, trusted=False)


def trained_style(described: Mapping[str, Any]) -> str | None:
    """The style in which sailkit trained a model, from its description; None for other models."""
    return next((style for style in described.get("trained_styles") or () if style in STYLES), None)


def prompt_parts(example: TrainingExample) -> tuple[Part, ...]:
    """The whole prompt of a text style, up to and including the heading of the response."""
    words = wording()["text"]
    return (Part(words["head"], constant=True), *user_turn(example), Part(words["tail"], constant=True))


def conversation(example: TrainingExample) -> Prompt:
    """The prompt of an example for inference, rendered as in training."""
    if example.style == "chat":
        return (Message("user", user_turn(example)),)
    return (Message("text", prompt_parts(example)),)


# Token ids


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """A training example for one tokenizer.

    Attributes:
        ids: Token ids of prompt and completion, tokenised at once.
        completion_mask: For each id, whether it is supervised: the completion and the end of text.
        verification: Start and end of the tokens of the verification sentence; equal if there is none.
        response: Index of the first token of the response.
        cut_tokens: Tokens of search results that were left out.
        headings_left: Number of headings in untrusted text that were not escaped (`sail` escapes none).
        text: The text that was tokenised.
    """

    ids: tuple[int, ...]
    completion_mask: tuple[bool, ...]
    cut_tokens: int
    headings_left: int
    text: str
    verification: tuple[int, int] = (0, 0)
    response: int = 0

    @property
    def supervised(self) -> tuple[int, ...]:
        """The supervised ids."""
        return tuple(i for i, supervised in zip(self.ids, self.completion_mask, strict=True) if supervised)


class ExampleRenderer:
    """Renders training examples as token ids for one tokenizer."""

    def __init__(self, tokenizer: Any, date: str | None = None, order: Order = "verify-first") -> None:
        """Prepare a tokenizer.

        Args:
            tokenizer: A transformers tokenizer, backed by a `tokenizer.json`.
            date: For chat templates that read the clock, as YYYY-MM-DD; today by default.
            order: Order of verification sentence and response.
        """
        self.tokenizer = tokenizer
        self._date = date
        self._order: Order = order
        self._completion = partial(completion_parts, order=order)
        self._plain = Renderer(tokenizer, chat=False, context=_UNLIMITED)

    @cached_property
    def _chat(self) -> Renderer:
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(f"style 'chat' needs a tokenizer with a chat template; {_NO_TEMPLATE}")
        renderer = Renderer(self.tokenizer, chat=True, context=_UNLIMITED, date=self._date)
        assert renderer.border.template is not None
        if mismatch := renderer.border.template.frame.mismatch:
            raise UserError(f"style 'chat': {mismatch}; {_NO_TEMPLATE}")
        return renderer

    def render(self, example: TrainingExample, max_length: int | None = None) -> RenderedExample:
        """Token ids and the mask of the supervised ones.

        Args:
            example: The example, in its style.
            max_length: Most tokens of prompt and completion together; only search results are shortened to fit, the
                longest first.

        Raises:
            TooLongError: It does not fit even without search results.
            UnfitExampleError: A token spans the border between prompt and completion.
            UserError: The tokenizer lacks what the style needs.
        """
        check_style(example.style)
        renderer = self._chat if example.style == "chat" else self._plain
        parts, first, behind = self._chat_parts(example) if example.style == "chat" else self._text_parts(example)
        if not renderer.border.keeps_tokens(parts[first - 1].text, as_text(parts[first:])[:_BEGINNING]):
            raise UnfitExampleError(
                f"example {example.id!r}: the tokenizer merges the end of the prompt with the beginning of the "
                "completion, so that the prompt could not be given to a model without it"
            )
        encode = partial(renderer.guard.encode_with_starts, border=first, add_special_tokens=not renderer.chat)
        ids, starts = encode(parts)
        whole = len(ids)
        if max_length is not None and whole > max_length:
            # Empty parts stay in the sequence, so that the border is still between the same two parts.
            parts, _ = renderer.shorten(parts, ids, max_length)
            ids, starts = encode(parts)
            if len(ids) > max_length:
                raise TooLongError(
                    f"example {example.id!r} has {len(ids)} tokens without its search results, and "
                    f"{max_length} are allowed; allow more, or leave it out"
                )
        end = starts[behind] if behind < len(parts) else len(ids)
        mask = tuple(starts[first] <= position < end for position in range(len(ids)))
        headings = sum(count_headings(part.text) for part in parts[:first] if not part.trusted)
        # Behind the gap are the two segments. A token that extends into the second one belongs to it.
        if self._order == "answer-first":
            response, sentence = starts[first], (starts[first + 2], starts[first + 3])
        else:
            response = starts[first + 2] if parts[first + 1].text else starts[first]
            sentence = starts[first], response
        return RenderedExample(ids, mask, whole - len(ids), headings, as_text(parts), sentence, response)

    def _text_parts(self, example: TrainingExample) -> tuple[tuple[Part, ...], int, int]:
        """All parts, the index of the first part of the completion (the gap), and that of the first part after it."""
        prompt = prompt_parts(example)
        parts = (*prompt, Part(wording()["text"]["gap"]), *self._completion(example), Part(self._end()))
        return parts, len(prompt), len(parts)

    def _end(self) -> str:
        if self.tokenizer.eos_token is None:
            raise UserError(f"{type(self.tokenizer).__name__} has no end-of-text token, and training needs one")
        return str(self.tokenizer.eos_token)

    def _chat_parts(self, example: TrainingExample) -> tuple[tuple[Part, ...], int, int]:
        """The same in the chat template: the prompt as at inference, then the completion."""
        question = Message("user", user_turn(example))
        reply = Part(as_text(self._completion(example)), trusted=False)
        prompt, gap = self._chat.segments((question,)), self._chat.border.gap
        parts = self._chat.conversation((question, Message("assistant", (reply,))))
        index = max((i for i, part in enumerate(parts) if part is reply), default=-1)
        if index < 0:
            raise UnfitExampleError(f"example {example.id!r} has no completion")
        if as_text(parts[:index]) != as_text(prompt) + gap:
            raise UserError(
                f"style 'chat': the template writes the prompt of example {example.id!r} differently with an answer "
                f"behind it; {_NO_TEMPLATE}"
            )
        # Supervise up to the token that ends the turn; without such a token, append the end of text.
        tail = as_text(parts[index + 1 :])
        end = self._chat.guard.special_end(tail)
        closing = tail[:end] if end else tail + self._end()
        rest = tail[end:] if end else ""
        whole = (*prompt, Part(gap), *self._completion(example), Part(closing), Part(rest))
        return whole, len(prompt), len(whole) - 1 if rest else len(whole)


_renderer = lru_cache(maxsize=4)(ExampleRenderer)


def render(example: TrainingExample, tokenizer: Any, max_length: int | None = None) -> RenderedExample:
    """Token ids of a training example and the mask of the supervised ones; see `ExampleRenderer.render`."""
    return _renderer(tokenizer).render(example, max_length)
