"""Finds the border between prompt and answer, which training, scoring, generation and teachers share.

No token may extend across the border: an answer must not change the tokens of the prompt.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from sailkit.prompts.chat_template import ChatTemplate
from sailkit.prompts.safety import guarded

# Typical first words of answers, to test a tokenizer with.
_WORDS = ("answer", "Correct", "The", "1", "(1)")


class _Text(NamedTuple):
    text: str
    trusted: bool


class Border:
    """The border at which the prompts of a tokenizer end, with or without its chat template."""

    def __init__(self, tokenizer: Any, *, chat: bool, date: str | None = None) -> None:
        """Prepare a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.
            chat: Use its chat template.
            date: For chat templates that read the clock, as YYYY-MM-DD; today by default.

        Raises:
            UserError: There is no chat template to use.
        """
        self.guard = guarded(tokenizer)
        self.template = ChatTemplate(tokenizer, date) if chat else None
        self.keeps_tokens = lru_cache(maxsize=4096)(self._keeps_tokens)

    @cached_property
    def gap(self) -> str:
        """The white space before the first word of an answer; it belongs to the answer, not to the prompt.

        Most tokenizers have tokens that begin with a space, and these cannot follow a prompt that ends in one. Line
        breaks stay in the prompt unless the tokenizer tokenises them differently before a word.
        """
        if self.template is None:
            return " "
        opening = self.template.frame.opening
        gaps = [opening[len(opening.rstrip(blanks)) :] for blanks in (" \t", None)]
        fitting = (
            gap for gap in gaps if all(self.keeps_tokens(opening.removesuffix(gap), gap + word) for word in _WORDS)
        )
        return next(fitting, gaps[0])

    def _keeps_tokens(self, prompt: str, answer: str) -> bool:
        """Whether an answer leaves the tokens of the prompt unchanged."""
        alone = self._ids(_Text(prompt, trusted=True))
        return self._ids(_Text(prompt, trusted=True), _Text(answer, trusted=False))[: len(alone)] == alone

    @property
    def thought(self) -> str:
        """The thought that the prompt opens for the model to continue, from its tag on; empty if there is none."""
        return self.template.frame.thought if self.template else ""

    @cached_property
    def closing_id(self) -> int | None:
        """The special token with which the chat template ends an answer; None if there is none."""
        closing = self.template.frame.closing if self.template else ""
        end = self.guard.special_end(closing)
        return self._ids(_Text(closing[:end], trusted=True))[-1] if end else None

    def describe(self) -> dict[str, Any]:
        """What determines prompts besides the text of the chat template; empty for ordinary templates."""
        if self.template is None:
            return {}
        frame = self.template.frame
        described = {"date": self.template.date, "open_thought": frame.thought}
        if self.template.unusual:
            described["answer_opening"] = frame.opening
        return {name: value for name, value in described.items() if value}

    def _ids(self, *texts: _Text) -> tuple[int, ...]:
        return self.guard.encode(texts, add_special_tokens=self.template is None)
