"""Held-out losses row by row, before and after training, so that a change of their mean can be told from chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sailkit.files import jsonl
from sailkit.stats.intervals import LEAST_ROWS, Estimate, interval, resampled_sums

LOSSES = "held_out-{}.jsonl"  # of the model as it was (base), and as it is (tuned)


def row_losses(trainer: Any) -> list[dict[str, Any]]:
    """The loss of each held-out row, read alone, as the trainer reckons it.

    Args:
        trainer: A `sailkit.training.trainer.Trainer` with held-out rows.

    Returns:
        `id`, `loss` (nats, the row's sum) and `tokens` (supervised) of each row in order; the same in all processes.
    """
    import torch

    held_out, processes, model = trainer._held_out, trainer._processes, trainer.model
    was_training = model.training
    model.eval()
    losses = []
    try:
        with torch.no_grad(), trainer._speed.pause(), trainer.compute_loss_context_manager():
            for i, counts in processes.shard(range(len(held_out.ids))):
                row = {"input_ids": list(held_out.ids[i]), "labels": list(held_out.labels[i])}
                batch = trainer._prepare_inputs(trainer.data_collator([row]))
                loss, tokens, *_ = trainer._held_out_sums(model, batch).tolist()
                if counts:
                    losses.append((i, {"id": held_out.examples[i].id, "loss": loss, "tokens": int(tokens)}))
    finally:
        model.train(was_training)
    trainer._metrics["eval"].clear()  # what the trainer notes of evaluations is of its own
    return [row for _, row in sorted(processes.gather(losses), key=lambda numbered: numbered[0])]


def measure_held_out(trainer: Any, folder: Path, who: str) -> dict[str, float]:
    """The figures of an evaluation, with the losses of its rows written beside them.

    Args:
        trainer: See `row_losses`.
        folder: The run's.
        who: `base` or `tuned`; put before the figures' names.
    """
    figures: dict[str, float] = trainer.evaluate(metric_key_prefix=who)
    rows = row_losses(trainer)
    if trainer._processes.is_main:
        jsonl.write_atomic(folder / LOSSES.format(who), "".join(jsonl.dumps(row) + "\n" for row in rows))
    return figures


def loss_change(folder: Path, seed: int = 0) -> dict[str, float]:
    """By how much the loss of a supervised token changed, with an interval over rows, each with both its losses.

    Args:
        folder: The run's; see `measure_held_out`.
        seed: Of the bootstrap.

    Returns:
        `loss_change` and its ends; nothing where nothing was held out, or fewer rows than an interval takes.
    """
    files = [folder / LOSSES.format(who) for who in ("base", "tuned")]
    rows = [[row for _, row in jsonl.read_rows(file)] if file.exists() else [] for file in files]
    if min(map(len, rows)) < LEAST_ROWS:
        return {}
    table = np.array([[[row["loss"], row["tokens"]] for row in own] for own in rows])
    drawn, whole = resampled_sums(table, seed), table.sum(1)
    means = drawn[..., 0] / drawn[..., 1]
    value = float(whole[1, 0] / whole[1, 1] - whole[0, 0] / whole[0, 1])
    return Estimate(value, *interval(means[1] - means[0], len(rows[0]))).flat("loss_change")
