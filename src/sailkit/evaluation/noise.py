"""Measures how much margins depend on the batch, on items of the run itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sailkit import runs
from sailkit.evaluation.ask import Plan, answer_batch
from sailkit.evaluation.predictions import NOISE_FILE, PREDICTIONS, from_row
from sailkit.files import jsonl
from sailkit.models.base import Model
from sailkit.records import Example, Prediction

MEASURED = ("bfloat16", "float16")  # float32 has far less noise; the dtype of a server is not known
MOST = 32  # most items that are scored again


def measure_noise_once(
    run: runs.Run, model: Model, plan: Plan, examples: Sequence[Example], batches: Sequence[Sequence[int]]
) -> None:
    """Write the noise of a run whose items are answered, in number formats in which margins depend on the batch.

    Args:
        run: The run.
        model: The model of the run.
        plan: The prompts of the run.
        examples: All examples of the run.
        batches: Indices of the examples of each batch.
    """
    path = run.path(NOISE_FILE)
    if run.manifest["settings"].get("dtype") in MEASURED and plan.mode == "logprob" and not path.exists():
        answered = [from_row(row, PREDICTIONS) for _, row in jsonl.read_rows(run.path(PREDICTIONS))]
        batched = {i for batch in batches if len(batch) > 1 for i in batch}  # single items would score the same again
        jsonl.write_json(path, measured_noise(model, plan, examples, [p for p in answered if p.index in batched]))


def measured_noise(
    model: Model, plan: Plan, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Score some items again, each in a separate batch.

    Args:
        model: The model of the run.
        plan: The prompts of the run.
        examples: All examples of the run.
        predictions: The predictions of items that shared a batch, in the order of the batches.

    Returns:
        `noise`, the largest change of the margin between an item's two likeliest labels, in nats; `mean`, its mean; and
        `items`, the number of measured items. Without any, the first two are None.
    """
    scored = [p for p in predictions if _margin(p.scores, _best(p.scores)) is not None]
    step = max(1, math.ceil(len(scored) / MOST))
    changes = []
    for batched in scored[::step]:
        (single,) = answer_batch(model, plan, [(batched.index, examples[batched.index])])
        before, after = (_margin(p.scores, _best(batched.scores)) for p in (batched, single))
        # If an earlier call was answered differently, the scored prompts differ, so their margins do not compare.
        same = [t.get("raw_output") for t in single.turns] == [t.get("raw_output") for t in batched.turns]
        if same and before is not None and after is not None:
            changes.append(abs(after - before))
    mean = sum(changes) / len(changes) if changes else None
    return {"noise": max(changes, default=None), "mean": mean, "items": len(changes)}


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda label: -scores[label])[:2]


def _margin(scores: Mapping[str, float], labels: Sequence[str]) -> float | None:
    """Difference of log-probability between two labels; None unless there are two with a probability."""
    values = [scores.get(label, 0.0) for label in labels]
    return math.log(values[0] / values[1]) if len(values) == 2 and min(values) > 0 else None
