"""The checkpoints of a training run, as Transformers writes them."""

from __future__ import annotations

import math
from pathlib import Path

from sailkit.errors import UserError
from sailkit.files import jsonl

CHECKPOINTS = "checkpoints"
_STATE = "trainer_state.json"


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written completely."""
    steps: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.partition("-")[2]
        if number.isdigit() and any(path.glob("*.safetensors")) and is_complete(path):
            steps[int(number)] = path
    return steps[max(steps)] if steps else None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written completely: Transformers writes the state last."""
    try:
        return math.isfinite(jsonl.read_json(checkpoint / _STATE)["global_step"])
    except (UserError, KeyError, TypeError):
        return False


def stopped_at(checkpoint: Path) -> int | None:
    """The step of a checkpoint after which training was to stop, as by early stopping; None if it was to go on."""
    state = jsonl.read_json(checkpoint / _STATE)
    stop = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return int(state["global_step"]) if stop else None
