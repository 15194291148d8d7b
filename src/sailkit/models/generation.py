"""Greedy generation in batches whose sequences have the same RoPE frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sailkit.models.base import Finished
from sailkit.models.checks import check_finite
from sailkit.prompts.render import Rendered


def generate_batch(model: Any, batch: Sequence[Rendered], max_new_tokens: int, finished: Finished) -> list[list[int]]:
    """Greedy answers to the prompts of one batch, as token ids without the stop token.

    Args:
        model: A LocalModel.
        batch: The prompts.
        max_new_tokens: Most tokens of an answer.
        finished: Whether a text is complete.
    """
    written: list[list[int]] = [[] for _ in batch]
    unfinished = list(range(len(batch)))
    while unfinished:
        groups = model.lengths.groups([len(batch[i].ids) + len(written[i]) for i in unfinished])
        parts = [[unfinished[i] for i in group] for group in groups]
        unfinished = [i for part in parts for i in _continue(model, batch, part, written, max_new_tokens, finished)]
    return written


def _continue(
    model: Any, batch: Sequence[Rendered], alive: list[int], written: list[list[int]], limit: int, finished: Finished
) -> list[int]:
    """Continue some answers of a batch while their RoPE frequencies are those of the cache.

    Args:
        model: A LocalModel.
        batch: The prompts.
        alive: Indices of the answers to continue; their sequences have the same frequencies.
        written: Token ids of the answers so far; new ones are appended.
        limit: Most tokens of an answer.
        finished: Whether a text is complete.

    Returns:
        Indices of the answers whose length has crossed the RoPE threshold, so that their cache must be recomputed.
    """
    rows = [replace(batch[i], ids=batch[i].ids + tuple(written[i])) for i in alive]
    regime = model.lengths.regime(len(rows[0].ids))
    outgrown: list[int] = []
    if model.shared and not regime:
        cache, inputs, positions, mask = model.shared_prefix.prepare(rows, [], continues=True)
        keep = mask[:, 0, -1] == 0
    else:
        inputs, keep, positions = model.shared_prefix.left_pad([row.ids for row in rows])
        cache, mask = None, keep
    while alive:
        out = model.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        check_finite(out.logits.amax(-1))
        tokens = out.logits[:, -1].argmax(-1).tolist()
        stay = []
        for row, (i, token) in enumerate(zip(alive, tokens, strict=True)):
            if token in model.stop_ids:
                continue
            written[i].append(token)
            if len(written[i]) == limit or finished(model.text_of(batch[i], written[i])):
                continue
            if model.lengths.regime(len(batch[i].ids) + len(written[i])) == regime:
                stay.append(row)
            else:
                outgrown.append(i)
        if not stay:
            break
        picked = torch.tensor(stay, device=model.device)
        if len(stay) < len(alive):
            cache.batch_select_indices(picked)
        alive = [alive[row] for row in stay]
        inputs = torch.tensor([[written[i][-1]] for i in alive], device=model.device)
        positions = positions[picked, -1:] + 1
        keep = torch.cat([keep[picked], keep.new_ones(len(stay), 1)], 1)
        mask = keep.long()
    return outgrown
