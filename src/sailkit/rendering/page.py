"""How a report is written: templates, escaping, the items as data, and no way for any of it to run or load anything."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import Prediction
from sailkit.rendering import numbers
from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate
from sailkit.text import clean, clean_values

if TYPE_CHECKING:
    from jinja2 import Environment

# How our files are told from those of others.
_MARKS = {"html": '<meta name="generator" content="sailkit report', "md": "<!-- sailkit report"}
_TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$#])")

_FACTS = {
    "model": "model", "served_model": "served model", "revision": "revision", "weights_sha256": "weights (sha256)",
    "recording_sha256": "recording (sha256)", "tokenizer_sha256": "tokenizer (sha256)", "dtype": "number format",
    "device": "device", "chat_template": "chat template", "task": "task", "data_sha256": "data (sha256)",
    "protocol": "protocol", "wording": "wording", "answer": "answer mode", "search": "search results",
    "left_out": "rows of the data left out",
    "shots": "worked examples", "calibrate": "calibrated", "max_new_tokens": "longest answer (tokens)",
    "rules_version": "reading rules (version)", "seed": "seed", "git_revision": "git revision",
    "reference": "reference model", "versions": "versions", "platform": "platform", "started_at": "started",
}  # fmt: skip
_ANSWER_MODES = {"logprob": "labels scored (logprob)", "generate": "generated, then read (generate)"}
_OPTIONAL = ("served_model", "recording_sha256", "left_out", "reference")  # not every set could have these
_NULL_IS_NONE = ("chat_template", "shots", "max_new_tokens")  # elsewhere null means that it is not known


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


def figure(value: float) -> str:
    """A figure to three places, with a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference to three places, or to as many as show that it is not 0."""
    return f"{value:+.{numbers.decimals(value)}f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p-value; small ones by their power of ten."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def span(estimate: Estimate) -> str:
    """An interval in words."""
    return f"{figure(estimate.low)} to {figure(estimate.high)}"


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


def provenance(facts: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, list[str | None]]], list[str]]:
    """How the sets came about.

    Args:
        facts: What is known of each set.

    Returns:
        A row for each fact, None where a set does not record it; and the facts that no set records.
    """
    rows = {name: [fact(name, known) for known in facts] for name in _FACTS}
    known = [(_FACTS[name], values) for name, values in rows.items() if set(values) != {None}]
    return known, [title for name, title in _FACTS.items() if set(rows[name]) == {None} and name not in _OPTIONAL]


def fact(name: str, facts: Mapping[str, Any]) -> str | None:
    """One of the facts in words, None where it is not known; fingerprints are shortened.

    Args:
        name: Which.
        facts: All that is known.
    """
    value = facts.get(name)
    if value is None:
        return "none" if name in facts and name in _NULL_IS_NONE else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {version}" for key, version in value.items())
    if name == "answer":
        return _ANSWER_MODES.get(value, str(value))
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", str(value))


def collect_items(
    names: Sequence[str],
    sets: Sequence[Sequence[Prediction]],
    truths: Sequence[Sequence[str | None]],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Every item of every set, joined by id, column by column.

    Args:
        names: What the sets are called.
        sets: Their predictions; the first decides the order.
        truths: The true label of each prediction.
        labels: The task's labels.

    Returns:
        A JSON value. Labels are numbers; what all prompts of a set begin and end with is kept once, and a prompt
        that is the first set's is 0.
    """
    at = {name: i for i, name in enumerate((*labels, *metrics.NOT_ANSWERED))}
    order = [p.id for p in sets[0]]
    rows, truth = [], []
    for own, known in zip(sets, truths, strict=True):
        by_id = {p.id: (p, t) for p, t in zip(own, known, strict=True)}
        rows.append([by_id[item][0] for item in order])
        truth.append([by_id[item][1] for item in order])
    prompts = [_prompts(own) for own in rows]
    return {
        "labels": list(labels),
        "ids": order,
        "texts": [next((p.text for p in item if p.text), "") for item in zip(*rows, strict=True)],
        "truths": [sorted({at[t] for t in item if t is not None}) for item in zip(*truth, strict=True)],
        "sets": [
            {"name": name, "prompts": _squeeze(asked, prompts[0] if i else []), **_columns(own, known, labels, at)}
            for i, (name, asked, own, known) in enumerate(zip(names, prompts, rows, truth, strict=True))
        ],
    }


def _columns(
    rows: Sequence[Prediction], truth: Sequence[str | None], labels: Sequence[str], at: dict[str, int]
) -> dict[str, Any]:
    words = {word: at.get(answer.label) for p in rows for word, answer in p.answers.items()}

    def column(value: Callable[[Prediction], Any]) -> list[Any] | None:
        found = [value(p) or None for p in rows]
        return found if any(found) else None

    def logprobs(p: Prediction) -> list[float | None]:
        return [round(p.answers[word].logprob, 6) if word in p.answers else None for word in words] if p.answers else []

    return {
        "said": [at[p.predicted] for p in rows],
        "right": [None if t is None else p.label == t for p, t in zip(rows, truth, strict=True)],
        "scored": [p.answered_by == "logprob" for p in rows],
        "outputs": [[*(turn["raw_output"] for turn in p.turns), p.raw_output] for p in rows],
        "words": list(words.items()),
        "scores": column(lambda p: [round(p.scores.get(label, 0.0), 6) for label in labels] if p.scores else None),
        "logprobs": column(logprobs),
        "tokens": column(lambda p: [p.prompt_tokens, p.completion_tokens, p.cut_tokens] if p.prompt_tokens else None),
        "fingerprints": column(lambda p: p.prompt_fingerprint),
        "gold": column(lambda p: p.gold),
        "reference": column(lambda p: p.reference),
        "recorded": column(lambda p: p.recorded),
    }


def _prompts(rows: Sequence[Prediction]) -> list[list[str]]:
    """The prompts of each step of the protocol; "" where an item had fewer."""
    asked = [[*(str(turn["prompt"]) for turn in p.turns), p.prompt] for p in rows]
    steps = max(map(len, asked), default=1)
    return [[own[step] if step < len(own) else "" for own in asked] for step in range(steps)]


def _squeeze(steps: Sequence[Sequence[str]], first: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Of each step what all prompts begin and end with, and what is between."""
    found = []
    for step, texts in enumerate(steps):
        head = os.path.commonprefix(texts)  # noqa: RUF071 - text, not paths
        rests = [text[len(head) :] for text in texts]
        tail = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
        middles: list[str | int] = [rest[: len(rest) - len(tail)] for rest in rests]
        if step < len(first):
            middles = [0 if a == b else middle for a, b, middle in zip(texts, first[step], middles, strict=True)]
        found.append({"head": head, "tail": tail, "middles": middles})
    return found
