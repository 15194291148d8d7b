"""Batches of sequences of similar length, planned for a whole run before any of it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def batch_by_length(
    lengths: Sequence[int],
    budget: int,
    *,
    sequences: Sequence[int] | None = None,
    ties: Sequence[int] | None = None,
    fits: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Batches of items of similar length, longest first, each within a budget of tokens with padding.

    A row's low bits depend on the rows that it shares a batch with, so a plan depends on its arguments alone: it is
    made from the whole input, before sharding or resuming, and a change of the rule changes stored values.

    Args:
        lengths: Tokens of each item; of its longest sequence, where it has several.
        budget: Most tokens of a batch. An item that has more is a batch by itself.
        sequences: How many sequences each item puts into the batch; by default one.
        ties: Orders items of the same length, the smallest first; by default, and last, their index does.
        fits: Whether the items of a batch may be together for other reasons than their tokens.

    Returns:
        Indices of the items of each batch.
    """
    batches: list[list[int]] = []
    longest = rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], ties[i] if ties else 0, i)):
        more = sequences[i] if sequences else 1
        if not batches or (rows + more) * longest > budget or (fits and not fits([*batches[-1], i])):
            batches.append([])
            longest, rows = lengths[i], 0
        batches[-1].append(i)
        rows += more
    return batches
