"""Lays out the curves of a training run as SVG, for HTML pages and for separate files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sailkit.rendering.model import Intervals, Plot, Series

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 14, 34, HEIGHT - 44  # edges of the area that the curves fill


@dataclass(frozen=True)
class Curve:
    """A series in pixels.

    Attributes:
        name: Name in the legend.
        line: The points in SVG syntax.
        dots: The marked points.
    """

    name: str
    line: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A plot in pixels.

    Attributes:
        plot: The plot in data units.
        curves: One curve for each series.
        x_ticks: Position and label of each tick.
        y_ticks: The same for the y axis.
        kept: Position of the step whose weights were kept, or None.
    """

    plot: Plot
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    kept: float | None


def draw(plot: Plot) -> Drawing:
    """Lay out a plot."""
    points = [point for series in plot.series for point in series.points]
    last = max([1.0, *(step for step, _ in points)])
    x_ticks = _ticks(0.0, last, whole=True)
    y_ticks = _ticks(min(value for _, value in points), max(value for _, value in points))

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    return Drawing(
        plot,
        [_curve(series, [(x(step), y(value)) for step, value in series.points]) for series in plot.series],
        [(x(step), f"{step:g}") for step in x_ticks],
        [(y(value), _short(value)) for value in y_ticks],
        None if plot.kept is None else x(plot.kept),
    )


def _curve(series: Series, points: list[tuple[float, float]]) -> Curve:
    line = " ".join(f"{x},{y}" for x, y in points)
    return Curve(series.name, line, points if series.dots or len(points) == 1 else [])


def describe(plot: Plot) -> str:
    """Describe a plot in words: the first and last value of each curve."""
    return "; ".join(
        f"{series.name} from {_short(first)} at step {begin:g} to {_short(last)} at step {end:g}"
        for series in plot.series
        for (begin, first), (end, last) in [(series.points[0], series.points[-1])]
    )


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers that cover `low` to `high`; with `whole`, integers that do not exceed `high`."""
    scale = max(abs(low), abs(high))
    if high - low <= 1e-9 * scale or scale < 1e-100:
        room = 0.5 * scale if scale >= 1e-100 else 0.5
        low, high = low - room, high + room
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step), (math.floor if whole else math.ceil)(high / step)
    return [i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    text = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    return text.replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


class Scale:
    """The common scale of several intervals, in per cent of the plot's width."""

    def __init__(self, intervals: Intervals) -> None:
        ends = [
            x
            for rows in intervals.figures.values()
            for row in rows
            for x in (row.estimate.low, row.estimate.high, row.at)
        ]
        self._low, self._high = max(0, math.floor(10 * min(ends) - 0.2)), min(10, math.ceil(10 * max(ends) + 0.2))

    def at(self, value: float) -> str:
        """Position of a value between 0 and 1."""
        return f"{100 * (10 * value - self._low) / (self._high - self._low):.2f}%"

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Position and label of each tick."""
        return [(self.at(x / 10), f"{x / 10:.1f}") for x in range(self._low, self._high + 1)]
