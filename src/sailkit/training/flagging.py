"""Does a model flag search results as the labels do? Every possible verification sentence is scored, the best counts.

Scoring gives a model that has never seen the form the same chance as one that was trained on it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from sailkit.models.batching import batch_by_length
from sailkit.models.local import LocalModel
from sailkit.prompts.sail import MOST_VERIFIED, ExampleRenderer, UnfitExampleError, every_judgement
from sailkit.records import SearchResult, TrainingExample, Verdict
from sailkit.training.distributed import Processes


def flagging(
    model: LocalModel, examples: Sequence[TrainingExample], max_length: int, processes: Processes | None = None
) -> dict[str, Any]:
    """Compare a model's verdicts with the labels of held-out examples.

    Args:
        model: Who flags.
        examples: Labelled examples; those without judged search results, or with more than six, are passed over.
        max_length: Tokens of a rendered example, as in training.
        processes: Those that share the work; each of them returns the figures of the whole.

    Returns:
        `results` (how many were flagged), `rows`, and, against the labels: `mcc`, `auroc` of P(distracting),
        `accuracy`, `precision` and `recall` of distracting; None where they are not defined.
    """
    found = _decided(model, examples, max_length, processes or Processes())
    return {"rows": len({flag.name for flag in found}), "results": len(found), **_figures(found)}


def verdicts(model: LocalModel, examples: Sequence[TrainingExample], max_length: int) -> dict[str, tuple[bool, ...]]:
    """What a model calls distracting: example id -> for each search result whether; as in `flagging`."""
    said: defaultdict[str, list[bool]] = defaultdict(list)
    for flag in _decided(model, examples, max_length, Processes()):
        said[flag.name].append(flag.decided)
    return {name: tuple(flags) for name, flags in said.items()}


class _Flag(NamedTuple):
    """One search result: its example, whether the label and the model call it distracting, and how likely that is."""

    name: str
    meant: bool
    decided: bool
    said: float


def _decided(
    model: LocalModel, examples: Sequence[TrainingExample], max_length: int, processes: Processes
) -> list[_Flag]:
    renderer = ExampleRenderer(model.tokenizer, model.date)
    prompts: dict[tuple[str, int], list[tuple[TrainingExample, tuple[int, ...]]]] = {}
    for one in examples:
        if not 1 <= len(one.judgements) <= MOST_VERIFIED:
            continue
        try:
            rendered = renderer.render(one, max_length)
        except UnfitExampleError:
            continue
        prompt = rendered.ids[: rendered.completion_mask.index(True)]
        prompts.setdefault((one.style, len(one.results)), []).append((one, prompt))
    planned = []
    for (style, n), rows in prompts.items():
        answers = distinct_prefixes(_sentences(renderer, style, n))
        longest = max(map(len, answers))
        batches = batch_by_length([len(ids) + longest for _, ids in rows], model.batch_tokens)
        planned += [(answers, n, [rows[i] for i in batch]) for batch in batches]
    found: list[_Flag] = []
    for (answers, n, batch), counts in processes.shard(planned):
        scores = model.score_ids([ids for _, ids in batch], answers)
        if counts:
            found += _flags(n, [one for one, _ in batch], scores)
    return processes.gather(found)


def _flags(n: int, examples: Sequence[TrainingExample], scores: Sequence[Sequence[float]]) -> Iterator[_Flag]:
    sets = every_judgement(n)
    for one, row in zip(examples, scores, strict=True):
        top = max(row)
        shares = [math.exp(score - top) for score in row]
        best = sets[row.index(top)]
        for place, verdict in enumerate(one.judgements):
            bad = sum(share for share, chosen in zip(shares, sets, strict=True) if chosen[place] == "distracting")
            yield _Flag(one.id, verdict == "distracting", best[place] == "distracting", bad / sum(shares))


def distinct_prefixes(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
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
    """Token ids of every verification sentence of n results, in the order of `every_judgement`."""
    blank = _blank(style, n)
    every = (replace(blank, judgements=verdicts) for verdicts in every_judgement(n))
    return [renderer.render(one).supervised for one in every]


def _figures(found: Sequence[_Flag]) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score

    if not found:
        return dict.fromkeys(("mcc", "auroc", "accuracy", "precision", "recall"))
    _, meant, decided, said = zip(*found, strict=True)
    both = len(set(meant)) == 2
    return {
        "mcc": float(matthews_corrcoef(meant, decided)) if both else None,
        "auroc": float(roc_auc_score(meant, said)) if both else None,
        "accuracy": float(accuracy_score(meant, decided)),
        "precision": float(precision_score(meant, decided)) if any(decided) else None,
        "recall": float(recall_score(meant, decided)) if any(meant) else None,
    }
