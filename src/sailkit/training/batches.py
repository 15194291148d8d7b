"""Split the rows of an optimizer step into batches with little padding; the step itself does not change."""

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

# Tensor of a padded batch -> padding value; where the mask is 0, any token id will do.
_PADDING = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}


def balanced_batches(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split rows into batches of similar length so that the largest padded batch is as small as possible.

    Args:
        lengths: Tokens of each row.
        parts: Number of batches; each has at least one row.

    Returns:
        Indices of the rows of each batch; the longest row is in the first.
    """
    sizes = sorted({length * count for length in lengths for count in range(1, len(lengths) + 1)})
    smallest = bisect_left(sizes, True, key=lambda size: len(batch_by_length(lengths, size)) <= parts)
    batches = batch_by_length(lengths, sizes[smallest])
    while len(batches) < parts:
        most_rows = max(range(len(batches)), key=lambda i: len(batches[i]))
        half = len(batches[most_rows]) // 2
        batches[most_rows : most_rows + 1] = [batches[most_rows][:half], batches[most_rows][half:]]
    return batches


def regroup_by_length(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Regroup the rows of padded batches into the same number of batches of rows of similar length.

    The loss is a sum over the tokens of the step, so regrouping saves padding without changing the step.

    Args:
        batches: Batches of an optimizer step, padded on the right; others, such as packed ones, are returned unchanged.
    """
    if len(batches) < 2 or any(batch.keys() != _PADDING.keys() for batch in batches):
        return list(batches)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    rows = {name: [row for batch in batches for row in batch[name]] for name in _PADDING}
    return [
        {
            name: pad_sequence([rows[name][i][: lengths[i]] for i in indices], True, padding)
            for name, padding in _PADDING.items()
        }
        for indices in balanced_batches(lengths, len(batches))
    ]


def example_ids(batch: Mapping[str, Any], known: Mapping[tuple[int, ...], str]) -> list[str]:
    """Look up the ids of the examples in a batch by their tokens: the collators drop ids.

    Args:
        batch: Padded rows, or packed ones with their position ids.
        known: Tokens of a row -> its id; unknown rows get `?`.
    """
    rows = batch["input_ids"].tolist()
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    ids = []
    for i, row in enumerate(rows):
        bounds = [0, len(row)] if mask is None else [0, int(mask[i].sum())]
        if mask is None and positions is not None:  # packed: position ids begin at 0 with each example
            bounds = [*(positions[i] == 0).nonzero().flatten().tolist(), len(row)]
        ids += [known.get(tuple(row[start:end]), "?") for start, end in itertools.pairwise(bounds)]
    return ids


class SeededByEpoch(Sampler[int], TrainerCallback):  # type: ignore[misc]
    """A sampler whose order depends only on seed and epoch, so that a run resumed within an epoch has the same order.

    It is also a callback, because accelerate does not set its epoch when several processes skip rows.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        """Wrap a sampler.

        Args:
            sampler: A sampler that draws from its `generator`.
            seed: Seed of the data order.
        """
        self._sampler = sampler
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order."""
        self._epoch = epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch at its start, also after resuming."""
        self.set_epoch(int(state.epoch or 0))

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from self._sampler


class CurriculumFirst(SeededByEpoch):
    """A sampler whose first epoch is the rows in their order, which begins with a curriculum.

    Later epochs are windows of the same length over repeated passes through the other rows, each pass in another order.
    """

    def __init__(self, rows: int, curriculum: int, seed: int) -> None:
        """Prepare the order.

        Args:
            rows: Number of rows.
            curriculum: Number of rows of the curriculum, at the start.
            seed: Seed of the data order.
        """
        super().__init__(range(rows), seed)
        self._others = range(curriculum, rows) or range(rows)

    def __iter__(self) -> Iterator[int]:
        if self._epoch == 0:
            yield from self._sampler
            return
        generators = (torch.Generator().manual_seed(self._seed + number) for number in itertools.count(1))
        passes = (torch.randperm(len(self._others), generator=generator).tolist() for generator in generators)
        begin = (self._epoch - 1) * len(self)
        for index in itertools.islice(itertools.chain.from_iterable(passes), begin, begin + len(self)):
            yield self._others[index]
