"""How near a student is to its teacher on held-out rows, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sailkit.distill.rows import NONE, Targets
from sailkit.finetune.data import IGNORED, Prepared
from sailkit.metrics import kappa

SUMS = ("kl", "aimed", "cross_entropy", "positions", "agreeing")
_ROWS = 8  # in a pass


def fidelity(model: Any, prepared: Prepared, targets: Targets, columns: int) -> list[dict[str, Any]]:
    """Compare a student with its targets.

    Args:
        model: A causal language model in evaluation mode.
        prepared: Rows as it reads them.
        targets: What its teacher thinks, in its tokens.
        columns: The student's tokens; the rest of its output layer is padding.

    Returns:
        For each row its id and sums: `kl` (nats, over positions with a target), `aimed` (how many of them),
        `cross_entropy` (nats, over all positions), `positions`, and `agreeing`: positions with a target where the
        student's likeliest token is the teacher's, in bytes.
    """
    import torch

    from sailkit.distill.loss import Table, distillation_loss, plain_head

    head = plain_head(model)
    device = head.weight.device
    labels = [[label for label in row if label != IGNORED] for row in prepared.labels]
    table = Table((targets, np.array([label for row in labels for label in row])))
    best = _likeliest(targets)
    found: list[dict[str, Any]] = [{} for _ in prepared.examples]
    order = sorted(range(len(found)), key=lambda i: len(prepared.ids[i]))
    with torch.no_grad():
        for begin in range(0, len(order), _ROWS):
            places = order[begin : begin + _ROWS]
            longest = max(len(prepared.ids[i]) for i in places)
            ids = torch.tensor([[*prepared.ids[i], *[0] * (longest - len(prepared.ids[i]))] for i in places])
            mask = torch.tensor([[1] * len(prepared.ids[i]) + [0] * (longest - len(prepared.ids[i])) for i in places])
            hidden = model.base_model(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).last_hidden_state
            for line, i in enumerate(places):
                at = [n - 1 for n, label in enumerate(prepared.labels[i]) if label != IGNORED]
                numbers = torch.arange(int(targets.rows[i]), int(targets.rows[i + 1]))
                inputs = hidden[line, at]
                wanted = table.at(numbers.to(device))
                _, parts = distillation_loss(
                    inputs, head.weight, head.bias, wanted, ce_weight=0.0, columns=columns
                )  # fmt: skip
                top = torch.nn.functional.linear(inputs, head.weight, head.bias)[:, :columns].argmax(-1).cpu().numpy()
                found[i] = {
                    "id": prepared.examples[i].id,
                    "kl": float(parts.kl),
                    "aimed": int(parts.aimed),
                    "cross_entropy": float(parts.cross_entropy),
                    "positions": len(at),
                    "agreeing": int((top == best[numbers.numpy()]).sum()),
                }
    return found


def _likeliest(targets: Targets) -> Any:
    """The likeliest token of each position; -1 where no token is listed."""
    found = np.full(len(targets.kind), -1, dtype=np.int64)
    for place in np.flatnonzero(targets.kind != NONE):
        here = slice(int(targets.starts[place]), int(targets.starts[place + 1]))
        if len(targets.probs[here]):
            found[place] = targets.ids[here][int(np.argmax(targets.probs[here]))]
    return found


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures of all rows together: each token counts alike.

    Returns:
        `kl` and `agreement` for each position with a target, `cross_entropy` for each supervised token.
    """
    sums = {name: float(sum(row[name] for row in rows)) for name in SUMS}
    aimed, positions = sums["aimed"], sums["positions"]
    return {
        "kl": sums["kl"] / aimed if aimed else None,
        "agreement": sums["agreeing"] / aimed if aimed else None,
        "cross_entropy": sums["cross_entropy"] / positions if positions else None,
    }


def flag_agreement(
    teacher: Mapping[str, Sequence[bool]], student: Mapping[str, Sequence[bool]]
) -> dict[str, float | None]:
    """How often two models flag a search result alike.

    Args:
        teacher: What one says.
        student: What the other says.

    Returns:
        `verification_agreement`, the share, and `verification_kappa`, Cohen's; None where nothing was flagged.
    """
    names = [name for name in teacher if name in student]
    pairs = [pair for name in names for pair in zip(teacher[name], student[name], strict=True)]
    if not pairs:
        return {"verification_agreement": None, "verification_kappa": None}
    first, second = ([str(flags[side]) for flags in pairs] for side in (0, 1))
    alike = sum(a == b for a, b in pairs) / len(pairs)
    return {"verification_agreement": alike, "verification_kappa": kappa(first, second)}
