"""Clean untrusted text: replace characters that control a terminal or the layout of a page, and remove mark-up."""

from __future__ import annotations

import re
from typing import Any

# C0 and C1 control characters (commands to a terminal), bidirectional marks, overrides and isolates (they reorder the
# surrounding text), line and paragraph separators, and lone surrogates (they cannot be encoded). Joiners are kept:
# Persian, Hindi and emoji need them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_LAYOUT = "\n\t"
# Mark-up of scraped texts and of Wikipedia. Other names in angle brackets, as in List<String>, are text.
_MARKUP = (
    "br|hr|h[1-6]|em|strong|small|big|sup|sub|span|div|font|center|blockquote|"
    "ul|ol|li|dl|dt|dd|table|caption|thead|tbody|tr|td|th|ref|nowiki"
)
_PAGE = (  # further tags of web pages
    "s|u|q|del|ins|mark|code|pre|kbd|samp|var|cite|dfn|abbr|time|img|picture|figure|figcaption|section|article|aside|"
    "header|footer|nav|main|label|button|form|input|select|option|script|style|noscript|iframe|svg|link|meta"
)
_ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
# A single capital letter is a type parameter, as in Box<P>, rather than a tag.
_TAG = re.compile(rf"</?(?:[abip]|{_MARKUP}|{_MARKUP.upper()})(?:{_ATTRIBUTE})*\s*/?>")
_SWITCH = r"\s+(?:async|defer|nowrap|hidden|title|checked|disabled|selected|required|open|controls|itemscope)"
# On a page, any name with an attribute is a tag, and so is a closing tag of a single capital letter.
_TAG_OF_PAGE = re.compile(
    rf"</?(?:[abip]|(?i:{_MARKUP}|{_PAGE}))(?:{_ATTRIBUTE}|{_SWITCH})*\s*/?>"
    rf"|<[A-Za-z][\w-]*(?:{_ATTRIBUTE})+\s*/?>|</[ABIPSUQ]>"
)


def clean(text: str, layout: bool = False) -> str:
    """Replace every unsafe character by U+FFFD.

    Args:
        text: Any text.
        layout: Keep line breaks and tabs; a carriage return before a line break is removed.
    """
    if not layout:
        return _UNSAFE.sub("\ufffd", text)
    return _UNSAFE.sub(lambda match: match[0] if match[0] in _LAYOUT else "\ufffd", text.replace("\r\n", "\n"))


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, the last of them an ellipsis if it was longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and UTF-8 cannot encode, by question marks."""
    return text.encode("utf-8", "replace").decode()


def clean_values(value: Any) -> Any:
    """Clean every string in a JSON value; line breaks and tabs are kept."""
    if isinstance(value, str):
        return clean(value, layout=True)
    if isinstance(value, dict):
        return {clean(key, layout=True): clean_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_values(item) for item in value]
    return value


def escape_json(text: str) -> str:
    r"""Escape unsafe characters in JSON as `\uXXXX`, which keeps its value.

    Args:
        text: The output of `json.dumps`; line breaks between values are kept.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def without_markup(text: str, of_page: bool = False) -> str:
    """Replace tags of HTML and of Wikipedia's mark-up by spaces; `List<String>` and `a<b` stay.

    Args:
        text: Any text.
        of_page: The text is from a web page, so that also `<code>`, `<script>` and the like are tags.
    """
    return (_TAG_OF_PAGE if of_page else _TAG).sub(" ", text)
