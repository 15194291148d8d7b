"""Groups of examples whose search results overlap, or that have the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def same_text_key(text: str, words_of: Callable[[str], Sequence[str]]) -> tuple[str, ...]:
    """What texts of the same words have in common; a text without words is like itself alone.

    Args:
        text: The text.
        words_of: The words of a text.
    """
    return tuple(words_of(text)) or (text,)


def grouped_with_same_text(examples: Sequence[Example], words_of: Callable[[str], Sequence[str]]) -> list[Example]:
    """Join the groups of examples whose texts have the same words; a joined group has the smallest name of them.

    Args:
        examples: The examples with their groups.
        words_of: The words of a text.
    """
    joined: dict[str, str] = {}  # group -> a smaller one that it was joined to

    def name_of(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    by_words: dict[Sequence[str], str] = {}
    for example in examples:
        words = same_text_key(example.text, words_of)
        smaller, larger = sorted((name_of(example.group), name_of(by_words.setdefault(words, example.group))))
        if smaller != larger:
            joined[larger] = smaller
    return [replace(example, group=name_of(example.group)) for example in examples]
