"""Bytes that a decoder keeps of the forward pass for the backward pass, from its config alone.

They are counted operation by operation, as transformers and peft write them. Tests compare the counts with the tensors
that torch keeps of small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sailkit.training.decoders import adapted, linear_layers

_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # layers that read the same input
_MASK_GPU = 1  # bytes of an entry of a dropout mask
_DEFAULT_RANK = 8  # of peft
_LONG = 1024  # tokens of a row


@dataclass(frozen=True)
class Numerics:
    """Number formats and kernels of a training step.

    Attributes:
        gpu: Whether it runs on a GPU.
        autocast: Whether autocast computes in 16 bits.
        stored: Bytes of a weight that is not quantised, and of a hidden state of a frozen base; 2 or 4.
        quantized: Whether the linear layers of a frozen base are quantised.
        plain_attention: Whether attention is computed without a fused kernel, and its matrices are kept.
        masked: Whether a fused kernel gets a mask, which it keeps in the format of computation.
    """

    gpu: bool
    autocast: bool
    stored: int = 4
    quantized: bool = False
    plain_attention: bool = False
    masked: bool = True

    @property
    def computed(self) -> int:
        """Bytes of the format in which matrices are multiplied."""
        return 2 if self.autocast or self.stored == 2 else 4


@dataclass(frozen=True)
class Activations:
    """Bytes for each token.

    Attributes:
        kept: What the forward pass keeps.
        recomputed: What the backward pass recomputes at a time, with checkpointing.
        gradients: The largest gradients that live at a time in the backward pass.
    """

    kept: float
    recomputed: float
    gradients: float


def attends_without_kernel(max_length: int | None, *, packing: bool) -> bool:
    """Whether attention is trained without torch's fused kernel in bfloat16 on a CPU, where that is slower.

    Its memory is quadratic in the length, so this is for short rows.

    Args:
        max_length: Most tokens of a row.
        packing: Whether rows are packed.
    """
    return not packing and (max_length or _LONG) < _LONG


def activations(
    config: Any, lora: Mapping[str, Any] | None, how: Numerics, length: int, *, checkpointing: bool
) -> Activations:
    """Bytes that the blocks of a decoder keep for each token of a batch, and the gradients of activations.

    Blocks below the first adapters need no backward pass and keep nothing. With checkpointing each block keeps its
    input, and a single block at a time keeps everything. The backward pass frees what a block has kept as it goes, so
    few gradients live at a time: about two of hidden states and one within the MLP or of the matrix of attention.

    Args:
        config: The text config of a decoder.
        lora: The adapters; None if all weights are trained.
        how: Number formats and kernels.
        length: Tokens of the longest row of the batch, which attention matrices and masks depend on.
        checkpointing: Whether activations are recomputed in the backward pass.
    """
    hidden, blocks = int(config.hidden_size), int(config.num_hidden_layers)
    block = block_bytes(config, lora, how, length)
    # The sum of a residual and an adapted layer is in float32 where adapters are added in float32.
    stream = how.stored if lora is not None and not _adds_in_float32(how) else 4
    last_norm = hidden * (4 + (4 if lora is None else 0))
    kept = blocks * stream * hidden if checkpointing else (blocks - first_adapted(config, lora)) * block
    shapes = linear_layers(config)
    matrix = 4 * int(config.num_attention_heads) * length if how.plain_attention else 0
    gradients = 8 * hidden + 4 * shapes["gate_proj"][1] + matrix
    return Activations(kept + last_norm, block if checkpointing else 0, gradients)


def first_adapted(config: Any, lora: Mapping[str, Any] | None) -> int:
    """Index of the first block with adapters; 0 if all weights are trained, or if only peft can tell."""
    _, indices = adapted(config, lora) or ((), ())
    return min(indices, default=0)


def block_bytes(config: Any, lora: Mapping[str, Any] | None, how: Numerics, length: int) -> float:
    """Bytes that a block keeps for each token; for the arguments see `activations`."""
    shapes = linear_layers(config)
    adapters = (adapted(config, lora) or (tuple(shapes), ()))[0]
    return (
        _norms(config, shapes, how, trained=lora is None)
        + _attention(config, shapes, how, length)
        + _gated_mlp(shapes, adapters, how)
        + (_inputs(shapes, how) if lora is None else _adapter_inputs(shapes, adapters, lora, how))
    )


def _norms(config: Any, shapes: Mapping[str, tuple[int, int]], how: Numerics, *, trained: bool) -> float:
    """The input of each RMSNorm in float32 and, where its weight is trained, the normalised input."""
    width = 2 * int(config.hidden_size)
    if config.model_type.startswith("qwen3"):  # also norms of queries and keys
        width += shapes["q_proj"][1] + shapes["k_proj"][1]
    return width * (4 + (how.stored if trained else 0))


def _attention(config: Any, shapes: Mapping[str, tuple[int, int]], how: Numerics, length: int) -> float:
    """Queries, keys and values; the output of a fused kernel, or the matrix of attention."""
    heads, queries, keys = int(config.num_attention_heads), shapes["q_proj"][1], shapes["k_proj"][1]
    if how.plain_attention or how.masked:  # keys and values of grouped queries are repeated
        keys = queries
    kept = how.computed * (queries + 2 * keys)
    if how.plain_attention:  # softmax in float32, and its copy in the format of computation
        return kept + heads * length * (4 + (2 if how.computed == 2 else 0))
    return kept + how.computed * queries + 4 * heads + (how.computed * length if how.masked else 0)


def _gated_mlp(shapes: Mapping[str, tuple[int, int]], adapters: tuple[str, ...], how: Numerics) -> float:
    """The input of the activation function, its output, and what that is multiplied by."""
    size = {name: 4 if _adds_in_float32(how) and name in adapters else how.computed for name in _MLP}
    return shapes["gate_proj"][1] * (2 * size["gate_proj"] + size["up_proj"])


def _inputs(shapes: Mapping[str, tuple[int, int]], how: Numerics) -> float:
    """Inputs of trained linear layers; autocast casts the input of each, also where several read the same."""
    hidden, queries, mlp = shapes["q_proj"][0], shapes["o_proj"][0], shapes["down_proj"][0]
    copies = len(_ATTENTION) + len(_MLP) if how.autocast else 2
    # A fused kernel keeps its output anyway, which is the input of the output projection.
    return how.computed * (copies * hidden + mlp + (queries if how.plain_attention else 0))


def _adapter_inputs(
    shapes: Mapping[str, tuple[int, int]], adapters: tuple[str, ...], lora: Mapping[str, Any], how: Numerics
) -> float:
    """Inputs of the adapters; those of frozen layers are not kept.

    peft casts the input of each adapter to float32, and autocast then to 16 bits. So each adapter has a copy, unless no
    cast is needed: in float32, and on a quantised base under autocast, where peft leaves the cast to autocast.
    """
    size = 2 if how.autocast else 4
    rank = size * int(lora.get("r") or _DEFAULT_RANK) * len(adapters)
    uncast = how.stored == size and (how.quantized or not how.autocast)
    if lora.get("lora_dropout"):
        # Dropout keeps a mask, on the CPU in the format of its input.
        mask = _MASK_GPU if how.gpu else (2 if uncast and size == 2 else 4)
        return rank + (size + mask) * sum(shapes[name][0] for name in adapters)
    if not uncast:
        return rank + size * sum(shapes[name][0] for name in adapters)
    readers: tuple[tuple[str, ...], ...] = (
        _ATTENTION,
        _MLP,
        ("down_proj",),
        ("o_proj",) if how.plain_attention else (),
    )
    inputs = sum(shapes[names[0]][0] for names in readers if {*names} & {*adapters})
    return rank + size * inputs


def _adds_in_float32(how: Numerics) -> bool:
    """Whether adapters are added in float32: see `sailkit.training.loading.add_adapters_in_float32`."""
    return how.autocast and not how.gpu
