"""Divides the sequences of a whole run into batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BATCH_TOKENS = {"cpu": 2048}  # larger batches add padding and cache misses, smaller ones reread the weights
_BATCH_TOKENS_ELSEWHERE = 32768


def default_batch_tokens(device: str) -> int:
    """Most tokens of a batch of a local model on a type of device, such as `cpu`, unless its options say otherwise."""
    return _BATCH_TOKENS.get(device, _BATCH_TOKENS_ELSEWHERE)


def batch_by_length(
    lengths: Sequence[int],
    budget: int,
    *,
    sequences: Sequence[int] | None = None,
    ties: Sequence[int] | None = None,
    fits: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Divide items into batches of similar length, longest first, each within a budget of tokens including padding.

    The low bits of a result depend on the rows that share its batch. So the batches depend on the arguments alone: plan
    the whole input before sharding or resuming. A change of this rule changes stored values.

    Args:
        lengths: Tokens of each item, or of its longest sequence if it has several.
        budget: Most tokens of a batch. An item with more tokens gets a separate batch.
        sequences: Number of sequences of each item; by default one.
        ties: Sort keys of items of the same length, the smallest first; remaining ties are sorted by index.
        fits: Returns whether items may share a batch, as a further condition.

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
