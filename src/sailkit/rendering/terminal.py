"""Renders a report as terminal text; tables fit the width, and untrusted text is never markup."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table as RichTable

from sailkit.console import console
from sailkit.rendering import curves, model, reliability
from sailkit.rendering.numbers import decimals
from sailkit.stats.intervals import Estimate

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_DIGITS = 4
_GAP = 2  # between columns
_INTERVAL = len("[0.000, 0.000]")
_LONG = 32  # characters; a longer heading gets a separate line


def write(report: model.Report, out: Console | None = None) -> None:
    """Print a report on a console; on standard output by default."""
    _write(report, out or console())


def text(report: model.Report, width: int = 80) -> str:
    """A report as plain text.

    Args:
        report: The report.
        width: Most characters in a line of a table.
    """
    stream = io.StringIO()
    _write(report, console(stream, width=width))
    return stream.getvalue()


def _write(report: model.Report, out: Console) -> None:
    if report.title:
        out.print(f"\n[bold]{escape(report.title)}[/]{escape(report.about and f': {report.about}')}")
    elif report.about:
        out.print(escape(report.about))
    for section in report.sections:
        if section.heading:
            out.print(f"\n[bold]{escape(section.heading)}[/]{escape(section.name and f' ({section.name})')}")
        for block in section.blocks:
            for part in _block(block, out.width):
                out.print(part, soft_wrap=isinstance(part, str))  # the terminal wraps sentences


def _block(block: model.Block, width: int) -> Iterator[RenderableType]:  # noqa: PLR0912 - a case for each kind
    match block:
        case model.Heading(text):
            yield f"\n[bold]{escape(text)}[/]"
        case model.Text(text) | model.Code(text):
            yield escape(text)
        case model.Headline(text, remark):
            yield f"[bold]{escape(text)}[/]{escape(remark and f' ({remark})')}"
        case model.SideBySide(texts):
            table = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), expand=True)
            for name, _ in texts:
                table.add_column(escape(name), ratio=1, overflow="fold")
            table.add_row(*(escape(text) for _, text in texts))
            yield table
        case model.Bullets(entries):
            yield from (escape(f"{name}: {rest}" if name else rest) for name, rest in entries)
        case model.Figures(entries):
            yield from (escape(f"{name}: {cell(entry)}") for name, entry in entries)
        case model.Flags(name, messages):
            for code, sentences in messages.items():
                head = escape(", ".join(filter(None, (name, code))))
                yield from (f"[bold yellow]![/] {head and f'[bold]{head}[/]: '}{escape(words)}" for words in sentences)
        case model.Table(columns, groups):
            for number, group in enumerate(groups):
                rows = [(row.name, [cell(each) for each in row.cells]) for row in group.rows]
                yield from ("",) if number else ()
                yield from _tables(group.heading, columns, rows, width)
        case model.Facts(columns, rows):
            known = [(name, ["not recorded" if value is None else value for value in values]) for name, values in rows]
            yield from _tables("", columns, known, width)
        case model.Matrix(_, truth, labels, columns, counts):
            rows = [(label, [str(count) for count in own]) for label, own in zip(labels, counts, strict=True)]
            yield from _tables(f"{truth}, then answers", columns, rows, width, right=True)
        case model.Split():
            yield escape(", ".join(f"{words} {count}" for _, words, count in block.parts))
        case model.Plots(plots, described=True):
            yield from (escape(f"{plot.title}: {curves.describe(plot)}") for plot in plots)
        case model.Cases(title, columns, cases):
            rows = [(f"{case.claim}: {case.result}", [f"{x:.3f}" for x in case.scores]) for case in cases]
            yield from _tables(title, columns, rows, width)
        case model.Calibration(sets):
            for plot in sets:
                yield from _tables(plot.name, reliability.COLUMNS, reliability.rows(plot), width)
        case model.Intervals() | model.Plots():
            return  # the tables have the same figures


def cell(content: model.Cell) -> str:
    """A cell in one line: a figure with four decimals, its interval with three."""
    value, sign = content.value, "+" if content.signed else ""
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        digits = decimals(value.low, value.high) if content.signed else 3
        words = f"{value.value:{sign}.{_DIGITS}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"
    elif isinstance(value, float):
        words = f"{value:{sign}.{_DIGITS}f}"
    else:
        words = f"{value:,}" if isinstance(value, int) else value
    return f"{words} ({content.note})" if content.note else words


def _in_lines(content: str) -> str:
    """A figure with its interval and note below it; other text unchanged."""
    if not content.lstrip("+-")[:1].isdigit():
        return content
    return content.replace(" [", "\n[").replace(" (", "\n(")


def _tables(
    heading: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    width: int,
    right: bool = False,
) -> Iterator[RichTable | str]:
    """A table that fits the terminal.

    If it is too wide, intervals move below their figures and headings are wrapped. If that is not enough, the columns
    are divided among several tables.
    """
    if len(heading) > _LONG:
        yield escape(heading)
        heading = ""
    first = max([1, len(heading), *(len(name) for name, _ in rows)])
    widths = [max([len(name), *(len(cells[i]) for _, cells in rows)]) + _GAP for i, name in enumerate(columns)]
    if first + sum(widths) > width:
        first = min(first, width // 3)
        rows = [(name, list(map(_in_lines, cells))) for name, cells in rows]
        longest = [max(len(line) for _, cells in rows for line in cells[i].split("\n")) for i in range(len(columns))]
        widths = [max(length, min(len(name), _INTERVAL)) + _GAP for name, length in zip(columns, longest, strict=True)]
    begin = 0
    while begin < len(columns):
        end = begin + 1
        while end < len(columns) and first + sum(widths[begin : end + 1]) <= width:
            end += 1
        if begin:
            yield ""
        has_header = bool(heading or any(columns))
        table = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=has_header)
        table.add_column(escape(heading), width=first, overflow="fold")
        for name, space in zip(columns[begin:end], widths[begin:end], strict=True):
            table.add_column(escape(name), width=min(space - _GAP, width - first - 2 * _GAP), overflow="fold",
                             justify="right" if right else "left")  # fmt: skip
        for name, cells in rows:
            table.add_row(escape(name), *map(escape, cells[begin:end]))
        yield table
        begin = end
