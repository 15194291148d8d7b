"""Collect the effective settings of a training run, including defaults, for manifest, report and model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.files import jsonl
from sailkit.training.recipe import Recipe

EFFECTIVE = "effective"  # key of the manifest
# Settings of SFTConfig that do not affect the trained weights: output paths and uploads.
_BOOKKEEPING = ("output_dir", "logging_dir", "hub_", "push_to_hub", "trackio_", "eos_token", "pad_token", "do_")
# The settings that reports and cards show, in this order; the manifest has all of them.
_MAIN_SETTINGS: dict[str, Sequence[str]] = {
    "training": (
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
        "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
        "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing",
        "train_sampling_strategy", "loss_type", "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "tf32",
        "activation_checkpointing", "gradient_checkpointing", "use_liger_kernel", "eval_strategy", "eval_steps",
        "save_strategy", "save_steps", "metric_for_best_model", "seed", "data_seed",
    ),
    "lora": (
        "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "target_parameters", "modules_to_save",
        "layers_to_transform", "rank_pattern", "alpha_pattern", "bias", "use_rslora", "use_dora", "init_lora_weights",
    ),
    "quantization": (
        "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype",
        "llm_int8_threshold", "llm_int8_skip_modules",
    ),
}  # fmt: skip


def effective_settings(trainer: Any, recipe: Recipe, processes: int) -> dict[str, Any]:
    """All settings of a run as resolved by the libraries, as JSON values.

    Args:
        trainer: See `sailkit.training.trainer.Trainer`.
        recipe: The recipe.
        processes: Number of processes.

    Returns:
        `training` (TRL's SFTConfig), `lora` (peft's LoraConfig, None without adapters), `quantization` (of the base,
        None without), `base_dtype` and `trained_dtype` (of frozen and trained weights), `patience`,
        `processes`, `rows_per_step`, `steps` and `warmup_steps` as planned.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", None)
    base = model.get_base_model() if adapters else model
    quantization = getattr(base.config, "quantization_config", None)
    steps = trainer.planned_steps()
    settings = {
        "training": {k: v for k, v in args.to_dict().items() if not k.startswith(_BOOKKEEPING)},
        "lora": next(iter(adapters.values())).to_dict() if adapters else None,
        "quantization": quantization.to_dict() if quantization is not None else None,
        "base_dtype": _dtype(base.dtype),
        "trained_dtype": _dtype(next(weight.dtype for weight in model.parameters() if weight.requires_grad)),
        "patience": recipe.patience,
        "processes": processes,
        "rows_per_step": args.train_batch_size * args.gradient_accumulation_steps * processes,
        "steps": steps,
        "warmup_steps": args.get_warmup_steps(steps),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=_plain))
    return plain


def with_format_as_begun(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the number format of the run that it continues, where the recipe leaves it to the machine.

    Args:
        recipe: The recipe.
        out: The run's folder, which may not exist yet.
    """
    manifest = out / runs.MANIFEST
    effective = (jsonl.read_json(manifest).get(EFFECTIVE) or {}) if manifest.exists() else {}
    begun = effective.get("training", {}).get("bf16")
    if begun is None or recipe.training.get("bf16", "auto") != "auto" or recipe.training.get("fp16"):
        return recipe
    return replace(recipe, training={**recipe.training, "bf16": begun})


def main_settings(effective: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in effect that reports and cards show."""
    parts = {
        part: {name: effective[part][name] for name in names if name in effective[part]}
        for part, names in _MAIN_SETTINGS.items()
        if effective.get(part)
    }
    if parts.get("training", {}).get("max_steps", 1) <= 0:  # unlimited: the number of epochs decides
        del parts["training"]["max_steps"]
    return {**parts, **{name: value for name, value in effective.items() if name not in _MAIN_SETTINGS}}


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
