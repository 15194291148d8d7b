"""Lays out reliability plots as SVG, and describes their bins as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from sailkit.rendering.model import Reliability
from sailkit.rendering.numbers import figure, span

WIDTH, HEIGHT = 480, 336
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 14, 14, 214  # edges of the area with the dots
FLOOR, _TALLEST = 284, 40  # the line on which the bars of counts stand, and the height of the tallest
COLUMNS = ("answers", "mean probability", "share that is right")


@dataclass(frozen=True)
class Mark:
    """A bin in pixels.

    Attributes:
        x: Position of the mean probability.
        y: Position of the share that is right.
        low: Position of the lower end of its interval.
        high: Position of the upper end.
        start: Left edge of the bar of the count.
        width: Its width.
        height: Its height.
        count: The count as text.
        words: The bin in words.
    """

    x: float
    y: float
    low: float
    high: float
    start: float
    width: float
    height: float
    count: str
    words: str


@dataclass(frozen=True)
class Drawing:
    """A reliability plot in pixels.

    Attributes:
        marks: One for each bin.
        x_ticks: Position and label of each tick.
        y_ticks: The same for the y axis.
        diagonal: Height at which the line of perfect calibration begins, on the left edge; it ends in the corner.
    """

    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    diagonal: float


def draw(plot: Reliability) -> Drawing:
    """Lay out a plot, from the lowest bin with answers to a probability of 1."""
    least = min(group.low for group in plot.bins)
    most = max(group.count for group in plot.bins)

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - least) / (1 - least), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value, 1)

    marks = [
        Mark(
            x(group.probability),
            y(group.right.value),
            y(group.right.low),
            y(group.right.high),
            x(group.low) + 2,
            round(x(group.high) - x(group.low) - 4, 1),
            round(max(1.0, _TALLEST * group.count / most), 1),
            f"{group.count:,}",
            f"probability {group.low:.1f} to {group.high:.1f}, {figure(group.probability)} on average: "
            f"{group.count:,} answers, {figure(group.right.value)} right ({span(group.right)})",
        )
        for group in plot.bins
    ]
    tenths = range(round(10 * least), 11)
    ticks = [(y(k / 5), f"{k / 5:.1f}") for k in range(6)]
    return Drawing(marks, [(x(k / 10), f"{k / 10:.1f}") for k in tenths], ticks, y(least))


def describe(plot: Reliability) -> str:
    """The bins in words."""
    return "; ".join(mark.words for mark in draw(plot).marks)


def rows(plot: Reliability) -> list[tuple[str, list[str]]]:
    """Range of each bin, and its cells for `COLUMNS`."""
    return [
        (f"{group.low:.1f} to {group.high:.1f}",
         [f"{group.count:,}", figure(group.probability), f"{figure(group.right.value)} ({span(group.right)})"])
        for group in plot.bins
    ]  # fmt: skip
