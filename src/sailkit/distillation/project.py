"""From a teacher's probabilities of its own tokens to what the student should think of its own.

At each position where the student begins a token, the teacher's distribution is one over strings: its tokens' bytes
from there on. Each string counts for the student's token that it begins with. The string that the text really goes on
with is followed into the teacher's next distributions (path expansion), so that a student's token may span several of
the teacher's. Where the student begins within a teacher's token, the teacher's tokens that disagree with the bytes
already seen are dropped.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sailkit.distillation.align import ByteStream, Vocabulary
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, Targets, TeacherRow
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

    def learn(self, pairs: Iterable[tuple[ByteStream, ByteStream]]) -> None:
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

    def row(self, said: TeacherRow, theirs: ByteStream, ours: ByteStream) -> list[Target]:
        """The targets of one completion, one for each supervised token of the student.

        Args:
            said: The teacher's word on it.
            theirs: The completion in the teacher's tokens.
            ours: In the student's.
        """
        lists = _complete(said)
        if self.same and np.array_equal(theirs.tokens, ours.tokens):
            return [Target(dict(entries), tail, ALIGNED) for entries, tail in lists]
        row = _Row(self, lists, theirs, ours)
        return [row.target(i) for i in range(len(ours.tokens))]

    def table(self, begun: bytes) -> dict[int, int]:
        """What `token` has found behind some bytes so far."""
        if len(self._tables) > _MOST_TABLES:  # beginnings do not come back for ever
            self._tables.clear()
        return self._tables[begun]

    def token(self, begun: bytes, teacher_token: int) -> int:
        """The student's token that a string begins with: some bytes, then a teacher's token."""
        table = self.table(begun)
        found = table.get(teacher_token)
        if found is None:
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

    def habits(self, begun: bytes) -> Mapping[int, list[tuple[int, float]]]:
        """The student's tokens that each of the teacher's becomes behind some bytes, and how often."""
        return {} if begun else self._habits

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
        self, projection: Projection, lists: Sequence[tuple[Entries, float]], theirs: ByteStream, ours: ByteStream
    ) -> None:
        self.projection = projection
        self.lists, self.theirs, self.ours = lists, theirs, ours
        self.observed: list[int] = theirs.tokens.tolist()  # a number of numpy's is slow to compare
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
        projection, observed = self.projection, self.observed[j]
        follow = projection.expand and bool(projection.piece(observed))
        habits, table = projection.habits(before), projection.table(before)
        for token, p in entries:
            piece = b""
            if seen:
                piece = projection.piece(token) or b""
                # A token that ends where the student begins leaves open what comes next.
                if len(piece) <= len(seen) or not piece.startswith(seen):
                    continue
                agreeing += p
            if token == observed and follow:
                piece = projection.piece(token) or b""
                self._follow(found, p, j + 1, before + piece[len(seen) :], start, until)
            elif seen:
                found[projection.first(piece[len(seen) :])] += p
            elif (habit := habits.get(token)) is not None:
                for mine, share in habit:
                    found[mine] += p * share
            else:
                known = table.get(token)
                found[projection.token(before, token) if known is None else known] += p
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
        projection, observed, table = self.projection, self.observed[j], self.projection.table(text)
        piece = projection.piece(observed)
        for token, q in entries:
            if token == observed and piece:
                self._follow(found, p * q, j + 1, text + piece, start, until)
            else:
                known = table.get(token)
                found[projection.token(text, token) if known is None else known] += p * q


def _complete(said: TeacherRow) -> list[tuple[Entries, float]]:
    """Each position's tokens with their probabilities, the observed one always among them, and that of all others."""
    starts, tokens = said.starts.tolist(), said.tokens.tolist()
    every, likely = said.ids.tolist(), np.exp(said.logprobs.astype(np.float64)).tolist()
    found = []
    for i, token in enumerate(tokens):
        here = slice(starts[i], starts[i + 1])
        ids, probs, tail = every[here], likely[here], float(said.tail[i])
        if token not in ids:
            p = min(float(np.exp(np.float64(said.observed[i]))), tail)
            ids, probs, tail = [*ids, token], [*probs, p], tail - p
        whole = sum(probs) + tail  # float16 rounds
        found.append(([(one, p / whole) for one, p in zip(ids, probs, strict=True)], tail / whole))
    return found


def collect(rows: Iterable[Sequence[Target]]) -> Targets:
    """The targets of all rows of a data set, one behind the other; each row is let go when it is taken over."""
    # Numbers of four bytes from the beginning: lists of Python's take ten times as much.
    lengths, sizes, ids = array("q", [0]), array("q", [0]), array("i")
    probs, tail, kind = array("f"), array("f"), array("B")
    for row in rows:
        lengths.append(len(row))
        for one in row:
            sizes.append(len(one.probs))
            ids.extend(one.probs)
            probs.extend(one.probs.values())
            tail.append(one.tail)
            kind.append(one.kind)
    return Targets(
        rows=np.cumsum(np.asarray(lengths)),
        starts=np.cumsum(np.asarray(sizes)),
        ids=np.asarray(ids),
        probs=np.asarray(probs),
        tail=np.asarray(tail),
        kind=np.asarray(kind),
    )
