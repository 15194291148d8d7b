"""The settings of TRL and peft that most recipes use, so that a dry run of such a recipe imports neither.

TRL's configuration imports transformers' trainer, peft, bitsandbytes and torch's compiler, which takes seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sailkit.distributed import process_count

# Type and default of TRL's settings; another default than TRL's is that of `sailkit.training.arguments`.
TRAINING: Mapping[str, tuple[Any, Any]] = {
    "max_length": (int, 1024),
    "num_train_epochs": (float, 3.0),
    "max_steps": (int, -1),
    "per_device_train_batch_size": (int, None),
    "gradient_accumulation_steps": (int, None),
    "learning_rate": (float, 2e-5),
    "lr_scheduler_type": (str, "linear"),
    "warmup_steps": (float, 0),
    "weight_decay": (float, 0.0),
    "max_grad_norm": (float, 1.0),
    "seed": (int, 42),
    "bf16": (bool | Literal["auto"], "auto"),
    "fp16": (bool, False),
    "activation_checkpointing": (bool, False),
    "dataloader_drop_last": (bool, False),
    "eval_strategy": (str, None),
    "save_strategy": (str, None),
    "save_steps": (float, None),
    "logging_steps": (float, 10),
}

# Type of peft's settings.
LORA: Mapping[str, Any] = {
    "r": int,
    "lora_alpha": int,
    "lora_dropout": float,
    "target_modules": list[str] | str | None,
    "layers_to_transform": list[int] | int | None,
}
OPTIMIZER = "adamw_torch_fused"
_SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
_STRATEGIES = ("no", "steps", "epoch")


@dataclass(frozen=True)
class StepSettings:
    """The settings of SFTConfig from which a dry run estimates steps and memory, under the names that it has there."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_train_epochs: float
    max_steps: int
    dataloader_drop_last: bool
    bf16: bool
    fp16: bool
    activation_checkpointing: bool
    packing: bool = False
    packing_strategy: str = "bfd"
    gradient_checkpointing: bool = False
    optim: str = OPTIMIZER
    world_size: int = 1

    @property
    def train_batch_size(self) -> int:
        """Rows of a batch of one process."""
        return self.per_device_train_batch_size


def common_settings(training: Mapping[str, Any]) -> bool:
    """Whether `TRAINING` has all these settings, with values that TRL accepts if their types are right."""
    if training.keys() - TRAINING.keys() or importlib.util.find_spec("trl") is None:
        return False
    positive = (
        training.get(name, 0) for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "seed")
    )
    steps = (training.get(name, 1) for name in ("save_steps", "logging_steps"))
    return (
        training.get("lr_scheduler_type", "linear") in _SCHEDULES
        and all(training.get(name, "no") in _STRATEGIES for name in ("eval_strategy", "save_strategy"))
        and not (training.get("bf16") is True or training.get("fp16"))  # which devices have them, TRL checks
        and all(isinstance(value, (int, float)) and value >= 0 for value in positive)
        and all(isinstance(value, (int, float)) and value > 0 for value in steps)
    )


def step_settings(training: Mapping[str, Any], step: Mapping[str, Any]) -> StepSettings | None:
    """The settings of one process, equal to those of SFTConfig; None if TRL is needed to know them.

    Args:
        training: The settings of a recipe, already checked.
        step: Its batch size and gradient accumulation steps.
    """
    import torch

    from sailkit.models.weights import fast_in_bfloat16, pick_device

    alone = process_count() == 1 and torch.cuda.device_count() <= 1
    if not (alone and common_settings(training)):
        return None
    values = {name: training.get(name, default) for name, (_, default) in TRAINING.items()} | dict(step)
    return StepSettings(
        per_device_train_batch_size=values["per_device_train_batch_size"],
        gradient_accumulation_steps=values["gradient_accumulation_steps"],
        num_train_epochs=values["num_train_epochs"],
        max_steps=values["max_steps"],
        dataloader_drop_last=values["dataloader_drop_last"],
        bf16=values["bf16"] == "auto" and fast_in_bfloat16(pick_device("auto")),
        fp16=False,
        activation_checkpointing=values["activation_checkpointing"],
    )
