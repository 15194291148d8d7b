"""Formats figures and facts, the same for the terminal and for pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sailkit.plugins import split_labelers
from sailkit.rendering.model import Cell
from sailkit.stats.intervals import Estimate

_FIRST_WORDS = ("the ", "accuracy ")  # any other first word may be a name, which is not capitalised
_LONG = 32  # most characters of a name in a table
_ANSWER_MODES = {"logprob": "labels scored (logprob)", "generate": "generated, then read (generate)"}
_NULL_IS_NONE = ("chat_template", "shots", "max_new_tokens")  # null means "none" here, elsewhere "unknown"


def machine(facts: Mapping[str, Any]) -> str:
    """Number format and device of a local model in words; empty if neither is known.

    Args:
        facts: May hold `dtype` and `device`.
    """
    named = [str(facts[name]) for name in ("dtype", "device") if facts.get(name)]
    return " on ".join(named)


def decimals(*values: float, least: int = 3) -> int:
    """The number of decimals at which no non-zero value looks like 0, and no two values look alike.

    Args:
        values: Values that are shown next to each other.
        least: Least number of decimals; the result is at most nine.
    """
    return next(
        (
            digits
            for digits in range(least, 9)
            if not any(value and not float(f"{value:.{digits}f}") for value in values)
            and len({float(f"{value:.{digits}f}") for value in values}) == len({*values})
        ),
        9,
    )


def change(*values: float | None) -> str:
    """A figure before and after, with enough decimals to show a difference; a dash if it is not known."""
    digits = decimals(*(value for value in values if value is not None))
    return " → ".join("–" if value is None else f"{value:.{digits}f}".replace("-", "−") for value in values)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Short names of labelers: a long name keeps its kind and the end of its model's path.

    Args:
        names: The full names.

    Returns:
        Name -> its shortest unambiguous form, or the name itself if there is none.
    """
    members = {name: split_labelers(name) for name in names}
    forms = {member: [*_ends(member), member] for joined in members.values() for member in joined}
    taken = [form for own in forms.values() for form in own]
    short = {member: next((form for form in own if taken.count(form) == 1), member) for member, own in forms.items()}
    return {name: "+".join(short[member] for member in joined) for name, joined in members.items()}


def _ends(name: str) -> list[str]:
    kind, _, model = name.partition(":")
    if len(name) <= _LONG or not model:
        return []
    steps = re.sub("@https?://.*", "", model).rstrip("/").split("/")
    return [f"{kind}:{'/'.join(steps[-count:])}" for count in range(1, len(steps) + 1)]


def figure(value: float) -> str:
    """A figure to three digits, with a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference to three decimals, or to as many as show that it is not 0."""
    value = round(value, 9) + 0.0  # 0 after subtraction may be negative, or differ from 0 by rounding
    return f"{value:+.{decimals(value)}f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p-value; a small one as a power of ten."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def span(estimate: Estimate) -> str:
    """An interval in words."""
    return f"{figure(estimate.low)} to {figure(estimate.high)}"


def capitalised(text: str) -> str:
    """A text with its first letter capitalised and the rest unchanged."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """Names joined for a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """The message of a flag as a sentence."""
    return f"{capitalised(text) if text.startswith(_FIRST_WORDS) else text}."


def value_of(cell: Cell) -> str:
    """The value of a cell as text; empty if there is none."""
    value = cell.point
    if isinstance(value, float):
        return signed(value) if cell.signed else figure(value)
    return f"{value:,}" if isinstance(value, int) else value or ""


def note_of(cell: Cell) -> str:
    """The small text after a value: its interval, or a note."""
    if not isinstance(cell.value, Estimate):
        return cell.note
    if cell.signed:
        return f"{signed(cell.value.low)} to {signed(cell.value.high)}"
    return span(cell.value)


def fact(name: str, facts: Mapping[str, Any]) -> str | None:
    """A setting or a fact of provenance as text, None if it is not known; fingerprints are shortened.

    Args:
        name: Name of the fact.
        facts: All known facts.
    """
    value = facts.get(name)
    if value is None:
        return "none" if name in facts and name in _NULL_IS_NONE else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {version}" for key, version in value.items())
    if name == "answer":
        return _ANSWER_MODES.get(str(value), str(value))
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", str(value))
