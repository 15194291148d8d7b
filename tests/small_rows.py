"""A few training examples that a tiny model learns quickly, for the tests that train."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sailkit.data.exports import example_row
from sailkit.records import SearchResult, TrainingExample

THINGS = ["seals", "cats", "dogs", "birds", "boats", "trees", "rain", "kings"]


def example(i: int) -> TrainingExample:
    """One search result that is distracting, or two of which one is informative."""
    thing = THINGS[i % len(THINGS)]
    good = SearchResult(f"{thing.title()} like {i} red balls very much.", thing)
    bad = SearchResult("It was a sunny day and the girl went out." + " She ran." * (i % 5), "Day")
    results, verdicts = ((good, bad), ("informative", "distracting")) if i % 2 else ((bad,), ("distracting",))
    return TrainingExample(str(i), f"What do {thing} like?", "", results, verdicts, f"{i} red balls.", "sail-fixed")


def write(folder: Path, train: Iterable[TrainingExample], held_out: Iterable[TrainingExample] = ()) -> Path:
    """A folder as build writes it."""
    folder.mkdir(exist_ok=True)
    for name, examples in (("train", train), ("held_out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in examples))
    return folder
