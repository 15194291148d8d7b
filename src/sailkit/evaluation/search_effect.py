"""What search gives each model of a report: its own search results against those of other items, and none."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sailkit.evaluation.comparable import differing_factors, independent_factors
from sailkit.evaluation.compare import compare_sets
from sailkit.evaluation.figures import Truth
from sailkit.evaluation.views import View
from sailkit.rendering.model import (
    Block,
    Cell,
    Flags,
    Group,
    Headline,
    Interval,
    Intervals,
    Row,
    Section,
    Table,
)
from sailkit.rendering.numbers import listed
from sailkit.stats.intervals import LEAST_UNITS, Estimate

_MEASURE = "macro_f1"
_SEARCHES = {
    "evidence": "own results",
    "near": "others' results on the subject",
    "random": "other items' results",
    "none": "no results",
}
_MODEL = ("model", "weights_sha256", "answer", "protocol", "wording")  # facts that tell one model from another
_COVERAGE = "Share of the items with a result that the model calls informative"
_REMARK = "Macro-F1 with an item's own search results minus that with as many results of other items"


@dataclass(frozen=True)
class SearchEffect:
    """What search gives a model.

    Attributes:
        name: What the names of its sets have in common, or else the model.
        views: `evidence`, `random` and perhaps `none` -> the set of predictions.
        effect: Macro-F1 with own search results minus that with those of other items, paired by item.
        units: Number of items, or of groups where items are grouped.
    """

    name: str
    views: Mapping[str, View]
    effect: Estimate
    units: int


def search_effects(views: Sequence[View], against: Truth, seed: int) -> list[SearchEffect]:
    """What search gives each model, in the order of the sets.

    Args:
        views: The sets of the report.
        against: The labels.
        seed: Seed of the bootstrap.

    Returns:
        One entry for each model that was measured both with own search results and with those of other items, in the
        same way otherwise; empty if the first model was not, or a model was measured twice in the same way.
    """
    by_model: dict[tuple[str, ...], dict[str, View]] = {}
    for view in views:
        model = tuple(str(view.facts.get(name)) for name in _MODEL)
        search = str(view.facts.get("search"))
        if search not in _SEARCHES or search in by_model.setdefault(model, {}):
            return []
        by_model[model][search] = view
    measured = list(by_model.values())
    complete = [sets for sets in measured if {"evidence", "random"} <= sets.keys() and _differ_in_search_alone(sets)]
    if complete[:1] != measured[:1]:
        return []
    return _distinctly_named([_effect(sets, against, seed) for sets in complete])


def _differ_in_search_alone(sets: Mapping[str, View]) -> bool:
    """Whether the two sets with search results differ in nothing else, such as calibration or the number of results."""
    factors = differing_factors(sets["evidence"].data, sets["random"].data)
    return independent_factors(factors) == ["search"]


def _effect(sets: Mapping[str, View], against: Truth, seed: int) -> SearchEffect:
    (pair,) = compare_sets([sets["evidence"].data, sets["random"].data], against, seed).pairs
    units = pair.n if pair.groups is None else pair.groups
    words = [re.split(r"([_\-. ])", view.name) for view in sets.values()]
    shared = "".join(os.path.commonprefix(words)).rstrip("_-. ")  # noqa: RUF071 - of whole words
    name = shared or os.path.basename(str(sets["evidence"].facts["model"]))
    return SearchEffect(name, sets, pair.differences[_MEASURE], units)


def _distinctly_named(effects: Sequence[SearchEffect]) -> list[SearchEffect]:
    """The effects with as much of the models' paths as tells them apart: each model of `finetune` is called `model`."""
    paths = [Path(str(effect.views["evidence"].facts["model"])).parts for effect in effects]
    longest = max(map(len, paths), default=0)
    names = [[effect.name for effect in effects]]
    names += [["/".join(path[-length:]) for path in paths] for length in range(2, longest + 1)]
    names += [[f"{effect.name} ({number})" for number, effect in enumerate(effects, start=1)]]
    chosen = next(each for each in names if len({*each}) == len(each))
    return [replace(effect, name=name) for effect, name in zip(effects, chosen, strict=True)]


def verdict(effects: Sequence[SearchEffect]) -> str:
    """What search gives the first model, and the others beside it, in one sentence."""
    first, *others = effects
    if first.units < LEAST_UNITS:
        return f"{first.units} items or groups of items are too few to tell what search gives {first.name}"
    beside = "".join(f", {other.name} {_in_words(other.effect)}" for other in others)
    if first.effect.sign > 0:
        return f"An item's own search results give {first.name} {_in_words(first.effect)} macro-F1{beside}"
    if first.effect.sign < 0:
        return f"An item's own search results cost {first.name} macro-F1: {_in_words(first.effect)}{beside}"
    return f"Cannot tell whether search helps {first.name}: macro-F1 {_in_words(first.effect)}{beside}"


def _in_words(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def section(effects: Sequence[SearchEffect], flags: Flags) -> Section:
    """A section with the verdict, a table, a plot and a list of flags.

    Args:
        effects: See `search_effects`.
        flags: The reasons to doubt the figures of the sets, see `one_list`.
    """
    blocks: list[Block] = [Headline(verdict(effects), _REMARK), _table(effects), _plot(effects)]
    return Section("What search gives", [*blocks, flags] if flags.messages else blocks)


def _table(effects: Sequence[SearchEffect]) -> Table:
    searches = {search: title for search, title in _SEARCHES.items() if any(search in e.views for e in effects)}
    rows = [
        Row(effect.name, [*(Cell(_macro_f1(effect, search)) for search in searches), Cell(effect.effect, signed=True)])
        for effect in effects
    ]
    view = effects[0].views["evidence"]
    constant = [*(Cell(view.baseline(_MEASURE)) for _ in searches), Cell(0.0, signed=True)]
    rows.append(Row(f"always {view.majority}", constant))
    columns = [*searches.values(), "own minus other items'"]
    coverage = [
        Row(effect.name, [*(Cell(_coverage(effect, search)) for search in searches), Cell(None)]) for effect in effects
    ]
    groups = [Group("Macro-F1", rows), Group(_COVERAGE, [row for row in coverage if row.known])]
    return Table(columns, [group for group in groups if group.rows])


def _plot(effects: Sequence[SearchEffect]) -> Intervals:
    view = effects[0].views["evidence"]
    rows = [
        Interval(f"{effect.name}, {title}", figure, f"always {view.majority}", view.baseline(_MEASURE))
        for effect in effects
        for search, title in _SEARCHES.items()
        if (figure := _macro_f1(effect, search)) is not None
    ]
    return Intervals({"Macro-F1": rows})


def _macro_f1(effect: SearchEffect, search: str) -> Estimate | None:
    view = effect.views.get(search)
    return view.main.figures[_MEASURE] if view is not None and view.main is not None else None


def _coverage(effect: SearchEffect, search: str) -> Estimate | None:
    view = effect.views.get(search)
    return view.summary.selective.coverage if view is not None and view.summary.selective is not None else None


def one_list(flags: Sequence[Flags]) -> Flags:
    """The flags of several sets in one list: for each code the message of the first set, and the others that have it.

    Args:
        flags: The flags of each set, with its name.
    """
    names: dict[str, list[str]] = {}
    messages: dict[str, str] = {}
    for block in flags:
        for code, sentences in block.messages.items():
            names.setdefault(code, []).append(block.name)
            messages.setdefault(code, f"{block.name}: {sentences[0]}")
    likewise = {code: f"; likewise {listed(others)}" if others else "" for code, (_, *others) in names.items()}
    return Flags("", {code: [f"{message}{likewise[code]}"] for code, message in messages.items()})
