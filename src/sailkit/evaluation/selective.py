"""How good the answers are where the model calls a search result informative, and where it calls none so.

Not to answer the other items is selective prediction (El-Yaniv and Wiener 2010): the model's own verdicts select the
items, and coverage is the share that stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sailkit.evaluation.predictions import units_of
from sailkit.records import Prediction
from sailkit.stats import metrics
from sailkit.stats.intervals import Counts, Estimate, Floats, read_estimates, share
from sailkit.stats.seeds import SeedFigures, seed_figures

# Figures over seeds of the items that a model selects and rejects: other items for each model and search.
OF_PARTS = ("selected_accuracy", "rejected_accuracy")


@dataclass(frozen=True, slots=True)
class PartFigures:
    """Figures of a part of the items.

    Attributes:
        n: Number of items.
        accuracy: Accuracy; an answer without a label counts as wrong.
        macro_f1: Macro-F1 of all labels of the task.
        majority_accuracy: Accuracy of always giving the answer that is most frequent in this part.
    """

    n: int
    accuracy: Estimate
    macro_f1: Estimate
    majority_accuracy: float

    def flat(self, prefix: str) -> dict[str, Any]:
        """The figures by their JSON keys."""
        return {
            f"{prefix}n": self.n,
            **self.accuracy.flat(f"{prefix}accuracy"),
            **self.macro_f1.flat(f"{prefix}macro_f1"),
            f"{prefix}majority_accuracy": self.majority_accuracy,
        }

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], prefix: str) -> PartFigures | None:
        """The inverse of `flat`; None if there are no such figures."""
        if f"{prefix}n" not in flat:
            return None
        estimates = read_estimates(flat)
        return cls(
            n=flat[f"{prefix}n"],
            accuracy=estimates[f"{prefix}accuracy"],
            macro_f1=estimates[f"{prefix}macro_f1"],
            majority_accuracy=flat[f"{prefix}majority_accuracy"],
        )


@dataclass(frozen=True, slots=True)
class Selective:
    """Answers with and without a search result that the model calls informative.

    Attributes:
        coverage: Share of the items with such a result.
        selected: The figures of these items; None if there are none.
        rejected: The figures of the other items; None if there are none.
    """

    coverage: Estimate
    selected: PartFigures | None
    rejected: PartFigures | None

    @property
    def figures(self) -> dict[str, Estimate]:
        """All figures with their intervals: `coverage`, `selected_accuracy` ..."""
        return read_estimates(self.flat())

    def flat(self) -> dict[str, Any]:
        """The figures by their JSON keys, such as `coverage`, `selected_accuracy` and `rejected_macro_f1`."""
        parts = (part.flat(f"{name}_") for name in ("selected", "rejected") if (part := getattr(self, name)))
        return self.coverage.flat("coverage") | {key: value for part in parts for key, value in part.items()}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Selective | None:
        """The inverse of `flat`; None if there are no such figures."""
        if "coverage" not in flat:
            return None
        parts = (PartFigures.from_flat(flat, f"{name}_") for name in ("selected", "rejected"))
        return cls(read_estimates(flat)["coverage"], *parts)


def selective(
    predictions: Sequence[Prediction], truths: Sequence[str], labels: Sequence[str], seed: int = 0
) -> Selective | None:
    """The figures of answers with and without a search result that the model calls informative.

    Args:
        predictions: Predictions of a model that verifies; those without search results are skipped.
        truths: The true label of each.
        labels: The task's labels.
        seed: Seed of the bootstrap, over items, or over groups of items.

    Returns:
        The figures; None if the model verified nothing.
    """
    rows = [
        (prediction, truth, selected)
        for prediction, truth in zip(predictions, truths, strict=True)
        if (selected := _is_selected(prediction)) is not None
    ]
    if not rows:
        return None

    def part(chosen: bool) -> PartFigures | None:
        of_part = [(prediction, truth) for prediction, truth, selected in rows if selected == chosen]
        if not of_part:
            return None
        answered, golds = [prediction for prediction, _ in of_part], [truth for _, truth in of_part]
        units = metrics.confusion_units(golds, [p.predicted for p in answered], labels, units_of(answered))
        figures = metrics.confusion_estimates(units, labels, seed, ("accuracy", "macro_f1"))
        constant = metrics.majority_accuracy(units.table)
        return PartFigures(len(of_part), figures["accuracy"], figures["macro_f1"], constant)

    coverage = share([selected for *_, selected in rows], units_of([prediction for prediction, *_ in rows]), seed)
    return Selective(coverage, part(True), part(False))


def selective_over_seeds(
    runs: Sequence[Sequence[Prediction]], truths: Sequence[str], labels: Sequence[str], units: Sequence[int]
) -> dict[str, SeedFigures]:
    """Coverage, and the accuracy of the items of each part, of several models on the same items.

    Args:
        runs: The predictions of each model, in the same order.
        truths: The true label of each item.
        labels: The task's labels.
        units: The unit of resampling of each item, numbered from 0.

    Returns:
        `coverage`, `selected_accuracy` and `rejected_accuracy`; an accuracy only if each model has such items, nothing
        if a model did not verify the results of an item.
    """
    chosen = [[_is_selected(prediction) for prediction in run] for run in runs]
    if any(selected is None for of_run in chosen for selected in of_run):
        return {}
    tables = [_counts_by_unit(*run, truths, labels, units) for run in zip(runs, chosen, strict=True)]
    figures = {"coverage": seed_figures(tables, _coverage)}
    for i, name in enumerate(OF_PARTS):
        if fewest := min(int(table[:, i].any((-2, -1)).sum()) for table in tables):
            figures[name] = seed_figures(tables, partial(_accuracy, part=i), fewest)
    return figures


def _is_selected(prediction: Prediction) -> bool | None:
    """Whether the model calls a search result of the item informative; None if it judged none."""
    verified = [turn for turn in prediction.turns if "verdicts" in turn]
    return any("informative" in (turn["verdicts"] or ()) for turn in verified) if verified else None


def _counts_by_unit(
    run: Sequence[Prediction], chosen: Sequence[bool | None], truths: Sequence[str], labels: Sequence[str],
    units: Sequence[int],
) -> Counts:  # fmt: skip
    """Confusion counts of the selected and the rejected items, shape (units, 2, K, K + 2)."""
    number = max(units) + 1
    answers = [prediction.predicted for prediction in run]
    rows = [unit if selected else number + unit for unit, selected in zip(units, chosen, strict=True)]
    table = metrics.confusion_by_unit(truths, answers, labels, rows, 2 * number)
    return np.stack([table[:number], table[number:]], axis=1)


def _coverage(counts: Floats) -> Floats:
    return metrics.ratio(counts[..., 0, :, :].sum((-2, -1)), counts.sum((-3, -2, -1)))


def _accuracy(counts: Floats, part: int) -> Floats:
    return metrics.accuracy(counts[..., part, :, :])
