"""Load the model and the adapters of a recipe for training."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

import torch
from transformers.modeling_utils import is_fsdp_enabled, is_local_dist_rank_0
from transformers.utils import strtobool

from sailkit.errors import UserError, missing_extra
from sailkit.models.sources import ADAPTER_WEIGHTS, Source
from sailkit.models.weights import load_pretrained, pick_device, pick_dtype, saveable
from sailkit.training.activations import attends_without_kernel
from sailkit.training.recipe import Recipe

_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # set by a launcher


def load_for_training(source: Source, recipe: Recipe, device: torch.device | None = None) -> Any:
    """Load the model of a recipe: in float32, or frozen in the recipe's dtype if adapters are trained.

    Args:
        source: The model's files.
        recipe: The recipe.
        device: See `device_to_load_on`.

    Raises:
        UserError: The model cannot be loaded, or a library is not installed.
    """
    if recipe.training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("training.use_liger_kernel needs a library: run  pip install liger-kernel")
    if recipe.lora is None:
        model, _ = load_pretrained(
            source,
            torch.float32,
            trust_remote_code=False,
            device=device,
            attn_implementation=recipe.attn_implementation,
        )
        return saveable(model, recipe.model).requires_grad_(True)  # merging adapters leaves the weights frozen
    dtype = pick_dtype(recipe.dtype, pick_device("auto"))
    quantization = None
    if recipe.quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise missing_extra("gpu", "quantization")
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(**recipe.quantization)
    model, _ = load_pretrained(
        source, dtype, trust_remote_code=False, quantization=quantization, device=None if quantization else device,
        attn_implementation=recipe.attn_implementation,
    )  # fmt: skip
    for module in model.modules():
        # On the CPU, bitsandbytes packs weights at the first evaluation, and its kernel for packed weights has no
        # gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def device_to_load_on(args: Any) -> torch.device | None:
    """The device on which weights are placed as they are read, or None for the CPU.

    FSDP and DeepSpeed distribute a model from the CPU, because a GPU could not hold all of it. With
    `fsdp_cpu_ram_efficient_loading`, the first process of a machine reads the weights, the others only their shapes.

    Args:
        args: The SFTConfig.
    """
    if is_fsdp_enabled() and not is_local_dist_rank_0():  # with efficient loading alone
        return torch.device("meta")
    device: torch.device = args.device
    sharded = args.fsdp or args.deepspeed or any(strtobool(os.environ.get(name, "0")) for name in _SHARDING)
    return None if sharded or device.type == "cpu" else device


def number_format(args: Any, model: Any) -> str:
    """The dtype of training: that of mixed precision, or else that of the weights."""
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else ""
    return mixed or str(next(model.parameters()).dtype).removeprefix("torch.")


def lora_config(recipe: Recipe) -> Any:
    """Build peft's LoraConfig, or None without adapters.

    Raises:
        UserError: Peft refuses a value.
    """
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    try:
        for name in ("target_modules", "exclude_modules"):
            if isinstance(pattern := recipe.lora.get(name), str):
                re.compile(pattern)
        return LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.lora})
    except (TypeError, ValueError, re.error) as error:
        raise UserError(f"lora: {' '.join(str(error).split())}") from None


def load_adapters(model: Any, source: Source, name: str) -> None:
    """Replace the values of new adapters by those of trained ones, so that their training goes on.

    Args:
        model: A model with new adapters.
        source: The trained adapters; see `resolve_adapters`.
        name: Their name in the recipe.

    Raises:
        UserError: They are of other layers than the new ones.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        outcome = set_peft_model_state_dict(model, load_file(source.folder / ADAPTER_WEIGHTS))
    except (KeyError, RuntimeError) as error:  # of other shapes, or without a layer that is saved as a whole
        raise UserError(f"adapters {name} do not fit the model: {' '.join(str(error).split())[:200]}") from None
    missing = [key for key in outcome.missing_keys if ".lora_" in key]
    if unmatched := sorted([*missing, *outcome.unexpected_keys]):
        raise UserError(f"adapters {name} are of other layers than the recipe's lora ({unmatched[0]} ...)")


def prepare_for_autocast(model: Any, args: Any, attn_implementation: str = "auto") -> None:
    """Prepare the adapters and the attention of a model for training in mixed precision.

    Args:
        model: The model.
        args: The SFTConfig.
        attn_implementation: The recipe's.
    """
    keep_adapters_in_float32(model)
    if args.bf16 and args.device.type == "cpu":
        add_adapters_in_float32(model)
        if attn_implementation == "auto":
            use_fast_attention(model, args)


def add_adapters_in_float32(model: Any) -> None:
    """Let the layers below adapters return float32 under autocast, so that what the adapters add is not lost.

    In bfloat16, a sum of both is rounded to eight bits: an addend below half of the last one changes nothing, and
    after the first steps at a usual learning rate, most of what adapters add is smaller.

    Args:
        model: A model with adapters; others are unchanged.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.get_base_layer().register_forward_hook(lambda _module, _inputs, output: output.float())


def use_fast_attention(model: Any, args: Any) -> None:
    """Use plain attention for short rows in bfloat16 on a CPU, where torch's fused kernel is slower.

    Args:
        model: The model.
        args: The SFTConfig.
    """
    if attends_without_kernel(args.max_length, packing=args.packing):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation("eager")


def keep_adapters_in_float32(model: Any) -> None:
    """Cast adapters to float32, whatever the dtype of their base.

    TRL casts adapters of a quantised base to bfloat16, in which most updates at a small learning rate round to zero.
    Trained copies of layers of a float16 base (`modules_to_save`) are cast too: gradient scaling refuses float16.

    Args:
        model: A model with adapters; others are unchanged.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import cast_adapter_dtype

    if isinstance(model, PeftModel):
        for name in model.active_adapters:
            cast_adapter_dtype(model, name)
        for weight in model.parameters():
            if weight.requires_grad and weight.dtype is torch.float16:
                weight.data = weight.data.float()
