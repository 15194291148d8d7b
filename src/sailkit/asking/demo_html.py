"""The parts of the demo's page as HTML. Everything that comes from outside is escaped, and links lead to http(s)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sailkit.asking.demo_turns import Turn, judges_claims_alone
from sailkit.asking.report import short_name
from sailkit.asking.results import Answer
from sailkit.rendering.html import templates
from sailkit.text import shortened

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_WORDS = 60  # characters of an answer in the table of turns


def style() -> str:
    """The style sheet of the page."""
    return (_TEMPLATES / "demo.css").read_text("utf-8")


def head(models: tuple[str, ...], search: str) -> str:
    """The title of the page, and what it runs on."""
    return _macro("head", models=models, search=search)


def entry(turn: Turn, index: int, models: tuple[str, ...]) -> str:
    """A search result with each model's flag and probability."""
    flags = [(name, turn.judgement(index, i)) for i, name in enumerate(models)]
    shown = (turn.entries or ())[index]
    return _macro("entry", entry=shown, number=turn.numbers[index], flags=flags, link=link(shown.result.url))


def card(history: tuple[Turn, ...], index: int, model: str) -> str:
    """A model's answer, with its probabilities for a claim, its verification sentence and its prompt.

    Args:
        history: The turns of the question. While the last has no answer yet, that of the turn before is shown.
        index: The model's position.
        model: Its name.
    """
    latest, before = (_answer(turn, index) for turn in (*history[-1:], *history[-2:-1], None, None)[:2])
    state = "idle" if not history else "waiting" if latest is None else "answered"
    answer = latest or before
    notes = _notes(answer) if answer and answer.prompt else []
    return _macro("card", model=model, answer=answer, before=before if latest else None, state=state, notes=notes)


def _answer(turn: Turn | None, index: int) -> Answer | None:
    return turn.answers[index] if turn and index < len(turn.answers) else None


def turns(history: tuple[Turn, ...], models: tuple[str, ...]) -> str:
    """The answers to one question with different results: what a switched-off or pasted result changes."""
    complete = [turn for turn in history if turn.is_complete]
    if len(complete) < 2:
        return ""
    rows = []
    for i, turn in enumerate(complete):
        before = complete[i - 1].answers if i else (None,) * len(models)
        cells = [_change(answer, earlier) for answer, earlier in zip(turn.answers, before, strict=True)]
        rows.append((description(turn), cells))
    return _macro("turns", rows=rows, models=models)


def status(text: str, is_error: bool = False) -> str:
    """A line about what is going on."""
    return _macro("status", text=text, is_error=is_error)


def link(url: str) -> str:
    """A URL that a link may lead to; empty for anything but http and https."""
    try:
        parts = urlsplit(url)
        return url if parts.scheme in ("http", "https") and parts.hostname else ""
    except ValueError:
        return ""


def description(turn: Turn) -> str:
    """Which results a turn has, in words."""
    entries = turn.entries or ()
    off = [_title(i, turn) for i, entry in enumerate(entries) if not entry.is_active]
    pasted = sum(entry.is_pasted and entry.is_active for entry in entries)
    retrieved = len(turn.sent) - pasted
    parts = [f"{retrieved} search result{'s' * (retrieved != 1)}"] if retrieved else []
    parts += [f"{pasted} pasted"] if pasted else []
    return (" + ".join(parts) or "no results") + (f", without {', '.join(off)}" if off else "")


def _title(index: int, turn: Turn) -> str:
    shown = (turn.entries or ())[index]
    title = shown.result.title or ("the pasted one" if shown.is_pasted else f"result {index + 1}")
    return shortened(title, 24)


def _change(answer: Answer, before: Answer | None) -> tuple[str, str, bool]:
    """An answer, the probability of the first label with its change, and whether the answer is another."""
    differs = before is not None and before.answer != answer.answer
    if not answer.labels or answer.label is None:
        return answer.answer[:_WORDS] + "…" * (len(answer.answer) > _WORDS) or "(none)", "", differs
    label, probability = next(iter(answer.labels.items()))
    figure = f"{label} {probability:.2f}"
    if before is None or label not in before.labels:
        return answer.answer, figure, differs
    change = f"{round(probability, 2) - round(before.labels[label], 2):+.2f}".replace("-", "\u2212")
    return answer.answer, f"{figure} ({change})", differs


def _notes(answer: Answer) -> list[str]:
    notes = []
    if not answer.is_claim and judges_claims_alone(answer.model):
        notes.append("This model was trained to judge claims; to other questions it has no answer.")
    if answer.is_unsupported:
        notes.append("The model called no result informative.")
    if answer.judgements and not answer.verification:
        notes.append("The flags are scores alone: this model answers without judging the results first.")
    if answer.results and not answer.judgements:
        notes.append("No flags: this model gives no log-probabilities.")
    if answer.cut_tokens:
        notes.append(f"{answer.cut_tokens} tokens of search results did not fit into the context.")
    if answer.cut_off:
        notes.append(f"Cut off after {answer.completion_tokens} tokens.")
    return notes


def _macro(name: str, **values: Any) -> str:
    return str(getattr(_environment().get_template("demo.html.j2").module, name)(**values))


@functools.cache
def _environment() -> Environment:
    environment = templates(_TEMPLATES)
    environment.filters["short_name"] = short_name
    return environment
