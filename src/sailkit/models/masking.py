"""Keeping a key out of all that a server's words are written to, however the server spells it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SHORTEST_KEY = 8  # a shorter one is a placeholder such as EMPTY, not a secret
_PART = 12  # characters of a key that give enough of it away
_MASK = "[key]"
# One character in JSON's escapes (nested ones have several backslashes), an URL's, HTML's, or itself.
_UNIT = re.compile(
    r"\\+u(?P<json>[0-9a-fA-F]{4})|\\+(?P<escaped>.)|%(?P<url>[0-9a-fA-F]{2})"
    r"|&#(?:x(?P<hex>[0-9a-fA-F]{1,6})|(?P<decimal>[0-9]{1,7}));|(?P<plain>.)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"[\\%&]")


class KeyMask:
    """Replaces a key, and every long part of it, by `[key]`."""

    def __init__(self, key: str) -> None:
        """Prepare to mask a key; one that is no secret masks nothing."""
        self._size = min(_PART, len(key)) if len(key) >= _SHORTEST_KEY else 0
        self._parts = {key[i : i + self._size] for i in range(len(key) - self._size + 1)} if self._size else set()

    def text(self, text: str) -> str:
        """A text without the key, also where the text spells it with escapes."""
        if not self._size or len(text) < self._size:
            return text
        text = self._masked(text, range(len(text) + 1), text)
        if _ESCAPE.search(text):
            units = [(_decoded(match), match.start()) for match in _UNIT.finditer(text)]
            text = self._masked("".join(char for char, _ in units), [*(at for _, at in units), len(text)], text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value whose texts are masked, the names of its fields too."""
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
        """A text with a mask for each place of the key in its plain spelling, whose characters start at `starts`."""
        pieces, done = [], 0
        for first, last in self._places(plain):
            pieces += [text[done : starts[first]], _MASK]
            done = starts[last]
        return "".join([*pieces, text[done:]])

    def _places(self, plain: str) -> Iterator[tuple[int, int]]:
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
