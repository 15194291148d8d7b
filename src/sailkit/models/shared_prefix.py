"""Forward passes that reuse the cache of a shared prompt prefix and score all answers as a tree of tokens."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from sailkit.prompts.render import Rendered

_CACHED_PREFIXES = 4


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a prefix; those of later tokens are returned to the attention but not stored."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class SharedPrefix:
    """Forward passes of one model over prompts with a common prefix.

    Prompts of a wording begin alike. The key-value cache of that prefix is computed once and expanded over the rows of
    each batch, so a row costs only its remaining tokens.

    The answers to a prompt are scored in the same pass. Their proper prefixes form a tree (a trie), whose nodes are
    appended to the prompt as further tokens:

        ids        prompt ... | no | no way | yes
        position   0 ... p    | p+1| p+2    | p+1     depth in the tree, not index in the row
        attends to causal     | prompt and its ancestors; "yes" sees neither "no" nor "no way"

    The logits at each node are therefore those of a separate pass over the prompt and the node's tokens. The last token
    of an answer is only predicted, and needs no node. Padding is on the left, so the last prompt token of all rows is
    in the same column.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Prepare a model.

        Args:
            model: A transformers causal language model.
            dtype: The number format it computes in.
        """
        self.model = model
        self.dtype = dtype
        self.device = next(model.parameters()).device
        self._prefixes: OrderedDict[tuple[int, ...], Any] = OrderedDict()  # token ids -> cache, least recent first

    def answer_tree(
        self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]
    ) -> tuple[torch.Tensor, dict[tuple[int, ...], int]]:
        """Logits after each prompt and after each proper prefix of an answer.

        Returns:
            Logits of shape (prompts, nodes, vocabulary), and the node of each prefix; node 0 is the empty prefix.
        """
        nodes = tree_nodes(tuple(answers))
        cache, inputs, positions, mask = self.prepare(batch, nodes)
        logits = self.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None, logits_to_keep=len(nodes) + 1,
        ).logits  # fmt: skip
        return logits, {(): 0} | {node: i + 1 for i, node in enumerate(nodes)}

    def prepare(
        self, batch: Sequence[Rendered], nodes: Sequence[tuple[int, ...]], *, continues: bool = False
    ) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of a forward pass over a batch: the cache of the shared prefix, the rest of the prompts, the tree.

        Args:
            batch: n prompts.
            nodes: t answer prefixes, the shorter ones first.
            continues: Whether more passes follow. If not, the cache does not store the keys and values of the pass.

        Returns:
            Cache of h shared tokens or None; ids (n, m + t), left-padded; positions (n, m + t); additive mask
            (n, 1, m + t, h + m + t).
        """
        head = min(prompt.head for prompt in batch)
        if len({prompt.ids[:head] for prompt in batch}) > 1:
            head = 0
        inputs, keep, positions = self.left_pad([prompt.ids[head:] for prompt in batch])
        n, m = inputs.shape
        t = len(nodes)
        tree_ids = torch.tensor([node[-1] for node in nodes], dtype=torch.long, device=self.device).expand(n, t)
        depth = torch.tensor([len(node) for node in nodes], dtype=torch.long, device=self.device)
        positions = torch.cat([positions, positions[:, -1:] + depth], 1) + head
        attends = torch.zeros(n, m + t, head + m + t, dtype=torch.bool, device=self.device)
        attends[:, :, :head] = True
        attends[:, :, head : head + m] = keep[:, None, :].bool()
        attends[:, :m, head : head + m] &= torch.ones(m, m, dtype=torch.bool, device=self.device).tril()
        attends[:, m:, head + m :] = _ancestors(tuple(nodes)).to(self.device)
        # The smallest number instead of -inf: a padding token attends to nothing, and its softmax would be NaN.
        mask = torch.zeros(attends.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~attends, torch.finfo(self.dtype).min
        )
        layer = DynamicLayer if continues else _PrefixLayer
        cache = _expand(self._cached_prefix(batch[0].ids[:head]), n, layer) if head else None
        return cache, torch.cat([inputs, tree_ids], 1), positions, mask[:, None]

    def left_pad(self, rows: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and positions of left-padded rows; no token attends to the padding."""
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        positions = torch.arange(longest, device=self.device) - (longest - lengths)[:, None]
        return ids, (positions >= 0).long(), positions.clamp(min=0)

    def _cached_prefix(self, ids: tuple[int, ...]) -> Any:
        """The key-value cache of a prefix, computed once.

        An `lru_cache` on the method would refer to the object, and the cycle would keep the model in memory.
        """
        if ids not in self._prefixes:
            self._prefixes[ids] = self.encode_prefix(ids)
        self._prefixes.move_to_end(ids)
        while len(self._prefixes) > _CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[ids]

    def encode_prefix(self, ids: tuple[int, ...]) -> Any:
        """The key-value cache after some ids; None if the model has none."""
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True, logits_to_keep=1)
        return getattr(out, "past_key_values", None)


def _expand(cache: Any, rows: int, kind: type[DynamicLayer]) -> Any:
    """Expand a cache of one row to many rows, as a view; nothing is copied until the next pass appends to it.

    Args:
        cache: The cache of a prefix.
        rows: Number of rows.
        kind: The class of its layers, which decides whether they store what the next pass appends.
    """
    expanded = copy.copy(cache)
    expanded.layers = []
    for layer in cache.layers:
        expanded.layers.append(row := kind())
        vars(row).update(vars(layer))
        row.keys, row.values = (tensor.expand(rows, -1, -1, -1) for tensor in (layer.keys, layer.values))
    return expanded


@lru_cache(maxsize=64)
def tree_nodes(answers: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The proper prefixes of answers, the shorter ones first: the nodes of their tree, without the root."""
    prefixes = {answer[:n] for answer in answers for n in range(1, len(answer))}
    return tuple(sorted(prefixes, key=lambda prefix: (len(prefix), prefix)))


@lru_cache(maxsize=64)
def _ancestors(nodes: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """Whether the column's node is the row's node or an ancestor of it; shape (t, t)."""
    ancestors = [[node[: len(other)] == other for other in nodes] for node in nodes]
    return torch.tensor(ancestors, dtype=torch.bool).reshape(len(nodes), len(nodes))
