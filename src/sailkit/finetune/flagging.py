"""Does a model flag search results as the labels do? Every possible verification sentence is scored, the best counts.

Scoring gives a model that has never seen the form the same chance as one that was trained on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, get_args

from sailkit.models.local import LocalModel
from sailkit.records import SearchResult, TrainingExample, Verdict
from sailkit.styles import ExampleRenderer, TooLongError

_MOST_RESULTS = 6  # two to the power of this many sentences are scored


def flagging(model: LocalModel, examples: Sequence[TrainingExample], max_length: int) -> dict[str, Any]:
    """Compare a model's verdicts with the labels of held-out examples.

    Args:
        model: Who flags.
        examples: Labelled examples; those without search results, or with more than six, are passed over.
        max_length: Tokens of a rendered example, as in training.

    Returns:
        `results` (how many were flagged), `rows`, and, against the labels: `mcc`, `auroc` of P(distracting),
        `accuracy`, `precision` and `recall` of distracting; None where they are not defined.
    """
    renderer = ExampleRenderer(model.tokenizer)
    prompts: dict[tuple[str, int], list[tuple[TrainingExample, tuple[int, ...]]]] = {}
    for one in examples:
        if not 1 <= len(one.results) <= _MOST_RESULTS:
            continue
        try:
            rendered = renderer.render(one, max_length)
        except TooLongError:
            continue
        prompt = rendered.ids[: rendered.completion_mask.index(True)]
        prompts.setdefault((one.style, len(one.results)), []).append((one, prompt))
    said: list[float] = []
    meant: list[bool] = []
    decided: list[bool] = []
    for (style, n), rows in prompts.items():
        sets = list(product(get_args(Verdict), repeat=n))
        answers = distinct(_sentences(renderer, style, n))
        for batch in _batches(rows, model.batch_tokens, max(map(len, answers))):
            for (one, _), scores in zip(batch, model.score_ids([ids for _, ids in batch], answers), strict=True):
                top = max(scores)
                shares = [math.exp(score - top) for score in scores]
                best = sets[scores.index(top)]
                for place, verdict in enumerate(one.judgements):
                    bad = sum(
                        share for share, chosen in zip(shares, sets, strict=True) if chosen[place] == "distracting"
                    )
                    said.append(bad / sum(shares))
                    decided.append(best[place] == "distracting")
                    meant.append(verdict == "distracting")
    return {"rows": sum(map(len, prompts.values())), "results": len(meant), **_figures(meant, decided, said)}


def distinct(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each sequence up to the token that tells it from all others; what follows is no decision any more."""
    found = []
    for one in sequences:
        others = [other for other in sequences if other != one]
        shared = (sum(1 for _ in _common(one, other)) for other in others)
        found.append(one[: max(shared, default=0) + 1])
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> Any:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


@cache
def _blank(style: str, n: int) -> TrainingExample:
    results = tuple(SearchResult("text", "title") for _ in range(n))
    verdict: Verdict = "informative"
    return TrainingExample("", "do", "", results, (verdict,) * n, "done", style)


def _sentences(renderer: ExampleRenderer, style: str, n: int) -> list[tuple[int, ...]]:
    """Token ids of every verification sentence of n results, in the order of `product`."""
    blank = _blank(style, n)
    every = product(get_args(Verdict), repeat=n)
    return [renderer.render(replace(blank, judgements=verdicts)).supervised for verdicts in every]


def _batches(rows: Sequence[Any], budget: int, reserve: int) -> list[list[Any]]:
    """Rows of like length together, within a budget of tokens."""
    batches: list[list[Any]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: -len(row[1])):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = len(row[1]) + reserve
        batches[-1].append(row)
    return batches


def _figures(meant: Sequence[bool], decided: Sequence[bool], said: Sequence[float]) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score

    if not meant:
        return dict.fromkeys(("mcc", "auroc", "accuracy", "precision", "recall"))
    both = len(set(meant)) == 2
    return {
        "mcc": float(matthews_corrcoef(meant, decided)) if both else None,
        "auroc": float(roc_auc_score(meant, said)) if both else None,
        "accuracy": float(accuracy_score(meant, decided)),
        "precision": float(precision_score(meant, decided)) if any(decided) else None,
        "recall": float(recall_score(meant, decided)) if any(meant) else None,
    }
