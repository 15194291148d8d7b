"""Masks an API key, also if it is escaped, in the texts of a server before they are shown or written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SHORTEST_KEY = 8  # a shorter key is a placeholder such as EMPTY, not a secret
_PART = 12  # a part of the key of this many characters is masked too: servers echo shortened keys
_MASK = "[key]"
# One character: escaped as in JSON (with several backslashes if nested), in a URL or in HTML, or not escaped.
_UNIT = re.compile(
    r"\\+u(?P<json>[0-9a-fA-F]{4})|\\+(?P<escaped>.)|%(?P<url>[0-9a-fA-F]{2})"
    r"|&#(?:x(?P<hex>[0-9a-fA-F]{1,6})|(?P<decimal>[0-9]{1,7}));|(?P<plain>.)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"[\\%&]")


class KeyMask:
    """Replaces a key, and every long substring of it, with `[key]`.

    A server may echo the key in an error, escaped once or several times. A text is searched as it is, and again with
    its escapes decoded; the offset of each decoded character leads back to its span in the original text.
    """

    def __init__(self, key: str) -> None:
        """Prepare to mask a key; a placeholder masks nothing."""
        self._size = min(_PART, len(key)) if len(key) >= _SHORTEST_KEY else 0
        self._parts = {key[i : i + self._size] for i in range(len(key) - self._size + 1)} if self._size else set()

    def text(self, text: str) -> str:
        """A text with the key masked, escaped or not."""
        if not self._size or len(text) < self._size:
            return text
        text = self._masked(text, range(len(text) + 1), text)
        if _ESCAPE.search(text):
            units = [(_decoded(match), match.start()) for match in _UNIT.finditer(text)]
            text = self._masked("".join(char for char, _ in units), [*(at for _, at in units), len(text)], text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with the key masked in its texts and field names."""
        if not self._size:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(part) for part in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(part) for name, part in value.items()}
        return value

    def _masked(self, plain: str, starts: Any, text: str) -> str:
        """A text with each occurrence of the key masked.

        Args:
            plain: The text with its escapes decoded.
            starts: Offset in `text` of each character of `plain`, and the end.
            text: The text to mask.
        """
        pieces, done = [], 0
        for first, last in self._spans(plain):
            pieces += [text[done : starts[first]], _MASK]
            done = starts[last]
        return "".join([*pieces, text[done:]])

    def _spans(self, plain: str) -> Iterator[tuple[int, int]]:
        """Start and end of each run of overlapping parts of the key."""
        size, at = self._size, 0
        while at + size <= len(plain):
            if plain[at : at + size] not in self._parts:
                at += 1
                continue
            end = at + size
            while plain[end - size + 1 : end + 1] in self._parts and end < len(plain):
                end += 1
            yield at, end
            at = end


def _decoded(unit: re.Match[str]) -> str:
    if code := unit["json"] or unit["url"] or unit["hex"]:
        return _character(int(code, 16))
    if unit["decimal"]:
        return _character(int(unit["decimal"]))
    return unit["escaped"] or unit["plain"] or ""


def _character(code: int) -> str:
    return chr(code) if code <= 0x10FFFF else "\ufffd"


NO_KEY = KeyMask("")
