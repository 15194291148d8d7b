"""Collect the curves that training runs have logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sailkit.rendering.curves import describe
from sailkit.rendering.model import Plot, Series


@dataclass(frozen=True)
class Logged:
    """What a run has logged.

    Attributes:
        history: Rows of history.jsonl.
        figures: The figures of metrics.json; the base model counts as step 0.
        name: The run's name, in plots of several runs.
    """

    history: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]
    name: str = ""

    def series(self, title: str, name: str, base: str | None = None, *, dots: bool = False) -> Series:
        """The finite values with a name; `base` is the name of the base model's value in the figures."""
        values = {0.0: self.figures[base]} if base and self.figures.get(base) is not None else {}
        values |= {row["step"]: row[name] for row in self.history if row.get(name) is not None}
        points = ((float(step), float(value)) for step, value in values.items() if math.isfinite(value))
        return Series(title, tuple(sorted(points)), dots)


def plots_of(history: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> list[Plot]:
    """Build the plots for which a history has values at two steps or more.

    Args:
        history: Rows of history.jsonl.
        figures: The figures of metrics.json; the base model counts as step 0.

    Returns:
        Loss, divergence from a teacher, flagging, learning rate and speed, as far as they were logged.
    """
    logged, kept = Logged(history, figures).series, figures.get("best_step")
    return _drawn(
        Plot("Loss", "loss for each supervised token",
             (logged("training", "loss"), logged("held out", "eval_loss", "base_loss", dots=True)), kept, "loss"),
        Plot("KL to the teacher", "nats for each token",
             (logged("training", "kl"), logged("held out", "eval_kl", "base_kl", dots=True)), kept, "kl"),
        Plot("Flagging, against the labels of the held-out rows", "MCC, AUROC",
             (logged("MCC", "eval_flagging_mcc", "base_flagging_mcc", dots=True),
              logged("AUROC", "eval_flagging_auroc", "base_flagging_auroc", dots=True)), kept, "flagging"),
        Plot("Learning rate", "learning rate", (logged("learning rate", "learning_rate"),), file="learning_rate"),
        Plot("Throughput", "tokens/s", (logged("tokens/s", "tokens_per_second"),), file="speed"),
    )  # fmt: skip


def logged_once(history: Sequence[Mapping[str, Any]]) -> str:
    """The values that a short run logged at a single step, as a sentence; empty if there are none."""
    names = {"loss": "training loss", "kl": "KL to the teacher", "learning_rate": "learning rate",
             "tokens_per_second": "tokens per second"}  # fmt: skip
    series = [Logged(history, {}).series(title, name) for name, title in names.items()]
    single = tuple(curve for curve in series if len(curve.points) == 1)
    return f"Logged at one step only: {describe(Plot('', '', single))}." if single else ""


def plots_of_runs(runs: Sequence[Logged]) -> list[Plot]:
    """Build plots with a curve for each run.

    Args:
        runs: What each run has logged; each has a name.

    Returns:
        The loss in training and held out, divergence from a teacher, flagging and learning rate, as far as logged.
    """
    kinds = (
        ("Loss in training", "loss for each supervised token", "loss", None),
        ("Held-out loss", "loss for each supervised token", "eval_loss", "base_loss"),
        ("Held-out KL to the teacher", "nats for each token", "eval_kl", "base_kl"),
        ("Flagging of held-out rows: MCC", "MCC", "eval_flagging_mcc", "base_flagging_mcc"),
        ("Flagging of held-out rows: AUROC", "AUROC", "eval_flagging_auroc", "base_flagging_auroc"),
        ("Learning rate", "learning rate", "learning_rate", None),
    )
    return _drawn(
        *(Plot(title, axis, tuple(run.series(run.name, name, base, dots=base is not None) for run in runs))
          for title, axis, name, base in kinds)
    )  # fmt: skip


def _drawn(*plots: Plot) -> list[Plot]:
    """The plots with at least one curve of two points, without empty curves."""
    known = [replace(plot, series=tuple(series for series in plot.series if series.points)) for plot in plots]
    return [plot for plot in known if any(len(series.points) > 1 for series in plot.series)]
