"""Make text from outside safe to show: no character that acts on a terminal or a page instead of being read."""

from __future__ import annotations

import re
from typing import Any

# C0 and C1 control characters (a terminal takes them for commands), the marks, overrides and isolates of bidirectional
# text (they garble the text around them), line and paragraph separators, and lone surrogates (they cannot be
# written). Joiners are left alone: Persian, Hindi and emoji are spelt with them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_LAYOUT = "\n\t"


def clean(text: str, layout: bool = False) -> str:
    """Text in which every unsafe character has become U+FFFD.

    Args:
        text: Text from anywhere.
        layout: Keep line breaks and tabs; a carriage return before a line break goes.
    """
    if not layout:
        return _UNSAFE.sub("\ufffd", text)
    return _UNSAFE.sub(lambda match: match[0] if match[0] in _LAYOUT else "\ufffd", text.replace("\r\n", "\n"))


def without_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair, which JSON can spell, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def clean_values(value: Any) -> Any:
    """A JSON value in which every string is clean; line breaks and tabs stay."""
    if isinstance(value, str):
        return clean(value, layout=True)
    if isinstance(value, dict):
        return {clean(key, layout=True): clean_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_values(item) for item in value]
    return value


def escape_json(text: str) -> str:
    r"""Equal JSON with its unsafe characters escaped as `\uXXXX`.

    Args:
        text: The output of `json.dumps`; line breaks between values stay.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)
