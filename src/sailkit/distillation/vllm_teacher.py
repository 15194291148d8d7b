"""A local teacher whose distributions vLLM computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sailkit.distillation.records import TeacherExample, TeacherRow
from sailkit.distillation.teacher import TopK, check_output_rows
from sailkit.models.base import VLLM, ModelOptions
from sailkit.models.batching import batch_by_length
from sailkit.models.vllm_model import VllmModel

# vLLM reserves no memory for the logits of prompts: up to 2.5 GB for 2,048 tokens with a vocabulary of 152,000.
_ENGINE_ARGS = {"gpu_memory_utilization": 0.8, "max_num_batched_tokens": 2048}


class VllmTeacher:
    """A local teacher whose distributions vLLM computes.

    vLLM returns the likeliest tokens of every position, also of the prompt; the tail of a position is one minus their
    probabilities. Unlike `LocalTeacher`, it normalises over all rows of the output layer, also those without a token.
    """

    def __init__(self, name: str, options: ModelOptions, kept: TopK) -> None:
        """Load the model with transformers; the engine starts with the first batch.

        Args:
            name: `vllm:MODEL`.
            options: How to load and run it.
            kept: How to truncate the distributions.

        Raises:
            UserError: See `sailkit.models.vllm_model.VllmModel`.
        """
        self._model = VllmModel(name.removeprefix(VLLM), options, _ENGINE_ARGS)
        self.name = self._model.name
        local = self._model.local
        self.tokenizer = local.tokenizer
        self.context = local.renderer.context - 1  # vLLM writes one token behind each row
        self._rows: int = local.model.get_output_embeddings().weight.shape[0]
        self._has_text = np.zeros(self._rows, bool)
        self._has_text[[token for token in self.tokenizer.get_vocab().values() if token < self._rows]] = True
        self._kept = kept

    def describe(self) -> dict[str, Any]:
        """Everything that determines the teacher's values."""
        return {**self._model.describe(), "vocabulary": int(self._has_text.sum())}

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Batches of pairs of similar length, longest first, within a budget of tokens; vLLM forms its own passes."""
        check_output_rows(self.name, pairs, self._rows)
        return batch_by_length([len(pair.whole) for pair in pairs], self._model.local.batch_tokens)

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """The teacher's distributions along the completions of one batch.

        Raises:
            UserError: See `sailkit.models.vllm_model.VllmModel.prompt_logprobs`.
        """
        k = min(self._kept.k, self._rows)
        read = self._model.prompt_logprobs([pair.whole for pair in pairs], k)
        return [self._row(pair, *row) for pair, row in zip(pairs, read, strict=True)]

    def _row(self, pair: TeacherExample, ids: Any, logprobs: Any) -> TeacherRow:
        completion = slice(-len(pair.tokens), None)
        ids, logprobs, observed = ids[completion, 1:], logprobs[completion, 1:], logprobs[completion, 0]
        logprobs = np.where(self._has_text[ids], logprobs, -np.inf)
        rest = np.maximum(0.0, 1 - np.exp(logprobs).sum(1))
        return self._kept.row(pair.tokens, ids, logprobs, rest, observed)
