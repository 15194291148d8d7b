"""Evaluate flagging: whether a model judges the same search results distracting as the labels.

All possible verification sentences are scored, and the likeliest is the model's verdict. An untrained model would
seldom generate such a sentence; scoring makes it comparable with a trained one.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from sailkit.distributed import Processes
from sailkit.models.local import LocalModel
from sailkit.prompts.sail import MOST_VERIFIED, ExampleRenderer, Order, UnfitExampleError, every_judgement
from sailkit.records import SearchResult, TrainingExample, Verdict


def flagging(
    model: LocalModel,
    examples: Sequence[TrainingExample],
    max_length: int,
    processes: Processes | None = None,
    order: Order = "verify-first",
) -> dict[str, Any]:
    """Compare a model's verdicts with the labels of held-out examples.

    Args:
        model: The model.
        examples: Labelled examples; those without judged search results, or with more than six, are skipped.
        max_length: Maximum tokens of a rendered example, as in training.
        processes: The process group; every process has to call this function, and gets the figures of all rows.
        order: Order of the completion; with `answer-first`, sentences are scored after the example's response.

    Returns:
        `results` (number of scored search results), `rows`, and, against the labels: `mcc`, `auroc` of P(distracting),
        `accuracy`, `precision` and `recall` of distracting; None where undefined.
    """
    flags = _flags_of(model, examples, max_length, processes or Processes(), order)
    return {"rows": len({flag.example_id for flag in flags}), "results": len(flags), **_figures(flags)}


def verdicts(model: LocalModel, examples: Sequence[TrainingExample], max_length: int) -> dict[str, tuple[bool, ...]]:
    """Example id -> which of its search results the model judges distracting; scored as in `flagging`."""
    predicted: defaultdict[str, list[bool]] = defaultdict(list)
    for flag in _flags_of(model, examples, max_length, Processes()):
        predicted[flag.example_id].append(flag.predicted)
    return {example_id: tuple(flags) for example_id, flags in predicted.items()}


class _Flag(NamedTuple):
    """Label and verdict of a search result, True for distracting, and the model's probability of distracting."""

    example_id: str
    labelled: bool
    predicted: bool
    probability: float


def _flags_of(
    model: LocalModel,
    examples: Sequence[TrainingExample],
    max_length: int,
    processes: Processes,
    order: Order = "verify-first",
) -> list[_Flag]:
    renderer = ExampleRenderer(model.tokenizer, model.date, order)
    prompts: dict[tuple[str, int], list[tuple[TrainingExample, tuple[int, ...]]]] = {}
    for example in examples:
        if not 1 <= len(example.judgements) <= MOST_VERIFIED:
            continue
        try:
            rendered = renderer.render(example, max_length)
        except UnfitExampleError:
            continue
        prompt = rendered.ids[: rendered.verification[0]]
        prompts.setdefault((example.style, len(example.results)), []).append((example, prompt))
    batches = []
    for (style, n), rows in prompts.items():
        sentences = sentence_ids(renderer, style, n)
        plan = model.plan_ids([len(ids) for _, ids in rows], sentences)
        batches += [(sentences, n, [rows[i] for i in indices]) for indices in plan]
    flags: list[_Flag] = []
    for (sentences, n, batch), counts in processes.shard(batches):
        scores = model.score_ids([ids for _, ids in batch], sentences)  # even a repeat: see `shard`
        if counts:
            flags += _read_scores(n, [example for example, _ in batch], scores)
    return processes.gather(flags)


def _read_scores(n: int, examples: Sequence[TrainingExample], scores: Sequence[Sequence[float]]) -> Iterator[_Flag]:
    """Marginalise the scores of all verification sentences of n results into a flag for each result."""
    for example, row in zip(examples, scores, strict=True):
        for label, verdict, probability in zip(example.judgements, *marginals(n, row), strict=True):
            yield _Flag(example.id, label == "distracting", verdict == "distracting", probability)


def marginals(n: int, scores: Sequence[float]) -> tuple[tuple[Verdict, ...], tuple[float, ...]]:
    """The verdicts of the likeliest verification sentence of n results, and P(distracting) of each result.

    Args:
        n: Number of search results.
        scores: Log-probability of each sentence, in the order of `every_judgement`.
    """
    judgements = every_judgement(n)
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    distracting = (
        sum(weight for weight, verdicts in zip(weights, judgements, strict=True) if verdicts[i] == "distracting")
        for i in range(n)
    )
    return judgements[scores.index(best)], tuple(weight / sum(weights) for weight in distracting)


def distinct_prefixes(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Truncate each sequence after the first token that distinguishes it from all others."""
    prefixes = []
    for sequence in sequences:
        shared = (_shared_length(sequence, other) for other in sequences if other != sequence)
        prefixes.append(sequence[: max(shared, default=0) + 1])
    return prefixes


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@cache
def _blank(style: str, n: int) -> TrainingExample:
    results = tuple(SearchResult("text", "title") for _ in range(n))
    judgement: Verdict = "informative"
    return TrainingExample("", "do", "", results, (judgement,) * n, "done", style)


def sentence_ids(renderer: ExampleRenderer, style: str, n: int) -> list[tuple[int, ...]]:
    """Token ids of every verification sentence of n results, in the order of `every_judgement`.

    Each is truncated after the first token that distinguishes it from all others.
    """
    blank = _blank(style, n)
    variants = (renderer.render(replace(blank, judgements=judgements)) for judgements in every_judgement(n))
    return distinct_prefixes([variant.ids[variant.verification[0] :] for variant in variants])


def _figures(flags: Sequence[_Flag]) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score

    if not flags:
        return dict.fromkeys(("mcc", "auroc", "accuracy", "precision", "recall"))
    _, labelled, predicted, probabilities = zip(*flags, strict=True)
    both = len(set(labelled)) == 2
    return {
        "mcc": float(matthews_corrcoef(labelled, predicted)) if both else None,
        "auroc": float(roc_auc_score(labelled, probabilities)) if both else None,
        "accuracy": float(accuracy_score(labelled, predicted)),
        "precision": float(precision_score(labelled, predicted)) if any(predicted) else None,
        "recall": float(recall_score(labelled, predicted)) if any(labelled) else None,
    }
