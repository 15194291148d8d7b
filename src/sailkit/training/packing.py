"""Whether rows packed into one sequence attend to each other, tried on the model itself.

Packing marks the start of each row by a position id of 0 alone, without an attention mask. Attention kernels that are
given these ids keep rows apart; an architecture that ignores them, or derives positions itself, reads them as one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.models.selftest import logprobs_agree
from sailkit.models.weights import compute_dtype

_TOKENS = 12  # of a row that are tried


@torch.no_grad()
def check_packing(
    model: Any, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], rows: Sequence[Any]
) -> None:
    """Compare the logits of two rows that are packed with those of each row alone.

    Args:
        model: A causal language model.
        collate: Packs rows into a batch.
        rows: Token ids of some rows.

    Raises:
        UserError: The logits differ, or the model cannot read packed rows.
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
        raise _unsupported(f"cannot read packed rows ({type(error).__name__}: {why})") from None
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float().log_softmax(-1)
    if not bool(torch.isfinite(expected).all()):
        return  # training will stop at the first loss, and name the rows
    packed = logits[: len(expected)].float().log_softmax(-1)  # padding may follow
    if packed.shape != expected.shape or not logprobs_agree(packed, expected, compute_dtype(model)):
        raise _unsupported("reads packed rows as one: they see each other")


def _unsupported(why: str) -> UserError:
    return UserError(f"training.packing: a model of this architecture {why}; set training.packing: false")
