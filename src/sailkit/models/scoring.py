"""Log-probabilities from logits, without a float32 copy of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from sailkit.models.checks import check_finite

_CHUNK_LOGITS = 2**24  # most logits that are converted to float32 at a time: 64 MB


def log_normalizer(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the softmax's denominator at each position, in float32.

    Args:
        logits: Of shape (..., vocabulary), in the model's number format.

    Returns:
        Of shape (...).

    Raises:
        UserError: It is NaN or infinite.
    """
    parts = logits.flatten(0, -2).tensor_split(math.ceil(logits.numel() / _CHUNK_LOGITS))
    normalizer = torch.cat([torch.logsumexp(part.float(), -1) for part in parts]).view(logits.shape[:-1])
    check_finite(normalizer)
    return normalizer


def tree_logprobs(
    logits: torch.Tensor, nodes: Mapping[tuple[int, ...], int], answers: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    """Summed log-probabilities of answers, from the logits at the nodes of their tree.

    Args:
        logits: Of shape (prompts, nodes, vocabulary).
        nodes: The node of each proper prefix of an answer.
        answers: The answers.

    Returns:
        Of shape (prompts, answers).

    Raises:
        UserError: A logit is NaN or infinite.
    """
    normalizer = log_normalizer(logits)
    # Each token is predicted at the node of the answer's preceding tokens.
    paths = [[(nodes[answer[:n]], token) for n, token in enumerate(answer)] for answer in answers]
    steps = {step: i for i, step in enumerate(dict.fromkeys(step for path in paths for step in path))}
    node, token = torch.tensor(list(steps), device=logits.device).T
    values = (logits[:, node, token].float() - normalizer[:, node]).T.contiguous()  # shape (steps, prompts)
    return torch.stack([values[[steps[step] for step in path]].sum(0) for path in paths], 1).tolist()
