"""Renders a report as Markdown; untrusted text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sailkit import __version__
from sailkit.rendering import curves, model, reliability
from sailkit.rendering.numbers import figure, note_of, sentence, value_of
from sailkit.text import clean

MARK = "<!-- sailkit report"  # identifies files that sailkit wrote and may overwrite
_LAYOUT = re.compile(r"\r\n|[\n\t]")
_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$#])")


def page(report: model.Report) -> str:
    """A report as a Markdown file.

    Args:
        report: The report.
    """
    return f"{MARK} {__version__} -->\n{body(report)}\nMade by sailkit {__version__}\n"


def body(report: model.Report) -> str:
    """The title and the sections.

    Args:
        report: The report.
    """
    parts = [f"# {escape(report.title)}", escape(report.about)]
    name = ""
    for section in report.sections:
        blocks = [part for block in section.blocks for part in _block(block)]
        if not blocks:
            continue
        if section.name and section.name != name:
            name = section.name
            parts.append(f"## {escape(name)}")
        level = "###" if section.name else "##"
        parts += [f"{level} {escape(section.heading)}"] if section.heading else []
        parts += blocks
    return "\n\n".join(filter(None, parts)) + "\n"


def escape(text: str) -> str:
    """Escape text for a Markdown paragraph, heading or table cell, in which line breaks and tabs become spaces."""
    plain = clean(_LAYOUT.sub(" ", text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def _block(block: model.Block) -> Iterator[str]:  # noqa: PLR0912 - a case for each kind of block
    match block:
        case model.Heading(text):
            yield f"### {escape(text)}"
        case model.Text(text) | model.Code(text):
            yield escape(text)
        case model.Headline(text, remark):
            yield f"**{escape(text)}**." + (remark and f" {escape(remark)}.")
        case model.SideBySide(texts):
            yield from (f"**{escape(name)}**: {escape(text)}" for name, text in texts)
        case model.Bullets(entries):
            yield _list(f"**{escape(name)}**: {escape(rest)}" if name else escape(rest) for name, rest in entries)
        case model.Figures(entries):
            yield _list(f"{escape(name)}: {_cell(cell)}" for name, cell in entries)
        case model.Flags(name, messages):
            head = name and f"**{escape(name)}**: "
            yield _list(
                head + escape(sentence(words)) + (code and f" ({escape(code)})")
                for code, sentences in messages.items()
                for words in sentences
            )
        case model.Table(columns, groups):
            for group in groups:
                rows = [(row.name, [_cell(cell) for cell in row.cells]) for row in group.rows]
                yield _table(group.heading, columns, rows)
        case model.Facts(columns, rows):
            yield _table(
                "", columns, [(name, [escape(value or "not recorded") for value in values]) for name, values in rows]
            )
        case model.Matrix(name, truth, labels, columns, counts):
            rows = [(label, [str(count) for count in own]) for label, own in zip(labels, counts, strict=True)]
            yield _table(f"{name}: {truth}", columns, rows, "---:|")
        case model.Split():
            yield _table("", [f"of {sum(block.counts)} items"], [(words, [str(n)]) for _, words, n in block.parts])
        case model.Plots(plots, described=True):
            yield _list(escape(f"{plot.title}: {curves.describe(plot)}") for plot in plots)
        case model.Cases(_, columns, cases):
            rows = [(case.claim, [escape(case.result), *map(figure, case.scores)]) for case in cases]
            yield _table("Claim", ["Result", *columns], rows)
        case model.Calibration(sets):
            for plot in sets:
                cells = [(name, [escape(text) for text in texts]) for name, texts in reliability.rows(plot)]
                yield _table(plot.name, reliability.COLUMNS, cells)
        case model.Intervals() | model.Plots():
            return  # the tables have the same figures


def _cell(cell: model.Cell) -> str:
    if cell.value is None:
        return "–"
    value, note = escape(value_of(cell)), escape(note_of(cell))
    return (f"**{value}**" if cell.bold else value) + (note and f" ({note})")


def _list(entries: Iterator[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _table(heading: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], align: str = "---|") -> str:
    """A table whose row cells are escaped already."""
    lines = [[escape(heading), *map(escape, columns)], *([escape(name), *cells] for name, cells in rows)]
    head, *rest = ("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)
    return "\n".join([head, "|---|" + align * len(columns), *rest])
