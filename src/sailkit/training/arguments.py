"""A recipe as TRL's own configuration, with everything refused that the trainer would refuse behind loaded weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler
from trl import SFTConfig

from sailkit.errors import UserError
from sailkit.models.weights import pick_device, pick_dtype
from sailkit.training.checkpoints import CHECKPOINTS
from sailkit.training.recipe import Recipe
from sailkit.training.tracking import check_trackers

# What a user need not say; anything in the recipe wins.
_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,
    "ddp_find_unused_parameters": False,
}


def arguments(recipe: Recipe, folder: Path, *, held_out: bool) -> Any:
    """TRL's own configuration.

    Args:
        recipe: The recipe.
        folder: Where checkpoints go.
        held_out: Whether there is anything to evaluate on.

    Raises:
        UserError: TRL refuses a value.
    """
    told = {**_DEFAULTS, **recipe.training, **recipe.step}
    every, steps = _often(told)
    told.setdefault("eval_strategy", every)
    told.setdefault("save_strategy", told["eval_strategy"] if held_out and told["eval_strategy"] != "no" else every)
    told = {"eval_steps": steps, "save_steps": steps, **told}
    if not held_out:
        told["eval_strategy"] = "no"
    best = held_out and told["save_strategy"] == told["eval_strategy"] != "no"
    if recipe.patience and held_out and not best:
        raise UserError("patience: training is evaluated and saved at the same steps then; set eval_strategy alone")
    told.setdefault("load_best_model_at_end", best)
    if best:
        told.setdefault("metric_for_best_model", "eval_loss")
    if wanted := told.get("metric_for_best_model"):  # Transformers takes a loss alone for one that should be low
        told.setdefault("greater_is_better", not wanted.endswith(("loss", "kl", "cross_entropy")))
    if not told.keys() & {"gradient_checkpointing", "activation_checkpointing"}:
        told["activation_checkpointing"] = False
    if "fp16" not in told and "bf16" not in told:
        told["bf16"] = pick_dtype("auto", pick_device("auto")) is torch.bfloat16
    told["report_to"] = told["report_to"] or "none"
    told.setdefault("run_name", folder.resolve().name)
    told.setdefault("project", "sailkit")
    try:
        made = SFTConfig(
            **told,
            output_dir=str(folder / CHECKPOINTS),
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataset_kwargs=None if told.get("packing") else {"skip_prepare_dataset": True},
        )
        # Refused here, and not when the weights are loaded.
        optimizer = torch.optim.AdamW([torch.zeros(1)], made.learning_rate, weight_decay=made.weight_decay)
        get_scheduler(made.lr_scheduler_type, optimizer, 0, 1, made.lr_scheduler_kwargs)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None
    check_trackers(made.report_to)
    return _on_one_gpu(made)


def _on_one_gpu(args: Any) -> Any:
    """Use one GPU where no launcher has started a process for each; Transformers would split batches over all."""
    if args.n_gpu > 1:
        warnings.warn(
            f"{args.n_gpu} GPUs are visible, and one process uses one of them; "
            "for all of them, start with  accelerate launch -m sailkit finetune ...",
            RuntimeWarning,
            stacklevel=3,
        )
        args._n_gpu = 1
    return args


def _often(told: Mapping[str, Any]) -> tuple[str, float]:
    """When to evaluate and to save where the recipe does not say: each epoch, or at each quarter of a single one."""
    steps = told.get("eval_steps") or told.get("save_steps")
    once = told.get("max_steps", 0) > 0 or told.get("num_train_epochs", 3) <= 1
    return ("steps" if steps or once else "epoch"), steps or 0.25
