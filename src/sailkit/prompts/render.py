"""Render prompts to token ids: one renderer for training, scoring and generation.

Untrusted text (claims, search results, earlier replies) stays separate from the template until the last step, so that
it never produces a special token, and only search results are ever shortened.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from sailkit.errors import UserError
from sailkit.prompts.border import Border
from sailkit.prompts.chat_template import ChatTemplate
from sailkit.prompts.messages import (
    Message,
    Part,
    Prompt,
    as_text,
    evidence_parts,
    fill,
    frames,
    step_prompt,
    system_in_user_turn,
)

__all__ = [
    "Message", "Part", "Prompt", "PromptTooLongError", "Rendered", "Renderer", "as_text", "escape_special",
    "evidence_parts", "fill", "frames", "step_prompt",
]  # fmt: skip

_MARK = f"\ue000{uuid.uuid4().hex}"  # begins a placeholder; no text from outside can know it
_PLACEHOLDER = re.compile(re.escape(_MARK) + r":(\d+);")


class PromptTooLongError(UserError):
    """A prompt that does not fit even without its search results."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt for one tokenizer.

    Attributes:
        ids: Token ids.
        parts: The text of the tokens.
        head: Number of leading tokens that all prompts of the wording share.
        cut_tokens: Tokens of search results that were left out.
        begun: Whether the prompt ends with the beginning of the answer.
        thought: The thought that the prompt opens for the model to continue, from its tag on.
    """

    ids: tuple[int, ...]
    parts: tuple[Part, ...]
    head: int
    cut_tokens: int
    begun: bool = False
    thought: str = ""

    @property
    def text(self) -> str:
        """The prompt as the model gets it."""
        return as_text(self.parts)


class Renderer:
    """Renders prompts as token ids for one tokenizer, with or without its chat template.

    A rendered prompt ends at the `border`, in training, scoring and generation alike.
    """

    def __init__(self, tokenizer: Any, *, chat: bool, context: int, date: str | None = None) -> None:
        """Prepare a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.
            chat: Use its chat template.
            context: Context length of the model, for prompt and answer together.
            date: For chat templates that read the clock, as YYYY-MM-DD; today by default.

        Raises:
            UserError: There is no chat template to use.
        """
        self.tokenizer = tokenizer
        self.chat = chat
        self.context = context
        self.border = Border(tokenizer, chat=chat, date=date)
        self.guard = self.border.guard
        self._heads: dict[tuple[Part, ...], tuple[int, ...]] = {}

    def render(self, prompt: Prompt, reserve: int) -> Rendered:
        """Render a prompt so that it fits, shortening search results only.

        Args:
            prompt: The conversation.
            reserve: Tokens to leave free for the answer.

        Raises:
            PromptTooLongError: The prompt does not fit even without its search results.
        """
        whole = parts = self.segments(prompt)
        ids = self.encode(parts)
        length, budget = len(ids), self.context - reserve
        if length > budget:
            parts, ids = self.shorten(parts, ids, budget)
        if len(ids) > budget:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens without its search results, "
                f"the model takes {self.context} with {reserve} for the answer; "
                f"{'shorten it' if budget > 0 else 'ask for a shorter answer'}, or choose a model with a longer context"
            )
        begun = prompt[-1].begun
        thought = self.border.thought if not begun else ""
        return Rendered(ids, parts, self._head(whole, ids), length - len(ids), begun, thought)

    def segments(self, prompt: Prompt) -> tuple[Part, ...]:
        """The whole text of the prompt, divided into template and untrusted parts."""
        if prompt[-1].begun:
            return _merge((*self.segments(prompt[:-1]), Part(self.border.gap), *prompt[-1].parts))
        template = self.border.template
        if prompt[0].role == "system" and not (template and template.has_system_role):
            return self.segments(system_in_user_turn(prompt))
        if template is None:
            return _plain(prompt)
        parts = self._in_template(template, prompt, generation_prompt=True)
        # What a template writes before an answer belongs to the prompt, but not the white space that begins answers.
        parts = _merge((*parts, Part(template.frame.added, constant=True)))
        bare = parts[-1].text.removesuffix(self.border.gap)
        return _merge((*parts[:-1], replace(parts[-1], text=bare)))

    def conversation(self, prompt: Prompt) -> tuple[Part, ...]:
        """A conversation that ends with an answer, in the chat template, without a generation prompt."""
        assert self.border.template is not None
        return self._in_template(self.border.template, prompt, generation_prompt=False)

    @staticmethod
    def _in_template(template: ChatTemplate, prompt: Prompt, *, generation_prompt: bool) -> tuple[Part, ...]:
        # The template gets placeholders for untrusted text, so that nothing in the text can act in the template.
        replaced: list[Part] = []
        turns = []
        for message in prompt:
            content = ""
            for part in message.parts:
                literal = part.trusted and part.constant
                content += part.text if literal else f"{_MARK}:{len(replaced)};"
                replaced += [] if literal else [part]
            turns.append({"role": message.role, "content": content})
        text = template.render(turns, generation_prompt=generation_prompt)
        pieces = _PLACEHOLDER.split(text)
        if lost := {*range(len(replaced))} - {int(piece) for piece in pieces[1::2]}:
            raise UserError(
                f"the chat template of {template.name} leaves out or rewrites {len(lost)} of {len(replaced)} texts "
                "that it is given, and a model would not see them; choose `chat='off'` or a text style such as "
                "sail-fixed"
            )
        return _merge([replaced[int(piece)] if i % 2 else Part(piece, constant=True) for i, piece in enumerate(pieces)])

    def encode(self, parts: Sequence[Part]) -> tuple[int, ...]:
        """Token ids of the whole text, tokenised at once; special tokens come from trusted parts only."""
        # A chat template writes the beginning-of-text token itself; for plain text the tokenizer adds it.
        return self.guard.encode(parts, add_special_tokens=not self.chat)

    def answer_ids(self, rendered: Rendered, answer: str) -> tuple[int, ...]:
        """The ids that an answer adds when it is tokenised together with the prompt.

        Raises:
            UserError: The answer adds no ids, or changes the ids of the prompt.
        """
        gap = " " if rendered.begun else self.border.gap
        ids = self.encode((*rendered.parts, Part(gap + answer if answer else "")))
        added = ids[len(rendered.ids) :]
        if not added:
            raise UserError(
                f"the answer {answer!r} has no tokens of its own behind the prompt; choose another answer word"
            )
        if ids[: len(rendered.ids)] != rendered.ids:
            raise UserError(
                f"the tokenizer merges the answer {answer!r} with the end of the prompt {rendered.text[-20:]!r}; "
                "choose another answer word or another `chat`"
            )
        return added

    def _head(self, parts: Sequence[Part], ids: Sequence[int]) -> int:
        """Number of leading tokens that are constant, whatever text follows."""
        key = tuple(takewhile(lambda part: part.constant, parts))
        if key not in self._heads:
            self._heads[key] = self.encode(key)[:-1]  # the last token could merge with what follows
        pairs = zip(self._heads[key], ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def shorten(
        self, parts: Sequence[Part], ids: Sequence[int], budget: int
    ) -> tuple[tuple[Part, ...], tuple[int, ...]]:
        """Shorten the longest search results first, until the prompt fits or all are empty."""
        parts, ids = tuple(parts), tuple(ids)
        lengths = {i: self.guard.offsets(part.text) for i, part in enumerate(parts) if part.shortenable}
        while len(ids) > budget and any(lengths.values()):
            excess = len(ids) - budget
            keep = _water_level([len(ends) for ends in lengths.values()], excess)
            lengths = {i: ends[:keep] for i, ends in lengths.items()}
            cut = {i: parts[i].text[: ends[-1] if ends else 0] for i, ends in lengths.items()}
            parts = tuple(replace(part, text=cut[i]) if i in cut else part for i, part in enumerate(parts))
            ids = self.encode(parts)
        return parts, ids


def _water_level(lengths: Sequence[int], excess: int) -> int:
    """The largest cap on all lengths that removes at least `excess` in total, or 0."""
    low, high = 0, max(lengths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sum(max(0, length - middle) for length in lengths) >= excess:
            low = middle
        else:
            high = middle - 1
    return low


def _plain(prompt: Prompt) -> tuple[Part, ...]:
    """The prompt for a model without a chat template."""
    parts: list[Part] = []
    for i, message in enumerate(prompt):
        if message.role == "text":
            parts += message.parts
            continue
        if message.role == "assistant":
            continue
        reply = prompt[i + 1] if i + 1 < len(prompt) else None
        frame = frames()["plain_turn" if reply else "plain"]
        cue = frames()["plain"].removeprefix("{prompt}")
        # Where the wording has this cue itself; a message may be empty.
        if message.parts and message.parts[-1].constant and message.parts[-1].text.endswith(cue.strip()):
            frame = frame.replace(cue, "", 1)
        parts += fill(frame, {"prompt": message.parts, "answer": reply.parts if reply else ""})
    return _merge(parts)


def _merge(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Join adjacent template parts."""
    merged: list[Part] = []
    for part in filter(lambda part: part.text, parts):
        if merged and part.trusted and merged[-1].trusted and part.constant == merged[-1].constant:
            merged[-1] = replace(part, text=merged[-1].text + part.text)
        else:
            merged.append(part)
    return tuple(merged)


_SPELLED = re.compile(
    r"<(?=[|/]?[\w｜][\w｜▁|: -]*>|[|<])|\[(?=/?[a-z]?[A-Z_][A-Z_\d]+\]|[a-z]+_\d+\]|\||e~\[)|\](?=~)"
)


def escape_special(text: str) -> str:
    """Insert a space after the bracket of anything that a server's tokenizer might read as a special token.

    A server tokenises the text, and its special tokens are unknown here. So everything that looks like a special token
    is escaped: `<|im_end|>`, `</s>`, `[INST]`, `[UNUSED_TOKEN_1]`, `<<SYS>>`, `<start_of_turn>`, `<seed:eos>`,
    `[|endofturn|]`, `]~b]`.
    """
    return _SPELLED.sub(lambda match: f"{match.group()} ", text)
