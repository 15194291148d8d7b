"""Carry the segment of each supervised token through TRL's collation and packing, and weight its loss."""

from __future__ import annotations

import torch

from sailkit.training.loss_weights import LossWeights
from sailkit.training.tokenise import IGNORED, Prepared

_MARK = 1 << 32  # added to the labels of verification sentences; larger than any token id


def mark_verification(rows: Prepared) -> tuple[tuple[int, ...], ...]:
    """The labels of rows, with those of verification sentences marked.

    TRL collates, packs and shuffles only token ids and labels, so the labels have to carry the segment.
    """
    marked = []
    for labels, (start, end) in zip(rows.labels, rows.verification, strict=True):
        sentence = (label if label == IGNORED else label + _MARK for label in labels[start:end])
        marked.append((*labels[:start], *sentence, *labels[end:]))
    return tuple(marked)


def unmark(labels: torch.Tensor, weights: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo `mark_verification`.

    Args:
        labels: Marked labels.
        weights: Weights of the segments.

    Returns:
        The labels, and the weight of each; 0 for labels that are ignored. A weighted mean depends only on the ratio of
        the weights; they are scaled to at least 1, so that no step has a sum of weights near 0.
    """
    least = min(weights.verification, weights.answer)
    marked = labels >= _MARK
    scaled = torch.where(marked, weights.verification / least, weights.answer / least)
    return torch.where(marked, labels - _MARK, labels), scaled * (labels != IGNORED)
