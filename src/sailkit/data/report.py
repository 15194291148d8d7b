"""The reports that `build` and `build-task` print."""

from __future__ import annotations

from sailkit.data.results import TrainingData
from sailkit.labeling.shortcuts import baseline_table
from sailkit.rendering import model
from sailkit.rendering.model import Flags, Report, Text


def short_report(result: TrainingData) -> Report:
    """How many rows were built, and how they were judged."""
    counts = {
        "rows": result.n_in,
        "train": result.n_train,
        "held out": result.n_held_out,
        "dropped": result.n_dropped,
        "removed": result.n_removed,
    }
    shares = ", ".join(
        f"{name} {'-' if share is None else format(share, '.3f')}" for name, share in result.judgement_shares.items()
    )
    shortcuts = result.card.get("shortcuts")  # absent from cards of earlier versions
    return model.short(
        "",
        ", ".join(f"{title} {count}" for title, count in counts.items()),
        Text(f"judgements in train: {shares}"),
        *([baseline_table(shortcuts)] if shortcuts else []),
        Flags("", result.flag_messages),
    )
