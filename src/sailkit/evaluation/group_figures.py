"""The figures of the runs of a group, and their means with intervals over training seeds and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sailkit.errors import UserError
from sailkit.evaluation.figures import Truth
from sailkit.evaluation.flagging import flagging_over_seeds
from sailkit.evaluation.group_results import GroupFigures
from sailkit.evaluation.groups import RunGroup
from sailkit.evaluation.selective import selective_over_seeds
from sailkit.records import Prediction
from sailkit.stats import metrics
from sailkit.stats.seeds import SeedFigures, over_seeds, seed_auroc, seed_figures

_COUNT_STATISTICS = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "balanced_accuracy": metrics.balanced_accuracy,
}


@dataclass(frozen=True)
class TrueLabels:
    """The items on which all runs are judged.

    Attributes:
        labels: Id -> true label.
        units: Id -> its unit of resampling.
        grouped: Whether units are groups of items.
    """

    labels: dict[str, str]
    units: dict[str, str]
    grouped: bool

    @property
    def number(self) -> int:
        """Number of units."""
        return len({*self.units.values()})


def true_labels(groups: Sequence[RunGroup], against: Truth) -> TrueLabels:
    """The true label of each item; a reference label counts if it is the same in all runs that have one.

    Args:
        groups: The groups.
        against: The data set's own labels (human), or those of a reference model.

    Raises:
        UserError: No item has such a label.
    """
    by_run = [{p.id: p for p in run.predictions} for group in groups for run in group.runs.values()]
    labels, units = {}, {}
    for item, first in by_run[0].items():
        given = {p.gold if against == "human" else p.reference for p in (rows[item] for rows in by_run)} - {None}
        if len(given) == 1:
            labels[item] = str(given.pop())
            units[item] = next((rows[item].group for rows in by_run if rows[item].group), first.id)
    if not labels:
        names = " and ".join(group.name for group in groups)
        raise UserError(f"{names} share no {against} labels; see `against`")
    return TrueLabels(labels, units, any(p.group for rows in by_run for p in rows.values()))


def figures_of_runs(group: RunGroup, truth: TrueLabels, labels: Sequence[str]) -> dict[str, SeedFigures]:
    """Each figure of every run: `accuracy`, `macro_f1`, `balanced_accuracy`, and `auroc` if all items have scores.

    If the models verify their search results, also the figures of `selective_over_seeds`.

    Args:
        group: The runs.
        truth: The items and their labels.
        labels: The labels of the task.
    """
    row = {unit: i for i, unit in enumerate(dict.fromkeys(truth.units.values()))}
    units = [row[truth.units[item]] for item in truth.labels]
    golds = list(truth.labels.values())
    by_id = [{p.id: p for p in run.predictions} for run in group.runs.values()]
    runs = [[predictions[item] for item in truth.labels] for predictions in by_id]
    tables = [metrics.confusion_by_unit(golds, [p.predicted for p in run], labels, units) for run in runs]
    figures = {name: seed_figures(tables, statistic) for name, statistic in _COUNT_STATISTICS.items()}
    auroc = _auroc(runs, golds, labels, units)
    return figures | ({"auroc": auroc} if auroc else {}) | selective_over_seeds(runs, golds, labels, units)


def _auroc(
    runs: Sequence[Sequence[Prediction]], golds: Sequence[str], labels: Sequence[str], units: Sequence[int]
) -> SeedFigures | None:
    """The area that `metrics.auroc` defines; None unless every item has scores, and each class is in two units."""
    if not all(prediction.scores for run in runs for prediction in run):
        return None
    classes = labels[1:] if len(labels) == 2 else [label for label in labels if label in golds]
    return seed_auroc(
        [[gold == label for gold in golds] for label in classes],
        [[[prediction.scores[label] for prediction in run] for label in classes] for run in runs],
        units,
    )


def mean_figures(group: RunGroup, figures: Mapping[str, SeedFigures]) -> GroupFigures:
    """The means of the figures of a group's runs.

    Args:
        group: The runs.
        figures: See `figures_of_runs`.
    """
    return GroupFigures(
        name=group.name,
        runs=tuple(group.runs),
        by_run={name: tuple(map(float, of.figures)) for name, of in figures.items()},
        figures={name: over_seeds(of, least=0.0).estimate for name, of in figures.items()},
        flagging=flagging_over_seeds([run.predictions for run in group.runs.values()]),
    )


def group_figures(group: RunGroup, against: Truth = "human") -> GroupFigures:
    """The mean figures of a group of runs with their intervals over seeds and items.

    Args:
        group: The runs.
        against: The data set's own labels (human), or those of a reference model.
    """
    return mean_figures(group, figures_of_runs(group, true_labels([group], against), group.first.labels))
