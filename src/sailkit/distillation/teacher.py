"""A teacher on this machine: its distributions at each supervised token, likeliest first, in planned batches."""

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

# Logits in the model's own number format: of a pass, and of what is taken to float32 at once (256 MB).
_PASS_LOGITS = 2**28
_CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class TopK:
    """How much is kept of each position.

    Attributes:
        k: Most entries.
        top_p: The smallest set of entries whose probabilities sum to this, where that is less than k.
        precision: Type of the entries' log-probabilities: `float16` or `float32`.
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
            ids: Likeliest tokens of each position, likeliest first; shape (n, at least k or all there are).
            logprobs: Their log-probabilities in nats, minus infinity where there is none; the same shape.
            rest: Probability of the tokens that are not among them; shape (n,).
            observed: Log-probability of each of `tokens`; shape (n,).
        """
        values = logprobs.astype(np.float64)
        probs = np.exp(values)
        chosen = (np.arange(ids.shape[1]) < self.k) & np.isfinite(values)
        if self.top_p < 1:
            chosen &= np.cumsum(probs, 1) - probs < self.top_p
        # The tail is summed up, never computed as one minus the sum of the kept: that would round small tails to zero.
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
    """Tokens of a row that a teacher can read.

    Args:
        config: The model's; None for one behind a server, which generates a token, too: some would not generate none.
        tokenizer: The teacher's.
    """
    return context_of(config, tokenizer) - (config is None)


class Teacher(Protocol):
    """What gives its distribution at each token of a completion."""

    name: str
    tokenizer: Any
    context: int

    def describe(self) -> dict[str, Any]:
        """Everything about the teacher that decides its values, for the manifest."""

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Divide a whole data set into batches of indices, each example in exactly one batch."""

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """Its distributions along the completions of one batch."""


class LocalTeacher:
    """A model on this machine.

    Rows are padded on the right: nothing that a causal model predicts depends on what comes later, so no mask is
    needed. The vocabulary head sees supervised positions only, and their log-softmax is computed in float32.
    """

    def __init__(self, model: LocalModel, kept: TopK) -> None:
        """Prepare a loaded model.

        Args:
            model: The teacher.
            kept: How much is kept of each position.
        """
        self.name = model.name
        self.tokenizer = model.tokenizer
        self.context = model.renderer.context
        self._model = model
        self._kept = kept
        self._padded: int = model.model.get_output_embeddings().weight.shape[0]
        # A token that was added to the tokenizer alone has no row, and no probability.
        self._known = sorted({token for token in self.tokenizer.get_vocab().values() if token < self._padded})

    def describe(self) -> dict[str, Any]:
        """Everything about the teacher that decides its values."""
        return {**self._model.describe(), "vocabulary": len(self._known), "pass_logits": _PASS_LOGITS}

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Batches of pairs of like length, longest first, within a budget of tokens and one of logits."""
        if strange := next((pair for pair in pairs if max(pair.prompt + pair.tokens) >= self._padded), None):
            raise UserError(
                f"{self.name}: example {strange.name!r} has a token that the model has no row for ({self._padded}); "
                "its tokenizer belongs to another model"
            )
        prompts, lengths = [len(pair.prompt) for pair in pairs], [len(pair.inputs) for pair in pairs]

        def few_logits(batch: list[int]) -> bool:
            # The vocabulary head sees every position from the first supervised one of the batch to the last.
            positions = lengths[batch[0]] - (min(prompts[i] for i in batch) - 1)
            return len(batch) * positions * self._padded <= _PASS_LOGITS

        return batch_by_length(lengths, self._model.batch_tokens, ties=prompts, fits=few_logits)

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """The teacher's distributions along the completions of one batch.

        Raises:
            UserError: The model's output is no number, or memory runs out with a single pair.
        """
        rows: dict[int, TeacherRow] = {}
        for group in self._model.lengths.groups([len(pair.whole) for pair in pairs]):
            rows |= zip(group, self._model.halving([pairs[i] for i in group], self._rows), strict=True)
        return [rows[i] for i in range(len(pairs))]

    def _rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        device = self._model.device
        # The last token is read for its position alone, where the length of a row means something.
        long = self._model.lengths.regime(len(pairs[0].whole)) > 0
        rows = [pair.whole if long else pair.inputs for pair in pairs]
        longest = max(map(len, rows))
        # What fills up a row is never looked at; its last token is surely no padding that a library would warn of.
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
        """At each wanted position: the k likeliest tokens, their log-probabilities, the tail, the observed token's."""
        device = logits.device
        # A matrix is often padded to a round number of rows; a row without a piece is no token.
        no_token = torch.ones(logits.shape[-1], dtype=torch.bool, device=device)
        no_token[torch.tensor(self._known, device=device)] = False
        k = min(self._kept.k, len(self._known))
        rows, columns = torch.tensor(wanted, device=device).T
        targets = torch.tensor(tokens, device=device)[:, None]
        size = max(1, _CHUNK_LOGITS // logits.shape[-1])
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
