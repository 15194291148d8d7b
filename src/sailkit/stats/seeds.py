"""Figures of several training runs, with intervals over both seeds and items.

Runs that differ only in their seed answer the same items, so that a mean over runs has two crossed sources of variance.
They are analysed as several readers of the same cases are in diagnostic medicine (Obuchowski and Rockette 1995, with
the degrees of freedom of Hillis 2007): the variance of the mean of r runs is S^2 / r + C. S^2, the variance between
runs, is measured with only r - 1 degrees of freedom; C, the covariance of two runs due to the shared items, by the
jackknife.
A bootstrap of runs would not do: draws from three runs cannot leave the range of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sailkit.stats.intervals import ALPHA, LEVEL, Counts, Estimate, Floats, proportion

POWER = 0.8
MOST_SEEDS = 1000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class SeedFigures:
    """A figure of each of several runs on the same items, or the difference of such figures.

    Attributes:
        figures: The figure of each run; shape (runs,).
        deviations: Jackknife deviations; shape (units, runs). The product of two columns, summed over the units (items,
            or groups of items), is the covariance of the figures of two runs.
        fewest: The number of units with a class that the figure is about, if that is less than all units: three items
            of a class tell no more than three items.
    """

    figures: Floats
    deviations: Floats
    fewest: int | None = None

    def __neg__(self) -> SeedFigures:
        return replace(self, figures=-self.figures, deviations=-self.deviations)

    def __sub__(self, other: SeedFigures) -> SeedFigures:
        """Difference between paired runs: the first minus the first, and so on; a single run pairs with every run."""
        fewest = min(self.units, other.units)
        return SeedFigures(self.figures - other.figures, self.deviations - other.deviations, fewest)

    def in_order(self, order: Sequence[int]) -> SeedFigures:
        """The same runs in another order, for pairing."""
        return replace(self, figures=self.figures[list(order)], deviations=self.deviations[:, list(order)])

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self.figures)

    @property
    def units(self) -> int:
        """The number of units that the figure rests on."""
        return len(self.deviations) if self.fewest is None else self.fewest

    @property
    def unshared_variance(self) -> float:
        """Variance due to the items that two runs do not share: they err on different items."""
        covariances = self.deviations.T @ self.deviations
        diagonal = float(np.trace(covariances))
        shared = (float(covariances.sum()) - diagonal) / (self.runs * (self.runs - 1))
        return max(diagonal / self.runs - shared, 0.0)


@dataclass(frozen=True)
class SeedEstimate:
    """A figure over seeds and items.

    Attributes:
        estimate: The figure with its 95 % interval.
        p_value: Two-sided p-value of the t test that it is 0.
        degrees_of_freedom: Degrees of freedom of that test.
        detectable: The value that is detected with a power of 0.8.
        seeds_needed: The number of runs a side with which the value itself would be detected with that power; None if
            more than 1000, because the items are too few, or if there is a single run a side.
    """

    estimate: Estimate
    p_value: float
    degrees_of_freedom: float
    detectable: float
    seeds_needed: int | None


def seed_figures(
    tables: Sequence[Counts], statistic: Callable[[Floats], Floats], fewest: int | None = None
) -> SeedFigures:
    """A figure of each run, with jackknife deviations over the items.

    Args:
        tables: For each run, the counts of each unit; shape (units, *shape), the same units in each.
        statistic: A function of counts, shape (..., *shape) to (...).
        fewest: See `SeedFigures`.
    """
    figures, without = [], []
    for units in tables:
        total = units.sum(0).astype(float)
        # The figure without a unit depends on its counts alone, and few units have different ones.
        kinds, kind = np.unique(units.reshape(len(units), -1), axis=0, return_inverse=True)
        without.append(np.asarray(statistic(total - kinds.reshape(-1, *total.shape)))[kind.reshape(-1)])
        figures.append(float(statistic(total)))
    return _jackknife(figures, without, fewest)


def seed_auroc(
    gold: Sequence[Sequence[bool]], scores: Sequence[Sequence[Sequence[float]]], units: Sequence[int]
) -> SeedFigures | None:
    """The area under the ROC curve of each run, the mean over one or several classes, with jackknife deviations.

    Args:
        gold: Whether each item is of a class; shape (classes, items).
        scores: The scores of the items for a class; shape (runs, classes, items).
        units: The unit of each item, numbered from 0.

    Returns:
        The areas; None if a class, or the rest, is absent or in a single unit, because there is no area without it.
    """
    unit, classes = np.asarray(units), np.asarray(gold)
    fewest = min(len(np.unique(unit[kind])) for positive in classes for kind in (positive, ~positive))
    if fewest < 2:
        return None
    areas = np.array([
        np.mean([_areas(positive, values, unit) for positive, values in zip(classes, of_run, strict=True)], axis=0)
        for of_run in np.asarray(scores)
    ])  # fmt: skip
    return _jackknife(areas[:, 0], areas[:, 1:], fewest)


def _areas(positive: NDArray[np.bool_], scores: Floats, unit: NDArray[np.int_]) -> Floats:
    """The area of all items, then that without each unit, by Mann-Whitney counts; a tie counts half."""

    def rank_among(values: Floats) -> Floats:
        ordered = np.sort(values)
        return np.asarray(np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2

    wins = np.where(positive, rank_among(scores[~positive]), positive.sum() - rank_among(scores[positive]))
    positives, negatives = (np.bincount(unit[kind], minlength=unit.max() + 1) for kind in (positive, ~positive))
    lost = np.bincount(unit, wins)
    for each in np.flatnonzero(positives * negatives):  # a pair within a unit was lost twice
        above, below = (scores[(unit == each) & kind] for kind in (positive, ~positive))
        lost[each] -= (np.sign(above[:, None] - below) + 1).sum() / 2
    total, pairs = wins[positive].sum(), (positive.sum() - positives) * ((~positive).sum() - negatives)
    return np.concatenate([[total / (positive.sum() * (~positive).sum())], (total - lost) / pairs])


def _jackknife(
    figures: Sequence[float] | Floats, without: Sequence[Floats] | Floats, fewest: int | None
) -> SeedFigures:
    """Figures of runs, and their deviations from the figures without each unit."""
    units = len(without[0])
    deviations = [(values - values.mean()) * math.sqrt((units - 1) / units) for values in without]
    return SeedFigures(np.array(figures), np.stack(deviations, -1), fewest)


def mean_over_seeds(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Estimate:
    """The mean of a figure over seeds with its t interval, which does not include the noise of the items.

    Args:
        values: The figure of each run; with a single one, both ends are the figure.
        least: The least possible value of the figure.
        most: The largest.
    """
    from scipy.special import stdtrit

    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return Estimate(mean, mean, mean)
    half = float(stdtrit(runs - 1, (1 + LEVEL) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(runs)
    return Estimate(mean, max(least, mean - half), min(most, mean + half))


def over_seeds(*groups: SeedFigures, level: float = ALPHA, least: float = -1.0, most: float = 1.0) -> SeedEstimate:
    """The sum of the means of independent groups of runs, with its interval over seeds and items.

    Args:
        groups: Figures on the same items: those of one group, or of one group and the negative of another. A group of a
            single run adds no variance between seeds: the result is about that run.
        level: Level of the test, for `detectable` and `seeds_needed`.
        least: The least that the result can be.
        most: The most that it can be.
    """
    from scipy.special import stdtr, stdtrit  # scipy.stats would cost a second to import

    value = float(sum(group.figures.mean() for group in groups))
    if abs(value) < _ROUNDING:  # means of three equal figures and of two differ in their last bit
        value = 0.0
    several = [group for group in groups if group.runs > 1]
    units = min(group.units for group in groups)
    item_effects = np.sum([group.deviations.mean(1) for group in groups], axis=0)
    # With the runs as they are, the items alone give at least this variance; so S^2 is not taken to be smaller.
    shared = max(float(item_effects @ item_effects) - sum(g.unshared_variance / g.runs for g in several), 0.0)
    between = [max(float(g.figures.var(ddof=1)), g.unshared_variance) for g in several]
    if shared + sum(between) < 1e-15:
        margin = proportion(0, units).high * max(-least, most)
        estimate = Estimate(value, max(least, value - margin), min(most, value + margin))
        return SeedEstimate(estimate, float(value == 0), math.inf, margin, None)

    def error(runs: Sequence[float] | Floats) -> tuple[Floats, Floats]:
        """Standard error and degrees of freedom with `runs` in each group of several."""
        parts = [variance / count for variance, count in zip(between, runs, strict=True)]
        variance = np.asarray(sum(parts) + shared, dtype=float)
        spread = sum(
            (part**2 / (count - 1) for part, count in zip(parts, runs, strict=True)), shared**2 / max(units - 1, 1)
        )
        return np.sqrt(variance), np.asarray(variance**2 / spread)

    deviation, freedom = error([group.runs for group in several])
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * deviation)
    estimate = Estimate(value, max(least, value - half), min(most, value + half))
    return SeedEstimate(
        estimate,
        p_value=2 * float(stdtr(freedom, -abs(value) / deviation)),
        degrees_of_freedom=float(freedom),
        detectable=float(_detectable(deviation, freedom, level)),
        seeds_needed=_seeds_needed(abs(value), error, len(several), level),
    )


def _detectable(error: Floats, freedom: Floats, level: float) -> Floats:
    """The value that a two-sided t test detects with a power of 0.8."""
    from scipy.special import nctdtrinc, stdtrit

    return np.asarray(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2)) * error)


def _seeds_needed(
    value: float, error: Callable[[Floats], tuple[Floats, Floats]], groups: int, level: float
) -> int | None:
    if not groups:
        return None
    runs = np.arange(2.0, MOST_SEEDS + 1)
    enough = np.flatnonzero(_detectable(*error(np.tile(runs, (groups, 1))), level) <= value)
    return int(runs[enough[0]]) if len(enough) else None
