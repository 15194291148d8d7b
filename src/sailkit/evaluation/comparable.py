"""Checks whether two sets of predictions can be compared, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sailkit.errors import UserError
from sailkit.evaluation.groups import RunGroup
from sailkit.evaluation.predictions import FACTORS, RARE_FACTORS, PredictionSet

Named = TypeVar("Named", PredictionSet, RunGroup)

# Factor -> other factors that change it; if one of those differs, this one does not count as well.
_IMPLIED = {
    "weights_sha256": {"model"},
    "tokenizer_sha256": {"model"},
    "chat_template": {"model"},
    "max_new_tokens": {"answer", "protocol", "wording"},
    "prompts_sha256": {"protocol", "wording", "task", "style"},
    "style": {"model"},
    "verify": {"model"},
}


def distinct_names(sets: Sequence[Named]) -> list[Named]:
    """Number sets of the same name, because folders may have the same name."""
    names = [s.name for s in sets]
    return [
        s if names.count(s.name) == 1 else replace(s, name=f"{s.name} ({number})")
        for number, s in enumerate(sets, start=1)
    ]


def check_comparable(a: PredictionSet, b: PredictionSet) -> None:
    """Refuse sets with different labels, reading rules or items.

    Raises:
        UserError: They cannot be compared.
    """
    if a.labels != b.labels:
        raise UserError(f"{a.name} and {b.name} have other labels: {', '.join(a.labels)} against {', '.join(b.labels)}")
    if a.rules_version != b.rules_version:
        versions = f"{a.rules_version} against {b.rules_version}"
        raise UserError(
            f"{a.name} and {b.name} were read by other rules (version {versions}); evaluate again with one sailkit"
        )
    ours, theirs = {p.id: p for p in a.predictions}, {p.id: p for p in b.predictions}
    if alone := [*(i for i in ours if i not in theirs), *(i for i in theirs if i not in ours)]:
        raise UserError(
            f"{a.name} and {b.name} have different items: {len(ours)} and {len(theirs)}, "
            f"{len(alone)} in only one of them, such as {alone[0]!r}"
        )
    for what, name in (("text", "text"), ("gold label", "gold")):
        values = [(i, getattr(p, name), getattr(theirs[i], name)) for i, p in ours.items()]
        if differ := [i for i, x, y in values if x and y and x != y]:
            raise UserError(f"{a.name} and {b.name} differ in the {what} of {len(differ)} items, such as {differ[0]!r}")


def differing_factors(a: PredictionSet, b: PredictionSet) -> dict[str, list[Any]]:
    """Settings in which two runs differ, with both values."""
    ours, theirs = a.provenance, b.provenance
    return {
        name: [ours[name], theirs[name]]
        for name in (*FACTORS, *RARE_FACTORS)
        if name in ours and name in theirs and ours[name] != theirs[name]
    }


def independent_factors(factors: Mapping[str, Any]) -> list[str]:
    """Factors that do not follow from another factor."""
    implied = _IMPLIED
    if "none" in factors.get("search", ()):  # without results there is nothing to count or verify
        implied = {**_IMPLIED, "verify": {"model", "search"}, "results": {"search"}}
    return [name for name in factors if not implied.get(name, set()) & factors.keys()]


def isolates(factors: Mapping[str, Sequence[Any]], search: str | None) -> str:
    """What the difference measures if the two sets differ in a single factor; else empty."""
    independent = independent_factors(factors)
    if independent == ["search"]:
        values = set(factors["search"])
        if values == {"evidence", "random"}:
            return "the difference is what the search results give, apart from their mere presence"
        if values == {"evidence", "near"}:
            return "the difference is what the search results give over others on the same subject"
        if values == {"random", "none"}:
            return "the difference is what the mere presence of search results does"
    if independent == ["model"] and search == "random":
        return "the difference is what training taught by itself: the search results shown help neither"
    return ""
