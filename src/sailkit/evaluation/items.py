"""Collects all items of sets of predictions as one JSON value, for the list in an HTML report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sailkit.records import Prediction
from sailkit.stats import metrics


def collect_items(
    names: Sequence[str],
    sets: Sequence[Sequence[Prediction]],
    truths: Sequence[Sequence[str | None]],
    labels: Sequence[str],
    reasons: Sequence[Sequence[tuple[str, str]]],
) -> dict[str, Any]:
    """Join the items of all sets by id, and return them column by column.

    Args:
        names: Names of the sets.
        sets: Their predictions; the first decides the order.
        truths: The true label of each prediction.
        labels: The task's labels.
        reasons: Why each prediction has no label; see `sailkit.evaluation.unreadable`.

    Returns:
        A JSON value. Labels are numbers; the beginning and end that all prompts of a set share are written once; a
        prompt that equals the first set's is 0.
    """
    numbers = {name: i for i, name in enumerate((*labels, *metrics.NOT_ANSWERED))}
    order = [p.id for p in sets[0]]
    rows, truth, silent = [], [], []
    for predictions, true_labels, why in zip(sets, truths, reasons, strict=True):
        index = {p.id: i for i, p in enumerate(predictions)}
        indices = [index[item] for item in order]
        rows.append([predictions[i] for i in indices])
        truth.append([true_labels[i] for i in indices])
        silent.append([why[i] for i in indices])
    prompts = [_prompts(predictions) for predictions in rows]
    return {
        "labels": list(labels),
        "ids": order,
        "texts": [next((p.text for p in item if p.text), "") for item in zip(*rows, strict=True)],
        "truths": [sorted({numbers[t] for t in item if t is not None}) for item in zip(*truth, strict=True)],
        "sets": [
            {
                "name": name,
                "prompts": _squeeze(steps, prompts[0] if i else []),
                **_columns(predictions, true_labels, labels, numbers),
                "why": [": ".join(filter(None, of_item)) for of_item in why],
            }
            for i, (name, steps, predictions, true_labels, why) in enumerate(
                zip(names, prompts, rows, truth, silent, strict=True)
            )
        ],
    }


def _columns(
    rows: Sequence[Prediction], truth: Sequence[str | None], labels: Sequence[str], numbers: Mapping[str, int]
) -> dict[str, Any]:
    words = {word: numbers.get(answer.label) for p in rows for word, answer in p.answers.items()}

    def column(value: Callable[[Prediction], Any]) -> list[Any] | None:
        values = [value(p) or None for p in rows]
        return values if any(values) else None

    def logprobs(p: Prediction) -> list[float | None]:
        known = {word: answer.logprob for word, answer in p.answers.items() if math.isfinite(answer.logprob)}
        return [round(known[word], 6) if word in known else None for word in words] if p.answers else []

    return {
        "answers": [numbers[p.predicted] for p in rows],
        "right": [None if label is None else p.label == label for p, label in zip(rows, truth, strict=True)],
        "scored": [p.answered_by == "logprob" for p in rows],
        "outputs": [[*(turn["raw_output"] for turn in p.turns), p.raw_output] for p in rows],
        "words": list(words.items()),
        "scores": column(lambda p: [round(p.scores.get(label, 0.0), 6) for label in labels] if p.scores else None),
        "logprobs": column(logprobs),
        "tokens": column(lambda p: [p.prompt_tokens, p.completion_tokens, p.cut_tokens] if p.prompt_tokens else None),
        "fingerprints": column(lambda p: p.prompt_fingerprint),
        "gold": column(lambda p: p.gold),
        "reference": column(lambda p: p.reference),
        "recorded": column(lambda p: p.recorded),
    }


def _prompts(rows: Sequence[Prediction]) -> list[list[str]]:
    """The prompts of each step of the protocol; "" if an item had fewer steps."""
    prompts = [[*(str(turn["prompt"]) for turn in p.turns), p.prompt] for p in rows]
    steps = max(map(len, prompts), default=1)
    return [[of_item[step] if step < len(of_item) else "" for of_item in prompts] for step in range(steps)]


def _squeeze(steps: Sequence[Sequence[str]], first: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """For each step, the common beginning and end of all prompts, and the text between them."""
    squeezed = []
    for step, texts in enumerate(steps):
        head = os.path.commonprefix(texts)  # noqa: RUF071 - text, not paths
        rests = [text[len(head) :] for text in texts]
        tail = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
        middles: list[str | int] = [rest[: len(rest) - len(tail)] for rest in rests]
        if step < len(first):
            middles = [0 if a == b else middle for a, b, middle in zip(texts, first[step], middles, strict=True)]
        squeezed.append({"head": head, "tail": tail, "middles": middles})
    return squeezed
