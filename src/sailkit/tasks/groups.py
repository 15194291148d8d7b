"""Groups of examples whose search results overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sailkit.records import Example
from sailkit.stats.overlap import overlap_groups


def grouped_by_evidence(examples: Sequence[Example]) -> list[Example]:
    """Put examples whose search results share a sentence into one group, named by the smallest id in it."""
    numbers = overlap_groups([[result.body for result in example.evidence] for example in examples])
    names: dict[int, str] = {}
    for number, example in zip(numbers, examples, strict=True):
        names[number] = min(example.id, names.get(number, example.id))
    return [replace(example, group=names[number]) for number, example in zip(numbers, examples, strict=True)]
