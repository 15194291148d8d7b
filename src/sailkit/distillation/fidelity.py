"""Measures the distance of a student to its teacher on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sailkit.distillation.records import NONE, Targets
from sailkit.stats.intervals import Floats
from sailkit.stats.metrics import kappa_of
from sailkit.training.tokenise import IGNORED, Prepared

SUMS = ("kl", "aimed", "cross_entropy", "positions", "agreeing")  # columns of fidelity.jsonl; aimed: with a target
# Counts of a row's search results that are called distracting by teacher and student, by neither, or by one of them.
FLAGS = ("both", "neither", "only_teacher", "only_student")
_ROWS = 8  # rows of a forward pass


def fidelity(model: Any, prepared: Prepared, targets: Targets, columns: int) -> list[dict[str, Any]]:
    """Compare a student with its targets.

    Args:
        model: A causal language model in evaluation mode.
        prepared: Rows in the model's rendering.
        targets: The teacher's distributions, in the student's tokens.
        columns: Size of the student's vocabulary; the rest of its output layer is padding.

    Returns:
        For each row its id and sums: `kl` (nats, over positions with a target), `aimed` (number of those positions),
        `cross_entropy` (nats, over all positions), `positions`, and `agreeing`: positions with a target where the
        student's likeliest token is the target's likeliest.
    """
    import torch

    from sailkit.distillation.loss import CHUNK, TargetTable, loss_parts, plain_head
    from sailkit.models.rope import rope_lengths

    head = plain_head(model)
    device = head.weight.device
    labels = [[label for label in row if label != IGNORED] for row in prepared.labels]
    table = TargetTable((targets, np.array([label for row in labels for label in row])))
    likeliest = _likeliest(targets)
    rows: list[dict[str, Any]] = [{} for _ in prepared.examples]
    with torch.no_grad():
        for batch in rope_lengths(model.config).batches([len(ids) for ids in prepared.ids], _ROWS):
            longest = max(len(prepared.ids[i]) for i in batch)
            ids = torch.tensor([[*prepared.ids[i], *[0] * (longest - len(prepared.ids[i]))] for i in batch])
            mask = torch.tensor([[1] * len(prepared.ids[i]) + [0] * (longest - len(prepared.ids[i])) for i in batch])
            hidden = model.base_model(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).last_hidden_state
            for line, i in enumerate(batch):
                before = [n - 1 for n, label in enumerate(prepared.labels[i]) if label != IGNORED]
                numbers = torch.arange(int(targets.rows[i]), int(targets.rows[i + 1]))
                inputs = hidden[line, before]
                row_targets = table.at(numbers.to(device))
                sums, agreeing = torch.zeros(3), 0
                for begin in range(0, len(before), CHUNK):
                    here = slice(begin, begin + CHUNK)
                    logits = torch.nn.functional.linear(inputs[here], head.weight, head.bias).float()
                    top = logits[:, :columns].argmax(-1).cpu().numpy()
                    agreeing += int((top == likeliest[numbers[here].numpy()]).sum())
                    parts = loss_parts(logits, row_targets[here], columns)
                    sums += torch.stack([parts.kl, parts.targeted, parts.cross_entropy]).cpu()
                kl, targeted, cross_entropy = sums.tolist()
                rows[i] = {
                    "id": prepared.examples[i].id,
                    "kl": kl,
                    "aimed": int(targeted),
                    "cross_entropy": cross_entropy,
                    "positions": len(before),
                    "agreeing": agreeing,
                }
    return rows


def _likeliest(targets: Targets) -> Any:
    """The likeliest token of each position; -1 where no token is listed."""
    likeliest = np.full(len(targets.kind), -1, dtype=np.int64)
    for position in np.flatnonzero(targets.kind != NONE):
        here = slice(int(targets.starts[position]), int(targets.starts[position + 1]))
        if len(targets.probs[here]):
            likeliest[position] = targets.ids[here][int(np.argmax(targets.probs[here]))]
    return likeliest


def add_flags(
    rows: Sequence[dict[str, Any]], teacher: Mapping[str, Sequence[bool]], student: Mapping[str, Sequence[bool]]
) -> list[dict[str, Any]]:
    """Add to each row the search results that each model calls distracting.

    Args:
        rows: The rows that `fidelity` returned.
        teacher: Row -> for each search result, whether the teacher calls it distracting.
        student: The same for the student.

    Returns:
        The rows; those that both models have judged get `teacher_flags` and `flags`.
    """
    with_flags = []
    for row in rows:
        name = row["id"]
        flags = {}
        if name in teacher and name in student:
            flags = {"teacher_flags": list(teacher[name]), "flags": list(student[name])}
        with_flags.append({**row, **flags})
    return with_flags


def flag_counts(row: Mapping[str, Any]) -> tuple[int, ...]:
    """Count agreements and disagreements on a row's search results, in the order of `FLAGS`.

    Raises:
        ValueError: The numbers of judged search results differ.
    """
    pairs = list(zip(row.get("teacher_flags", ()), row.get("flags", ()), strict=True))
    return tuple(pairs.count(kind) for kind in ((True, True), (False, False), (True, False), (False, True)))


def flags_kappa(counts: Floats) -> Floats:
    """Cohen's kappa of counts in the order of `FLAGS`; shape (..., 4) to (...)."""
    return kappa_of(counts[..., [0, 2, 3, 1]].reshape(*counts.shape[:-1], 2, 2))


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Figures over all rows: means over tokens and over search results, not over rows.

    Returns:
        `kl` and `agreement` for each position with a target, `cross_entropy` for each supervised token;
        `verification_agreement`, the share of search results that both flag alike, and `verification_kappa`, Cohen's.
        None if there is nothing to count.
    """
    sums = {name: float(sum(row[name] for row in rows)) for name in SUMS}
    targeted, positions = sums["aimed"], sums["positions"]
    flags = np.array([flag_counts(row) for row in rows], dtype=float).reshape(-1, len(FLAGS)).sum(0)
    n_flags, kappa = float(flags.sum()), float(flags_kappa(flags))
    return {
        "kl": sums["kl"] / targeted if targeted else None,
        "agreement": sums["agreeing"] / targeted if targeted else None,
        "cross_entropy": sums["cross_entropy"] / positions if positions else None,
        "verification_agreement": float(flags[0] + flags[1]) / n_flags if n_flags else None,
        "verification_kappa": None if math.isnan(kappa) else kappa,
    }
