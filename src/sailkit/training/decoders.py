"""Parameter counts and shapes of common decoders from their config alone; model classes take seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailkit.training.common_settings import LORA

# Model type -> its attention layers with a bias; None if `attention_bias` of the config gives one to all.
_ATTENTION_BIAS = {"llama": None, "mistral": (), "qwen2": ("q_proj", "k_proj", "v_proj"), "qwen3": None}

_DEFAULT_TARGETS = ("q_proj", "v_proj")  # of peft, for all of these types


def linear_layers(config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers of a block, by name, for a decoder with a gated MLP.

    Args:
        config: The text config of a model.
    """
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    keys = head * int(getattr(config, "num_key_value_heads", None) or heads)
    mlp = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return {
        "q_proj": (hidden, head * heads), "k_proj": (hidden, keys), "v_proj": (hidden, keys),
        "o_proj": (head * heads, hidden),
        "gate_proj": (hidden, mlp), "up_proj": (hidden, mlp), "down_proj": (mlp, hidden),
    }  # fmt: skip


def adapted(config: Any, lora: Mapping[str, Any] | None) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The linear layers of a block that get adapters, and the indices of such blocks; None if only peft can tell."""
    if lora is None:
        return (), ()
    names, blocks = linear_layers(config), int(config.num_hidden_layers)
    targets, chosen = lora.get("target_modules"), lora.get("layers_to_transform")
    targets = [*names] if targets == "all-linear" else list(_DEFAULT_TARGETS) if targets is None else targets
    chosen = [*range(blocks)] if chosen is None else chosen
    is_plain = lora.keys() <= LORA.keys() and isinstance(targets, list) and isinstance(chosen, list)
    if not is_plain or not targets or not chosen or {*targets} - names.keys() or {*chosen} - {*range(blocks)}:
        return None
    return tuple(name for name in names if name in targets), tuple(sorted({*chosen}))


def count(config: Any, lora: Mapping[str, Any] | None) -> tuple[int, int, int] | None:
    """Parameters of a model, its trained parameters, and those in the linear layers of its blocks.

    Args:
        config: The model's config.
        lora: The adapters of a recipe; None to train all weights.

    Returns:
        The counts; None for an architecture or adapters that are not common.
    """
    kind = config.model_type
    if kind not in _ATTENTION_BIAS or not type(config).__module__.startswith(f"transformers.models.{kind}."):
        return None
    if (with_adapters := adapted(config, lora)) is None:
        return None
    rank = 8 if lora is None else lora.get("r", 8)
    if rank < 1:
        return None
    shapes, hidden, blocks = linear_layers(config), int(config.hidden_size), int(config.num_hidden_layers)
    linear = blocks * sum(inputs * outputs for inputs, outputs in shapes.values())
    attention, mlp = list(shapes)[:4], list(shapes)[4:]
    known = _ATTENTION_BIAS[kind]
    biased = list(known) if known is not None else attention if config.attention_bias else []
    if kind == "llama" and config.mlp_bias:
        biased = [*biased, *mlp]
    norms = 2 * hidden + (2 * int(config.head_dim) if kind == "qwen3" else 0)
    embeddings = int(config.vocab_size) * hidden * (1 if config.tie_word_embeddings else 2)
    total = linear + blocks * (norms + sum(shapes[name][1] for name in biased)) + embeddings + hidden
    names, adapted_blocks = with_adapters
    trained = len(adapted_blocks) * rank * sum(sum(shapes[name]) for name in names)
    return total, total if lora is None else trained, linear
