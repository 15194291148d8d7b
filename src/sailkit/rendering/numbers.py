"""Figures and facts in words, the same on the terminal and on pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_LONG = 32  # characters of a name that still fit a table


def machine(facts: Mapping[str, Any]) -> str:
    """Number format and device of a model that ran on a machine of ours, in words; empty where neither is known.

    Args:
        facts: With `dtype` and `device`, or without.
    """
    named = [str(facts[name]) for name in ("dtype", "device") if facts.get(name)]
    return " on ".join(named)


def decimals(*values: float, least: int = 3) -> int:
    """How many places it takes for no value that is not 0 to look like 0, and no two values to look alike.

    Args:
        values: Those that stand side by side.
        least: Places that are shown in any case; never more than nine.
    """
    return next(
        (
            places
            for places in range(least, 9)
            if not any(value and not float(f"{value:.{places}f}") for value in values)
            and len({float(f"{value:.{places}f}") for value in values}) == len({*values})
        ),
        9,
    )


def change(*values: float | None) -> str:
    """A figure before and after, with as many places as show that they differ; a dash where it is not known."""
    places = decimals(*(value for value in values if value is not None))
    return " → ".join("–" if value is None else f"{value:.{places}f}".replace("-", "−") for value in values)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """What to call labelers where there is little room: a long name keeps its kind and the end of its model's path.

    Args:
        names: Any number of them.

    Returns:
        Name -> the shortest such form that no other of the names shares; the name itself where there is none.
    """
    forms = {name: [*_ends(name), name] for name in names}
    taken = [form for own in forms.values() for form in own]
    return {name: next((form for form in own if taken.count(form) == 1), name) for name, own in forms.items()}


def _ends(name: str) -> list[str]:
    kind, _, model = name.partition(":")
    if len(name) <= _LONG or not model:
        return []
    steps = re.sub("@https?://.*", "", model).rstrip("/").split("/")
    return [f"{kind}:{'/'.join(steps[-count:])}" for count in range(1, len(steps) + 1)]
