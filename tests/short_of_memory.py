"""sailkit where the second process alone runs out of memory in a step; started by test_distributed."""

import os

import torch

from sailkit.cli import main
from sailkit.training import trainer

_whole = trainer.Trainer.compute_loss


def _too_much(self, model, *inputs, **more):
    if self.model.training and os.environ["RANK"] == "1":
        torch.empty(2**58)
    return _whole(self, model, *inputs, **more)


trainer.Trainer.compute_loss = _too_much
main()
