"""Collect the curves that a training run has logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sailkit.rendering.model import Plot, Series


def plots_of(history: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> list[Plot]:
    """Build the plots for which a history has values.

    Args:
        history: Rows of history.jsonl.
        figures: The figures of metrics.json; the base model counts as step 0.

    Returns:
        Loss, divergence from a teacher, flagging, learning rate and speed, as far as they were logged.
    """

    def logged(name: str, base: str | None = None) -> tuple[tuple[float, float], ...]:
        values = {0.0: figures[base]} if base and figures.get(base) is not None else {}
        values |= {row["step"]: row[name] for row in history if row.get(name) is not None}
        return tuple(sorted((float(step), float(value)) for step, value in values.items() if math.isfinite(value)))

    kept = figures.get("best_step")
    plots = [
        Plot("Loss", "loss for each supervised token",
             (Series("training", logged("loss")), Series("held out", logged("eval_loss", "base_loss"), dots=True)),
             kept, "loss"),
        Plot("KL to the teacher", "nats for each token",
             (Series("training", logged("kl")), Series("held out", logged("eval_kl", "base_kl"), dots=True)),
             kept, "kl"),
        Plot("Flagging, against the labels of the held-out rows", "MCC, AUROC",
             (Series("MCC", logged("eval_flagging_mcc", "base_flagging_mcc"), dots=True),
              Series("AUROC", logged("eval_flagging_auroc", "base_flagging_auroc"), dots=True)),
             kept, "flagging"),
        Plot("Learning rate", "learning rate", (Series("learning rate", logged("learning_rate")),),
             file="learning_rate"),
        Plot("Throughput", "tokens/s", (Series("tokens/s", logged("tokens_per_second")),), file="speed"),
    ]  # fmt: skip
    known = [replace(plot, series=tuple(series for series in plot.series if series.points)) for plot in plots]
    return [plot for plot in known if plot.series]
