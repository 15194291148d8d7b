"""How a report is written: templates, escaping, the items as data, and no way for any of it to run or load anything."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.numbers import fact, figure, p_value, signed, span
from sailkit.stats.intervals import Estimate
from sailkit.text import clean, clean_values

__all__ = ["fact", "figure", "p_value", "signed", "span"]

if TYPE_CHECKING:
    from jinja2 import Environment

# How our files are told from those of others.
_MARKS = {"html": '<meta name="generator" content="sailkit report', "md": "<!-- sailkit report"}
_TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$#])")


def places(out: Path) -> tuple[Path, Path]:
    """Where HTML and Markdown go; neither may replace what is not ours.

    Args:
        out: The HTML file, or a folder for report.html.

    Raises:
        UserError: The name is not one of an HTML file, or a file of another kind is in the way.
    """
    html = out / "report.html" if out.is_dir() or not out.suffix else out
    if html.suffix not in (".html", ".htm"):
        raise UserError(f"`out` {out} should end in .html, or be a folder")
    for path, mark in ((html, _MARKS["html"]), (html.with_suffix(".md"), _MARKS["md"])):
        try:
            if path.exists():
                with path.open("rb") as stream:
                    ours = mark.encode() in stream.read(300)
                if not ours:
                    raise UserError(f"{path} exists and is not a sailkit report; move it or choose another `out`")
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
    return html, html.with_suffix(".md")


def write(out: tuple[Path, Path], name: str, content: dict[str, Any], items: dict[str, Any] | None = None) -> None:
    """Write both files.

    Args:
        out: See `places`.
        name: Of the two templates.
        content: What the templates show.
        items: What `collect_items` gave, for the HTML alone; without items it has no script.
    """
    from markupsafe import Markup

    html, markdown_file = out
    style, script = _style(), (_TEMPLATES / "report.js").read_text("utf-8")
    policy = f"default-src 'none'; style-src {_hash(style)}"
    inline = {"style": Markup(style)}  # noqa: S704
    if items is not None:
        policy += f"; script-src {_hash(script)}"
        inline |= {"script": Markup(script), "items_json": Markup(_json(clean_values(items)))}  # noqa: S704
    policy += "; base-uri 'none'; form-action 'none'"
    jsonl.write_atomic(markdown_file, markdown(name, content))
    jsonl.write_atomic(
        html, _environment(True).get_template(f"{name}.html.j2").render(content, policy=policy, **inline)
    )


def markdown(name: str, content: Mapping[str, Any]) -> str:
    """A Markdown template filled in; no text from outside becomes markup.

    Args:
        name: Of the template.
        content: What it shows.
    """
    return _environment(False).get_template(f"{name}.md.j2").render(content)


def svg(content: Mapping[str, Any]) -> Any:
    """Curves as markup, with their own colours where they stand `alone`."""
    from markupsafe import Markup

    # The rules that set colours, light and dark, are those of the page.
    colours = _style()[: _style().index("* {")] if content["alone"] else ""
    style = Markup(colours + (_TEMPLATES / "curves.css").read_text("utf-8"))  # noqa: S704
    return Markup(_environment(True).get_template("curves.svg.j2").render(content, style=style))  # noqa: S704


@functools.cache
def _style() -> str:
    return "".join((_TEMPLATES / file).read_text("utf-8") for file in ("report.css", "curves.css"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    # ASCII, so that no separator, override or lone surrogate is in the file; and nothing that could end the element.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _environment(html: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=html,  # noqa: S701 - Markdown has its own escaping
        undefined=StrictUndefined,
        finalize=_plain if html else _markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure": figure, "signed": signed, "p_value": p_value}
    return made


def _plain(value: Any) -> Any:
    """Text without characters that disturb what stands beside it; our own markup as it is."""
    return clean(value) if type(value) is str else value


def _markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, in a paragraph, a heading or a cell of a table."""
    if type(value) is not str:
        return value
    text = clean(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def plots(figures: Mapping[str, Sequence[tuple[str, Estimate, str, float]]]) -> dict[str, Any]:
    """Where everything goes in a plot of intervals, in per cent of its width.

    Args:
        figures: Figure -> for each set its name, the estimate, and a baseline in words with what it gives.

    Returns:
        `ticks` of the one scale, and `figures` with their rows.
    """
    ends = [x for rows in figures.values() for _, e, _, base in rows for x in (e.low, e.high, base)]
    low, high = max(0, math.floor(10 * min(ends) - 0.2)), min(10, math.ceil(10 * max(ends) + 0.2))

    def place(value: float) -> str:
        return f"{100 * (10 * value - low) / (high - low):.2f}%"

    def row(name: str, e: Estimate, baseline: str, base: float) -> dict[str, str]:
        places = {"at": place(e.value), "low": place(e.low), "high": place(e.high), "constant_at": place(base)}
        words = {"value": figure(e.value), "span": span(e), "constant": f"{baseline}: {figure(base)}"}
        return {"name": name, **words, **places}

    return {
        "ticks": [(place(x / 10), f"{x / 10:.1f}") for x in range(low, high + 1)],
        "figures": [(title, [row(*entry) for entry in rows]) for title, rows in figures.items()],
    }
