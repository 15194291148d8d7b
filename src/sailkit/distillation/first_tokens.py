"""Finds the first student token of strings that end with a teacher token, for many strings at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from sailkit.distillation.align import Vocabulary
from sailkit.distillation.records import IntArray
from sailkit.errors import UserError

END = -1  # instead of a student token: the end of text
NO_TOKEN = -2  # for a teacher token without bytes, or that the student cannot represent: goes to the tail
_UNKNOWN = -3  # not computed yet
# Bytes that every pre-tokenizer treats alike, as keys of the cache: digits, and punctuation other than apostrophes.
_CLASSES = np.arange(257)
_CLASSES[list(b"0123456789")] = ord("0")
_CLASSES[list(b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~')] = ord(".")
_MOST_PREFIXES = 50_000  # whose tokens are cached; most prefixes occur once


class FirstTokens:
    """A cache of the first student token of a prefix and a teacher token.

    Attributes:
        pieces: Bytes by teacher token; empty for special tokens. The last is empty: it stands for unknown tokens.
    """

    def __init__(self, teacher: Vocabulary, student: Vocabulary, ends: frozenset[int]) -> None:
        """Prepare the cache.

        Args:
            teacher: The teacher's vocabulary.
            student: The student's.
            ends: The teacher tokens that end a text.
        """
        self._student = student
        size = max([len(teacher.pieces), *(end + 1 for end in ends)]) + 1
        self.pieces = [piece or b"" for piece in teacher.pieces] + [b""] * (size - len(teacher.pieces))
        self._first_bytes = np.array([piece[0] if piece else 256 for piece in self.pieces])
        self._alone = np.full(size, _UNKNOWN)
        for token, piece in enumerate(self.pieces):
            if not piece:
                self._alone[token] = END if token in ends else NO_TOKEN
        self._by_byte: dict[bytes, IntArray] = {}  # prefix -> first byte of the teacher token -> student token
        self._by_token: dict[bytes, dict[int, int]] = {}  # prefix -> teacher token -> student token

    def of(self, text: bytes) -> int:
        """The first student token of some bytes."""
        try:
            return self._student.first_token(text)
        except UserError:
            return NO_TOKEN

    def alone(self, tokens: IntArray) -> IntArray:
        """The first student token of each of some teacher tokens.

        Args:
            tokens: Indices of `pieces`; shape (n,).
        """
        result = self._alone[tokens]
        if (unknown := result == _UNKNOWN).any():
            for token in np.unique(tokens[unknown]).tolist():
                self._alone[token] = self.of(self.pieces[token])
            result = self._alone[tokens]
        return result

    def after(self, prefixes: Sequence[bytes], which: IntArray, tokens: IntArray) -> IntArray:
        """The first student token of each of some strings: a prefix and a teacher token.

        Args:
            prefixes: Different strings of at least one byte.
            which: Index of the prefix of each string; shape (n,).
            tokens: The teacher token of each string, as an index of `pieces`; shape (n,).
        """
        if len(self._by_byte) > _MOST_PREFIXES:
            self._by_byte.clear()
            self._by_token.clear()
        for prefix in prefixes:
            if prefix not in self._by_byte:
                self._by_byte[prefix] = np.full(257, _UNKNOWN, np.int32)
                self._by_token[prefix] = {}
        first_bytes = self._first_bytes[tokens]
        last_bytes = np.array([prefix[-1] for prefix in prefixes])
        can_merge = self._student.can_merge[last_bytes[which], first_bytes]
        # If no student token spans the end of the prefix, the class of the next byte decides.
        classes = _CLASSES[first_bytes]
        by_byte = np.stack([self._by_byte[prefix] for prefix in prefixes])
        result = by_byte[which, classes]
        unknown = np.flatnonzero((result == _UNKNOWN) & ~can_merge)
        if len(unknown):
            for index in unknown[np.unique(which[unknown] * 257 + classes[unknown], return_index=True)[1]].tolist():
                prefix, byte = prefixes[which[index]], int(first_bytes[index])
                token = self.of(prefix if byte == 256 else prefix + bytes([byte]))
                by_byte[which[index], classes[index]] = self._by_byte[prefix][classes[index]] = token
            result = by_byte[which, classes]
        caches = [self._by_token[prefix] for prefix in prefixes]
        merging = np.flatnonzero(can_merge)
        result[merging] = [
            self._after(prefixes[i], token, caches[i])
            for i, token in zip(which[merging].tolist(), tokens[merging].tolist(), strict=True)
        ]
        return cast(IntArray, result)

    def _after(self, prefix: bytes, token: int, cache: dict[int, int]) -> int:
        result = cache.get(token)
        if result is None:
            result = cache[token] = self.of(prefix + self.pieces[token])
        return result
