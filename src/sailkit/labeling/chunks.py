"""Split long texts into overlapping windows of tokens, so that a labeler reads more than their beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sailkit.prompts.render import Part
from sailkit.prompts.safety import GuardedTokenizer


def max_positions(config: Any) -> int:
    """Maximum input length of an encoder in tokens, by its position embeddings."""
    most: int = getattr(config, "max_position_embeddings", 512)
    # RoBERTa numbers positions from pad_token_id + 1, so its table is that much longer.
    return most - config.pad_token_id - 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else most


class Windows:
    """Splits texts into windows of tokens; a text that spells a special token is never encoded as that token."""

    def __init__(self, tokenizer: Any, size: int, overlap: int = 32, most: int = 8) -> None:
        """Initialise the splitter.

        Args:
            tokenizer: A fast transformers tokenizer.
            size: Tokens in a window, without special tokens.
            overlap: Tokens shared by consecutive windows.
            most: Maximum number of windows of a text; the tokens after them are skipped and counted.
        """
        self.size = size
        self.overlap = min(overlap, size // 4)
        self.most = most
        self._guard = GuardedTokenizer(tokenizer)

    def describe(self) -> dict[str, int]:
        """The settings of the windows, for the manifest."""
        return {"size": self.size, "overlap": self.overlap, "most": self.most}

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an untrusted text, without special tokens."""
        return self._guard.encode([Part(text, trusted=False)], add_special_tokens=False)

    def encode(self, parts: Sequence[Part]) -> tuple[int, ...]:
        """Token ids of a text with trusted and untrusted parts, without those that the tokenizer adds."""
        return self._guard.encode(parts, add_special_tokens=False)

    def ends(self, text: str) -> list[int]:
        """The end of each token of a text, as an offset in characters."""
        return self._guard.offsets(text)

    def spans(self, length: int, size: int | None = None, most: int | None = None) -> list[tuple[int, int]]:
        """Start and end of each window of a text of `length` tokens; at least one window, which may be empty."""
        size = size or self.size
        step = size - min(self.overlap, size // 4)
        starts = range(0, max(length - min(self.overlap, size // 4), 1), step)
        return [(start, min(start + size, length)) for start in starts][:most]

    def split(self, text: str, most: int | None) -> tuple[list[str], int]:
        """The first `most` windows of a text (None: all), and the number of tokens after the last of them."""
        ends = self.ends(text)
        spans = self.spans(len(ends), most=most)
        starts = [0, *ends]
        return [text[starts[a] : starts[b]] for a, b in spans], len(ends) - spans[-1][1]
