"""Estimates the memory of a distillation's steps besides the student's training, from configs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sailkit.distillation.loss import CHUNK
from sailkit.distillation.teacher import CHUNK_LOGITS, PASS_LOGITS
from sailkit.models.batching import default_batch_tokens
from sailkit.training.activations import Numerics
from sailkit.training.decoders import linear_layers
from sailkit.training.memory import count_parameters
from sailkit.training.recipe import Recipe


def loss_memory(text: Any, scored: int, how: Numerics, *, trained: bool) -> int:
    """Estimate the bytes of `sailkit.distillation.loss.distillation_loss` at their peak.

    The logits of a chunk; in 16 bits also in float32, and their gradient. The gradient of the hidden states. A 16-bit
    copy of a float32 output layer. If that layer is trained, its gradient in float32, and in 16 bits the product of a
    chunk that is added to it, which a CPU first converts to float32.

    Args:
        text: The student's text config.
        scored: Supervised tokens of the batch.
        how: Number formats of the student's training.
        trained: Whether the output layer is trained.
    """
    columns, hidden, low = int(text.vocab_size), int(text.hidden_size), how.computed
    matrix, in_16_bits = columns * hidden, low == 2
    size = min(CHUNK, scored) * columns * (2 * low + 4 if in_16_bits else 4) + how.stored * scored * hidden
    if low < how.stored:
        size += low * matrix
    if trained:
        size += 4 * matrix
        if in_16_bits:
            size += (low if how.gpu else low + 4) * matrix
    return size


def teacher_memory(
    config: Any, name: str, lengths: Sequence[int], scored: int, *, stored: int, gpu: bool, new_tokens: int = 0
) -> dict[str, int]:
    """Estimate the bytes of a local teacher by part; the student is loaded after it.

    Args:
        config: The teacher's config.
        name: Its name.
        lengths: Tokens of each row that it reads or answers.
        scored: Supervised tokens that it reads in all.
        stored: Bytes of a weight, 2 or 4.
        gpu: Whether it runs on a GPU.
        new_tokens: Most tokens of an answer that it writes; 0 if it only reads.

    Returns:
        `weights`; `states`, the hidden states of a block; `logits`, those of a batch and two float32 copies of a part
        of them; `keys and values` of the prompts and answers of a batch; and their `total`.
    """
    text = config.get_text_config()
    shapes, hidden = linear_layers(text), int(text.hidden_size)
    most = default_batch_tokens("cuda" if gpu else "cpu")
    tokens = max(max(lengths) + new_tokens, min(most, sum(lengths) + new_tokens * len(lengths)))
    positions = tokens * scored // max(sum(lengths), 1)
    logits = min(PASS_LOGITS, positions * int(text.vocab_size))
    cached = 2 * shapes["k_proj"][1] * int(text.num_hidden_layers) if new_tokens else 0
    parts = {
        "weights": stored * count_parameters(config, Recipe(name, ())).total,
        "states": tokens * (stored * (3 * hidden + 3 * shapes["gate_proj"][1]) + 4 * hidden),
        "logits": stored * logits + 2 * 4 * min(CHUNK_LOGITS, logits),
        "keys and values": stored * tokens * cached,
    }
    parts = {part: size for part, size in parts.items() if size}
    return {**parts, "total": sum(parts.values())}
