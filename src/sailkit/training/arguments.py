"""Turn a recipe into TRL's SFTConfig, and refuse wrong values before any weights are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from trl import SFTConfig

from sailkit.distributed import warn_of_idle_gpus
from sailkit.errors import UserError
from sailkit.models.weights import fast_in_bfloat16, pick_device, pick_dtype
from sailkit.training.checkpoints import CHECKPOINTS
from sailkit.training.recipe import Recipe
from sailkit.training.tracking import check_trackers

# Defaults for settings that the recipe leaves open.
_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # such a loss stops the run, and to filter it is to wait for the GPU at each batch
    "save_total_limit": 2,
    "ddp_find_unused_parameters": False,
}


def sft_config(recipe: Recipe, folder: Path, *, held_out: bool) -> Any:
    """Build the SFTConfig of a recipe, with defaults for settings that it leaves open.

    Args:
        recipe: The recipe.
        folder: The folder of the checkpoints.
        held_out: Whether there are held-out rows to evaluate on.

    Raises:
        UserError: TRL refuses a value.
    """
    settings = {**_DEFAULTS, **recipe.training, **recipe.step}
    strategy, steps = _evaluate_every(settings)
    settings.setdefault("eval_strategy", strategy)
    evaluated = held_out and settings["eval_strategy"] != "no"
    settings.setdefault("save_strategy", settings["eval_strategy"] if evaluated else strategy)
    settings = {"eval_steps": steps, "save_steps": steps, **settings}
    if not held_out:
        settings["eval_strategy"] = "no"
    best = held_out and settings["save_strategy"] == settings["eval_strategy"] != "no"
    if recipe.patience and held_out and not best:
        raise UserError("patience: training is evaluated and saved at the same steps with it; set eval_strategy alone")
    settings.setdefault("load_best_model_at_end", best)
    if best:
        settings.setdefault("metric_for_best_model", "eval_loss")
    if metric := settings.get("metric_for_best_model"):  # Transformers only knows that lower losses are better
        settings.setdefault("greater_is_better", not metric.endswith(("loss", "kl", "cross_entropy")))
    if not settings.keys() & {"gradient_checkpointing", "activation_checkpointing"}:
        settings["activation_checkpointing"] = False
    if settings.get("bf16", "auto") == "auto":
        settings["bf16"] = not settings.get("fp16") and fast_in_bfloat16(pick_device("auto"))
    if not settings["bf16"] and needs_loss_scaling(recipe, pick_device("auto")):
        settings.setdefault("fp16", True)
    if recipe.curriculum:
        settings["train_sampling_strategy"] = "sequential"
    settings["report_to"] = settings["report_to"] or "none"
    settings.setdefault("run_name", folder.resolve().name)
    settings.setdefault("project", "sailkit")
    try:
        config = SFTConfig(
            **settings,
            output_dir=str(folder / CHECKPOINTS),
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataset_kwargs=None if settings.get("packing") else {"skip_prepare_dataset": True},
        )
        # The trainer derives these after loading the weights; deriving them here refuses wrong values earlier.
        optimizer = torch.optim.AdamW([torch.zeros(1)], config.learning_rate, weight_decay=config.weight_decay)
        get_scheduler(config.lr_scheduler_type, optimizer, 0, 1, config.lr_scheduler_kwargs)
        with contextlib.suppress(ValueError):  # some need the model
            Trainer.get_optimizer_cls_and_kwargs(config)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None
    check_trackers(config.report_to)
    return _on_one_gpu(config)


def scheduler_kwargs(config: Any, steps: int) -> dict[str, Any] | None:
    """The `lr_scheduler_kwargs` of a run, in which a share of steps has become a number of steps.

    Like `warmup_steps`, `num_decay_steps` is a share of all steps if it is below 1. Transformers takes a number only,
    and where it is larger than the run, its schedule silently starts in the middle of the decay.

    Args:
        config: The SFTConfig.
        steps: The steps of the run.

    Raises:
        UserError: The number is negative or larger than that of all steps.
    """
    kwargs: dict[str, Any] | None = config.lr_scheduler_kwargs
    if not kwargs or "num_decay_steps" not in kwargs:
        return kwargs
    decay, warmup = kwargs["num_decay_steps"], config.get_warmup_steps(steps)
    decay = round(decay * steps) if 0 < decay < 1 else decay
    if not 0 <= decay <= steps:
        raise UserError(
            f"training.lr_scheduler_kwargs: num_decay_steps {decay} does not fit into {steps} steps; a number below 1 "
            "is a share of all steps"
        )
    return {**kwargs, "num_decay_steps": min(decay, steps - warmup)}


def needs_loss_scaling(recipe: Recipe, device: torch.device) -> bool:
    """Whether adapters are trained on a float16 base, as on GPUs without bfloat16 (V100, T4).

    Gradients pass through the base in float16, where small ones vanish unless the loss is scaled.

    Args:
        recipe: The recipe.
        device: The device of training; on the CPU there is no loss scaling.
    """
    return recipe.lora is not None and device.type == "cuda" and pick_dtype(recipe.dtype, device) is torch.float16


def _on_one_gpu(args: Any) -> Any:
    """Use a single GPU unless a launcher started a process for each; Transformers would use DataParallel on all."""
    if args.n_gpu > 1:
        warn_of_idle_gpus(args.n_gpu, "finetune")
        args._n_gpu = 1
    return args


def _evaluate_every(settings: Mapping[str, Any]) -> tuple[str, float]:
    """Default strategy and steps of evaluation and saving: each epoch, or each quarter of a single epoch."""
    steps = settings.get("eval_steps") or settings.get("save_steps")
    once = settings.get("max_steps", 0) > 0 or settings.get("num_train_epochs", 3) <= 1
    return ("steps" if steps or once else "epoch"), steps or 0.25
