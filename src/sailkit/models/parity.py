"""Compares the greedy answers and the log-probabilities of another engine with those of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sailkit.models.local import LocalModel
from sailkit.models.selftest import logprobs_agree
from sailkit.prompts.render import Message, Part, Prompt

PARITY_TOKENS = 16  # of each answer
_LISTED = "Name the planets of the solar system, and say which of them have rings. "
_PROMPTS = ("The capital of France is", "Is a whale a fish? Answer in one sentence.", _LISTED * 4)


def parity_prompts() -> list[Prompt]:
    """The prompts whose answers are compared, of a few tokens and of many."""
    return [(Message("user", (Part(text, constant=True),)),) for text in _PROMPTS]


@dataclass(frozen=True)
class Difference:
    """Where an answer first differs from the greedy answer of transformers.

    Attributes:
        index: Number of equal tokens before it.
        token: The token of the answer.
        likeliest: The likeliest token.
        behind: Log-probability of the likeliest token less that of the answer's, by transformers.
    """

    index: int
    token: int
    likeliest: int
    behind: float


def first_difference(
    ids: Sequence[int], logprobs: Sequence[torch.Tensor], stop_ids: frozenset[int]
) -> Difference | None:
    """Compare an answer with the greedy answer of transformers.

    Args:
        ids: Token ids of the answer, without a stop token.
        logprobs: From `next_logprobs`.
        stop_ids: Tokens that end an answer; all count as the same.

    Returns:
        The first difference; tokens after it have other contexts and are not compared.
    """
    for n, row in enumerate(logprobs):
        likeliest = int(row.argmax())
        choices = [ids[n]] if n < len(ids) else [i for i in sorted(stop_ids) if i < len(row)]
        if likeliest not in choices:
            token = max(choices, key=lambda choice: float(row[choice]))
            return Difference(n, token, likeliest, float(row[likeliest] - row[token]))
    return None


def same_logprobs(
    tokens: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float64], steps: Sequence[torch.Tensor], dtype: torch.dtype
) -> bool:
    """Whether log-probabilities along the greedy answer of transformers are the same up to rounding.

    Args:
        tokens: Token ids at each position of prompt and answer; shape (positions, k).
        logprobs: Their log-probabilities; the same shape.
        steps: From `next_logprobs`; those of the last positions.
        dtype: The number format of the computation.
    """
    last = slice(-len(steps), None)
    expected = torch.stack(list(steps)).gather(1, torch.from_numpy(tokens[last]))
    return logprobs_agree(torch.from_numpy(logprobs[last]).float(), expected, dtype)


@torch.inference_mode()
def next_logprobs(local: LocalModel, prompt: Sequence[int]) -> list[torch.Tensor]:
    """Log-probabilities of all tokens at each step of a greedy answer of transformers, up to its stop token.

    Args:
        local: The model.
        prompt: Token ids.
    """
    ids, rows = list(prompt), []
    for _ in range(PARITY_TOKENS):
        inputs = torch.tensor([ids], device=local.device)
        logits = local.model(input_ids=inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
        rows.append(logits.float().log_softmax(-1).cpu())
        ids.append(int(rows[-1].argmax()))
        if ids[-1] in local.stop_ids:
            break
    return rows
