"""Decodes generated token ids without special tokens, except those that delimit a thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sailkit.prompts.thoughts import is_mark


class AnswerDecoder:
    """Decodes answers and keeps the delimiters of thoughts; without them, a thought would be read as the answer."""

    def __init__(self, tokenizer: Any) -> None:
        """Look up the thought delimiters among the tokenizer's special tokens; most tokenizers have none."""
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marks = {i for i in self._special if is_mark(tokenizer.added_tokens_decoder[i].content)}

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of an answer."""
        if self._marks.isdisjoint(ids):
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        kept = [i for i in ids if i not in self._special or i in self._marks]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))
