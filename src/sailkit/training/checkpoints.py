"""Find, check and clean up the checkpoints that Transformers writes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl

CHECKPOINTS = "checkpoints"
_STATE = "trainer_state.json"


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint, or None."""
    steps: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.partition("-")[2]
        if number.isdigit() and any(path.glob("*.safetensors")) and is_complete(path):
            steps[int(number)] = path
    return steps[max(steps)] if steps else None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: Transformers writes the trainer state last."""
    try:
        return math.isfinite(jsonl.read_json(checkpoint / _STATE)["global_step"])
    except (UserError, KeyError, TypeError):
        return False


def find_best_again(checkpoint: Path) -> None:
    """Correct the path of the best checkpoint, if the run has another path than when it was written, or is a copy.

    Transformers would otherwise not find it, and keep the last weights instead of the best, or take another run's. If
    the checkpoint was removed, the best one is found among the evaluations that are still to come.
    """
    state = jsonl.read_json(checkpoint / _STATE)
    best = state.get("best_model_checkpoint")
    here = checkpoint.parent / Path(best or "").name
    changes: dict[str, Any] = {}
    if best and not here.exists():
        runs.notice(f"{here}, the best so far, is gone; the best of the evaluations from here on is kept")
        changes = dict.fromkeys(("best_model_checkpoint", "best_global_step", "best_metric"))
    elif best and Path(best) != here:
        changes = {"best_model_checkpoint": str(here)}
    if changes:
        jsonl.write_json(checkpoint / _STATE, {**state, **changes})


def writing_failed(folder: Path, step: int, error: Exception) -> UserError | None:
    """Remove the checkpoint of a step if it is incomplete.

    Args:
        folder: The folder of the checkpoints.
        step: The step at which training failed.
        error: The exception.

    Returns:
        The error to raise; None if writing the checkpoint did not fail.
    """
    torn = folder / f"checkpoint-{step}"
    if not torn.is_dir() or is_complete(torn):
        return None
    shutil.rmtree(torn, ignore_errors=True)
    kept = newest(folder)
    return UserError(
        f"cannot write {torn}: {' '.join(str(error).split())[:200]}; "
        f"{kept.name if kept else 'no checkpoint'} is kept, and the same command continues from there"
    )


def stopped_at(checkpoint: Path) -> int | None:
    """The step of a checkpoint if training stopped there, for example early; None if it should continue."""
    state = jsonl.read_json(checkpoint / _STATE)
    stop = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return int(state["global_step"]) if stop else None
