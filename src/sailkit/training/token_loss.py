"""Cross-entropy of the supervised tokens of a batch, without logits of all other tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from sailkit.training.loss_weights import LossWeights
from sailkit.training.segments import unmark
from sailkit.training.tokenise import IGNORED


@dataclass(frozen=True)
class TokenLosses:
    """The losses of the supervised tokens of a batch.

    Attributes:
        losses: Their sum; with weights, of each token.
        weights: The weight of each token; None without loss weights.
        sums: Sums for the log: `predicted` (tokens), `correct` (likeliest tokens), and what else is known.
    """

    losses: torch.Tensor
    weights: torch.Tensor | None
    sums: dict[str, torch.Tensor]


def token_losses(model: Any, inputs: Mapping[str, Any], weights: LossWeights | None) -> TokenLosses:
    """Compute the losses of a batch.

    Args:
        model: A causal language model with TRL's fused output layer.
        inputs: The inputs of the model, with labels.
        weights: Weights of the completion's segments, which the labels then have marks of.
    """
    on_cpu = inputs["input_ids"].device.type == "cpu"
    return (_from_supervised_logits if on_cpu else _from_fused_layer)(model, inputs, weights)


def _unmarked(labels: torch.Tensor, weights: LossWeights | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels without the marks of their segments, and the weight of each, or None without weights."""
    return (labels, None) if weights is None else unmark(labels, weights)


def _from_supervised_logits(model: Any, inputs: Mapping[str, Any], weights: LossWeights | None) -> TokenLosses:
    """On a CPU, where TRL's layer computes the logits of all tokens."""
    next_labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    supervised = next_labels != IGNORED
    targets, token_weights = _unmarked(next_labels[supervised], weights)
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**inputs, use_cache=False, logits_to_keep=supervised).logits.float()
    losses = functional.cross_entropy(logits, targets, reduction="sum" if weights is None else "none")
    correct = (logits.detach().argmax(-1) == targets).sum()
    return TokenLosses(losses, token_weights, {"predicted": supervised.sum(), "correct": correct})


def _from_fused_layer(model: Any, inputs: Mapping[str, Any], weights: LossWeights | None) -> TokenLosses:
    """On a GPU, where TRL's layer keeps no logits. TRL's own loss reads five values of each batch for its log."""
    labels, token_weights = _unmarked(inputs["labels"], weights)
    output = model(**{**inputs, "labels": labels}, use_cache=False, fused_lm_head=True)
    sums = {
        "predicted": output.label_mask.sum(),
        "correct": output.is_top1.sum(),
        "entropy": output.entropy.detach().sum(),
    }
    losses = -output.log_probs  # 0 where a label is ignored
    return TokenLosses(losses, None if token_weights is None else token_weights[:, 1:], sums)
