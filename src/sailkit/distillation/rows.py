"""What flows between the steps of distillation: a teacher's cached word on a completion, and a student's targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]

NONE, ALIGNED, CONDITIONED = 0, 1, 2  # kinds of targets


@dataclass(frozen=True)
class TeacherRow:
    """What a teacher thinks of one completion, in its own tokens.

    Attributes:
        tokens: Its supervised tokens: the completion and the end of text; shape (n,).
        starts: Where the entries of each position begin, and where the last ones end; shape (n + 1,).
        ids: The likeliest tokens of each position, likeliest first; shape (entries,).
        logprobs: Their log-probabilities in nats; shape (entries,).
        tail: Probability of all other tokens together; shape (n,).
        observed: Log-probability of each of `tokens`; shape (n,).
    """

    tokens: Ints
    starts: Ints
    ids: Ints
    logprobs: Floats
    tail: Floats
    observed: Floats


@dataclass(frozen=True)
class Targets:
    """What a student should think of each supervised token of a data set, in its own tokens.

    Attributes:
        rows: Where the positions of each row begin, and where the last ones end; shape (rows + 1,). A row has a
            position for each supervised token of the student, in order.
        starts: Where the entries of each position begin, and where the last ones end; shape (positions + 1,).
        ids: Student tokens, no token twice within a position; shape (entries,).
        probs: Their probabilities; shape (entries,).
        tail: Probability of all other tokens together; probs and tail sum to 1; shape (positions,).
        kind: `NONE` (no target: cross-entropy alone), `ALIGNED` (teacher and student begin a token at the same byte) or
            `CONDITIONED` (the student begins within a teacher token); shape (positions,).
    """

    rows: Ints
    starts: Ints
    ids: Ints
    probs: Floats
    tail: Floats
    kind: Ints
