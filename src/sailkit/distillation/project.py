"""Projects a teacher's distributions onto the student's tokens.

The teacher's distribution is taken as one over strings: the bytes of its tokens. At each position where the student
begins a token, the probability of a string moves to the first student token of that string. A student token may span
several teacher tokens, so the string with which the text continues is extended by the teacher's next cached
distributions (path expansion). If the student begins within a teacher token, the distribution is conditioned on the
bytes already seen: teacher tokens that disagree with them are dropped.

The paths of a completion are followed position by position; all that concerns single entries is done in arrays. Sums
are taken in the order of the entries, so that the low bits do not depend on how the work is divided.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sailkit.distillation.align import ByteStream, Vocabulary
from sailkit.distillation.first_tokens import END, NO_TOKEN, FirstTokens
from sailkit.distillation.paths import Distributions, Paths, ranges
from sailkit.distillation.records import ALIGNED, NONE, FloatArray, IntArray, Targets, TeacherRow

_LEAST = 1e-6  # least probability of an entry; smaller ones go to the tail
_PRIOR = 0.5  # pseudo-count of the student token that equals the teacher token, added to the observed counts
_POSITIONS = 128  # of the student that are computed at a time; affects memory and speed alone


class RowTargets(NamedTuple):
    """The targets of one completion, one for each supervised token of the student.

    Attributes:
        counts: Number of listed tokens of each position; shape (n,).
        ids: Student tokens, unique within a position; shape (entries,).
        probs: Their probabilities; shape (entries,).
        tail: Probability of all other tokens together; shape (n,).
        kind: Kind of each target; shape (n,).
    """

    counts: IntArray
    ids: IntArray
    probs: FloatArray
    tail: FloatArray
    kind: IntArray

    def unpack(self) -> list[Target]:
        """The targets as Python objects."""
        ids, probs, ends = self.ids.tolist(), self.probs.tolist(), np.cumsum(self.counts).tolist()
        listed = (slice(end - n, end) for n, end in zip(self.counts.tolist(), ends, strict=True))
        probs_by_id = [dict(zip(ids[here], probs[here], strict=True)) for here in listed]
        return list(map(Target, probs_by_id, self.tail.tolist(), self.kind.tolist()))


class Target(NamedTuple):
    """The target at a position: token -> probability, the probability of all other tokens, and the kind."""

    probs: dict[int, float]
    tail: float
    kind: int


def no_targets(n: int) -> RowTargets:
    """The targets of a completion of n tokens that is trained without the teacher."""
    none = np.zeros(n, np.int64)
    return RowTargets(none, none[:0], np.zeros(0), np.ones(n), np.full(n, NONE))


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

    def __post_init__(self) -> None:
        self.same = self.teacher.fingerprint == self.student.fingerprint
        self.first_tokens = FirstTokens(self.teacher, self.student, self.ends)
        # The student tokens observed for each teacher token and their shares; by default its first token alone, which
        # is looked up when it is needed.
        size = len(self.first_tokens.pieces)
        self._begins, self._sizes = np.arange(size), np.ones(size, np.int64)
        self._habit_tokens, self._shares = np.zeros(size, np.int64), np.ones(size)
        self._scratch = np.empty(0, np.int32)

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
        tokens: list[int] = []
        shares: list[float] = []
        for token, observed in counts.items():
            observed[int(self.first_tokens.alone(np.array([token]))[0])] += _PRIOR  # type: ignore[assignment]
            total = observed.total()
            self._begins[token], self._sizes[token] = len(self._begins) + len(tokens), len(observed)
            tokens += observed
            shares += [n / total for n in observed.values()]
        self._habit_tokens = np.append(self._habit_tokens, np.array(tokens, np.int64))
        self._shares = np.append(self._shares, shares)

    def targets(self, teacher_row: TeacherRow, teacher: ByteStream, student: ByteStream) -> RowTargets:
        """Compute the targets of one completion, one for each supervised token of the student.

        Args:
            teacher_row: The teacher's cached distributions.
            teacher: The completion in the teacher's tokens.
            student: The completion in the student's tokens.
        """
        row = _with_observed(teacher_row)
        n = len(student.tokens)
        if self.same and np.array_equal(teacher.tokens, student.tokens):
            return RowTargets(np.diff(row.starts), row.ids, row.probs, row.tail, np.full(n, ALIGNED))
        paths = Paths(row, teacher, student, self.first_tokens, self.min_mass, self.expand)
        parts = [self._sums(paths, range(i, min(i + _POSITIONS, n))) for i in range(0, n, _POSITIONS)]
        return RowTargets(*map(np.concatenate, zip(*parts, strict=True)))

    def _sums(self, paths: Paths, positions: range) -> RowTargets:
        """Follow the paths of some positions, and sum the probability of each student token."""
        strings, n = paths.follow(positions), len(positions)
        tokens, alone = strings.tokens, strings.prefix == 0
        behind = strings.prefix > 0
        if behind.any():
            tokens[behind] = self.first_tokens.after(strings.prefixes, strings.prefix[behind] - 1, tokens[behind])
        repeats, habits, shares = self._habits(tokens[alone])
        times = np.ones(len(tokens), np.int64)
        times[alone] = repeats
        tokens, mass, position, alone = (np.repeat(a, times) for a in (tokens, strings.mass, strings.position, alone))
        tokens[alone] = habits
        mass[alone] *= shares
        # Number the pairs of position and token by their first appearance, and sum each one's mass in order.
        number, distinct = self._numbered(tokens - NO_TOKEN, int(tokens.max(initial=0)) - NO_TOKEN + 1)
        pair, first = self._numbered(position * len(distinct) + number, n * len(distinct))
        probs = np.bincount(pair, mass, len(first)) * strings.scale[position[first]]
        tokens, position = tokens[first], position[first]
        listed = (tokens != NO_TOKEN) & (probs > _LEAST)
        tokens, position, probs = tokens[listed], position[listed], probs[listed]
        tokens[tokens == END] = paths.end_token
        tail = np.maximum(1 - np.bincount(position, probs, n), 0.0)
        return RowTargets(np.bincount(position, minlength=n), tokens, probs, tail, strings.kind)

    def _habits(self, tokens: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        """How many student tokens may begin with each teacher token, which, and with what shares."""
        sizes, begins = self._sizes[tokens], self._begins[tokens]
        unseen = tokens[begins < len(self._begins)]
        self._habit_tokens[unseen] = self.first_tokens.alone(unseen)
        slots = ranges(begins, sizes)
        return sizes, self._habit_tokens[slots], self._shares[slots]

    def _numbered(self, keys: IntArray, size: int) -> tuple[IntArray, IntArray]:
        """Number different keys below `size` by first appearance: the number of each, and where each is first."""
        if len(self._scratch) < size:
            self._scratch = np.empty(size, np.int32)
        order = np.arange(len(keys), dtype=np.int32)
        self._scratch[keys[::-1]] = order[::-1]  # of equal keys the first is written last, and stays
        first = self._scratch[keys]
        is_first = first == order
        return (np.cumsum(is_first) - 1)[first], np.flatnonzero(is_first)


def _with_observed(row: TeacherRow) -> Distributions:
    """The distribution of each position; the observed token is always an entry, because paths follow it."""
    tokens, n = row.tokens, len(row.tokens)
    counts, ids, probs = np.diff(row.starts), row.ids, np.exp(row.logprobs.astype(np.float64))
    tail = row.tail.astype(np.float64)
    position = np.repeat(np.arange(n), counts)
    missing = np.bincount(position[ids == tokens[position]], minlength=n) == 0
    if missing.any():
        at = row.starts[1:][missing]
        p = np.minimum(np.exp(row.observed[missing].astype(np.float64)), tail[missing])
        ids, probs, counts = np.insert(ids, at, tokens[missing]), np.insert(probs, at, p), counts + missing
        tail[missing] -= p
        position = np.repeat(np.arange(n), counts)
    total = np.bincount(position, probs, n) + tail  # not exactly 1, because of float16 rounding
    starts = np.concatenate([[0], np.cumsum(counts)])
    observed = np.flatnonzero(ids == tokens[position])
    return Distributions(tokens, starts, ids, probs / total[position], tail / total, observed)


def collect(rows: Iterable[RowTargets]) -> Targets:
    """Concatenate the targets of all rows of a data set."""
    # Arrays that grow in place, because the targets of all rows take gigabytes.
    lengths, sizes, ids = array("q", [0]), array("q", [0]), array("i")
    probs, tail, kind = array("f"), array("f"), array("B")
    columns: tuple[array[Any], ...] = (sizes, ids, probs, tail, kind)
    for row in rows:
        lengths.append(len(row.kind))
        for column, values in zip(columns, row, strict=True):
            column.frombytes(values.astype(column.typecode).tobytes())
    return Targets(
        rows=np.cumsum(np.asarray(lengths)),
        starts=np.cumsum(np.asarray(sizes)),
        ids=np.asarray(ids),
        probs=np.asarray(probs),
        tail=np.asarray(tail),
        kind=np.asarray(kind),
    )
