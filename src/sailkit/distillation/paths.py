"""Follows the strings with which a completion may continue at each student token, as far as the teacher tells them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sailkit.distillation.align import ByteStream
from sailkit.distillation.first_tokens import FirstTokens
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, FloatArray, IntArray

_LONGEST = 256  # most bytes of a student token
STUDENT_TOKEN = -1  # instead of a prefix: the token is the student's
_EMPTY = (0, 0, 0, 0.0, 0)  # a run without entries


class Distributions(NamedTuple):
    """A teacher's distributions along one completion, each of which lists the observed token.

    Attributes:
        tokens: The observed tokens; shape (n,).
        starts: Offset of the first entry of each position, and the end of the last; shape (n + 1,).
        ids: Tokens; shape (entries,).
        probs: Their probabilities; shape (entries,).
        tail: Probability of all other tokens together; shape (n,).
        observed: Index of the entry of each observed token; shape (n,).
    """

    tokens: IntArray
    starts: IntArray
    ids: IntArray
    probs: FloatArray
    tail: FloatArray
    observed: IntArray


class Strings(NamedTuple):
    """Strings with which the text may continue at n positions of the student, and their probabilities.

    Attributes:
        position: Index of the position of each string; shape (strings,).
        prefix: Whether a string is a teacher token (0), a prefix and a teacher token (the prefix's number from 1), or a
            student token (-1); shape (strings,).
        tokens: The teacher token, or the student token; shape (strings,).
        mass: Its probability; shape (strings,).
        prefixes: The prefixes.
        scale: Factor of all probabilities of each position; shape (n,).
        kind: Kind of each position's target; shape (n,).
    """

    position: IntArray
    prefix: IntArray
    tokens: IntArray
    mass: FloatArray
    prefixes: list[bytes]
    scale: FloatArray
    kind: IntArray


class Paths:
    """The paths of one completion."""

    def __init__(
        self,
        distributions: Distributions,
        teacher: ByteStream,
        student: ByteStream,
        first_tokens: FirstTokens,
        min_mass: float,
        expand: bool,
    ) -> None:
        """Prepare a completion; for the last two arguments see `Projection`."""
        self._row, self._teacher, self._student = distributions, teacher, student
        self._first_tokens, self._min_mass, self._expand = first_tokens, min_mass, expand
        self.end_token = int(student.tokens[-1])
        self._has_trailing = len(teacher.data) + int(teacher.starts[0]) > teacher.length
        # Lists, because access to single numbers of an array is slow.
        unknown = len(first_tokens.pieces) - 1
        self._ids = np.minimum(distributions.ids, unknown)
        self._pieces = [first_tokens.pieces[i] for i in np.minimum(distributions.tokens, unknown).tolist()]
        self._offsets, self._observed = distributions.starts.tolist(), distributions.observed.tolist()
        self._probs, self._tail = distributions.probs[distributions.observed].tolist(), distributions.tail.tolist()
        self._starts, self._teacher_starts = student.starts.tolist(), teacher.starts.tolist()
        # The teacher token that covers the byte at which each student token begins.
        covering = np.searchsorted(teacher.starts, student.starts, side="right") - 1
        self._covering = np.maximum(covering, 0).tolist()

    def follow(self, positions: range) -> Strings:
        """Follow the paths of some positions of the student."""
        self._prefixes: dict[bytes, int] = {b"": 0}
        # Runs of entries: position, begin, end, factor and prefix. Entries behind the teacher's are those of `_tokens`.
        self._runs: list[tuple[int, int, int, float, int]] = []
        self._tokens: list[int] = []
        self._mass: list[float] = []
        scale, kind = zip(*(self._position(n, i) for n, i in enumerate(positions)), strict=True)
        runs = zip(*self._runs or [_EMPTY], strict=True)
        position, begin, end, factor, prefix = (np.array(column) for column in runs)
        lengths = end - begin
        entries = ranges(begin, lengths)
        tokens = np.concatenate([self._ids, np.array(self._tokens, np.int64)])
        mass = np.concatenate([self._row.probs, self._mass])
        return Strings(
            np.repeat(position, lengths),
            np.repeat(prefix, lengths),
            tokens[entries],
            mass[entries] * np.repeat(factor, lengths),
            list(self._prefixes)[1:],
            np.array(scale),
            np.array(kind),
        )

    def _position(self, n: int, i: int) -> tuple[float, int]:
        """Add the strings at the student's position i, and return the scale and the kind of position n."""
        teacher, student = self._teacher, self._student
        start, is_last = self._starts[i], i == len(self._starts) - 1
        # The teacher does not predict white space that the student's template writes after the completion.
        if start >= student.length and (self._has_trailing or not is_last or start > student.length):
            return 1.0, NONE
        j = self._covering[i]
        teacher_start = self._teacher_starts[j]
        end = start if is_last else self._starts[i + 1]
        if teacher_start >= start:
            # The student may begin earlier, with a template's space.
            before = student.between(start, teacher_start) if start < teacher_start else b""
            self._list(n, 1.0, j, before, start, end)
            return 1.0, ALIGNED
        seen = teacher.between(teacher_start, start)
        agreeing, strings = self._agreeing(j, seen)
        if agreeing < self._min_mass:
            return 1.0, NONE
        for token, p in strings:
            if token is None:
                self._continue(n, p, j + 1, self._pieces[j][len(seen) :], start, end)
            else:
                self._add(n, token, p)
        # It is unknown which tail tokens agree with the bytes seen; assume the same share as among the listed tokens.
        return (1 - self._tail[j]) / agreeing, CONDITIONED

    def _agreeing(self, j: int, seen: bytes) -> tuple[float, list[tuple[int | None, float]]]:
        """The mass of the entries that agree with the bytes seen, and the student token (or None to follow) of each."""
        agreeing, strings = 0.0, list[tuple[int | None, float]]()
        here, observed = slice(self._offsets[j], self._offsets[j + 1]), self._observed[j] - self._offsets[j]
        for entry, (token, p) in enumerate(zip(self._ids[here].tolist(), self._row.probs[here].tolist(), strict=True)):
            piece = self._first_tokens.pieces[token]
            # A token that ends where the student token begins does not determine the next bytes.
            if len(piece) > len(seen) and piece.startswith(seen):
                agreeing += p
                follow = entry == observed and self._expand
                strings.append((None if follow else self._first_tokens.of(piece[len(seen) :]), p))
        return agreeing, strings

    def _list(self, n: int, p: float, j: int, text: bytes, start: int, end: int) -> None:
        """Add a path's text followed by any teacher token at position j; the observed token's path goes on.

        Args:
            n: Position to which the strings belong.
            p: Probability of the path so far.
            j: The teacher's position.
            text: The bytes of the path from `start` on.
            start: Byte offset at which the student token begins.
            end: Byte offset at which it ends in the observed text.
        """
        prefix = self._prefixes.setdefault(text, len(self._prefixes))
        begin, observed, stop = self._offsets[j], self._observed[j], self._offsets[j + 1]
        if not self._expand or not self._pieces[j]:
            self._runs.append((n, begin, stop, p, prefix))
            return
        self._runs.append((n, begin, observed, p, prefix))
        self._continue(n, p * self._probs[j], j + 1, text + self._pieces[j], start, end)
        self._runs.append((n, observed + 1, stop, p, prefix))

    def _continue(self, n: int, p: float, j: int, text: bytes, start: int, end: int) -> None:
        """Add the strings that begin with a text.

        Along the observed tokens p(t1) becomes p(t1) p(t2 | t1) ..., until the text is longer than the student token:
        later bytes cannot change the string's first student token. Strings that leave the path, for which nothing is
        cached, count with their known bytes.
        """
        token_so_far = self._first_tokens.of(text)
        if start + len(text) > end or len(text) > _LONGEST:
            self._add(n, token_so_far, p)
            return
        self._add(n, token_so_far, p * self._tail[j])
        self._list(n, p, j, text, start, end)

    def _add(self, n: int, token: int, p: float) -> None:
        """Add a student token."""
        entry = len(self._ids) + len(self._tokens)
        self._runs.append((n, entry, entry + 1, 1.0, STUDENT_TOKEN))
        self._tokens.append(token)
        self._mass.append(p)


def ranges(begins: IntArray, lengths: IntArray) -> IntArray:
    """Concatenate the ranges of integers from `begins`, of the given lengths."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - ends + lengths, lengths)
