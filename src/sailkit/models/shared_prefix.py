"""Inputs of a forward pass: padding, what prompts share, and answers that hang behind them as a tree."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from sailkit.prompts.render import Rendered

_PREFIXES = 4  # that are kept


class SharedPrefix:
    """Forward passes of one model."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Prepare a model.

        Args:
            model: A transformers causal language model.
            dtype: The number format it computes in.
        """
        self.model = model
        self.dtype = dtype
        self.device = next(model.parameters()).device
        self._prefixes: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def answer_tree(
        self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]
    ) -> tuple[torch.Tensor, dict[tuple[int, ...], int]]:
        """Logits behind each prompt and behind each proper beginning of an answer, and the place of each of those.

        Returns:
            Shape (prompts, places, vocabulary); the empty beginning is at 0.
        """
        nodes = sorted({answer[:n] for answer in answers for n in range(1, len(answer))}, key=lambda n: (len(n), n))
        cache, inputs, positions, mask = self.prepare(batch, nodes)
        logits = self.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None, logits_to_keep=len(nodes) + 1,
        ).logits  # fmt: skip
        return logits, {(): 0} | {node: i + 1 for i, node in enumerate(nodes)}

    def prepare(
        self, batch: Sequence[Rendered], nodes: Sequence[tuple[int, ...]]
    ) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of one pass over a batch: what is shared is in the cache, answers' beginnings hang at the end.

        Args:
            batch: n prompts.
            nodes: t token sequences, each followed by none of its own beginnings.

        Returns:
            Cache of h shared positions or None; ids (n, m + t), left-padded; positions (n, m + t); additive mask
            (n, 1, m + t, h + m + t).
        """
        head = min(prompt.head for prompt in batch)
        if len({prompt.ids[:head] for prompt in batch}) > 1:
            head = 0
        inputs, keep, positions = self.left_pad([prompt.ids[head:] for prompt in batch])
        n, m = inputs.shape
        t = len(nodes)
        tree = torch.tensor([node[-1] for node in nodes], dtype=torch.long, device=self.device).expand(n, t)
        depth = torch.tensor([len(node) for node in nodes], dtype=torch.long, device=self.device)
        positions = torch.cat([positions, positions[:, -1:] + depth], 1) + head
        sees = torch.zeros(n, m + t, head + m + t, dtype=torch.bool, device=self.device)
        sees[:, :, :head] = True
        sees[:, :, head : head + m] = keep[:, None, :].bool()
        sees[:, :m, head : head + m] &= torch.ones(m, m, dtype=torch.bool, device=self.device).tril()
        sees[:, m:, head + m :] = _family(tuple(nodes)).to(self.device)
        mask = torch.zeros(sees.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~sees, torch.finfo(self.dtype).min
        )
        cache = self._expand(self._prefix(batch[0].ids[:head]), n) if head else None
        return cache, torch.cat([inputs, tree], 1), positions, mask[:, None]

    def left_pad(self, rows: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and positions of rows padded on the left; what stands in the padding is never seen."""
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        positions = torch.arange(longest, device=self.device) - (longest - lengths)[:, None]
        return ids, (positions >= 0).long(), positions.clamp(min=0)

    def _prefix(self, ids: tuple[int, ...]) -> Any:
        """The cache behind some ids, kept; a cached method would hold its own object, and so the model, in a cycle."""
        if ids not in self._prefixes:
            self._prefixes[ids] = self.encode_prefix(ids)
        self._prefixes.move_to_end(ids)
        while len(self._prefixes) > _PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[ids]

    def encode_prefix(self, ids: tuple[int, ...]) -> Any:
        """The cache behind some ids, or None where the model has none."""
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True, logits_to_keep=1)
        return getattr(out, "past_key_values", None)

    @staticmethod
    def _expand(cache: Any, rows: int) -> Any:
        """A cache of one row, seen as many; the next pass copies what it extends."""
        wide = copy.copy(cache)
        wide.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in wide.layers:
            layer.keys, layer.values = (
                layer.keys.expand(rows, -1, -1, -1),
                layer.values.expand(rows, -1, -1, -1),
            )
        return wide


@lru_cache(maxsize=64)
def _family(nodes: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """For each node, which nodes it begins with, itself included; shape (t, t)."""
    begins = [[node[: len(other)] == other for other in nodes] for node in nodes]
    return torch.tensor(begins, dtype=torch.bool).reshape(len(nodes), len(nodes))
