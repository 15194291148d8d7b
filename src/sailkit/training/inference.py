"""Use a model in the middle of its training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def inference(trainer: Any) -> Iterator[Any]:
    """The model in evaluation mode, without gradients; the time does not count as training.

    Args:
        trainer: A `sailkit.training.trainer.Trainer`.
    """
    import torch

    model = trainer.model
    was_training = model.training
    model.eval()
    try:
        # Explicit, because accelerate applies autocast only to a model's forward, and only once training has begun.
        with torch.no_grad(), trainer._speed.pause(), trainer.accelerator.autocast():
            yield model
    finally:
        model.train(was_training)
