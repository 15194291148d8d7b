"""Warn of an evaluation on items from which a model's training data were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sailkit.evaluation.figures import Flag
from sailkit.records import Example
from sailkit.tasks.task import in_half


def trained_items_flag(
    described: Mapping[str, Any], task: str, data_sha256: str, examples: Sequence[Example]
) -> list[Flag]:
    """A flag if the training data of a model were drawn from evaluated items; its figures then overstate the model.

    Args:
        described: What the model says of itself; `trained_tasks` are the parts of tasks that it was trained on.
        task: Name of the evaluated task.
        data_sha256: Fingerprint of the task's data.
        examples: The evaluated items.
    """
    parts = [
        part
        for part in described.get("trained_tasks") or ()
        if (part.get("task"), part.get("data_sha256")) == (task, data_sha256)
    ]
    trained = [e for e in examples if any(in_half(e, part["half"], part["first_share"]) for part in parts)]
    if not trained:
        return []
    halves, shares = {part["half"] for part in parts}, [part["first_share"] for part in parts]
    mend = "no part of these data is unseen"
    if len(halves) == 1 and None not in halves:
        other, seen = ("second", max(shares)) if halves == {"first"} else ("first", min(shares))
        mend = f"evaluate with --half {other}" + (f" --first-share {seen}" if seen != 0.5 else "")
    text = f"{len(trained)} of {len(examples)} items are among those that training data were drawn from: {mend}"
    return [Flag("trained-items", text)]
