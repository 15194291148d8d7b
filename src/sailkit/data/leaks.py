"""Find test examples of tasks in training data: exact and near duplicates, by words.

Instruction, input and output of each row are compared with the texts of all examples of a task. Search results are
not: a model may retrieve the same passages in evaluation, and they are never supervised.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from sailkit.files.jsonl import JsonObject
from sailkit.records import Instruction

LEAK_RULES_VERSION = 1
REMOVED = "removed.jsonl"
_WORD = re.compile(r"\w+")
# A shorter text only matches a whole field: "it is" occurs in every text.
_RUN = 4
# Short enough that a ten-word claim with a changed word still shares shingles; with eight words it would share none.
_SHINGLE = 3
# Shingles of an eight-word text; texts with fewer are not searched for near duplicates.
_FEWEST = 6
_NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Leak:
    """A row that contains a task's example.

    Attributes:
        task: The task's name.
        example: The example's id.
        kind: `exact`: the same words, as a whole field or a run within it; `near`: at least half of the three-word
            shingles of the shorter text.
        field: `instruction`, `input` or `output`.
        overlap: The share of shingles; 1 where exact.
    """

    task: str
    example: str
    kind: Literal["exact", "near"]
    field: str
    overlap: float


def removed_row(name: str, leak: Leak) -> JsonObject:
    """A row of `removed.jsonl`: the example that the row of this id contains, and how."""
    return {"id": name, **asdict(leak)}


def words_of(text: str) -> list[str]:
    """Normalised words of a text: NFKC, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class LeakCheck:
    """An inverted index over the texts of tasks' examples."""

    def __init__(self, texts: Iterable[tuple[str, str, str]]) -> None:
        """Build the index.

        Args:
            texts: Task name, example id and text of each.
        """
        self._names: list[tuple[str, str]] = []
        self._sizes: list[int] = []
        self._whole: dict[str, int] = {}  # all words -> the first text that has them
        self._anchors: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)  # longest word -> texts with it
        self._shingles: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for task, example, text in texts:
            words = words_of(text)
            joined = " ".join(words)
            if not words or joined in self._whole:
                continue
            number = len(self._names)
            self._names.append((task, example))
            self._whole[joined] = number
            if len(words) >= _RUN:
                self._anchors[max(words, key=len)].append((f" {joined} ", number))
            shingles = _shingles(words)
            self._sizes.append(len(shingles))
            if len(shingles) >= _FEWEST:
                for shingle in shingles:
                    self._shingles[shingle].append(number)

    def find(self, row: Instruction) -> Leak | None:
        """Find an example that a row contains: the first exact match, else the nearest near match, else None."""
        fields = {name: words_of(getattr(row, name)) for name in ("instruction", "input", "output")}
        return self._exact(fields) or self._near(fields)

    def _exact(self, fields: Mapping[str, list[str]]) -> Leak | None:
        for field, words in fields.items():
            joined = " ".join(words)
            number = self._whole.get(joined)
            if number is None:
                padded = f" {joined} "
                for anchor in sorted(self._anchors.keys() & set(words)):
                    number = next((n for text, n in self._anchors[anchor] if text in padded), None)
                    if number is not None:
                        break
            if number is not None:
                return Leak(*self._names[number], kind="exact", field=field, overlap=1.0)
        return None

    def _near(self, fields: Mapping[str, list[str]]) -> Leak | None:
        best: tuple[float, int, str] | None = None
        for field, words in fields.items():
            shingles = _shingles(words)
            if len(shingles) < _FEWEST:
                continue
            shared = Counter(n for shingle in shingles & self._shingles.keys() for n in self._shingles[shingle])
            for number, count in sorted(shared.items()):
                overlap = count / min(len(shingles), self._sizes[number])
                if overlap >= _NEAR and (best is None or overlap > best[0]):
                    best = (overlap, number, field)
        if best is None:
            return None
        return Leak(*self._names[best[1]], kind="near", field=best[2], overlap=round(best[0], 4))


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(_SHINGLE)), strict=False))
