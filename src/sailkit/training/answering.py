"""Evaluate the answers of held-out rows: which of the few possible responses a model scores highest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sailkit.distributed import Processes
from sailkit.models.local import LocalModel
from sailkit.prompts.sail import ExampleRenderer, Order, UnfitExampleError
from sailkit.records import TrainingExample
from sailkit.training.flagging import distinct_prefixes

MOST_ANSWERS = 10  # with more distinct responses, rows are not a classification task
_Scored = tuple[str, bool, tuple[float, ...]]  # the response, whether a result is informative, and the probabilities


def answering(
    model: LocalModel,
    examples: Sequence[TrainingExample],
    max_length: int,
    processes: Processes,
    order: Order = "verify-first",
) -> dict[str, float | None]:
    """Compare a model's answers with the responses of held-out examples, each after its labelled verification sentence.

    Args:
        model: The model.
        examples: Held-out examples; all of their responses are the possible answers.
        max_length: Maximum tokens of a rendered example, as in training.
        processes: The process group; every process has to call this function, and gets the figures of all rows.
        order: Order of the completion; with `answer-first`, answers are scored right after the prompt.

    Returns:
        `accuracy`, `macro_f1` and `auroc` (macro, one against rest) of all rows, and with the suffixes `_informative`
        and `_distracting` of rows with and without an informative search result; empty if there are fewer than two or
        more than ten different responses.
    """
    answers = sorted({example.response.strip() for example in examples})
    if not 2 <= len(answers) <= MOST_ANSWERS:
        return {}
    renderer = ExampleRenderer(model.tokenizer, model.date, order)
    groups: dict[tuple[tuple[int, ...], ...], list[tuple[TrainingExample, tuple[int, ...]]]] = {}
    for example in examples:
        try:
            variants = [renderer.render(replace(example, response=answer), max_length) for answer in answers]
        except UnfitExampleError:
            continue
        prompt = variants[answers.index(example.response.strip())]
        continuations = tuple(variant.ids[variant.response :] for variant in variants)
        groups.setdefault(continuations, []).append((example, prompt.ids[: prompt.response]))
    batches = []
    for continuations, rows in groups.items():
        prefixes = distinct_prefixes(continuations)
        plan = model.plan_ids([len(ids) for _, ids in rows], prefixes)
        batches += [(prefixes, [rows[i] for i in indices]) for indices in plan]
    scored: list[_Scored] = []
    for (prefixes, batch), counts in processes.shard(batches):
        scores = model.score_ids([ids for _, ids in batch], prefixes)
        if counts:
            scored += [_read(example, row) for (example, _), row in zip(batch, scores, strict=True)]
    scored = processes.gather(scored)
    figures = _figures(scored, answers, "")
    for suffix, informative in (("_informative", True), ("_distracting", False)):
        figures |= _figures([row for row in scored if row[1] is informative], answers, suffix)
    return figures


def _read(example: TrainingExample, scores: Sequence[float]) -> _Scored:
    weights = [math.exp(score - max(scores)) for score in scores]
    probabilities = tuple(weight / sum(weights) for weight in weights)
    return example.response.strip(), "informative" in example.judgements, probabilities


def _figures(rows: Sequence[_Scored], answers: Sequence[str], suffix: str) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    if not rows:
        return {}
    labelled = [answer for answer, _, _ in rows]
    predicted = [answers[p.index(max(p))] for _, _, p in rows]
    occurring = [answer for answer in answers if answer in labelled or answer in predicted]  # in a part, not all may
    aurocs = [
        roc_auc_score([label == answer for label in labelled], [p[i] for _, _, p in rows])
        for i, answer in enumerate(answers)
        if 0 < labelled.count(answer) < len(labelled)
    ]
    return {
        f"accuracy{suffix}": float(accuracy_score(labelled, predicted)),
        f"macro_f1{suffix}": float(f1_score(labelled, predicted, labels=occurring, average="macro", zero_division=0)),
        f"auroc{suffix}": float(sum(aurocs) / len(aurocs)) if aurocs else None,
    }
