"""A faster forward pass for DeBERTa-v2 and v3 classifiers, which skips what the logits do not depend on.

The implementation in transformers projects all 512 relative positions in every layer of every batch, repeats them for
each row, gathers from the products, and computes the last layer for every token although the classifier reads only the
first. Here the projections are computed once for each length and only for the distances that occur in it, the gather is
a strided view, and the last layer is computed for the first token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}  # of a logit, on a few tokens


class LeanDeberta:
    """Computes the logits of a `DebertaV2ForSequenceClassification`."""

    def __init__(self, model: Any) -> None:
        """Wrap a model in evaluation mode; its weights are shared, not copied."""
        self._model = model
        self._body = model.deberta
        self._layers = list(self._body.encoder.layer)
        self._attention = [layer.attention.self for layer in self._layers]
        self._heads = model.config.num_attention_heads
        self._projected = [self._project(module) for module in self._attention]
        self._positions = lru_cache(maxsize=2)(self._make_positions)  # batches come sorted by length

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Tensor:
        """Logits, shape (rows, labels)."""
        x = self._body.embeddings(input_ids=input_ids, mask=attention_mask, **more)
        masked = None if bool(attention_mask.all()) else attention_mask[:, None, None, :] == 0
        positions = self._positions(input_ids.shape[1])
        for i, layer in enumerate(self._layers):
            queries = x[:, :1] if i == len(self._layers) - 1 else x
            attended = self._attend(self._attention[i], x, queries, positions[i], masked)
            middle = layer.attention.output(attended, queries)
            x = layer.output(layer.intermediate(middle), middle)
        logits: Tensor = self._model.classifier(self._model.pooler(x))
        return logits

    def _attend(
        self, module: Any, x: Tensor, queries: Tensor, positions: tuple[Tensor, Tensor], masked: Tensor | None
    ) -> Tensor:
        """Attention of n rows of q queries to m tokens, with d = 2m - 1 distances, from -(m - 1) to m - 1.

        Args:
            module: The model's own attention module, for its projections.
            x: All tokens (n, m, width).
            queries: The first q tokens of each row (n, q, width).
            positions: Projected distances for the queries, descending, and for the keys, ascending (heads, size, d).
            masked: True at padding (n, 1, 1, m), or None.
        """
        n, m, _ = x.shape
        q = queries.shape[1]
        query, key, value = (
            project(tokens).view(n, tokens.shape[1], self._heads, -1).transpose(1, 2)
            for project, tokens in ((module.query_proj, queries), (module.key_proj, x), (module.value_proj, x))
        )
        size = query.shape[-1]
        scale = (3 * size) ** -0.5
        by_query, by_key = (
            torch.bmm((part * scale).transpose(0, 1).reshape(self._heads, -1, size), far)
            for part, far in zip((query, key), positions, strict=True)
        )
        # Query i and key j have distance i - j: in the first product that is row i, column (m - 1) - (i - j), in the
        # second row j, column (m - 1) + (i - j). Both offsets are linear in i and j, so strided views can read them.
        d = 2 * m - 1
        bias = by_query.as_strided((n, self._heads, q, m), (q * d, n * q * d, d - 1, 1), m - 1) + by_key.as_strided(
            (n, self._heads, q, m), (m * d, n * m * d, 1, d - 1), m - 1
        )
        if masked is not None:
            bias.masked_fill_(masked, torch.finfo(bias.dtype).min)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        return attended.transpose(1, 2).reshape(n, q, -1)

    def _project(self, module: Any) -> tuple[Tensor, Tensor]:
        """The relative-position embeddings of a layer, projected for its queries and for its keys."""
        embeddings = self._body.encoder.get_rel_embedding()
        if module.share_att_key:
            return module.key_proj(embeddings), module.query_proj(embeddings)
        return module.pos_key_proj(embeddings), module.pos_query_proj(embeddings)

    def _make_positions(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """The projections of every distance in a sequence of the given length, as `_attend` takes them."""
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        attention = self._attention[0]
        distances = torch.arange(1 - length, length, device=self._model.device)
        if (buckets := attention.position_buckets) > 0:
            distances = make_log_bucket_position(distances, buckets, attention.max_relative_positions).long()
        rows = (distances + attention.pos_ebd_size).clamp(0, 2 * attention.pos_ebd_size - 1)

        def arranged(far: Tensor, order: Tensor) -> Tensor:
            return far[order].view(len(order), self._heads, -1).permute(1, 2, 0).contiguous()

        return [(arranged(keys, rows.flip(0)), arranged(queries, rows)) for keys, queries in self._projected]


@torch.inference_mode()
def lean_forward(model: Any) -> Any:
    """A function from inputs to logits: the faster pass if it agrees on a few tokens, else the model's `forward`."""

    def plain(**inputs: Tensor) -> Tensor:
        logits: Tensor = model(**inputs).logits
        return logits

    config = model.config
    if (
        type(model).__name__ != "DebertaV2ForSequenceClassification"
        or not config.relative_attention
        or set(config.pos_att_type) != {"c2p", "p2c"}
        or getattr(config, "conv_kernel_size", 0) > 0
    ):
        return plain
    length = min(24, config.max_position_embeddings)
    ids = torch.arange(2 * length, device=model.device).view(2, length) % (config.vocab_size - 1) + 1
    keep = torch.ones_like(ids)
    keep[1, length // 2 :] = 0
    try:
        faster = LeanDeberta(model)
        difference = faster(ids, keep) - plain(input_ids=ids, attention_mask=keep)
    except (AttributeError, ImportError, TypeError, ValueError, RuntimeError):
        return plain  # the modules differ in this release of transformers
    return faster if bool(difference.abs().max() < _TOLERANCE.get(model.dtype, 0.0)) else plain
