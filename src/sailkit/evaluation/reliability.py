"""Groups answers by their probability, to show whether probabilities are calibrated."""

from __future__ import annotations

from sailkit.evaluation.views import View
from sailkit.rendering.model import Bin, Reliability
from sailkit.stats.intervals import share

_BINS = 10  # as for the expected calibration error


def reliability(view: View, seed: int = 0) -> Reliability | None:
    """The share of right answers in equal ranges of the probability of the answer; None without probabilities.

    Args:
        view: A set of predictions.
        seed: Seed of the bootstrap, for items in groups.
    """
    judged = [
        (max(p.scores.values()), p.label == label, p.unit)
        for p, label in zip(view.data.predictions, view.truth, strict=True)
        if p.scores and label is not None
    ]
    grouped = any(p.group for p in view.data.predictions)
    bins = []
    for number in range(_BINS):
        rows = [row for row in judged if min(int(row[0] * _BINS), _BINS - 1) == number]
        if rows:
            right = share([hit for _, hit, _ in rows], [unit for *_, unit in rows] if grouped else None, seed)
            mean = sum(probability for probability, *_ in rows) / len(rows)
            bins.append(Bin(number / _BINS, (number + 1) / _BINS, len(rows), mean, right))
    return Reliability(view.name, bins) if bins else None
