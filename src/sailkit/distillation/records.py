"""The data that distillation steps exchange: teacher examples, cached distributions, and student targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sailkit.files import jsonl
from sailkit.prompts.sail import completion
from sailkit.training.tokenise import IGNORED, Prepared

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]

NONE, ALIGNED, CONDITIONED = 0, 1, 2  # kinds of targets


@dataclass(frozen=True)
class TeacherExample:
    """A prompt and its completion in the teacher's tokens.

    Attributes:
        name: The training example's id, for errors.
        prompt: Token ids of the prompt.
        tokens: Supervised token ids: the completion and the token that ends it.
        completion: The completion's text.
    """

    name: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    completion: str

    @cached_property
    def key(self) -> bytes:
        """The example's key in a cache."""
        return completion_key(self.prompt, self.completion)

    @property
    def whole(self) -> tuple[int, ...]:
        """The whole sequence: prompt and completion."""
        return self.prompt + self.tokens

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs from which a model predicts all of `tokens`: the sequence without its last token."""
        return self.prompt + self.tokens[:-1]


def completion_key(prompt: Sequence[int], completion: str) -> bytes:
    """sha256 of a prompt's token ids and a completion's text, 32 bytes."""
    # The prompt's length comes first, so that different pairs of prompt and text never hash the same bytes.
    ids = np.asarray([len(prompt), *prompt], "<u4").tobytes()
    return hashlib.sha256(ids + jsonl.encode(completion)).digest()


def teacher_examples(prepared: Prepared) -> list[TeacherExample]:
    """The examples that were rendered with the teacher's tokenizer, in order."""
    examples = []
    for example, ids, labels in zip(prepared.examples, prepared.ids, prepared.labels, strict=True):
        start = next(position for position, label in enumerate(labels) if label != IGNORED)
        tokens = tuple(label for label in labels if label != IGNORED)
        examples.append(TeacherExample(example.id, ids[:start], tokens, completion(example)))
    return examples


def unique_completions(examples: Iterable[TeacherExample]) -> list[TeacherExample]:
    """The examples without those that repeat an earlier one's prompt and completion, in order."""
    by_key: dict[bytes, TeacherExample] = {}
    for example in examples:
        by_key.setdefault(example.key, example)
    return list(by_key.values())


@dataclass(frozen=True)
class TeacherRow:
    """A teacher's distributions along one completion, in its own tokens.

    Attributes:
        tokens: The supervised tokens: the completion and the end of text; shape (n,).
        starts: Offset of the first entry of each position, and the end of the last; shape (n + 1,).
        ids: The likeliest tokens of each position, likeliest first; shape (entries,).
        logprobs: Their log-probabilities in nats; shape (entries,).
        tail: Probability of all other tokens together; shape (n,).
        observed: Log-probability of each of `tokens`; shape (n,).
    """

    tokens: IntArray
    starts: IntArray
    ids: IntArray
    logprobs: FloatArray
    tail: FloatArray
    observed: FloatArray


@dataclass(frozen=True)
class Targets:
    """A student's target distributions at each supervised token of a data set, in the student's tokens.

    Attributes:
        rows: Offset of the first position of each row, and the end of the last; shape (rows + 1,). A row has one
            position for each supervised token of the student, in order.
        starts: Offset of the first entry of each position, and the end of the last; shape (positions + 1,).
        ids: Student tokens, unique within a position; shape (entries,).
        probs: Their probabilities; shape (entries,).
        tail: Probability of all other tokens together; probs and tail sum to 1; shape (positions,).
        kind: `NONE` (no target: cross-entropy alone), `ALIGNED` (teacher and student begin a token at the same byte) or
            `CONDITIONED` (the student begins within a teacher token); shape (positions,).
    """

    rows: IntArray
    starts: IntArray
    ids: IntArray
    probs: FloatArray
    tail: FloatArray
    kind: IntArray
