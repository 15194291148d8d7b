"""Check settings for TRL, peft and bitsandbytes: refuse unknown keys and wrong values before anything runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sailkit.errors import UserError, nearest, required_extra
from sailkit.training.common_settings import LORA, TRAINING, common_settings

# Settings of TRL that the rest of sailkit depends on -> why they cannot be set.
_FIXED_IN_TRL = {
    "output_dir": "`out` is the folder of all output",
    "completion_only_loss": "the completion alone is supervised, always",
    "assistant_only_loss": "the completion alone is supervised, always",
    "dataset_text_field": "rows are structured",
    "dataset_kwargs": "rows are rendered to token ids here",
    "truncation_mode": "nothing but search results is ever cut",
    "chat_template_path": "the model's own template is used",
    "eos_token": "the tokenizer's own EOS token is used",
    "pad_token": "padding is masked, so its token does not matter",
    "resume_from_checkpoint": "the same command continues where it stopped",
    "model_init_kwargs": "use the recipe's own keys",
    "trust_remote_code": "training does not run code from model repositories",
    "push_to_hub": "use `push`",
    "hub_token": "a recipe is copied into the run's manifest; set HF_TOKEN or log in",
    "save_only_model": "a stopped run could not continue",
    "ddp_timeout": "processes wait two hours for each other",
    "remove_unused_columns": "rows are rendered to token ids here",
    "include_num_input_tokens_seen": "tokens are counted as num_tokens",
    "disable_tqdm": "progress is shown by sailkit",
}
# Likewise for peft.
_FIXED_IN_PEFT = {
    "inference_mode": "adapters are trained",
    "lora_bias": "a base without biases could not hold it, and adapters are merged before use",
}
# Numbers that TRL does not validate, or gives a special meaning below some value -> their minimum.
_LEAST = {
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1e-6,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
}
_ORDERS = ("random", "sequential", "group_by_length")


def check_training(training: Mapping[str, Any], where: str) -> None:
    """Check settings for TRL's SFTConfig.

    Args:
        training: The settings.
        where: Name of the section, for errors.

    Raises:
        UserError: An unknown key, one that cannot be set, or a wrong value.
    """
    if common_settings(training):
        types = {name: kind for name, (kind, _) in TRAINING.items()}
    else:
        with required_extra("finetune", "fine-tuning"):
            from trl import SFTConfig
        types = _types_of(SFTConfig) | {"max_length": int, "bf16": bool | Literal["auto"]}
    _check_values(training, types, where, _FIXED_IN_TRL)
    for key, least in _LEAST.items():
        if (value := training.get(key)) is not None and value < least:
            raise UserError(f"{where}.{key} should be {'above 0' if 0 < least < 1 else f'at least {least}'}")
    if (order := training.get("train_sampling_strategy", _ORDERS[0])) not in _ORDERS:
        raise UserError(f"{where}.train_sampling_strategy: no such order {order!r}; {nearest(order, _ORDERS)}")
    if training.get("packing_strategy", "bfd") != "bfd":
        raise UserError(f"{where}.packing_strategy should be bfd: the others cut rows, or let them see each other")


def check_lora(lora: Mapping[str, Any], where: str) -> None:
    """Check settings for peft's LoraConfig; see `check_training`."""
    if lora.keys() <= LORA.keys() and importlib.util.find_spec("peft"):
        types = dict(LORA)
    else:
        with required_extra("finetune", "fine-tuning with LoRA"):
            from peft import LoraConfig
        types = _types_of(LoraConfig)
    _check_values(lora, types, where, _FIXED_IN_PEFT)


def check_quantization(quantization: Mapping[str, Any], where: str) -> None:
    """Check settings for transformers' BitsAndBytesConfig; see `check_training`."""
    from transformers import BitsAndBytesConfig

    defaults = {name: p.default for name, p in inspect.signature(BitsAndBytesConfig).parameters.items()}
    del defaults["kwargs"]
    # BitsAndBytesConfig declares no types; infer them from the defaults.
    types = {name: Any if value is None else type(value) for name, value in defaults.items()}
    _check_values(quantization, types, where)


def _types_of(kind: Any) -> dict[str, Any]:
    """Field -> type of a dataclass."""
    types = typing.get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind) if field.init}


def _check_values(
    values: Mapping[str, Any], types: Mapping[str, Any], where: str, fixed: Mapping[str, str] | None = None
) -> None:
    """Refuse unknown keys and values of the wrong type, which the library would notice late or never.

    Args:
        values: The settings of the recipe.
        types: Key -> type.
        where: Name of the section, for errors.
        fixed: Key that cannot be set -> reason.
    """
    check_keys(values, types, where)
    for key, value in values.items():
        if fixed and key in fixed:
            raise UserError(f"{where}.{key} cannot be set: {fixed[key]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}.{key} should be a finite number, not {value}")
        config = None if dataclasses.is_dataclass(types[key]) else ConfigDict(arbitrary_types_allowed=True)
        try:
            TypeAdapter(types[key], config=config).validate_python(value, strict=True)
        except ValidationError:
            given = "empty" if value is None else f"the text {value!r}" if isinstance(value, str) else repr(value)
            raise UserError(f"{where}.{key} should be {_describe(types[key])}, not {given}") from None


def _describe(kind: Any) -> str:
    """Describe a type in words."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) in (list, set, tuple, dict):
        return "a list" if typing.get_origin(kind) is not dict else "a mapping"
    # Sorted, because `typing` caches unions: their order depends on what was imported first.
    return " or ".join(sorted(set(map(_describe, parts)))) if parts else words.get(kind, "one of its values")


def check_keys(keys: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raise a UserError for a key that is not among the names."""
    names = list(names)
    for key in keys:
        if key not in names:
            close = nearest(str(key), names)
            # TRL has too many keys to list them all.
            raise UserError(
                f"{where} has no key {str(key)!r}: {close if len(names) < 20 else close.split('(known')[0]}"
            )
