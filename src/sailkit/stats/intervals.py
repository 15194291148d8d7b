"""Confidence intervals of proportions and of other functions of counts, for single items or items in groups.

Units are resampled: items, or whole groups of items where groups are declared. Each gets a random weight (the Bayesian
bootstrap, Rubin 1981). A bootstrap never leaves its sample: from ten right answers it always draws ten right answers.
So the low end is computed with one additional unit that lowers the figure, and the high end with one that raises it.
For a proportion of single items, that is exactly the interval of Clopper and Pearson (1934).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sailkit.runs import seed_for

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
RESAMPLES = 10_000
ALPHA = 0.05  # of tests, before Holm's adjustment
LEVEL = 1 - ALPHA  # of intervals
# Least number of units (items, or groups where declared) for a verdict. With fewer, the interval of an accuracy can be
# wider than 0.46, so that only differences too large to need a test would be significant.
LEAST_UNITS = 20
LEAST_ROWS = 5  # held-out rows that an interval of their mean requires
_DRAWN_AT_ONCE = 500
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def flat(self, name: str) -> dict[str, float]:
        """The value and both ends, as they are written to JSON."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def read_estimates(flat: Mapping[str, Any]) -> dict[str, Estimate]:
    """Read the figures with an interval from JSON, where each is written as `x`, `x_low` and `x_high`.

    Args:
        flat: Names and values as `Estimate.flat` writes them; other keys and null values are ignored.
    """
    return {
        name: Estimate(value, flat[f"{name}_low"], flat[f"{name}_high"])
        for name, value in flat.items()
        if value is not None and f"{name}_low" in flat and f"{name}_high" in flat
    }


def proportion(count: float, total: float) -> Estimate:
    """A share of independent items with its exact interval (Clopper and Pearson 1934).

    Args:
        count: Number of items with the property.
        total: Number of items; for 0 the interval is [0, 1].
    """
    from scipy.special import betaincinv  # scipy.stats would cost a second to import

    if not total:
        return Estimate(0.0, 0.0, 1.0)
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Estimate(count / total, low, high)


@dataclass(frozen=True)
class Units:
    """Resampling units, grouped by equal tables of counts.

    Attributes:
        tables: The distinct tables; shape (kinds of unit, *shape of a table).
        times: Number of units with each table.
    """

    tables: Counts
    times: Counts

    @classmethod
    def of_counts(cls, counts: Counts) -> Units:
        """Units of one item each, from a table of counts."""
        cells = np.flatnonzero(counts)
        tables = np.zeros((len(cells), counts.size), dtype=np.int64)
        tables[np.arange(len(cells)), cells] = 1
        return cls(tables.reshape(len(cells), *counts.shape), counts.reshape(-1)[cells])

    @classmethod
    def of_cells(cls, cells: Counts, shape: tuple[int, ...], groups: Sequence[str] | None = None) -> Units:
        """Units from the cell of each item; the items of a group form one unit.

        Args:
            cells: Shape (items, dimensions of a table).
            shape: Shape of a table.
            groups: The group of each item; None if each item is a separate unit.
        """
        if groups is None:
            counts = np.zeros(shape, dtype=np.int64)
            np.add.at(counts, tuple(cells.T), 1)
            return cls.of_counts(counts)
        index = {name: i for i, name in enumerate(dict.fromkeys(groups))}
        tables = np.zeros((len(index), *shape), dtype=np.int64)
        np.add.at(tables, (np.array([index[name] for name in groups], dtype=np.int64), *cells.T), 1)
        kinds, times = np.unique(tables.reshape(len(index), math.prod(shape)), axis=0, return_counts=True)
        # The order of `of_counts`: groups of one item get the same random weights as single items.
        return cls(kinds[::-1].reshape(-1, *shape), times[::-1].astype(np.int64))

    @property
    def table(self) -> Counts:
        """The table of all items."""
        return cast(Counts, np.tensordot(self.times, self.tables, 1))

    @property
    def number(self) -> int:
        """How many units there are."""
        return int(self.times.sum())

    @property
    def single(self) -> bool:
        """Whether each unit is one item."""
        return self.number == int(self.table.sum())


@dataclass(frozen=True)
class Resampled:
    """Bootstrap weights of units.

    Attributes:
        units: The units.
        weights: Weight of each kind of unit in each resample; shape (resamples, kinds).
        more: Weight of one additional unit of average size in each resample, in items.
        size: Average number of items in a unit.
    """

    units: Units
    weights: Floats
    more: Floats
    size: float

    def estimate(self, statistic: Callable[[Floats], Floats]) -> Estimate:
        """A figure with its interval.

        Args:
            statistic: A function of tables of weighted counts, shape (..., *shape) to (...), that does not depend on
                their sum.
        """
        table = self.units.table.astype(float)
        value = float(statistic(table))
        if not table.any():
            return Estimate(value, value, value)
        cells = np.arange(table.size)  # an additional item may be in any, also of a label that no item has

        def with_one_more(part: slice) -> Floats:
            tables = np.repeat(table.reshape(1, -1), len(cells[part]), 0)
            tables[np.arange(len(tables)), cells[part]] += self.size
            return tables

        used = np.flatnonzero(table)  # empty cells stay empty, and with many labels most are
        of_kinds = self.units.tables.reshape(len(self.units.times), table.size)[:, used].astype(float)

        def drawn_with(cell: int, part: slice) -> Floats:
            tables = np.zeros((len(self.more[part]), table.size))
            tables[:, used] = self.weights[part] @ of_kinds
            tables[:, cell] += self.more[part]
            return tables

        by_cell = _in_parts(statistic, with_one_more, len(cells), table.shape)
        ends = (int(np.argmin(by_cell)), int(np.argmax(by_cell)))
        lower, upper = (
            _in_parts(statistic, functools.partial(drawn_with, cell), len(self.weights), table.shape) for cell in ends
        )
        tail = (1 - LEVEL) / 2
        low, high = float(np.quantile(lower, tail)), float(np.quantile(upper, 1 - tail))
        return Estimate(value, min(low, value), max(high, value))


def _in_parts(
    statistic: Callable[[Floats], Floats], tables: Callable[[slice], Floats], count: int, shape: tuple[int, ...]
) -> Floats:
    """A statistic of many tables, in parts, because with many labels a table takes much memory."""
    step = max(1, _CELLS_AT_ONCE // math.prod(shape))
    parts = (tables(slice(begin, begin + step)) for begin in range(0, count, step))
    return np.concatenate([statistic(part.reshape(len(part), *shape)) for part in parts])


def resample(units: Units, seed: int, resamples: int = RESAMPLES) -> Resampled:
    """Draw bootstrap weights of units.

    Args:
        units: The units.
        seed: The run's seed.
        resamples: How many sets of weights.
    """
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    # The sum of k exponential weights is gamma with shape k: one draw for all units of a kind.
    weights = rng.standard_gamma(units.times, size=(resamples, len(units.times)))
    size = float(units.table.sum()) / max(units.number, 1)
    return Resampled(units, weights, size * rng.standard_exponential(resamples), size)


def interval(values: Floats, units: int | None = None) -> tuple[float, float]:
    """The central 95 % of bootstrap values (percentile method, Efron 1979).

    Args:
        values: The bootstrap values.
        units: How many units were resampled; with few, the percentiles are more extreme, after the t distribution
            (expanded percentile interval, Hesterberg 2015).
    """
    tail = (1 - LEVEL) / 2
    if units is not None and units > 1:
        from scipy.special import ndtr, stdtrit

        tail = float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def resampled_sums(table: Floats, seed: int) -> Floats:
    """Sums over rows drawn with replacement, the same rows for all sets.

    Args:
        table: Shape (sets, rows, figures).
        seed: The run's seed.

    Returns:
        Shape (sets, resamples, figures).
    """
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    n = table.shape[1]
    parts = []
    for begin in range(0, RESAMPLES, _DRAWN_AT_ONCE):
        times = rng.multinomial(n, np.full(n, 1 / n), size=min(_DRAWN_AT_ONCE, RESAMPLES - begin))
        parts.append(times.astype(float) @ table)
    return np.concatenate(parts, 1)


def share(hits: Sequence[bool], groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """A share of items with its interval.

    Args:
        hits: Of each item, whether it counts.
        groups: The group of each item, which is then a unit; None where each item is a unit.
        seed: The run's seed.
    """
    if groups is None:
        return proportion(sum(hits), len(hits))
    cells = np.array([[0, int(hit)] for hit in hits], dtype=np.int64)
    return resample(Units.of_cells(cells, (1, 2), groups), seed).estimate(lambda t: t[..., 0, 1] / t.sum((-2, -1)))


def bounded(value: float, values: Floats, units: int, least: float = 0.0, most: float = 1.0) -> Estimate:
    """A figure with an interval from bootstrap values, also where all of these equal the figure.

    In that case the interval extends as far as units of another kind could move the figure and yet be missing from the
    sample: for a share of 0 or 1 that is the interval of Clopper and Pearson.

    Args:
        value: The figure.
        values: The bootstrap values.
        units: How many units were resampled.
        least: The least that the figure can be.
        most: The most that it can be.
    """
    low, high = interval(values, units)
    if low == high:
        margin = proportion(0, units).high * (most - least)
        low, high = max(least, value - margin), min(most, value + margin)
    # Bootstrap values of a sum of absolute differences lie above the figure, if it is near 0.
    return Estimate(value, min(low, value), max(high, value))
