"""Projects a teacher's distributions onto the student's tokens.

The teacher's distribution is taken as one over strings: the bytes of its tokens. At each position where the student
begins a token, the probability of a string moves to the first student token of that string. A student token may span
several teacher tokens, so the string with which the text continues is extended by the teacher's next cached
distributions (path expansion). If the student begins within a teacher token, the distribution is conditioned on the
bytes already seen: teacher tokens that disagree with them are dropped.
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

_LONGEST = 256  # most bytes of a student token
_MOST_TABLES = 100_000
_LEAST = 1e-6  # least probability of an entry; smaller ones go to the tail
_PRIOR = 0.5  # pseudo-count of the student token that equals the teacher token, added to the observed counts
_END = -1  # in the tables of student tokens: the end of text
_NO_TOKEN = -2  # for a teacher token without bytes, or that the student cannot represent: goes to the tail
Entries = list[tuple[int, float]]


@dataclass
class Projection:
    """The projection from one teacher's vocabulary to one student's.

    Attributes:
        teacher: The teacher's vocabulary.
        student: The student's.
        ends: The teacher tokens that end a text.
        min_mass: Least probability of the teacher's tokens that agree with the bytes already seen; below it a position
            has no target.
        expand: Whether to follow the text into the teacher's next distributions (path expansion).
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

    def learn_habits(self, pairs: Iterable[tuple[ByteStream, ByteStream]]) -> None:
        """Count the student tokens that begin at the same byte as each teacher token.

        If the text does not continue with a teacher token, there is no next distribution to follow: `inform` would move
        to the student's `inform`, although most texts continue it to `information`. The student tokens that began there
        elsewhere in the same data are a better estimate.

        Args:
            pairs: Completions in the teacher's and in the student's tokens.
        """
        counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for teacher, student in pairs:
            student_token_at = dict(zip(student.starts.tolist(), student.tokens.tolist(), strict=True))
            for start, token in zip(teacher.starts[:-1].tolist(), teacher.tokens[:-1].tolist(), strict=True):
                if start in student_token_at and token not in self.ends:
                    counts[token][student_token_at[start]] += 1
        for token, observed in counts.items():
            observed[self.token(b"", token)] += _PRIOR  # type: ignore[assignment]
            total = observed.total()
            self._habits[token] = [(student_token, n / total) for student_token, n in observed.items()]

    def targets(self, teacher_row: TeacherRow, teacher: ByteStream, student: ByteStream) -> list[Target]:
        """Compute the targets of one completion, one for each supervised token of the student.

        Args:
            teacher_row: The teacher's cached distributions.
            teacher: The completion in the teacher's tokens.
            student: The completion in the student's tokens.
        """
        distributions = _with_observed(teacher_row)
        if self.same and np.array_equal(teacher.tokens, student.tokens):
            return [Target(dict(entries), tail, ALIGNED) for entries, tail in distributions]
        row = _Row(self, distributions, teacher, student)
        return [row.target(i) for i in range(len(student.tokens))]

    def table(self, prefix: bytes) -> dict[int, int]:
        """The cache of `token` for a prefix of bytes; a dict look-up is faster than a call."""
        if len(self._tables) > _MOST_TABLES:  # most prefixes occur once
            self._tables.clear()
        return self._tables[prefix]

    def token(self, prefix: bytes, teacher_token: int) -> int:
        """The first student token of a string that consists of a prefix and a teacher token."""
        table = self.table(prefix)
        token = table.get(teacher_token)
        if token is None:
            text = prefix + (self.piece(teacher_token) or b"")
            special = _END if teacher_token in self.ends else _NO_TOKEN
            token = table[teacher_token] = self.first_token(text) if text else special
        return token

    def first_token(self, text: bytes) -> int:
        """The first student token of some bytes."""
        try:
            return self.student.first_token(text)
        except UserError:
            return _NO_TOKEN

    def habits(self, prefix: bytes) -> Mapping[int, list[tuple[int, float]]]:
        """Teacher token -> student tokens observed to begin with it, with their shares; empty with a prefix."""
        return {} if prefix else self._habits

    def piece(self, teacher_token: int) -> bytes | None:
        """The bytes of a teacher token."""
        return self.teacher.pieces[teacher_token] if teacher_token < len(self.teacher.pieces) else None


class Target(NamedTuple):
    """The target at a position: token -> probability, the probability of all other tokens, and the kind."""

    probs: dict[int, float]
    tail: float
    kind: int


_NO_TARGET = Target({}, 1.0, NONE)


class _Row:
    """One completion, on both sides."""

    def __init__(
        self,
        projection: Projection,
        distributions: Sequence[tuple[Entries, float]],
        teacher: ByteStream,
        student: ByteStream,
    ) -> None:
        self.projection = projection
        self.distributions, self.teacher, self.student = distributions, teacher, student
        self.observed: list[int] = teacher.tokens.tolist()  # comparing numpy's integers is slow
        self.has_trailing = len(teacher.data) + int(teacher.starts[0]) > teacher.length

    def target(self, i: int) -> Target:
        """The target at the student's position i."""
        teacher, student = self.teacher, self.student
        start, is_last = int(student.starts[i]), i == len(student.tokens) - 1
        # The teacher does not predict white space that the student's template writes after the completion.
        if start >= student.length and (self.has_trailing or not is_last or start > student.length):
            return _NO_TARGET
        # Teacher token j covers the byte at which the student token begins. `seen` are its bytes before that byte;
        # `before` are the student's bytes before the teacher token, if the student begins earlier (a template's space).
        j = max(int(np.searchsorted(teacher.starts, start, side="right")) - 1, 0)
        teacher_start = int(teacher.starts[j])
        seen = teacher.between(teacher_start, start) if teacher_start < start else b""
        before = student.between(start, teacher_start) if start < teacher_start else b""
        end = start if is_last else int(student.starts[i + 1])
        mass: defaultdict[int, float] = defaultdict(float)
        entries, tail = self.distributions[j]
        agreeing = 0.0
        projection, observed = self.projection, self.observed[j]
        expand = projection.expand and bool(projection.piece(observed))
        habits, table = projection.habits(before), projection.table(before)
        for token, p in entries:
            piece = b""
            if seen:
                piece = projection.piece(token) or b""
                # A token that ends where the student token begins does not determine the next bytes.
                if len(piece) <= len(seen) or not piece.startswith(seen):
                    continue
                agreeing += p
            if token == observed and expand:
                piece = projection.piece(token) or b""
                self._expand(mass, p, j + 1, before + piece[len(seen) :], start, end)
            elif seen:
                mass[projection.first_token(piece[len(seen) :])] += p
            elif (habit := habits.get(token)) is not None:
                for student_token, share in habit:
                    mass[student_token] += p * share
            else:
                cached = table.get(token)
                mass[projection.token(before, token) if cached is None else cached] += p
        if seen and agreeing < self.projection.min_mass:
            return _NO_TARGET
        # It is unknown which tail tokens agree with the bytes seen; assume the same share as among the listed tokens.
        scale = (1 - tail) / agreeing if seen else 1.0
        end_token = int(student.tokens[-1])
        probs = {end_token if token == _END else token: p * scale
                 for token, p in mass.items() if token != _NO_TOKEN and p * scale > _LEAST}  # fmt: skip
        return Target(probs, max(1 - sum(probs.values()), 0.0), CONDITIONED if seen else ALIGNED)

    def _expand(self, mass: defaultdict[int, float], p: float, j: int, text: bytes, start: int, end: int) -> None:
        """Distribute the probability p of a path: the text so far, followed by any teacher token at position j.

        Along the observed tokens p(t1) becomes p(t1) p(t2 | t1) ..., until the text is longer than the student token:
        later bytes cannot change the string's first student token. Strings that leave the path, for which nothing is
        cached, count with their known bytes.

        Args:
            mass: Student token -> probability, updated in place.
            p: Probability of the path so far.
            j: The teacher's next position.
            text: The bytes of the path from `start` on.
            start: Byte offset at which the student token begins.
            end: Byte offset at which it ends in the observed text.
        """
        token_so_far = self.projection.first_token(text)
        if start + len(text) > end or len(text) > _LONGEST:
            mass[token_so_far] += p
            return
        entries, tail = self.distributions[j]
        mass[token_so_far] += p * tail
        projection, observed, table = self.projection, self.observed[j], self.projection.table(text)
        piece = projection.piece(observed)
        for token, q in entries:
            if token == observed and piece:
                self._expand(mass, p * q, j + 1, text + piece, start, end)
            else:
                cached = table.get(token)
                mass[projection.token(text, token) if cached is None else cached] += p * q


def _with_observed(row: TeacherRow) -> list[tuple[Entries, float]]:
    """The entries and the tail of each position; the observed token is always an entry, because paths follow it."""
    starts, tokens = row.starts.tolist(), row.tokens.tolist()
    all_ids, all_probs = row.ids.tolist(), np.exp(row.logprobs.astype(np.float64)).tolist()
    distributions = []
    for i, token in enumerate(tokens):
        here = slice(starts[i], starts[i + 1])
        ids, probs, tail = all_ids[here], all_probs[here], float(row.tail[i])
        if token not in ids:
            p = min(float(np.exp(np.float64(row.observed[i]))), tail)
            ids, probs, tail = [*ids, token], [*probs, p], tail - p
        total = sum(probs) + tail  # not exactly 1, because of float16 rounding
        distributions.append(([(i, p / total) for i, p in zip(ids, probs, strict=True)], tail / total))
    return distributions


def collect(rows: Iterable[Sequence[Target]]) -> Targets:
    """Concatenate the targets of all rows of a data set, with only one row at a time as Python objects."""
    # Arrays of four-byte numbers take a tenth of the memory of lists.
    lengths, sizes, ids = array("q", [0]), array("q", [0]), array("i")
    probs, tail, kind = array("f"), array("f"), array("B")
    for row in rows:
        lengths.append(len(row))
        for target in row:
            sizes.append(len(target.probs))
            ids.extend(target.probs)
            probs.extend(target.probs.values())
            tail.append(target.tail)
            kind.append(target.kind)
    return Targets(
        rows=np.cumsum(np.asarray(lengths)),
        starts=np.cumsum(np.asarray(sizes)),
        ids=np.asarray(ids),
        probs=np.asarray(probs),
        tail=np.asarray(tail),
        kind=np.asarray(kind),
    )
