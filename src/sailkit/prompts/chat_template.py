"""Renders a tokenizer's chat template on a fixed date, and finds what it writes around an answer.

What a template writes between question and answer belongs to the prompt, in training as at inference. Before a given
answer, some templates write more than in the generation prompt (an empty thought, a header), some less.
"""

from __future__ import annotations

import contextlib
import datetime
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from sailkit.errors import UserError
from sailkit.prompts.thoughts import open_thought

_CLOCK = "strftime_now"  # the function through which templates read the clock
# Prepended to a template, this macro shadows the function of that name. The line break is part of the macro block.
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set filled = namespace(text=format) -%}"
    "{%- for code, value in date_codes.items() -%}{%- set filled.text = filled.text.replace(code, value) -%}"
    "{%- endfor -%}{{- filled.text -}}{%- endmacro %}\n"
)
_QUESTION, _ANSWER = "\ue000question", "\ue000answer"


@dataclass(frozen=True)
class AnswerFrame:
    """What a template writes around an answer.

    Attributes:
        opening: Everything from the end of the question to the answer.
        added: The end of `opening` that the generation prompt lacks: an empty thought, a header, a space.
        closing: Everything after the answer.
        mismatch: How an answer in a conversation differs from one after the generation prompt; None if it does not.
    """

    opening: str
    added: str = ""
    closing: str = ""
    mismatch: str | None = None

    @property
    def thought(self) -> str:
        """The thought that is open where the answer begins, from its tag on; empty if there is none."""
        return open_thought(self.opening)


class ChatTemplate:
    """The chat template of a tokenizer, on a fixed date."""

    def __init__(self, tokenizer: Any, date: str | None = None) -> None:
        """Prepare a template.

        Args:
            tokenizer: A transformers tokenizer.
            date: The date for templates that read the clock, as YYYY-MM-DD; today by default.

        Raises:
            UserError: The tokenizer has no template.
        """
        self.name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{self.name} has no chat template; choose `chat='off'` or a text style such as sail-fixed")
        self._tokenizer = tokenizer
        try:
            source: str = tokenizer.get_chat_template()
        except ValueError:
            raise UserError(f"{self.name} has several chat templates and none that is called default") from None
        self.date = (date or today()) if reads_clock(tokenizer) else None
        self._source = _FIXED_CLOCK + source if self.date else source

    def render(self, turns: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        """Render a conversation as text; thinking is disabled if the template has a switch.

        Args:
            turns: `role` and `content` of each turn.
            generation_prompt: Whether to append the generation prompt.

        Raises:
            UserError: The template does not parse, or refuses the conversation.
        """
        try:
            return self._apply(turns, generation_prompt, enable_thinking=False)
        except Exception as error:  # a template may raise whatever Python's operators raise
            reason = " ".join(str(error).split())[:200]
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise UserError(
                f"the chat template of {self.name} fails on a conversation of {roles}: {reason} "
                f"({type(error).__name__}); choose `chat='off'` or a text style such as sail-fixed, or mend it"
            ) from None

    def _apply(self, turns: Sequence[Mapping[str, str]], generation_prompt: bool, **variables: Any) -> str:
        if self.date:
            variables["date_codes"] = _date_codes(self.date)
        text: str = self._tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=generation_prompt,
            chat_template=self._source, **variables,
        )  # fmt: skip
        return text

    @cached_property
    def frame(self) -> AnswerFrame:
        """What the template writes around an answer.

        Raises:
            UserError: The template cannot render a question.
        """
        question = [{"role": "user", "content": _QUESTION}]
        prompt = self.render(question, generation_prompt=True)
        opening = prompt[prompt.rfind(_QUESTION) + len(_QUESTION) :] if _QUESTION in prompt else prompt
        try:
            whole = self.render([*question, {"role": "assistant", "content": _ANSWER}], generation_prompt=False)
        except UserError as error:
            return AnswerFrame(opening, mismatch=str(error))
        before, answer, closing = whole.rpartition(_ANSWER)
        if not answer:
            return AnswerFrame(opening, mismatch=f"the chat template of {self.name} does not show the assistant's turn")
        if not before.startswith(prompt):
            start = before[before.rfind(_QUESTION) + len(_QUESTION) :]
            return AnswerFrame(
                opening,
                closing=closing,
                mismatch=f"the chat template of {self.name} asks for an answer behind {opening[-40:]!r} and writes "
                f"an answer behind {start[-40:]!r}",
            )
        added = before[len(prompt) :]
        return AnswerFrame(opening + added, added, closing)

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template renders a system turn: some refuse it, some drop it."""
        turns = [{"role": "system", "content": "system text"}, {"role": "user", "content": _QUESTION}]
        with contextlib.suppress(UserError):
            return "system text" in self.render(turns, generation_prompt=True)
        return False

    @property
    def unusual(self) -> bool:
        """Whether a prompt has more than white space after the generation prompt."""
        question = [{"role": "user", "content": _QUESTION}]
        prompt = self.render(question, generation_prompt=True)
        return bool(self.frame.added.strip()) or self._apply(question, True) != prompt


def reads_clock(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template that reads the date."""
    return _CLOCK in str(getattr(tokenizer, "chat_template", None))  # it may have several


def today() -> str:
    """Today's date as YYYY-MM-DD, by the clock of this machine."""
    return datetime.date.today().isoformat()


def check_date(date: str | None) -> None:
    """Raise a UserError unless a date is valid, or None."""
    if date is None:
        return
    try:
        if datetime.date.fromisoformat(date).isoformat() == date:
            return
    except ValueError:
        pass
    raise UserError(f"`date` should be a day as YYYY-MM-DD, not {date!r}")


@cache
def _date_codes(date: str) -> dict[str, str]:
    """Each strftime code -> its text at midnight of the date."""
    moment = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time())
    codes: dict[str, str] = {}
    for letter in string.ascii_letters:
        for code in (f"%-{letter}", f"%{letter}"):
            with contextlib.suppress(ValueError):
                codes[code] = moment.strftime(code)
    return {code: text for code, text in codes.items() if text != code} | {"%%": "%"}
