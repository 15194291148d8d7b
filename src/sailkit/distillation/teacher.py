"""A local teacher that computes its distributions at each supervised token, in planned batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sailkit.distillation.records import FloatArray, IntArray, TeacherExample, TeacherRow
from sailkit.errors import UserError
from sailkit.models.batching import batch_by_length
from sailkit.models.checks import check_finite
from sailkit.models.local import LocalModel
from sailkit.models.weights import context_of

# Most logits of a forward pass in the model's number format, and of a conversion to float32 (256 MB).
PASS_LOGITS = 2**28
CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class TopK:
    """How to truncate the distribution at each position.

    Attributes:
        k: Most entries.
        top_p: Keep the smallest set of entries whose probabilities sum to this, if it has fewer than k.
        precision: Number format of the log-probabilities: `float16` or `float32`.
    """

    k: int
    top_p: float
    precision: str

    def row(
        self, tokens: Sequence[int], ids: IntArray, logprobs: FloatArray, rest: FloatArray, observed: FloatArray
    ) -> TeacherRow:
        """Truncate a teacher's distributions along one completion.

        Args:
            tokens: Its n supervised tokens.
            ids: Likeliest tokens of each position, likeliest first; shape (n, at least k or the whole vocabulary).
            logprobs: Their log-probabilities in nats, minus infinity for unused entries; the same shape.
            rest: Total probability of all other tokens; shape (n,).
            observed: Log-probability of each of `tokens`; shape (n,).
        """
        values = logprobs.astype(np.float64)
        probs = np.exp(values)
        chosen = (np.arange(ids.shape[1]) < self.k) & np.isfinite(values)
        if self.top_p < 1:
            chosen &= np.cumsum(probs, 1) - probs < self.top_p
        # The tail is a sum, not one minus the kept probabilities, which would round small tails to zero.
        tail = rest.astype(np.float64) + np.where(chosen, 0.0, probs).sum(1)
        return TeacherRow(
            np.asarray(tokens),
            np.concatenate([[0], np.cumsum(chosen.sum(1))]),
            ids[chosen],
            logprobs[chosen].astype(self.precision),
            tail.astype(np.float32),
            observed.astype(np.float32),
        )


def max_row_tokens(config: Any, tokenizer: Any) -> int:
    """Most tokens of a row that fit into a teacher's context.

    Args:
        config: The model's config; None for a server, which needs room to generate a token, because some require one.
        tokenizer: The teacher's tokenizer.
    """
    return context_of(config, tokenizer) - (config is None)


def check_output_rows(name: str, pairs: Sequence[TeacherExample], rows: int) -> None:
    """Check that a model has a row for every token.

    Args:
        name: Name of the model.
        pairs: The examples, tokenised by its tokenizer.
        rows: Rows of its output layer.

    Raises:
        UserError: An example has a token without a row.
    """
    if strange := next((pair for pair in pairs if max(pair.prompt + pair.tokens) >= rows), None):
        raise UserError(
            f"{name}: example {strange.name!r} has a token that the model has no row for ({rows}); "
            "its tokenizer belongs to another model"
        )


class Teacher(Protocol):
    """A model that returns its distribution at each token of a completion."""

    name: str
    tokenizer: Any
    context: int

    def describe(self) -> dict[str, Any]:
        """Everything that determines the teacher's values, for the manifest."""

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Divide a whole data set into batches of indices, each example in exactly one batch."""

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """The teacher's distributions along the completions of one batch."""


def _input_tokens(pair: TeacherExample) -> int:
    return len(pair.inputs)


class LocalTeacher:
    """A local teacher.

    Rows are padded on the right. The predictions of a causal model do not depend on later tokens, so no mask is needed.
    Logits are computed at supervised positions only, and their log-softmax in float32.
    """

    def __init__(self, model: LocalModel, kept: TopK) -> None:
        """Prepare a loaded model.

        Args:
            model: The teacher.
            kept: How to truncate the distributions.
        """
        self.name = model.name
        self.tokenizer = model.tokenizer
        self.context = model.renderer.context
        self._model = model
        self._kept = kept
        self._padded: int = model.model.get_output_embeddings().weight.shape[0]
        # A token that was added only to the tokenizer has no row in the output layer, and so no probability.
        self._known = sorted({token for token in self.tokenizer.get_vocab().values() if token < self._padded})

    def describe(self) -> dict[str, Any]:
        """Everything that determines the teacher's values."""
        return {**self._model.describe(), "vocabulary": len(self._known), "pass_logits": PASS_LOGITS}

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Batches of pairs of similar length, longest first, within a budget of tokens and one of logits."""
        check_output_rows(self.name, pairs, self._padded)
        prompts, lengths = [len(pair.prompt) for pair in pairs], [len(pair.inputs) for pair in pairs]

        def few_logits(batch: list[int]) -> bool:
            # Logits are computed at all positions from the first supervised one of the batch to the last.
            positions = lengths[batch[0]] - (min(prompts[i] for i in batch) - 1)
            return len(batch) * positions * self._padded <= PASS_LOGITS

        return batch_by_length(lengths, self._model.batch_tokens, ties=prompts, fits=few_logits)

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """The teacher's distributions along the completions of one batch.

        Raises:
            UserError: The model's output is NaN or infinite, or memory runs out with a single pair.
        """
        rows: dict[int, TeacherRow] = {}
        for group in self._model.lengths.groups([len(pair.whole) for pair in pairs]):
            batch = [pairs[i] for i in group]
            rows |= zip(group, self._model.halving(batch, self._rows, "teach", _input_tokens), strict=True)
        return [rows[i] for i in range(len(pairs))]

    def _rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        device = self._model.device
        # The last token is an input only if the row's length affects the RoPE frequencies.
        long = self._model.lengths.regime(len(pairs[0].whole)) > 0
        rows = [pair.whole if long else pair.inputs for pair in pairs]
        longest = max(map(len, rows))
        # Padding is never read. It repeats the last token, because libraries warn of padding tokens without a mask.
        inputs = [row + row[-1:] * (longest - len(row)) for row in rows]
        supervised = [range(len(pair.prompt) - 1, len(pair.inputs)) for pair in pairs]
        columns = sorted(set().union(*supervised))
        at = {column: i for i, column in enumerate(columns)}
        with torch.inference_mode():
            logits = self._model.model(
                input_ids=torch.tensor(inputs, device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(columns, device=device),
            ).logits
            wanted = [(row, at[column]) for row, positions in enumerate(supervised) for column in positions]
            results = self._likeliest(logits, wanted, [token for pair in pairs for token in pair.tokens])
        ends = np.cumsum([len(pair.tokens) for pair in pairs])
        parts = zip(*(np.split(part, ends[:-1]) for part in results), strict=True)
        return [self._kept.row(pair.tokens, *part) for pair, part in zip(pairs, parts, strict=True)]

    def _likeliest(
        self, logits: Any, wanted: Sequence[tuple[int, int]], tokens: Sequence[int]
    ) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
        """The k likeliest tokens at each position and their log-probabilities, the tail, and the observed token's."""
        device = logits.device
        # A weight matrix is often padded to a round number of rows; rows without a piece are no tokens.
        no_token = torch.ones(logits.shape[-1], dtype=torch.bool, device=device)
        no_token[torch.tensor(self._known, device=device)] = False
        k = min(self._kept.k, len(self._known))
        rows, columns = torch.tensor(wanted, device=device).T
        targets = torch.tensor(tokens, device=device)[:, None]
        size = max(1, CHUNK_LOGITS // logits.shape[-1])
        chunks = []
        for start in range(0, len(wanted), size):
            part = slice(start, start + size)
            values = logits[rows[part], columns[part]].float().masked_fill_(no_token, -torch.inf)
            normal = torch.logsumexp(values, -1, keepdim=True)
            check_finite(normal)
            values -= normal
            observed = values.gather(1, targets[part])[:, 0]
            check_finite(observed)
            top, ids = values.topk(k)
            rest = values.scatter_(1, ids, -torch.inf).logsumexp(-1).exp()
            chunks.append([tensor.cpu().numpy() for tensor in (ids, top, rest, observed)])
        ids, top, rest, observed = (np.concatenate(column) for column in zip(*chunks, strict=True))
        return ids, top, rest, observed
