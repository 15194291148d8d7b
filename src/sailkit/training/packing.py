"""Test on the model itself whether rows packed into one sequence attend to each other.

Packing marks the start of each row only by a position id of 0, without an attention mask. Attention kernels that use
these ids separate the rows; an architecture that ignores them, or derives its own, reads the sequence as one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.models.attention import packed_attention, set_attention
from sailkit.models.selftest import logprobs_agree
from sailkit.models.weights import compute_dtype

_TOKENS = 12  # of each row in the test


def prepare_packing(
    model: Any,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    rows: Sequence[Any],
    dtype: torch.dtype | None,
    *,
    check: bool,
) -> None:
    """Set an attention that reads packed rows in little time, if there is one, and check it.

    Args:
        model: A causal language model.
        collate: Packs rows into a batch.
        rows: Token ids of rows.
        dtype: The number format of training; None to keep the model's implementation of attention.
        check: Whether to run `check_packing`; a sharded model cannot be run yet.

    Raises:
        UserError: See `check_packing`.
    """
    before = model.config._attn_implementation
    for name in packed_attention(dtype) if dtype is not None else ():
        try:
            set_attention(model, name)
            if check:
                check_packing(model, collate, rows)
            return
        except UserError:  # the architecture does not support it: go on with the next
            set_attention(model, before)
    if check:
        check_packing(model, collate, rows)


@torch.no_grad()
def check_packing(
    model: Any, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], rows: Sequence[Any]
) -> None:
    """Compare the logits of two packed rows with those of each row alone.

    Args:
        model: A causal language model.
        collate: Packs rows into a batch.
        rows: Token ids of rows; the first and the last are tested.

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
    except Exception as error:  # the type depends on the architecture
        why = " ".join(str(error).split())[:160]
        raise _unsupported(f"cannot read packed rows ({type(error).__name__}: {why})") from None
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float().log_softmax(-1)
    if not bool(torch.isfinite(expected).all()):
        return  # NaN: training stops at the first loss, and names the rows
    packed = logits[: len(expected)].float().log_softmax(-1)  # without padding behind the rows
    if packed.shape != expected.shape or not logprobs_agree(packed, expected, compute_dtype(model)):
        raise _unsupported("reads packed rows as one: they see each other")


def _unsupported(why: str) -> UserError:
    return UserError(f"training.packing: a model of this architecture {why}; set training.packing: false")
