"""Metrics on confusion counts, with intervals, baselines and paired tests.

Everything that has an interval is a function of counts, so none needs a loop over items or depends on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sailkit.stats.intervals import ALPHA, Counts, Estimate, Floats, Units, proportion, resample

NOT_ANSWERED = ("unreadable", "refused")
# Counts, or counts of weighted items.
Confusion = Counts | Floats


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Counts:
    """Count items by gold label and outcome.

    Args:
        gold: The true label of each item.
        predicted: A label, `unreadable` or `refused` for each item.
        labels: The task's labels.

    Returns:
        Counts of shape (labels, labels + 2); the last two columns are `unreadable` and `refused`.
    """
    row = {label: i for i, label in enumerate(labels)}
    column = {label: i for i, label in enumerate((*labels, *NOT_ANSWERED))}
    counts = np.zeros((len(row), len(column)), dtype=np.int64)
    np.add.at(counts, ([row[g] for g in gold], [column[p] for p in predicted]), 1)
    return counts


def confusion_units(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str], groups: Sequence[str] | None = None
) -> Units:
    """The units that are resampled for intervals; see `confusion`.

    Args:
        gold: The true label of each item.
        predicted: A label, `unreadable` or `refused` for each item.
        labels: The task's labels.
        groups: The group of each item, if groups are resampled; None if items are.
    """
    return Units.of_cells(_cells(gold, predicted, labels), (len(labels), len(labels) + len(NOT_ANSWERED)), groups)


def confusion_by_unit(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str], units: Sequence[int], number: int = 0
) -> Counts:
    """The counts of each unit, shape (units, K, K + 2); see `confusion`.

    Args:
        gold: The true label of each item.
        predicted: A label, `unreadable` or `refused` for each item.
        labels: The task's labels, K.
        units: The unit of each item, numbered from 0.
        number: Number of units; by default those up to the last one that occurs.
    """
    table = np.zeros((number or max(units) + 1, len(labels), len(labels) + len(NOT_ANSWERED)), dtype=np.int64)
    np.add.at(table, (units, *_cells(gold, predicted, labels).T), 1)
    return table


def _cells(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Counts:
    """Row and column of each item in a confusion matrix, shape (items, 2)."""
    index = {name: i for i, name in enumerate((*labels, *NOT_ANSWERED))}
    pairs = [[index[g], index[p]] for g, p in zip(gold, predicted, strict=True)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def accuracy(counts: Confusion) -> Floats:
    """Share of items with the right label; an item without a label is wrong. Counts (..., K, K + 2) to (...)."""
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def class_f1(counts: Confusion) -> Floats:
    """F1 of each class, 2 TP / (2 TP + FP + FN); 0 where the class neither occurs nor is predicted.

    Args:
        counts: Shape (..., K, K + 2).

    Returns:
        Shape (..., K).
    """
    labels = counts.shape[-2]
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return ratio(2 * hit, counts.sum(-1) + counts[..., :labels].sum(-2))


def macro_f1(counts: Confusion) -> Floats:
    """Mean of the class F1s over all labels of the task."""
    return np.asarray(class_f1(counts).mean(-1))


def weighted_f1(counts: Confusion) -> Floats:
    """Mean of the class F1s weighted by how often each class is the gold label."""
    return ratio((class_f1(counts) * counts.sum(-1)).sum(-1), counts.sum((-2, -1)))


def balanced_accuracy(counts: Confusion) -> Floats:
    """Mean recall over the classes that occur among the gold labels."""
    return ratio(_recalls(counts).sum(-1), np.count_nonzero(counts.sum(-1), axis=-1))


def recall(counts: Confusion, label: int) -> Floats:
    """Share of the items of a class, given by its index, that are predicted to be of it."""
    return np.asarray(_recalls(counts)[..., label])


def _recalls(counts: Confusion) -> Floats:
    return ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def mcc(counts: Confusion) -> Floats:
    """Matthews correlation for any number of classes (Gorodkin 2004); unreadable and refused are classes, too."""
    total = counts.sum((-2, -1)).astype(float)
    truth = counts.sum(-1).astype(float)
    predicted = counts.sum(-2).astype(float)
    hit = np.trace(counts, axis1=-2, axis2=-1)
    labels = counts.shape[-2]
    covariance = hit * total - (truth * predicted[..., :labels]).sum(-1)
    variances = (total**2 - (margin**2).sum(-1) for margin in (predicted, truth))
    # Where all items are of one class the variance is 0, but of weighted counts it comes out as a rounding error.
    product = math.prod(np.where(variance > 1e-12 * total**2, variance, 0.0) for variance in variances)
    return ratio(covariance, np.sqrt(product))


def ratio(top: ArrayLike, bottom: ArrayLike) -> Floats:
    """`top / bottom`, and 0 where `bottom` is 0."""
    over, under = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
    out: Floats = np.zeros(np.broadcast_shapes(over.shape, under.shape))
    np.divide(over, under, out=out, where=under > 0)
    return out


STATISTICS: Mapping[str, Callable[[Confusion], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "mcc": mcc,
}


def confusion_estimates(
    counts: Counts | Units, labels: Sequence[str], seed: int = 0, names: Collection[str] | None = None
) -> dict[str, Estimate]:
    """Statistics of a confusion table with their intervals.

    Args:
        counts: Shape (K, K + 2); or resampling units, if items are in groups.
        labels: Names of the K classes.
        seed: The run's seed.
        names: The statistics to estimate; by default all.

    Returns:
        Estimates by name; a class's F1 is named `f1_<label>`.
    """
    units = counts if isinstance(counts, Units) else Units.of_counts(counts)
    resampled = resample(units, seed)
    statistics = {**STATISTICS, **{f"f1_{label}": _f1_of(i) for i, label in enumerate(labels)}}
    estimates = {
        name: resampled.estimate(statistic) for name, statistic in statistics.items() if names is None or name in names
    }
    if units.single and "accuracy" in estimates:  # the exact interval, without the noise of resampling
        estimates["accuracy"] = proportion(int(np.trace(units.table)), int(units.table.sum()))
    return estimates


def _f1_of(index: int) -> Callable[[Floats], Floats]:
    return lambda counts: np.asarray(class_f1(counts)[..., index])


def majority_accuracy(counts: Counts) -> float:
    """Accuracy of always answering the most frequent gold label."""
    return float(counts.sum(-1).max() / max(counts.sum(), 1))


def majority_macro_f1(counts: Counts) -> float:
    """Macro-F1 of always answering the most frequent gold label."""
    constant = np.zeros_like(counts)
    constant[:, int(counts.sum(-1).argmax())] = counts.sum(-1)
    return float(macro_f1(constant))


def prior_accuracy(counts: Counts) -> float:
    """Expected accuracy of guessing each label as often as it occurs."""
    shares = counts.sum(-1) / max(counts.sum(), 1)
    return float((shares**2).sum())


def bounds(counts: Counts) -> tuple[float, float]:
    """Accuracy if every item without a label counts as wrong, and if every one counts as right."""
    labels = counts.shape[-2]
    total = max(int(counts.sum()), 1)
    hit = int(np.trace(counts))
    return hit / total, (hit + int(counts[:, labels:].sum())) / total


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa between two labellings (Cohen 1960); None where both are the same constant."""
    names = {name: i for i, name in enumerate(sorted({*first, *second}))}
    if len(names) < 2:
        return None
    table = np.zeros((len(names), len(names)))
    np.add.at(table, ([names[a] for a in first], [names[b] for b in second]), 1)
    return float(kappa_of(table))


def kappa_of(tables: Floats) -> Floats:
    """Cohen's kappa from a contingency table of two labellings; NaN where both are the same constant.

    Args:
        tables: Counts of shape (..., labels of the first, labels of the second); the result has shape (...).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum((-2, -1), keepdims=True)
        expected = (shares.sum(-1) * shares.sum(-2)).sum(-1)
        return np.asarray((np.trace(shares, axis1=-2, axis2=-1) - expected) / (1 - expected))


def auroc(gold: Sequence[str], scores: Sequence[Mapping[str, float]], labels: Sequence[str]) -> float | None:
    """Area under the ROC curve: of the second label against the first for two, macro one-against-rest for more.

    Args:
        gold: True labels, n.
        scores: Probability of each label, n.
        labels: The task's labels.

    Returns:
        The area, or None where fewer than two classes occur.
    """
    from sklearn.metrics import roc_auc_score

    present = [label for label in labels if label in set(gold)]
    if len(present) < 2:
        return None
    areas = [
        roc_auc_score([g == label for g in gold], [s[label] for s in scores])
        for label in (present if len(labels) > 2 else present[1:])
    ]
    return float(np.mean(areas))


def weighted_auroc(gold: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve for each row of weights, ties counted half (Mann-Whitney).

    Args:
        gold: Whether each item is positive, n.
        scores: Its score, n.
        weights: Weights of the items, shape (resamples, n).
    """
    # Weights are summed for each distinct score, so all resamples share one sort.
    values, rank = np.unique(scores, return_inverse=True)
    positive, negative = (np.zeros((len(weights), len(values))) for _ in range(2))
    for table, kind in ((positive, gold), (negative, ~gold)):
        order = np.argsort(rank[kind], kind="stable")
        ranks, starts = np.unique(rank[kind][order], return_index=True)
        table[:, ranks] = np.add.reduceat(weights[:, kind][:, order], starts, axis=1)
    below = np.cumsum(negative, 1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Floats = (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
    return areas


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins of confidence (Naeini et al. 2015; Guo et al. 2017)."""
    conf, hit = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    bin_of = np.minimum((conf * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, conf - hit, minlength=bins)
    return float(np.abs(gap).sum() / max(len(conf), 1))


def mcnemar(only_a: int, only_b: int) -> float:
    """P-value of the two-sided exact McNemar test: a binomial test of the split of the discordant items."""
    from scipy.special import bdtr  # scipy.stats would cost a second to import

    both = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), both, 0.5))) if both else 1.0


def sign_flip(differences: Sequence[int]) -> float:
    """Two-sided exact sign-flip test of paired differences, one for each group of items.

    If neither of the two is better, each group's difference is equally likely to have the opposite sign; items of one
    group need not be independent. With groups of one item it is McNemar's exact test.

    Args:
        differences: For each group, how many more items the first has right than the second.
    """
    probabilities = np.ones(1)  # of every sum of signed differences, from the least to the greatest
    for size in filter(None, map(abs, differences)):
        shifted = np.zeros(len(probabilities) + 2 * size)
        shifted[: len(probabilities)] += probabilities / 2
        shifted[2 * size :] += probabilities / 2
        probabilities = shifted
    sums = np.arange(len(probabilities)) - len(probabilities) // 2
    return min(1.0, float(probabilities[np.abs(sums) >= abs(sum(differences))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values for several comparisons (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def minimum_detectable_difference(discordant: float, n: float, power: float = 0.8, level: float = ALPHA) -> float:
    """The accuracy difference that McNemar's test detects with the given power, by the normal approximation.

    Args:
        discordant: Items on which exactly one of the two is right.
        n: All items; for items in groups, divide both numbers by the design effect.
        power: Probability of detecting a true difference of that size.
        level: The test's level.

    Returns:
        A difference in accuracy (Connor 1987, solved for the difference).
    """
    from scipy.special import gammaincinv, ndtri

    # Fewer discordant items than `needed` are never significant, however they split. The difference itself causes
    # discordant items: it must be large enough to cause that many (a Poisson count) with the given power.
    needed = math.floor(math.log2(2 / level)) + 1
    least = float(gammaincinv(needed, power))
    if n <= least:
        return 1.0
    za, zb = float(ndtri(1 - level / 2)), float(ndtri(power))
    share = max(discordant, least) / n
    # share * za + zb * sqrt(share - d^2) = d * sqrt(n) with sqrt(share) in the first term; solved for d.
    a, b = n + zb**2, za * math.sqrt(share * n)
    d = (b + math.sqrt(max(b**2 - a * (za**2 - zb**2) * share, 0.0))) / a
    return min(d, share)
