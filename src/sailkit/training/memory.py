"""Estimate the memory of a training step from a model's config, without allocating it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sailkit.errors import UserError
from sailkit.training import decoders
from sailkit.training.recipe import Recipe

# Optimizer of transformers -> bytes of state per trained parameter; the default is AdamW's.
_STATE = {"8bit": 2, "4bit": 1, "sgd": 0, "adafactor": 0, "lion": 4}


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of a model with the adapters of a recipe.

    Attributes:
        total: Parameters of the model, without adapters.
        trainable: Trained parameters: those of the adapters, or all.
        quantized: Parameters of the linear layers that are quantised; the output layer is not.
    """

    total: int
    trainable: int
    quantized: int


def count_parameters(config: Any, recipe: Recipe) -> ParameterCounts:
    """Count parameters: from the config of a common decoder, else on torch's meta device, without allocating them.

    Args:
        config: The model's config.
        recipe: The recipe.

    Raises:
        UserError: The adapters do not fit the model.
    """
    if counted := decoders.count(config, recipe.lora):
        total, trainable, linear = counted
        return ParameterCounts(total, trainable, linear if recipe.quantization else 0)
    return _count_on_meta(config, recipe)


def _count_on_meta(config: Any, recipe: Recipe) -> ParameterCounts:
    import torch
    from transformers import AutoModelForCausalLM

    from sailkit.training.loading import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = trainable = model.num_parameters()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    quantized = sum(module.weight.numel() for module in linear if module is not model.get_output_embeddings())
    if (lora := lora_config(recipe)) is not None:
        from peft import get_peft_model

        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
                trainable = get_peft_model(model, lora).get_nb_trainable_parameters()[0]
        except ValueError as error:
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
    return ParameterCounts(total, trainable, quantized if recipe.quantization else 0)


def step_memory(
    config: Any, recipe: Recipe, counts: ParameterCounts, tokens: int, scored: int, *, mixed: bool, optimizer: str,
    checkpointing: bool,
) -> dict[str, int]:  # fmt: skip
    """Estimate the bytes of a training step by part, without the overhead of CUDA and its allocator.

    * Weights: 4 bytes each in float32 and 2 in 16 bits; with autocast on float32 weights 2 more for the copy used in
      computation (Hugging Face, "Model training anatomy"). 8-bit: 1. 4-bit: 1/2 and a float32 scale for 64 weights,
      or with double quantisation an 8-bit scale for 64 and a float32 one for 64 x 256 (Dettmers et al. 2023, QLoRA,
      section 3). Adapters are in float32.
    * Gradients: 4 bytes for each trained parameter. Optimizer: 8 for AdamW, 4 for Lion, 2 for 8-bit states, 0 for SGD
      and Adafactor (ibid.).
    * Activations, for each token and layer: c (6h + q + 2k + 4f) + 8h bytes, where h, q, k, f are the widths of the
      hidden state, queries, keys and MLP, and c is the size of the compute dtype. It is the count of Korthikanti
      et al. 2022 ("Reducing activation recomputation", section 4.1) for a layer with a gated MLP, fused attention
      and no dropout; the last term is for float32 copies of the two norms. With checkpointing all layers keep
      their input, and a single layer at a time keeps everything.
    * Logits: 12 bytes for each supervised token and vocabulary entry: the logits in float32, their
      probabilities and gradients. TRL's fused kernel needs less.

    Args:
        config: The model's config.
        recipe: The recipe.
        counts: See `count_parameters`.
        tokens: Tokens of the largest batch on one device, including padding.
        scored: Supervised tokens of that batch.
        mixed: Whether autocast computes in 16 bits.
        optimizer: Name of the optimizer in transformers.
        checkpointing: Whether activations are recomputed in the backward pass.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits` and their `total`.
    """
    text = config.get_text_config()
    adapters = recipe.lora is not None  # trained on a frozen base
    base_in_16_bits = adapters and _bytes_of_base(recipe) == 2
    # Autocast keeps a 16-bit copy of trained float32 weights.
    bytes_each = 2.0 if base_in_16_bits else 6.0 if mixed and not adapters else 4.0
    weights = (counts.total - counts.quantized) * bytes_each
    weights += counts.quantized * _bytes_quantized(recipe.quantization or {})
    weights += 4.0 * counts.trainable if adapters else 0.0
    state = next((size for name, size in _STATE.items() if name in optimizer), 8)
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    heads = int(text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = head * int(getattr(text, "num_key_value_heads", None) or heads)
    mlp = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    computed = 2 if mixed or base_in_16_bits else 4  # bytes of the compute dtype
    layer = computed * (6 * hidden + head * heads + 2 * keys + 4 * mlp) + 8 * hidden
    layer_input = (2 if base_in_16_bits else 4) * hidden
    activations = layers * layer_input + layer if checkpointing else layers * layer
    parts = {
        "weights": round(weights),
        "gradients": 4 * counts.trainable,
        "optimizer": state * counts.trainable,
        "activations": tokens * activations,
        "logits": 12 * scored * int(text.vocab_size),
    }
    return {**parts, "total": sum(parts.values())}


def _bytes_of_base(recipe: Recipe) -> int:
    """Bytes of the dtype of a frozen base; planned for a GPU if quantised, else for this machine."""
    from sailkit.models.weights import pick_device, pick_dtype

    if recipe.dtype == "auto" and recipe.quantization is not None:
        return 2
    return int(pick_dtype(recipe.dtype, pick_device("auto")).itemsize)


def _bytes_quantized(quantization: Mapping[str, Any]) -> float:
    if not quantization.get("load_in_4bit"):
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if quantization.get("bnb_4bit_use_double_quant") else 4 / 64)
