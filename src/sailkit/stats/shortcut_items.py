"""The items of a shortcut audit: a task's examples, or the answers and judgements of training examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sailkit.records import Example, TrainingExample
from sailkit.stats.overlap import overlap_groups
from sailkit.stats.shortcuts import Encode, ShortcutBaseline, ShortcutItem, sampled, shortcut_baselines

GROUPS = "groups.json"  # row of `train.jsonl` -> group of the example from which `build-task` drew it
_CLOSED = 0.9  # share of rows whose answer is frequent, from which the answers are labels rather than texts


def example_items(examples: Iterable[Example]) -> list[ShortcutItem]:
    """The label of each example that has one."""
    return [
        ShortcutItem(example.id, example.label, example.group, example.text, example.evidence)
        for example in examples
        if example.label is not None
    ]


def training_baselines(
    rows: Sequence[tuple[str, TrainingExample]], seed: int, encode: Encode | None = None
) -> dict[str, list[ShortcutBaseline]]:
    """Baselines for the answers of training examples, if they are labels, and for the judgements of their results.

    Args:
        rows: The group of each example, and the example.
        seed: Seed of the folds and the bootstrap.
        encode: Embeds texts; None to leave out baselines on sentence embeddings.

    Returns:
        `answer` and `judgement` -> the baselines; without those that the rows do not allow.
    """
    targets = {"answer": _answers(rows, seed), "judgement": sampled(_judgements(rows), seed)}
    baselines = {target: shortcut_baselines(items, seed, encode) for target, items in targets.items()}
    baselines["judgement"] = question_baselines(rows, seed) + baselines["judgement"]
    return {target: rows_of for target, rows_of in baselines.items() if rows_of}


def question_baselines(rows: Sequence[tuple[str, TrainingExample]], seed: int = 0) -> list[ShortcutBaseline]:
    """The baselines that predict a result's judgement from the question alone; none if the rows do not allow any.

    How a question is worded must not tell the judgement: in a mixture of data sets, one may show distracting results
    only beside questions that offer "Undecided" as an answer. Questions about the same claim are in the same fold.

    Args:
        rows: As in `training_baselines`.
        seed: Seed of the folds and the bootstrap.
    """
    items = [
        ShortcutItem(f"{row.id}/{index}", verdict, group, _question(row), ())
        for group, row in rows
        for index, verdict in enumerate(row.judgements)
    ]
    baselines = shortcut_baselines(sampled(items, seed), seed)
    return [replace(baseline, view="question") for baseline in baselines if baseline.view == "claim"]


def by_question(rows: Iterable[TrainingExample]) -> list[tuple[str, TrainingExample]]:
    """Each row with its group: the id of the first row that asks the same, without regard to case and punctuation."""
    first: dict[tuple[str, ...], str] = {}
    return [(first.setdefault(tuple(re.findall(r"\w+", _question(row).casefold())), row.id), row) for row in rows]


def as_table(baselines: Mapping[str, Sequence[ShortcutBaseline]]) -> list[dict[str, Any]]:
    """The baselines as rows of JSON."""
    return [{"target": target, **row.to_json()} for target, rows_of in baselines.items() for row in rows_of]


def _answers(rows: Sequence[tuple[str, TrainingExample]], seed: int) -> list[ShortcutItem]:
    items = sampled(
        [ShortcutItem(row.id, row.response, group, _question(row), row.results) for group, row in rows], seed
    )
    counts = Counter(row.response for _, row in rows)
    labels = {item.label for item in items}
    return items if sum(counts[label] for label in labels) >= _CLOSED * len(rows) else []


def _judgements(rows: Sequence[tuple[str, TrainingExample]]) -> list[ShortcutItem]:
    """The judgement of each search result, without its question.

    Groups are passages that overlap: a passage is informative for its own claims and distracting for others, and both
    have to be in the same fold and in the same sample.
    """
    judged = [
        (f"{row.id}/{index}", verdict, result)
        for _, row in rows
        for index, (result, verdict) in enumerate(zip(row.results, row.judgements, strict=bool(row.judgements)))
    ]
    groups = overlap_groups([[result.body] for *_, result in judged])
    return [
        ShortcutItem(name, verdict, str(group), "", (result,))
        for (name, verdict, result), group in zip(judged, groups, strict=True)
    ]


def _question(row: TrainingExample) -> str:
    return "\n".join(filter(None, (row.instruction, row.input)))
