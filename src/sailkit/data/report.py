"""What `build` and `build-task` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailkit.rendering import model
from sailkit.rendering.model import Flags, Report, Text

_COUNTS = {
    "n_in": "rows",
    "n_train": "train",
    "n_held_out": "held out",
    "n_dropped": "dropped",
    "n_removed": "removed",
}


def summarise_data(result: Mapping[str, Any]) -> Report:
    """How many rows were built, and how they were judged."""
    shares = ", ".join(
        f"{name} {'-' if share is None else format(share, '.3f')}" for name, share in result["judgement_shares"].items()
    )
    return model.short(
        "",
        ", ".join(f"{title} {result[name]}" for name, title in _COUNTS.items()),
        Text(f"judgements in train: {shares}"),
        Flags("", result.get("flag_messages", {})),
    )
