"""Draw one sentence in the tokens of two tokenizers over a common byte axis: docs/aligned.svg.

    python examples/aligned.py SHARED docs/aligned.svg

SHARED holds tokenizers/llama and tokenizers/qwen. docs/distill.md explains the kinds of student
tokens.
"""

from __future__ import annotations

import sys
from collections import Counter
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sailkit.distillation.align import ByteStream, Vocabulary, byte_stream

LINES = ("Search result (1) is informative:", " glacial retreat was overestimated in 2019. 😀")
KINDS = {
    "same": "the same bytes in both",
    "spans": "spans several teacher tokens: path expansion",
    "part": "first part of a teacher token",
    "within": "begins within a teacher token: conditioned",
}
STYLE = """
.paper{fill:#fdfdfb}text{fill:#1a1c20}
text{font:15px ui-monospace,"SF Mono","Cascadia Code","DejaVu Sans Mono",Menlo,Consolas,monospace}
.word,.tick,.head{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.head{font-size:15px;font-weight:600}.word{font-size:13px}.tick{font-size:11px}.byte{font-size:10px}
.dim,.tick{fill:#5d626b}
.axis{stroke:#8b8f97}.edge{stroke:#8b8f97;stroke-dasharray:2 3}rect{stroke-width:1.25}.paper{stroke:none}
.plain{fill:#f5f5f1;stroke:#8b8f97}.same{fill:#d6e4f3;stroke:#1d5a9e}.spans{fill:#f9e6bd;stroke:#8a5300}
.part{fill:#d9ecd9;stroke:#2c6e3a}.within{fill:#f6d5d0;stroke:#a8322b;stroke-dasharray:5 3}
@media (prefers-color-scheme:dark){.paper{fill:#16181b}text{fill:#e7e7e3}.dim,.tick{fill:#a2a7af}
.axis,.edge{stroke:#7b818a}.plain{fill:#1e2125;stroke:#7b818a}.same{fill:#243a54;stroke:#86b6ee}
.spans{fill:#43351a;stroke:#e5b566}.part{fill:#1f3a27;stroke:#83c793}.within{fill:#4b2926;stroke:#f2938a}}
""".replace("\n", "")
CELL, LEFT, TOP, ROW, GAP, LINE = 16, 92, 84, 34, 16, 156  # pixels; CELL is one byte


class Token(NamedTuple):
    """A token, its first byte, the byte after its last, and its kind."""

    start: int
    end: int
    piece: bytes | None
    kind: str


def read(tokenizer: Any, text: str) -> tuple[Vocabulary, ByteStream]:
    """Tokenise a text as it is tokenised after a prompt, and align its tokens with bytes."""
    before = tokenizer("x\n", add_special_tokens=False)["input_ids"]
    ids = tokenizer("x\n" + text, add_special_tokens=False)["input_ids"][len(before) :]
    vocabulary = Vocabulary(tokenizer)
    return vocabulary, byte_stream(vocabulary, [*ids, tokenizer.eos_token_id], text)


def kind_of(start: int, end: int, others: list[int]) -> str:
    """The relation of a student token to the teacher tokens, given their starts and the last end."""
    if start not in others:
        return "within"
    following = min(other for other in others if other > start)
    return "same" if end == following else "spans" if end > following else "part"


def tokens_of(shared: Path, text: str) -> tuple[list[Token], list[Token]]:
    """The teacher's tokens and the student's."""
    from transformers import AutoTokenizer, LlamaTokenizer

    llama = read(LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama"), text)
    qwen = read(AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen"), text)
    starts = [side.starts.tolist() for _, side in (llama, qwen)]

    def tokens(side: int, vocabulary: Vocabulary, row: ByteStream) -> list[Token]:
        these, others = starts[side], starts[1 - side]
        spans = [*pairwise(these), (these[-1], these[-1])]
        result = []
        for (start, end), i in zip(spans, row.tokens.tolist(), strict=True):
            piece = vocabulary.pieces[i]
            kind = "same" if piece is None else kind_of(start, end, others)
            result.append(Token(start, end, piece, kind if side or kind == "same" else "plain"))
        return result

    return tokens(0, *llama), tokens(1, *qwen)


def box(token: Token, begin: int, top: int, who: str) -> str:
    """A token as a box over its bytes, each character above its own."""
    left = LEFT + CELL * (token.start - begin)
    if token.piece is None:
        width, letters = 46, f'<text class="word dim" x="{left + 25}" y="{top + 22}" text-anchor="middle">end</text>'
        text = "end of text"
    else:
        width = CELL * (token.end - token.start)
        text = token.piece.decode("utf-8", "replace")
        letters = written(token.piece, left, top)
    title = f"<title>{escape(who)}: {escape(text)}{'' if token.kind == 'plain' else ', ' + KINDS[token.kind]}</title>"
    rect = f'<rect class="{token.kind}" x="{left + 1.5}" y="{top}" width="{width - 3}" height="{ROW}" rx="4"/>'
    return f"<g>{title}{rect}{letters}</g>"


def written(piece: bytes, left: int, top: int) -> str:
    """The label of a box: characters, a space as a middle dot, or a byte in hexadecimal if it is no character."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return (
            f'<text class="byte" x="{left + CELL / 2}" y="{top + 21}" text-anchor="middle">{piece.hex().upper()}</text>'
        )
    parts, offset = [], 0
    for letter in text:
        size = len(letter.encode())
        dim = ' class="dim"' if letter == " " else ""
        shown = "·" if letter == " " else escape(letter)
        x = left + CELL * (offset + size / 2)
        parts.append(f'<text{dim} x="{x:g}" y="{top + 22}" text-anchor="middle">{shown}</text>')
        offset += size
    return "".join(parts)


def line(teacher: list[Token], student: list[Token], begin: int, end: int, top: int) -> str:
    """A part of the sentence: both rows of tokens, their common starts, and the axis."""
    below = top + ROW + GAP
    bottom = below + ROW + 10
    here = [[token for token in side if begin <= token.start < end] for side in (teacher, student)]
    last = max(token.end for token in here[0])
    shared = sorted({token.start for token in here[0]} & {token.start for token in here[1]} | {last})
    x = [LEFT + CELL * (start - begin) for start in shared]
    parts = [f'<path class="edge" d="{" ".join(f"M{at} {top - 5}V{bottom}" for at in x)}"/>']
    for at, side, name, role in ((top, here[0], "LLaMA", "teacher"), (below, here[1], "Qwen", "student")):
        parts.append(f'<text class="head" x="16" y="{at + 15}">{name}</text>')
        parts.append(f'<text class="word dim" x="16" y="{at + 31}">{role}</text>')
        parts += [box(token, begin, at, name) for token in side]
    ticks = range(begin, last + 1)
    marks = " ".join(f"M{LEFT + CELL * (n - begin)} {bottom}v{7 if n % 5 == 0 else 3}" for n in ticks)
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{LEFT + CELL * (last - begin)} {marks}"/>')
    parts.append(f'<text class="tick" x="16" y="{bottom + 19}">byte</text>')
    for n in (n for n in ticks if n % 5 == 0):
        parts.append(
            f'<text class="tick" x="{LEFT + CELL * (n - begin)}" y="{bottom + 19}" text-anchor="middle">{n}</text>'
        )
    return "\n".join(parts)


def legend(student: list[Token], top: int) -> str:
    """What the colours mean, and how many of the student's tokens are of each kind."""
    counts = Counter(token.kind for token in student)
    parts = []
    for n, (kind, words) in enumerate(KINDS.items()):
        x, y = LEFT + 380 * (n % 2), top + 26 * (n // 2)
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="22" height="15" rx="3"/>')
        parts.append(
            f'<text class="word" x="{x + 31}" y="{y + 12}">{words} <tspan class="dim">({counts[kind]})</tspan></text>'
        )
    return "\n".join(parts)


def draw(teacher: list[Token], student: list[Token]) -> str:
    """The whole picture."""
    text = "".join(LINES)
    size = [len(part.encode()) for part in LINES]
    width, height = LEFT + CELL * max(size) + 46 + 20, TOP + 2 * LINE + 58
    label = f"{text}: {len(teacher)} tokens of LLaMA and {len(student)} of Qwen over a common axis of bytes"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(label)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="6"/>',
        f'<text class="head" x="16" y="32">The same {sum(size)} bytes: {len(teacher)} tokens of the teacher, '
        f"{len(student)} of the student</text>",
        '<text class="word dim" x="16" y="53">A dotted line is where both begin a token, so that the teacher\'s '
        "distribution can be taken over. A dot stands for a space.</text>",
        line(teacher, student, 0, size[0], TOP),
        line(teacher, student, size[0], sum(size) + 1, TOP + LINE),
        legend(student, TOP + 2 * LINE),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Path(sys.argv[2]).write_text(draw(*tokens_of(Path(sys.argv[1]), "".join(LINES))), "utf-8")
