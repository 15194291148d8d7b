"""Renders a report as one self-contained HTML file, or as a fragment for a notebook."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sailkit import __version__
from sailkit.rendering import curves, model, reliability
from sailkit.rendering.numbers import figure, note_of, sentence, span, value_of
from sailkit.text import clean, clean_values

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = '<meta name="generator" content="sailkit report'  # identifies files that sailkit wrote and may overwrite
_TEMPLATES = Path(__file__).parent / "templates"
_LONG = 90  # characters; a longer headline is set smaller


def page(report: model.Report) -> str:
    """A report as an HTML page; only a report with items has a script.

    Args:
        report: The report.
    """
    from markupsafe import Markup

    style, script = _style(), _read("report.js")
    policy = ["default-src 'none'", f"style-src {_hash(style)}", "base-uri 'none'", "form-action 'none'"]
    items = None
    if report.items is not None:
        policy.insert(2, f"script-src {_hash(script)}")
        items = Markup(_json(clean_values(report.items)))  # noqa: S704
    return _environment().get_template("page.html.j2").render(
        report=report, version=__version__, policy="; ".join(policy), items=items,
        style=Markup(style), script=Markup(script),  # noqa: S704
    )  # fmt: skip


def fragment(report: model.Report) -> str:
    """A report as a fragment for a notebook: without a script, in the colours of the surrounding page.

    Args:
        report: The report.
    """
    from markupsafe import Markup

    # Nested rules do not reach the rest of the notebook.
    style = Markup(f"{_read('fragment.css')}.sailkit {{\n{_read('intervals.css')}{_read('curves.css')}}}\n")  # noqa: S704
    return _environment().get_template("fragment.html.j2").render(report=report, style=style)


def svg(plot: model.Plot) -> str:
    """A plot as an SVG file, with colours for light and dark mode.

    Args:
        plot: The plot.
    """
    from markupsafe import Markup

    # The colour rules, light and dark, are shared with the page.
    style = _style()[: _style().index("* {")] + _read("curves.css")
    macro = _environment().get_template("blocks.html.j2").module.curves  # type: ignore[attr-defined]
    return str(macro(plot, Markup(style)))  # noqa: S704


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


@functools.cache
def _style() -> str:
    return _read("report.css") + _read("intervals.css") + _read("curves.css")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    # ASCII keeps line separators, bidi overrides and lone surrogates out; without `<` nothing can close the element.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _environment() -> Environment:
    environment = templates(_TEMPLATES)
    environment.filters |= {"kind": _kind, "value": value_of, "note": note_of, "draw": curves.draw,
                            "describe": curves.describe, "bins": reliability.draw,
                            "describe_bins": reliability.describe, "scale": curves.Scale,
                            "figure": figure, "span": span,
                            "baseline": _baseline, "sentence": sentence, "percent": _percent}  # fmt: skip
    environment.globals |= {"size": curves, "box": reliability, "long_headline": _LONG}
    return environment


def templates(folder: Path) -> Environment:
    """The HTML templates of a folder, which escape all text and replace its unsafe characters; markup is unchanged.

    Args:
        folder: The folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: clean(value, layout=True) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _percent(text: str) -> str:
    """Join numbers and per cent signs with non-breaking spaces."""
    return text.replace(" %", "\u00a0%")


def _baseline(row: model.Interval) -> str:
    return f"{row.baseline}: {figure(row.at)}"


def _kind(block: model.Block) -> str:
    return type(block).__name__.lower()
