"""What a model flags: against every verification sentence scored by itself, in one plain pass each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.prompts.sail import render
from sailkit.training.flagging import flagging, verdicts
from small_rows import example

EXAMPLES = [example(i) for i in range(12)]
LABELS = [judgement == "distracting" for row in EXAMPLES for judgement in row.judgements]


@pytest.fixture(scope="module")
def model(shared) -> LocalModel:
    """A random model that is sure of itself: it flags some results, and not others."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, initializer_range=0.4,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    return LocalModel("random", LlamaForCausalLM(config).eval(), tokenizer, ModelOptions(), {})


def deciding(sentences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each sentence up to the first token that no other one shares with it."""
    return [next(s[:n] for n in range(1, len(s) + 1) if sum(s[:n] == t[:n] for t in sentences) == 1) for s in sentences]


def logprobs(model: Any, row: Any, cut: Callable[[Any], Any]) -> dict[tuple[str, ...], float]:
    """The log-probability of each way to judge the search results of an example, in nats."""
    ways = list(product(("informative", "distracting"), repeat=len(row.results)))
    rendered = [render(replace(row, judgements=way), model.tokenizer) for way in ways]
    prompt = rendered[0].ids[: -len(rendered[0].supervised)]
    scores = []
    for tokens in cut([way.supervised for way in rendered]):
        with torch.inference_mode():
            logits = model.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        scores.append(float(logits.log_softmax(-1)[range(len(tokens)), list(tokens)].sum()))
    return dict(zip(ways, scores, strict=True))


def expected(model: Any, cut: Callable[[Any], Any] = deciding) -> tuple[list[bool], list[float]]:
    """For each search result whether it is flagged, and P(distracting)."""
    decided, likely = [], []
    for row in EXAMPLES:
        scores = logprobs(model, row, cut)
        shares = torch.tensor(list(scores.values()), dtype=torch.float64).softmax(0).tolist()
        for i in range(len(row.results)):
            decided.append(max(scores, key=scores.__getitem__)[i] == "distracting")
            likely.append(sum(p for way, p in zip(scores, shares, strict=True) if way[i] == "distracting"))
    return decided, likely


def test_the_likeliest_sentence_decides_and_its_share_is_the_probability(model):
    decided, likely = expected(model)
    assert {"rows": len(EXAMPLES), "results": len(LABELS)} | {
        "mcc": pytest.approx(matthews_corrcoef(LABELS, decided)),
        "auroc": pytest.approx(roc_auc_score(LABELS, likely)),
        "accuracy": pytest.approx(accuracy_score(LABELS, decided)),
        "precision": pytest.approx(precision_score(LABELS, decided)),
        "recall": pytest.approx(recall_score(LABELS, decided)),
    } == flagging(model, EXAMPLES, 512)
    # By other rules the figures would be others.
    assert roc_auc_score(LABELS, likely) != pytest.approx(0.5)
    assert roc_auc_score(LABELS, expected(model, list)[1]) != pytest.approx(roc_auc_score(LABELS, likely))


def test_verdicts_are_those_of_the_likeliest_sentence(model):
    decided = iter(expected(model)[0])
    assert verdicts(model, EXAMPLES, 512) == {row.id: tuple(next(decided) for _ in row.results) for row in EXAMPLES}
    assert list(decided) == []
