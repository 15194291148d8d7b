"""Whether a model's verdicts on search results, informative or distracting, agree with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sailkit.records import Prediction
from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate, read_estimates, resample, share
from sailkit.stats.seeds import over_seeds, seed_figures

_VERDICTS = ("informative", "distracting")
_NO_VERDICT = "unreadable"


@dataclass(frozen=True, slots=True)
class Flagging:
    """Agreement of verdicts with the labels of search results.

    An item's own results are labelled by people, and those of other items are distracting.

    Attributes:
        results: Number of search results.
        informative: Share of the informative results that the model calls so; None without such results.
        distracting: Share of the distracting results that the model calls so; None without such results.
        mcc: Matthews correlation of verdicts and labels; None unless there are results of both kinds.
    """

    results: int
    informative: Estimate | None
    distracting: Estimate | None
    mcc: Estimate | None

    def flat(self) -> dict[str, Any]:
        """The figures by their JSON keys, such as `flag_mcc`, `flag_mcc_low` and `flag_mcc_high`."""
        flat: dict[str, Any] = {"flag_results": self.results}
        for name in ("informative", "distracting", "mcc"):
            if (estimate := getattr(self, name)) is not None:
                flat |= estimate.flat(f"flag_{name}")
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Flagging | None:
        """The inverse of `flat`; None if there are no such figures."""
        if "flag_results" not in flat:
            return None
        estimates = read_estimates(flat)
        informative, distracting, mcc = (estimates.get(f"flag_{name}") for name in (*_VERDICTS, "mcc"))
        return cls(flat["flag_results"], informative, distracting, mcc)


def flagging(predictions: Sequence[Prediction], seed: int = 0) -> Flagging | None:
    """Compare the verdicts of predictions with the labels of their search results.

    Args:
        predictions: Predictions of a model that verifies; those whose results have no labels are skipped.
        seed: Seed of the bootstrap, over items, or over groups of items.

    Returns:
        The figures; None if no result has both a verdict and a label.
    """
    rows = _labelled(predictions)
    if not rows:
        return None
    labelled, verdicts, groups = map(list, zip(*rows, strict=True))
    informative, distracting = (_recall(label, labelled, verdicts, groups, seed) for label in _VERDICTS)
    units = metrics.confusion_units(labelled, verdicts, _VERDICTS, groups)
    mcc = resample(units, seed).estimate(metrics.mcc) if informative and distracting else None
    return Flagging(len(labelled), informative, distracting, mcc)


def flagging_over_seeds(runs: Sequence[Sequence[Prediction]]) -> Flagging | None:
    """The mean agreement of several models on the same items, with intervals over seeds and items.

    Args:
        runs: The predictions of each model.

    Returns:
        The figures; None if a model has no result with a label.
    """
    by_run = [_labelled(predictions) for predictions in runs]
    if not all(by_run):
        return None
    row = {unit: i for i, unit in enumerate(dict.fromkeys(unit for rows in by_run for *_, unit in rows))}
    tables = [
        metrics.confusion_by_unit(labels, verdicts, _VERDICTS, [row[unit] for unit in units])
        for labels, verdicts, units in (zip(*rows, strict=True) for rows in by_run)
    ]
    units_with = [min(int(table[:, i].any(-1).sum()) for table in tables) for i in range(len(_VERDICTS))]
    informative, distracting = (
        over_seeds(seed_figures(tables, partial(metrics.recall, label=i), units), least=0.0).estimate if units else None
        for i, units in enumerate(units_with)
    )
    both = min(units_with)
    mcc = over_seeds(seed_figures(tables, metrics.mcc, both)).estimate if both else None
    return Flagging(len(by_run[0]), informative, distracting, mcc)


def _labelled(predictions: Sequence[Prediction]) -> list[tuple[str, str, str]]:
    """Label and verdict of each labelled search result, and the unit that is resampled."""
    return [
        (label, verdict, prediction.unit)
        for prediction in predictions
        for turn in prediction.turns
        if (labels := turn.get("judgements"))
        for label, verdict in zip(labels, turn["verdicts"] or [_NO_VERDICT] * len(labels), strict=True)
    ]


def _recall(
    label: str, labelled: Sequence[str], verdicts: Sequence[str], groups: Sequence[str], seed: int
) -> Estimate | None:
    """Share of the results with a label that have the same verdict; None without such results."""
    of_label = [i for i, each in enumerate(labelled) if each == label]
    return share([verdicts[i] == label for i in of_label], [groups[i] for i in of_label], seed) if of_label else None
