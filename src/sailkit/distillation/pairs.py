"""What a teacher reads: completions behind their prompts, in the teacher's own tokens, each with the key of its row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sailkit.files import jsonl
from sailkit.prompts.sail import completion
from sailkit.training.tokenise import IGNORED, Prepared


@dataclass(frozen=True)
class Pair:
    """A prompt and its completion.

    Attributes:
        name: The example's id, for errors.
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
        """What the pair goes by in a cache."""
        return pair_key(self.prompt, self.completion)

    @property
    def whole(self) -> tuple[int, ...]:
        """The row as it would be trained on."""
        return self.prompt + self.tokens

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model has to read to predict all of `tokens`; nothing follows the last of them."""
        return self.prompt + self.tokens[:-1]


def pair_key(prompt: Sequence[int], completion: str) -> bytes:
    """sha256 of a prompt's token ids and a completion's text, 32 bytes."""
    # The length in front keeps ids and text apart.
    ids = np.asarray([len(prompt), *prompt], "<u4").tobytes()
    return hashlib.sha256(ids + jsonl.encode(completion)).digest()


def pairs_of(prepared: Prepared) -> list[Pair]:
    """One pair for each example that was rendered with the teacher's tokenizer, in order."""
    found = []
    for one, ids, labels in zip(prepared.examples, prepared.ids, prepared.labels, strict=True):
        start = next(place for place, label in enumerate(labels) if label != IGNORED)
        tokens = tuple(label for label in labels if label != IGNORED)
        found.append(Pair(one.id, ids[:start], tokens, completion(one)))
    return found


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The first of those that have the same prompt and completion, in order."""
    found: dict[bytes, Pair] = {}
    for pair in pairs:
        found.setdefault(pair.key, pair)
    return list(found.values())
