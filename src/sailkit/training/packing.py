"""Whether packed rows see each other, tried on the model: architectures differ in what they make of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.models.selftest import logprobs_agree
from sailkit.models.weights import compute_dtype

_TOKENS = 12  # of a row that is tried


@torch.no_grad()
def check_packing(
    model: Any, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], rows: Sequence[Any]
) -> None:
    """Try two packed rows in one pass against each alone.

    Args:
        model: A causal language model.
        collate: What packs rows.
        rows: Token ids of some rows.

    Raises:
        UserError: The model gives something else, or nothing.
    """
    pair = [list(row[-_TOKENS:]) for row in (rows[0], rows[-1])]
    batch = collate([{"input_ids": ids, "labels": ids} for ids in pair])
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    del inputs["labels"]
    was_training = model.training
    model.eval()
    try:
        logits = model(**inputs, use_cache=False).logits[0]
        alone = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in pair]
    except Exception as error:  # each architecture fails in its own way
        why = " ".join(str(error).split())[:160]
        raise _refused(f"cannot read packed rows ({type(error).__name__}: {why})") from None
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float().log_softmax(-1)
    if not bool(torch.isfinite(expected).all()):
        return  # training stops there, and names the rows
    packed = logits[: len(expected)].float().log_softmax(-1)  # padding may follow
    if packed.shape != expected.shape or not logprobs_agree(packed, expected, compute_dtype(model)):
        raise _refused("reads packed rows as one: they see each other")


def _refused(why: str) -> UserError:
    return UserError(f"training.packing: a model of this architecture {why}; set training.packing: false")
