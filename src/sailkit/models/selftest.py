"""Checks on a few tokens that a loaded model gives the same results with batches, caches and masks as without.

Architectures differ in ways that their configs do not state, so the fast paths are tested before they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.models.checks import out_of_memory
from sailkit.models.rope import EACH_LENGTH
from sailkit.prompts.render import Rendered

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # absolute; a tenth of it relative
_IDS = tuple(range(3, 11))


def logprobs_agree(values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether log-probabilities are the same up to rounding.

    Args:
        values: The computed log-probabilities.
        expected: The expected ones.
        dtype: The number format of the computation.
    """
    tolerance = TOLERANCE[dtype]  # a tuned model's log-probability can be -70, and rounding grows with it
    return torch.allclose(values, expected, rtol=tolerance / 10, atol=tolerance)


@torch.inference_mode()
def try_lengths(model: Any) -> None:
    """Check that a much longer row in the batch does not change a row; if it does, batch only rows of equal length.

    A few tokens are enough, because frequencies depend on the largest position in a forward pass.

    Args:
        model: A LocalModel.
    """
    most = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    far = min(model.renderer.context, most or 0, model.lengths.threshold or model.renderer.context) - len(_IDS)
    if far < 1:
        return
    rows = [_IDS, _IDS[:-2]]
    inputs, keep, positions = model.shared_prefix.left_pad(rows)

    def second(positions: torch.Tensor) -> torch.Tensor:
        out = model.model(input_ids=inputs, attention_mask=keep, position_ids=positions, use_cache=False)
        return torch.as_tensor(out.logits[1, -1:].float().log_softmax(-1))

    longer = positions.clone()
    longer[0, -1] += far
    if not logprobs_agree(second(longer), second(positions), model.dtype):
        model.lengths = EACH_LENGTH


@torch.inference_mode()
def sharing_agrees(model: Any) -> bool:
    """Whether scores with a shared prefix equal those of single sequences.

    Args:
        model: A LocalModel.

    Raises:
        UserError: Padded batches change the scores too, so no batch can be scored.
    """
    from transformers.cache_utils import DynamicLayer

    batch = [Rendered(_IDS, (), 4, 0), Rendered(_IDS[:6], (), 4, 0)]
    answers = [_IDS[:1], _IDS[2:4], _IDS[2:3] + _IDS[5:7]]
    alone = torch.tensor([model.score_rows([prompt], answers)[0] for prompt in batch])

    def agrees(values: Sequence[Sequence[float]]) -> bool:
        return logprobs_agree(torch.tensor(values), alone, model.dtype)

    layers = getattr(model.shared_prefix.encode_prefix(_IDS[:4]), "layers", None)
    if not layers or not agrees(model.score_rows(batch, answers)):
        kind = type(model.model).__name__
        raise UserError(f"{model.name} ({kind}) is no causal transformer that answers alike alone and in a batch")
    known = model.model.config._attn_implementation in ("sdpa", "eager")
    if not known or not all(type(layer) is DynamicLayer for layer in layers):
        return False
    try:
        return agrees(model.score_shared(batch, answers))
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        if out_of_memory(error):
            raise
        return False  # its attention does not take such a mask
