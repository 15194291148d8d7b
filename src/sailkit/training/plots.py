"""Curves of a training run as SVG: the same drawing stands in the report page and in a file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sailkit.rendering import page

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 34, 44


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: For the key.
        points: Step and value, by step.
        dots: Mark every point; for what is measured now and then.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over the same steps.

    Attributes:
        file: Its name, without an ending.
        title: What it shows.
        axis: What the values are.
        series: The curves, none of them empty.
        kept: The step whose weights were kept, or None.
    """

    file: str
    title: str
    axis: str
    series: tuple[Series, ...]
    kept: float | None = None


def plots_of(history: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> list[Plot]:
    """The plots that a history has something for.

    Args:
        history: Rows of history.jsonl.
        figures: Those of metrics.json; the model as it was counts as step 0.

    Returns:
        Loss, divergence from a teacher, flagging, learning rate and speed, as far as they were logged.
    """

    def logged(name: str, base: str | None = None) -> tuple[tuple[float, float], ...]:
        found = {0.0: figures[base]} if base and figures.get(base) is not None else {}
        found |= {row["step"]: row[name] for row in history if row.get(name) is not None}
        return tuple(sorted((float(step), float(value)) for step, value in found.items() if math.isfinite(value)))

    wanted = [
        Plot("loss", "Loss", "loss for each supervised token",
             (Series("training", logged("loss")), Series("held out", logged("eval_loss", "base_loss"), dots=True)),
             figures.get("best_step")),
        Plot("kl", "KL to the teacher", "nats for each token",
             (Series("training", logged("kl")), Series("held out", logged("eval_kl", "base_kl"), dots=True)),
             figures.get("best_step")),
        Plot("flagging", "Flagging, against the labels of the held-out rows", "MCC, AUROC",
             (Series("MCC", logged("eval_flagging_mcc", "base_flagging_mcc"), dots=True),
              Series("AUROC", logged("eval_flagging_auroc", "base_flagging_auroc"), dots=True)),
             figures.get("best_step")),
        Plot("learning_rate", "Learning rate", "learning rate", (Series("learning rate", logged("learning_rate")),)),
        Plot("speed", "Throughput", "tokens/s", (Series("tokens/s", logged("tokens_per_second")),)),
    ]  # fmt: skip
    kept = [Plot(p.file, p.title, p.axis, tuple(s for s in p.series if s.points), p.kept) for p in wanted]
    return [plot for plot in kept if plot.series]


def draw(plot: Plot, *, alone: bool = False) -> Any:
    """A plot as SVG markup.

    Args:
        plot: What is drawn.
        alone: As a file of its own, with its colours; otherwise the page has them.
    """
    points = [point for one in plot.series for point in one.points]
    right = max([1.0, *(x for x, _ in points)])
    across = _ticks(0.0, right, whole=True)
    up = _ticks(min(y for _, y in points), max(y for _, y in points))

    def x(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * value / right, 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - up[0]) / (up[-1] - up[0]), 1)

    curves = [
        {
            "name": one.name,
            "line": " ".join(f"{x(a)},{y(b)}" for a, b in one.points),
            "dots": [(x(a), y(b)) for a, b in one.points] if one.dots or len(one.points) == 1 else [],
            "said": f"{one.name} from {_short(one.points[0][1])} at step {one.points[0][0]:g} "
            f"to {_short(one.points[-1][1])} at step {one.points[-1][0]:g}",
        }
        for one in plot.series
    ]
    return page.svg(
        {
            "plot": plot,
            "alone": alone,
            "curves": curves,
            "across": [(x(value), f"{value:g}") for value in across],
            "up": [(y(value), _short(value)) for value in up],
            "kept": None if plot.kept is None else x(plot.kept),
            "size": {"w": WIDTH, "h": HEIGHT, "l": _LEFT, "r": WIDTH - _RIGHT, "t": _TOP, "b": HEIGHT - _BOTTOM},
        }
    )


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers from at most `low` to at least `high`; in whole steps they stay below `high`."""
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
