"""How the rows of an optimizer step are cut into batches, which changes padding and memory and not the step."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import TrainerCallback

from sailkit.models.batching import batch_by_length
from sailkit.training.tokenise import IGNORED

# What a batch of padded rows has, and nothing else -> what pads it; where the mask is 0, any token will do.
_PADDING = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}


def balanced_batches(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Batches of rows of similar length, so that the largest, with its padding, is as small as possible.

    Args:
        lengths: Tokens of each row.
        parts: How many batches; each has a row at least.

    Returns:
        Indices of the rows of each batch; the longest row is in the first.
    """
    areas = sorted({length * count for length in lengths for count in range(1, len(lengths) + 1)})
    enough = bisect_left(areas, True, key=lambda area: len(batch_by_length(lengths, area)) <= parts)
    batches = batch_by_length(lengths, areas[enough])
    while len(batches) < parts:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        half = len(batches[largest]) // 2
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return batches


def regroup_by_length(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of some padded batches in as many others, those alike in length together.

    Args:
        batches: Of one optimizer step, padded on the right; any others, such as packed ones, stay as they are.
    """
    if len(batches) < 2 or any(batch.keys() != _PADDING.keys() for batch in batches):
        return list(batches)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    rows = {name: [row for batch in batches for row in batch[name]] for name in _PADDING}
    return [
        {
            name: pad_sequence([rows[name][i][: lengths[i]] for i in places], True, padding)
            for name, padding in _PADDING.items()
        }
        for places in balanced_batches(lengths, len(batches))
    ]


def example_ids(batch: Mapping[str, Any], known: Mapping[tuple[int, ...], str]) -> list[str]:
    """Ids of the examples in a batch, found by their tokens: neither padding nor packing keeps them.

    Args:
        batch: Padded rows, or packed ones with their positions.
        known: Tokens of each row -> its id; any other is `?`.
    """
    rows = batch["input_ids"].tolist()
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    found = []
    for i, row in enumerate(rows):
        ends = [0, len(row)] if mask is None else [0, int(mask[i].sum())]
        if mask is None and positions is not None:
            ends = [*(positions[i] == 0).nonzero().flatten().tolist(), len(row)]
        found += [known.get(tuple(row[a:b]), "?") for a, b in itertools.pairwise(ends)]
    return found


class SeededByEpoch(Sampler[int], TrainerCallback):  # type: ignore[misc]
    """A sampler whose order is told by seed and epoch alone: a run that goes on within an epoch sees it again.

    It is a callback too, because accelerate does not tell it the epoch where several processes skip rows.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        """Wrap one that draws from its `generator`.

        Args:
            sampler: The sampler.
            seed: Of the data.
        """
        self._sampler = sampler
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the epoch that begins, or goes on."""
        self.set_epoch(int(state.epoch or 0))

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from self._sampler
