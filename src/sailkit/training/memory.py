"""Estimate the memory of a training step from a model's config, without allocating it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sailkit.errors import UserError
from sailkit.training import decoders
from sailkit.training.activations import Numerics, activations, attends_without_kernel, first_adapted
from sailkit.training.recipe import Recipe

# Takes a text config, the supervised tokens of a batch and `Numerics`, and returns the bytes of a loss.
LossMemory = Callable[..., int]

# Optimizer of transformers -> bytes of state per trained parameter; the default is AdamW's.
_STATE = {"8bit": 2, "4bit": 1, "sgd": 0, "adafactor": 0, "lion": 4}
_FUSED_TOKENS, _FUSED_COLUMNS = 4096, 32768  # tile of TRL's kernel for logits on a GPU


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of a model with the adapters of a recipe.

    Attributes:
        total: Parameters of the model, without adapters.
        trainable: Trained parameters: those of the adapters, or all.
        linear: Parameters of the linear layers, without the output layer.
    """

    total: int
    trainable: int
    linear: int


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch of a training on one device.

    Attributes:
        rows: Its rows.
        length: Tokens of a row, including padding; of a packed batch, which is a single row, all of its tokens.
        scored: Supervised tokens of the batch.
    """

    rows: int
    length: int
    scored: int

    @property
    def tokens(self) -> int:
        """Tokens of the batch, including padding."""
        return self.rows * self.length


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
        return ParameterCounts(total, trainable, linear)
    return _count_on_meta(config, recipe)


def _count_on_meta(config: Any, recipe: Recipe) -> ParameterCounts:
    import torch
    from transformers import AutoModelForCausalLM

    from sailkit.training.loading import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = trainable = model.num_parameters()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    linear = sum(module.weight.numel() for module in layers if module is not model.get_output_embeddings())
    if (lora := lora_config(recipe)) is not None:
        from peft import get_peft_model

        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
                trainable = get_peft_model(model, lora).get_nb_trainable_parameters()[0]
        except ValueError as error:
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
    return ParameterCounts(total, trainable, linear)


def numerics(recipe: Recipe, batch: LargestBatch, *, gpu: bool, mixed: bool, packing: bool = False) -> Numerics:
    """Number formats and kernels of a recipe's training.

    Args:
        recipe: The recipe.
        batch: The largest batch.
        gpu: Whether to train on a GPU.
        mixed: Whether autocast computes in 16 bits.
        packing: Whether rows are packed.
    """
    stored = 4 if recipe.lora is None else _bytes_of_base(recipe, gpu=gpu)
    attention = recipe.attn_implementation
    plain = attention == "eager" or (
        attention == "auto" and mixed and not gpu and attends_without_kernel(recipe.max_length, packing=packing)
    )
    # Rows of one length need no mask; neither does FlashAttention, which a GPU has for packed rows.
    masked = not attention.startswith("flash") and (batch.rows > 1 or packing) and not (packing and gpu)
    return Numerics(gpu, mixed, stored, recipe.quantization is not None, plain, masked)


def step_memory(
    config: Any, recipe: Recipe, counts: ParameterCounts, batch: LargestBatch, how: Numerics, *, optimizer: str,
    checkpointing: bool, loss: LossMemory | None = None,
) -> dict[str, int]:  # fmt: skip
    """Estimate the bytes of a training step at its peak, by part.

    * Weights: 4 bytes each in float32 and 2 in 16 bits; 8-bit: 1. 4-bit: 1/2 and a float32 scale for 64 weights, or
      with double quantisation an 8-bit scale for 64 and a float32 one for 64 x 256 (Dettmers et al. 2023, QLoRA,
      section 3). Adapters are in float32. Autocast keeps 16-bit copies of the float32 matrices through which gradients
      flow.
    * Gradients: 4 bytes for each trained parameter. Optimizer: 8 for AdamW, 4 for Lion, 2 for 8-bit states, 0 for SGD
      and Adafactor (Hugging Face, "Model training anatomy").
    * Activations: see `sailkit.training.activations`.
    * Logits: see `logits_memory`.
    * Backward: what the backward pass takes more than the logits, which it frees first: a recomputed block, gradients
      of activations, the gradient of a matrix before it is added. If the output layer is the embeddings too, torch
      keeps its gradient until that of the embeddings is there, and then takes their sum.

    What CUDA and the allocators of memory reserve beyond that is not counted.

    Args:
        config: The model's config.
        recipe: The recipe.
        counts: See `count_parameters`.
        batch: The largest batch on one device.
        how: See `numerics`.
        optimizer: Name of the optimizer in transformers.
        checkpointing: Whether activations are recomputed in the backward pass.
        loss: The memory of another loss than cross-entropy.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits`, `backward` and their `total`.
    """
    text = config.get_text_config()
    trains_all = recipe.lora is None
    state = next((size for name, size in _STATE.items() if name in optimizer), 8)
    tokens = activations(text, recipe.lora, how, batch.length, checkpointing=checkpointing)
    kept, logits = batch.tokens * tokens.kept, (loss or logits_memory)(text, batch.scored, how, trained=trains_all)
    copies = _copies(text, recipe, counts, how, checkpointing=checkpointing)
    if how.autocast and how.stored == 4 and not how.gpu and loss is None:
        copies += 2 * int(text.vocab_size) * int(text.hidden_size)  # other losses cast the output layer themselves
    in_backward, at_end = batch.tokens * (tokens.recomputed + tokens.gradients), 0.0
    if trains_all:
        embeddings = 4 * int(text.vocab_size) * int(text.hidden_size)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        largest = max(inputs * outputs for inputs, outputs in decoders.linear_layers(text).values())
        in_backward += _bytes_of_gradient(how) * largest + (embeddings if tied else 0)
        at_end = (3 * embeddings if tied else embeddings) - kept - copies
    parts = {
        "weights": _weights(recipe, counts, how) + copies,
        "gradients": 4 * counts.trainable,
        "optimizer": state * counts.trainable,
        "activations": kept,
        "logits": logits,
        "backward": max(0, in_backward - logits, at_end - logits),
    }
    sizes = {name: round(size) for name, size in parts.items()}
    return {**sizes, "total": sum(sizes.values())}


def _weights(recipe: Recipe, counts: ParameterCounts, how: Numerics) -> float:
    quantized = counts.linear if how.quantized else 0
    size = (counts.total - quantized) * how.stored + quantized * _bytes_quantized(recipe.quantization or {})
    return size if recipe.lora is None else size + 4.0 * counts.trainable


def _copies(text: Any, recipe: Recipe, counts: ParameterCounts, how: Numerics, *, checkpointing: bool) -> float:
    """Bytes of the 16-bit copies of float32 matrices in the blocks that autocast keeps until the backward pass.

    It caches those of trained matrices, and the graph holds those of frozen ones through which gradients flow.
    """
    if not how.autocast:
        return 0
    adapters = 0 if recipe.lora is None else counts.trainable
    if how.stored == 2:
        return 2 * adapters
    blocks = int(text.num_hidden_layers)
    held = 1 if checkpointing and recipe.lora is not None else blocks - first_adapted(text, recipe.lora)
    return 2 * (adapters + (0 if how.quantized else counts.linear * held / blocks))


def logits_memory(text: Any, scored: int, how: Numerics, *, trained: bool) -> int:
    """Estimate the bytes of cross-entropy at their peak.

    On the CPU 12 bytes for each supervised token and vocabulary entry: the logits in float32, their probabilities and
    gradients. On a GPU a tile of them at a time, and the gradients of the hidden states in float32 (TRL's
    `ChunkedLogProbFunction`). If the output layer is trained, the gradient of its matrix before it is added.

    Args:
        text: The model's text config.
        scored: Supervised tokens of the batch.
        how: See `numerics`.
        trained: Whether the output layer is trained.
    """
    columns, hidden = int(text.vocab_size), int(text.hidden_size)
    if not how.gpu:
        return 12 * scored * columns + (_bytes_of_gradient(how) * columns * hidden if trained else 0)
    tile = min(columns, _FUSED_COLUMNS)
    cast = how.computed * tile * hidden if how.computed < how.stored else 0
    summed = 4 * scored * hidden + (4 * columns * hidden if trained else 0)
    return how.computed * min(scored, _FUSED_TOKENS) * tile + cast + summed


def _bytes_of_gradient(how: Numerics) -> int:
    """Bytes of an entry of a matrix's gradient before it is added: in float32, under autocast also in 16 bits."""
    return 6 if how.autocast else 4


def _bytes_of_base(recipe: Recipe, *, gpu: bool) -> int:
    """Bytes of the dtype of a frozen base; on a GPU that is not there, one that has a 16-bit format."""
    from sailkit.models.weights import pick_device, pick_dtype

    if recipe.dtype == "auto" and gpu:
        return 2
    return int(pick_dtype(recipe.dtype, pick_device("auto")).itemsize)


def _bytes_quantized(quantization: Mapping[str, Any]) -> float:
    if not quantization.get("load_in_4bit"):
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if quantization.get("bnb_4bit_use_double_quant") else 4 / 64)
