"""Removes the thoughts of reasoning models from their replies; a reply with an unclosed thought has no answer."""

from __future__ import annotations

import re

_TAGS = r"(?i:(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad))"
# Closing marks in plain words (Granite 3.2; gpt-oss without special tokens), which an answer may contain: they close
# only a thought that the reply opened.
_PLAIN = r"\bHere(?: is|'s) my response:|assistantfinal"
# The tags with which model families open and close a thought.
_MARKS = (
    (rf"<{_TAGS}>", rf"</{_TAGS}>"),  # DeepSeek-R1, Qwen3, Phi-4, Nemotron, Granite 3.3, EXAONE, Seed-OSS ...
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker, Sky-T1
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|channel>thought\b", r"<channel\|>"),  # Gemma 4
    (r"<unused94>thought\b", r"<unused95>"),  # MedGemma
    (r"\A\s*Here(?: is|'s) my thought process:", _PLAIN),  # Granite 3.2
    # gpt-oss: only the channel `final` is an answer. Without special tokens, the channel names run into the text.
    (
        r"(?:<\|start\|>\s*assistant)?<\|channel\|>\s*(?:analysis|commentary)\b|\A\s*(?:analysis|commentary)(?=[A-Z])",
        r"(?:<\|start\|>\s*assistant)?<\|channel\|>\s*final\b[^<\n]*(?:<\|constrain\|>\w*)?<\|message\|>",
    ),
)
_MARK = re.compile(f"(?P<open>{'|'.join(o for o, _ in _MARKS)})|(?P<close>{'|'.join(c for _, c in _MARKS)})")
# The end of a text that may still become a mark: brackets that are open, or closed before the word of a channel, after
# special tokens of gpt-oss, of which a mark has several.
_BEGUN = re.compile(
    r"(?:(?:<\|[a-z]{1,20}\|>\s*[a-z]{0,10}\s*){0,5}<[^<>\n]{0,30}(?:>\s*[a-z]{0,10})?|\[[A-Z/]{0,8}|◁[^▷\n]{0,8})\Z"
)
_OPENINGS = ("Here is my thought process:", "Here's my thought process:", "analysis", "commentary")
# Special tokens that are only part of a mark.
_PARTS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|channel>", "<unused94>")
_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")


def split_thoughts(text: str) -> tuple[str, bool]:
    """Remove thoughts from a model's reply.

    A closing mark without an opening one closes a thought that the prompt opened, so everything before it is removed;
    not so one in plain words, such as Granite's "Here is my response:".

    Args:
        text: The reply.

    Returns:
        The text without thoughts, and whether a thought is still open at its end, in which case there is no answer.
    """
    pieces: list[str] = []
    start, thinking = 0, False
    for mark in _MARK.finditer(text):
        if mark["close"]:
            if not thinking and re.fullmatch(_PLAIN, mark.group()):
                continue
            if not thinking:
                pieces.clear()
            start, thinking = mark.end(), False
        elif not thinking:
            pieces.append(text[start : mark.start()])
            thinking = True
    if not thinking:
        if start == 0:
            return text, False
        pieces.append(_END.sub("", text[start:]))
    return "\n".join(piece for piece in pieces if piece.strip()).lstrip(), thinking


def settled(text: str) -> str:
    """The part of a growing text that no further token turns into a thought or its mark.

    Args:
        text: The reply so far, without the thoughts in it; see `split_thoughts`.
    """
    if any(opening.startswith(text.strip()) for opening in _OPENINGS):
        return ""
    return _BEGUN.sub("", text)


def open_thought(text: str) -> str:
    """The thought that is open at the end of a text, from its mark on; empty if there is none."""
    start: int | None = None
    for mark in _MARK.finditer(text):
        start = None if mark["close"] else mark.start() if start is None else start
    return "" if start is None else text[start:]


def thought_is_open(text: str) -> bool:
    """Whether a text ends within a thought, before any answer."""
    return split_thoughts(text)[1]


def is_mark(token: str) -> bool:
    """Whether a token is a thought mark or a part of one."""
    return token in _PARTS or _MARK.fullmatch(token) is not None
