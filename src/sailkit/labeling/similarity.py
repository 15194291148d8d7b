"""Labelers that compare texts: cosine of sentence embeddings (the default) and word overlap (a baseline)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from sailkit.files import jsonl
from sailkit.labeling.base import ResultPair, Score, batches_of, statement
from sailkit.labeling.chunks import Windows
from sailkit.models.encoder import load_encoder
from sailkit.models.sources import ENCODER

_BATCH = 256
_WORD = re.compile(r"\w+")


class Similarity:
    """Cosine similarity of statement (see `statement`) and result: the maximum over their windows."""

    threshold = 0.5

    def __init__(self, encoder: str = ENCODER, device: str = "auto") -> None:
        """Load a sentence-transformers model.

        Args:
            encoder: `minilm-l6-v2`, a folder or a hub id.
            device: `auto` or a torch device.

        Raises:
            UserError: The library, device or model is missing, or the model is not an encoder.
        """
        self.name = "similarity" if encoder == ENCODER else f"similarity:{encoder}"
        self._model, source = load_encoder(encoder, "the similarity labeler", device)
        self._windows = Windows(self._model.tokenizer, int(self._model.max_seq_length or 256) - 2)
        self._facts = {
            "weights_sha256": jsonl.file_fingerprint(source.files()["weights"]),
            "tokenizer_sha256": jsonl.file_fingerprint(source.files()["tokenizer"]),
        }

    @property
    def runs_on(self) -> dict[str, str]:
        """Device and number format of the model."""
        weight = next(self._model.parameters())
        return {"device": weight.device.type, "dtype": str(weight.dtype).removeprefix("torch.")}

    def describe(self) -> dict[str, Any]:
        """Everything about the labeler that decides its scores."""
        return {"labeler": self.name, "version": 4, **self._facts, "windows": self._windows.describe()}

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Batches in order; the encoder sorts by length within a batch."""
        return batches_of(len(pairs), _BATCH)

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """Cosine of each pair, clipped at 0."""
        # The encoder truncates silently, so texts are split into windows that fit.
        results = [self._windows.split(pair.result.text, self._windows.most) for pair in pairs]
        statements = [self._windows.split(statement(pair.instruction), None)[0] for pair in pairs]
        windows = [*statements, *(passages for passages, _ in results)]
        texts = list(dict.fromkeys(chain.from_iterable(windows)))
        vectors = self._model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        row = {text: i for i, text in enumerate(texts)}
        scores = []
        for pair, queries, (passages, cut_tokens) in zip(pairs, statements, results, strict=True):
            if not pair.instruction.output.strip():
                scores.append(Score(None, "no_response", cut_tokens))
                continue
            best = max(float(vectors[row[a]] @ vectors[row[b]]) for a in queries for b in passages)
            scores.append(Score(min(max(best, 0.0), 1.0), cut_tokens=cut_tokens))
        return scores


class Overlap:
    """Share of the statement's words that also occur in the result, without stop words."""

    name = "overlap"
    threshold = 0.5

    def describe(self) -> dict[str, Any]:
        """Everything about the labeler that decides its scores."""
        return {"labeler": self.name, "version": 1}

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Batches in order."""
        return batches_of(len(pairs), 4096)

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """Share of words of each pair."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        def words(text: str) -> set[str]:
            return {word for word in _WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS}

        scores = []
        for pair in pairs:
            if not pair.instruction.output.strip():
                scores.append(Score(None, "no_response"))
                continue
            stated = words(statement(pair.instruction))
            scores.append(Score(len(stated & words(pair.result.text)) / len(stated) if stated else 0.0))
        return scores
