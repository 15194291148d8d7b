"""Lays out the curves of a training run as SVG, for HTML pages and for separate files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sailkit.rendering.model import Intervals, Plot, Series
from sailkit.text import shortened

WIDTH = 480
_HEIGHT, _GAP = 192, 14  # of the area that the curves fill; between it and the right edge
_BELOW = 44  # for the ticks and the title of the x axis
_LINE = 20  # height of a row of the legend
_CHARACTER = 6.7  # average width at 12 px
_KEY = 27  # width of a line in the legend
_LONGEST_NAME = 44  # characters in the legend
_COLOURS = 8  # classes c1 to c8 in curves.css


@dataclass(frozen=True)
class Curve:
    """A series in pixels.

    Attributes:
        name: Name in the legend.
        style: Class of its colour and dashes.
        line: The points in SVG syntax.
        dots: The marked points, each with its values in words.
        key: Position of its entry in the legend.
    """

    name: str
    style: str
    line: str
    dots: list[tuple[float, float, str]]
    key: tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A plot in pixels.

    Attributes:
        curves: One curve for each series.
        x_ticks: Position and label of each tick.
        y_ticks: The same for the y axis.
        kept: Position of the step whose weights were kept, or None.
        kept_key: Position of its entry in the legend.
        legend: Whether there is a legend.
        left: Left edge of the area that the curves fill.
        right: Its right edge.
        top: Its upper edge.
        bottom: Its lower edge.
        height: Height of the whole drawing.
    """

    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    kept: float | None
    kept_key: tuple[float, float]
    legend: bool
    left: float
    right: float
    top: float
    bottom: float
    height: float


def draw(plot: Plot) -> Drawing:
    """Lay out a plot: the left margin fits the tick labels, and the legend takes as many rows as its names need."""
    points = [point for series in plot.series for point in series.points]
    last = max([1.0, *(step for step, _ in points)])
    x_ticks = _ticks(0.0, last, whole=True)
    y_ticks = _ticks(min(value for _, value in points), max(value for _, value in points))
    y_labels = _tick_labels(y_ticks)
    left, right = 32 + round(_CHARACTER * max(map(len, y_labels))), WIDTH - _GAP
    names = [shortened(series.name, _LONGEST_NAME) for series in plot.series]
    keys = _legend([*names, "kept"] if plot.kept is not None else names, left, right)
    legend = len(keys) > 1
    top = keys[-1][1] + _LINE  # the same without a legend, for plots side by side
    bottom = top + _HEIGHT

    def x(step: float) -> float:
        return round(left + (right - left) * step / last, 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    def curve(number: int, series: Series) -> Curve:
        at = [(x(step), y(value)) for step, value in series.points]
        values = _in_words([value for _, value in series.points])
        words = [
            f"{series.name}, step {step:,.0f}: {value}" for (step, _), value in zip(series.points, values, strict=True)
        ]
        marked = series.dots or len(at) == 1
        dashes = " dashed" if number >= _COLOURS else ""
        return Curve(
            names[number],
            f"c{number % _COLOURS + 1}{dashes}",
            " ".join(f"{px},{py}" for px, py in at),
            [(px, py, text) for (px, py), text in zip(at, words, strict=True)] if marked else [],
            keys[number],
        )

    return Drawing(
        [curve(number, series) for number, series in enumerate(plot.series)],
        [(x(step), f"{step:,.0f}") for step in x_ticks],
        [(y(value), label) for value, label in zip(y_ticks, y_labels, strict=True)],
        None if plot.kept is None else x(plot.kept),
        keys[-1],
        legend,
        left,
        right,
        top,
        bottom,
        bottom + _BELOW,
    )


def _legend(names: Sequence[str], left: float, right: float) -> list[tuple[float, float]]:
    """The position of each entry of a legend, whose rows are as long as the drawing is wide."""
    x, y, keys = left, 14.0, []
    for name in names:
        width = _KEY + _CHARACTER * len(name)
        if x > left and x + width > right:
            x, y = left, y + _LINE
        keys.append((round(x, 1), y))
        x += width + 18
    return keys


def describe(plot: Plot) -> str:
    """Describe a plot in words: the first and last value of each curve."""
    texts = []
    for series in plot.series:
        (begin, first), (end, last) = series.points[0], series.points[-1]
        before, after = _in_words([first, last])
        if len(series.points) == 1:
            texts.append(f"{series.name} {after} at step {end:,.0f}")
        else:
            texts.append(f"{series.name} from {before} at step {begin:,.0f} to {after} at step {end:,.0f}")
    return "; ".join(texts)


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


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Evenly spaced values as text, all in the same notation, with the digits that the distance between them needs."""
    power, last = (math.floor(math.log10(size) + 1e-9) for size in (max(map(abs, ticks)), ticks[1] - ticks[0]))
    if last >= -4 and power < 6:
        texts = [f"{tick:,.{max(0, -last)}f}" for tick in ticks]
    else:
        texts = [f"{tick / 10.0**power:.{max(0, power - last)}f}e{power}" if tick else "0" for tick in ticks]
    return [text.replace("-", "−") for text in texts]


def _in_words(values: Sequence[float]) -> list[str]:
    """Values as text, with three digits, or as many as tell different values apart."""
    for digits in range(3, 17):
        texts = [f"{v:,.0f}" if digits == 3 and 1e3 <= abs(v) < 1e6 else f"{v:.{digits}g}" for v in values]
        if len({*texts}) == len({*values}):
            break
    return [text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−") for text in texts]


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
