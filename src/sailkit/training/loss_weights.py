"""Weights of the completion's segments in the training loss, as a recipe gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sailkit.errors import UserError
from sailkit.training.library_settings import check_keys


@dataclass(frozen=True)
class LossWeights:
    """Weights of supervised tokens in the training loss, which is a weighted mean over the tokens of a step.

    A verification sentence has about twenty tokens and an answer often only one, whose share of a plain mean is small.

    Attributes:
        verification: Weight of a token of the verification sentence.
        answer: Weight of a token of the answer, and of the token that ends the completion.
    """

    verification: float = 1.0
    answer: float = 1.0


def read_loss_weights(values: Mapping[str, Any] | None, where: str) -> LossWeights | None:
    """Read the weights of a recipe.

    Args:
        values: Segment -> weight; a segment that is left out has weight 1.
        where: Name of the section, for errors.

    Returns:
        The weights; None if they are equal, because the weighted mean is then the plain mean.

    Raises:
        UserError: An unknown segment, or a weight that is not a positive number.
    """
    given = values or {}
    check_keys(given, asdict(LossWeights()), where)
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{where}.{name} should be a number above 0, not {value!r}")
    weights = LossWeights(**{name: float(value) for name, value in given.items()})
    return None if weights.verification == weights.answer else weights


def check_loss(training: Mapping[str, Any], purpose: str) -> None:
    """Refuse settings of TRL's loss where another one is computed.

    Args:
        training: Settings of TRL's SFTConfig.
        purpose: What computes another loss, for the error.

    Raises:
        UserError: There are such settings.
    """
    if training.get("loss_type", "nll") != "nll" or training.get("label_smoothing_factor"):
        raise UserError(f"training: loss_type and label_smoothing_factor are not for {purpose}; leave them out")
