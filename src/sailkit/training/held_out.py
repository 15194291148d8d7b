"""Measure held-out losses by row before and after training, and bootstrap the change of their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sailkit.console import notice
from sailkit.files import jsonl
from sailkit.stats.intervals import LEAST_ROWS, Estimate, interval, resampled_sums
from sailkit.training.inference import inference

LOSSES = "held_out-{}.jsonl"  # losses of the base and of the tuned model


def row_losses(trainer: Any) -> list[dict[str, Any]]:
    """Compute the loss of each held-out row with the trainer, in batches of one row.

    Args:
        trainer: A `sailkit.training.trainer.Trainer` with held-out rows.

    Returns:
        `id`, `loss` (sum, in nats) and `tokens` (supervised) of each row in order; the same in all processes.
    """
    import torch

    held_out, processes = trainer.held_out, trainer.processes
    losses = []
    with inference(trainer) as model:
        for i, counts in processes.shard(range(len(held_out.ids))):
            row = {"input_ids": list(held_out.ids[i]), "labels": list(held_out.labels[i])}
            batch = trainer._prepare_inputs(trainer.data_collator([row]))
            losses.append((i, counts, trainer._held_out_sums(model, batch)[:2]))
    trainer.read_batches()
    trainer._metrics["eval"].clear()  # TRL would log these metrics with the next training loss
    values = torch.stack([sums for *_, sums in losses]).tolist()
    rows = [
        (i, {"id": held_out.examples[i].id, "loss": loss, "tokens": int(tokens)})
        for (i, counts, _), (loss, tokens) in zip(losses, values, strict=True)
        if counts
    ]
    return [row for _, row in sorted(processes.gather(rows), key=lambda numbered: numbered[0])]


def measure_held_out(trainer: Any, folder: Path, prefix: str) -> dict[str, float]:
    """Evaluate the held-out rows, and write the loss of each into the run folder.

    Args:
        trainer: See `row_losses`.
        folder: The run folder.
        prefix: Prefix of the figures' names and of the file name: `base` or `tuned`.
    """
    when = {"base": "before", "tuned": "after"}[prefix]
    notice(f"measuring {len(trainer.held_out.ids)} held-out rows, {when} training")  # it may take minutes
    figures: dict[str, float] = trainer.evaluate(metric_key_prefix=prefix)
    rows = row_losses(trainer)
    if trainer.processes.is_main:
        jsonl.write_rows(folder / LOSSES.format(prefix), rows)
    return figures


def loss_change(folder: Path, seed: int = 0) -> dict[str, float]:
    """Change of the mean loss per supervised token by training, with a paired bootstrap over rows.

    Args:
        folder: The run folder; see `measure_held_out`.
        seed: Seed of the bootstrap.

    Returns:
        `loss_change` with both ends of its interval; empty if there are too few held-out rows.
    """
    change = _paired_difference(*(folder / LOSSES.format(prefix) for prefix in ("base", "tuned")), seed=seed)
    return change.flat("loss_change") if change else {}


def hardest_rows(folder: Path, most: int = 5) -> list[tuple[str, float | None, float]]:
    """The held-out rows with the highest loss per token after training.

    Args:
        folder: The run folder; see `measure_held_out`.
        most: Number of rows.

    Returns:
        Id, and loss per supervised token before and after training, of each row; empty for runs without such losses.
    """
    files = [folder / LOSSES.format(prefix) for prefix in ("base", "tuned")]
    before, after = (
        {str(row["id"]): row["loss"] / row["tokens"] for _, row in jsonl.read_rows(file)} if file.exists() else {}
        for file in files
    )
    hardest = sorted(after, key=lambda row_id: -after[row_id])[:most]
    return [(row_id, before.get(row_id), after[row_id]) for row_id in hardest]


def loss_difference(first: Path, other: Path, seed: int = 0) -> Estimate | None:
    """Mean loss per supervised token after training in a run, minus that in another; None with too few rows.

    Args:
        first: A run folder; see `measure_held_out`.
        other: The folder of a run with the same held-out rows.
        seed: Seed of the bootstrap.
    """
    return _paired_difference(*(folder / LOSSES.format("tuned") for folder in (other, first)), seed=seed)


def _paired_difference(*files: Path, seed: int) -> Estimate | None:
    """Mean loss per token of the second file minus that of the first, with a paired bootstrap over rows."""
    rows = [[row for _, row in jsonl.read_rows(file)] if file.exists() else [] for file in files]
    if min(map(len, rows)) < LEAST_ROWS:
        return None
    values = np.array([[[row["loss"], row["tokens"]] for row in losses] for losses in rows])  # (model, row, 2)
    resampled, sums = resampled_sums(values, seed), values.sum(1)
    means = resampled[..., 0] / resampled[..., 1]
    change = float(sums[1, 0] / sums[1, 1] - sums[0, 0] / sums[0, 1])
    return Estimate(change, *interval(means[1] - means[0], len(rows[0])))
