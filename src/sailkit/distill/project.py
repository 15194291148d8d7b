"""From a teacher's probabilities of its own tokens to what the student should think of its own.

At each position where the student begins a token, the teacher's distribution is one over strings: its tokens' bytes
from there on. Each string counts for the student's token that it begins with. The string that the text really goes on
with is followed into the teacher's next distributions (path expansion), so that a student's token may span several of
the teacher's. Where the student begins within a teacher's token, the teacher's tokens that disagree with the bytes
already seen are dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sailkit.distill.align import Stream, Vocabulary
from sailkit.distill.rows import ALIGNED, CONDITIONED, NONE, Targets, TeacherRow
from sailkit.errors import UserError

_LONGEST = 256  # bytes that one student token may span
_MOST_TABLES = 100_000
_LEAST = 1e-6  # probability of an entry; what is less goes to the tail
_PRIOR = 0.5  # how many sights of a token being taken by its own bytes are worth
_END = -1  # in the tables of student tokens: the end of text
_NOTHING = -2  # a teacher token without bytes, which goes to the tail
Entries = list[tuple[int, float]]


@dataclass
class Projection:
    """From one teacher's tokens to one student's.

    Attributes:
        teacher: The teacher's tokens.
        student: The student's.
        ends: The teacher's tokens that end a text.
        min_mass: Least probability of the teacher's tokens that agree with the bytes already seen; below it a position
            has no target.
        expand: Follow the text into the teacher's next distributions; without, each token is taken alone.
    """

    teacher: Vocabulary
    student: Vocabulary
    ends: frozenset[int]
    min_mass: float = 0.1
    expand: bool = True
    _tables: dict[bytes, dict[int, int]] = field(default_factory=lambda: defaultdict(dict), repr=False)
    _habits: dict[int, list[tuple[int, float]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.same = self.teacher.fingerprint == self.student.fingerprint

    def learn(self, pairs: Iterable[tuple[Stream, Stream]]) -> None:
        """See which of the student's tokens each of the teacher's becomes where the text goes on.

        A teacher's token that the text does not go on with has no next distribution to follow: `inform` alone would
        count for the student's `inform`, though most texts make `information` of it. What the student's tokenizer made
        of it elsewhere in the same data says more.

        Args:
            pairs: Completions in the teacher's and in the student's tokens.
        """
        counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for theirs, ours in pairs:
            begins = dict(zip(ours.starts.tolist(), ours.tokens.tolist(), strict=True))
            for start, token in zip(theirs.starts[:-1].tolist(), theirs.tokens[:-1].tolist(), strict=True):
                if start in begins and token not in self.ends:
                    counts[token][begins[start]] += 1
        for token, seen in counts.items():
            seen[self.token(b"", token)] += _PRIOR  # type: ignore[assignment]
            whole = seen.total()
            self._habits[token] = [(ours, n / whole) for ours, n in seen.items()]

    def row(self, said: TeacherRow, theirs: Stream, ours: Stream) -> list[Target]:
        """The targets of one completion, one for each supervised token of the student.

        Args:
            said: The teacher's word on it.
            theirs: The completion in the teacher's tokens.
            ours: In the student's.
        """
        lists = [_complete(said, i) for i in range(len(said.tokens))]
        if self.same and np.array_equal(theirs.tokens, ours.tokens):
            return [Target(dict(entries), tail, ALIGNED) for entries, tail in lists]
        row = _Row(self, lists, theirs, ours)
        return [row.target(i) for i in range(len(ours.tokens))]

    def token(self, begun: bytes, teacher_token: int) -> int:
        """The student's token that a string begins with: some bytes, then a teacher's token."""
        table = self._tables[begun]
        found = table.get(teacher_token)
        if found is None:
            if len(self._tables) > _MOST_TABLES:  # beginnings do not come back for ever
                self._tables.clear()
                table = self._tables[begun]
            text = begun + (self.piece(teacher_token) or b"")
            nothing = _END if teacher_token in self.ends else _NOTHING
            found = table[teacher_token] = self.first(text) if text else nothing
        return found

    def first(self, text: bytes) -> int:
        """The student's token that some bytes begin with; what it cannot spell goes to the tail."""
        try:
            return self.student.first(text)
        except UserError:
            return _NOTHING

    def shares(self, begun: bytes, teacher_token: int) -> list[tuple[int, float]]:
        """The student's tokens that a string may begin with, and how often."""
        habit = None if begun else self._habits.get(teacher_token)
        return habit or [(self.token(begun, teacher_token), 1.0)]

    def piece(self, teacher_token: int) -> bytes | None:
        """The bytes of a teacher's token."""
        return self.teacher.pieces[teacher_token] if teacher_token < len(self.teacher.pieces) else None


class Target(NamedTuple):
    """What a student should think at one position: token -> probability, that of all others, and the kind."""

    probs: dict[int, float]
    tail: float
    kind: int


_NO_TARGET = Target({}, 1.0, NONE)


class _Row:
    """One completion, on both sides."""

    def __init__(
        self, projection: Projection, lists: Sequence[tuple[Entries, float]], theirs: Stream, ours: Stream
    ) -> None:
        self.projection = projection
        self.lists, self.theirs, self.ours = lists, theirs, ours
        self.trailing = len(theirs.data) + int(theirs.starts[0]) > theirs.length

    def target(self, i: int) -> Target:
        """The student's position i."""
        ours, theirs = self.ours, self.theirs
        start, last = int(ours.starts[i]), i == len(ours.tokens) - 1
        # White space that a template writes behind the completion is not the teacher's to predict.
        if start >= ours.length and (self.trailing or not last or start > ours.length):
            return _NO_TARGET
        j = max(int(np.searchsorted(theirs.starts, start, side="right")) - 1, 0)
        place = int(theirs.starts[j])
        seen = theirs.between(place, start) if place < start else b""
        before = ours.between(start, place) if start < place else b""
        until = start if last else int(ours.starts[i + 1])
        found: defaultdict[int, float] = defaultdict(float)
        entries, tail = self.lists[j]
        agreeing = 0.0
        for token, p in entries:
            piece = self.projection.piece(token) or b""
            # A token that ends where the student begins leaves open what comes next.
            if seen and (len(piece) <= len(seen) or not piece.startswith(seen)):
                continue
            agreeing += p
            if token == theirs.tokens[j] and piece and self.projection.expand:
                self._follow(found, p, j + 1, before + piece[len(seen) :], start, until)
            elif seen:
                found[self.projection.first(piece[len(seen) :])] += p
            else:
                for mine, share in self.projection.shares(before, token):
                    found[mine] += p * share
        if seen and agreeing < self.projection.min_mass:
            return _NO_TARGET
        # Of the tail nobody knows what agrees; as much as of the rest is taken to.
        scale = (1 - tail) / agreeing if seen else 1.0
        end = int(ours.tokens[-1])
        probs = {end if token == _END else token: p * scale
                 for token, p in found.items() if token != _NOTHING and p * scale > _LEAST}  # fmt: skip
        return Target(probs, max(1 - sum(probs.values()), 0.0), CONDITIONED if seen else ALIGNED)

    def _follow(self, found: defaultdict[int, float], p: float, j: int, text: bytes, start: int, until: int) -> None:
        """The text goes on like this: what may come behind decides which of the student's tokens it begins with."""
        begun = self.projection.first(text)
        if start + len(text) > until or len(text) > _LONGEST:
            found[begun] += p
            return
        entries, tail = self.lists[j]
        found[begun] += p * tail
        for token, q in entries:
            piece = self.projection.piece(token)
            if token == self.theirs.tokens[j] and piece:
                self._follow(found, p * q, j + 1, text + piece, start, until)
            else:
                found[self.projection.token(text, token)] += p * q


def _complete(said: TeacherRow, i: int) -> tuple[Entries, float]:
    """A position's tokens with their probabilities, the observed one always among them, and that of all others."""
    here = slice(int(said.starts[i]), int(said.starts[i + 1]))
    ids = said.ids[here].tolist()
    probs = np.exp(said.logprobs[here].astype(np.float64)).tolist()
    tail = float(said.tail[i])
    if (token := int(said.tokens[i])) not in ids:
        p = min(float(np.exp(np.float64(said.observed[i]))), tail)
        ids, probs, tail = [*ids, token], [*probs, p], tail - p
    whole = sum(probs) + tail  # float16 rounds
    return [(token, p / whole) for token, p in zip(ids, probs, strict=True)], tail / whole


def collect(rows: Iterable[Sequence[Target]]) -> Targets:
    """The targets of all rows of a data set, one behind the other."""
    lengths, sizes = [0], [0]
    ids: list[int] = []
    probs: list[float] = []
    tail: list[float] = []
    kind: list[int] = []
    for row in rows:
        lengths.append(len(row))
        for one in row:
            sizes.append(len(one.probs))
            ids += one.probs.keys()
            probs += one.probs.values()
            tail.append(one.tail)
            kind.append(one.kind)
    return Targets(
        rows=np.cumsum(lengths),
        starts=np.cumsum(sizes),
        ids=np.array(ids, dtype=np.int32),
        probs=np.array(probs, dtype=np.float32),
        tail=np.array(tail, dtype=np.float32),
        kind=np.array(kind, dtype=np.uint8),
    )
