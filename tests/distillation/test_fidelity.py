"""How near a student is to its targets: only tokens count, whatever rows its output layer has beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sailkit.training.tokenise import IGNORED

pytest.importorskip("trl")
from distilled import PADDED, TOKENS, rows, student
from sailkit.distillation.fidelity import fidelity, means
from sailkit.distillation.records import ALIGNED, NONE, Targets

ROWS = rows(8)


def likeliest(model: Any) -> list[int]:
    """The student's likeliest token at each supervised position."""
    best = []
    for ids, labels in zip(ROWS.ids, ROWS.labels, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1, :TOKENS]
        best += logits[torch.tensor(labels[1:]) != IGNORED].argmax(-1).tolist()
    return best


def targets_beside(best: list[int]) -> Targets:
    """Two tokens at each position, the likelier of which is the student's own at every second one; some have none."""
    n = len(best)
    kind = np.where(np.arange(n) % 5 == 4, NONE, ALIGNED)
    order = np.where(np.arange(n) % 2 == 0, 0, 1)
    ids = np.array([(b, (b + 1) % TOKENS)[:: -1 if second else 1] for b, second in zip(best, order, strict=True)])
    sizes = [sum(label != IGNORED for label in row) for row in ROWS.labels]
    listed = kind != NONE
    probs = np.tile(np.array([0.6, 0.3], np.float32), (n, 1))[listed].ravel()
    starts = np.cumsum([0, *np.where(listed, 2, 0)])
    return Targets(np.cumsum([0, *sizes]), starts, ids[listed].ravel(), probs, np.where(listed, 0.1, 1.0), kind)


def test_padding_of_the_vocabulary_neither_wins_nor_competes():
    plain, padded = student(rows=TOKENS).eval(), student(rows=PADDED).eval()
    more = torch.zeros(PADDED - TOKENS, plain.config.hidden_size)
    state = plain.state_dict()
    padded.load_state_dict({name: torch.cat([row, more]) if len(row) == TOKENS else row for name, row in state.items()})
    with torch.no_grad():  # whatever the position, one of two opposite rows is the likeliest
        padded.lm_head.weight[TOKENS] = 100.0
        padded.lm_head.weight[TOKENS + 1] = -100.0
    best = likeliest(plain)
    targets = targets_beside(best)
    expected, rows_of_padded = (fidelity(model, ROWS, targets, TOKENS) for model in (plain, padded))
    assert sum(row["agreeing"] for row in expected) > len(best) // 4
    for name in ("agreeing", "kl", "cross_entropy"):
        assert [row[name] for row in rows_of_padded] == pytest.approx([row[name] for row in expected], rel=1e-5)


def test_agreement_is_the_share_of_targets_whose_likeliest_token_is_the_students():
    model = student().eval()
    best = likeliest(model)
    targets = targets_beside(best)
    listed = targets.kind != NONE
    expected = (listed & (np.arange(len(best)) % 2 == 0)).sum() / listed.sum()
    assert means(fidelity(model, ROWS, targets, TOKENS))["agreement"] == pytest.approx(expected)
