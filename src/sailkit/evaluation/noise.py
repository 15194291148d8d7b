"""How far a margin moves with the batch that it was computed in, measured on items of the run itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sailkit.evaluation.ask import Plan, answer_batch
from sailkit.models.base import Model
from sailkit.records import Example, Prediction

MEASURED = ("bfloat16", "float16")  # elsewhere it is known to be far smaller, or not for us to know
MOST = 32  # items that are scored once more


def measured_noise(
    model: Model, plan: Plan, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Score some items alone that were scored in a batch.

    Args:
        model: The model of the run.
        plan: What the run asks.
        examples: All of its examples.
        predictions: Those of its predictions that shared a batch, in the order of its batches.

    Returns:
        `noise`, the most that the margin between an item's two likeliest labels moved, in nats; `mean`; and `items`,
        how many it was measured on. Without any, the first two are None.
    """
    scored = [p for p in predictions if _margin(p.scores, _best(p.scores)) is not None]
    step = max(1, math.ceil(len(scored) / MOST))
    moved = []
    for together in scored[::step]:
        (alone,) = answer_batch(model, plan, [(together.index, examples[together.index])])
        before, after = (_margin(p.scores, _best(together.scores)) for p in (together, alone))
        same = [t.get("raw_output") for t in alone.turns] == [t.get("raw_output") for t in together.turns]
        if same and before is not None and after is not None:
            moved.append(abs(after - before))
    mean = sum(moved) / len(moved) if moved else None
    return {"noise": max(moved, default=None), "mean": mean, "items": len(moved)}


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda label: -scores[label])[:2]


def _margin(scores: Mapping[str, float], labels: Sequence[str]) -> float | None:
    """Difference of log-probability between two labels; None where there are not two, or one has no probability."""
    values = [scores.get(label, 0.0) for label in labels]
    return math.log(values[0] / values[1]) if len(values) == 2 and min(values) > 0 else None
