"""Rows of training data: which of them are held out."""

from __future__ import annotations

from sailkit.data.rows import RowBuilder
from sailkit.records import Instruction, Searched

ROWS = [Searched(Instruction(str(i), f"Question {i}?", output=f"Answer {i}.")) for i in range(200)]


def sides(seed: int, share: float = 0.3) -> tuple[set[str], set[str]]:
    """Ids of the training rows, and of those that are held out."""
    rows = RowBuilder("chat", (1.0,), 3, None, "mean", share, seed, None)
    rows.add_all(ROWS, [])
    return {row.id for row in rows.train}, {row.id for row in rows.held_out}


def test_no_row_that_one_seed_holds_out_is_trained_on_with_another():
    train, held_out = sides(seed=1)
    assert 30 < len(held_out) < 90
    assert not train & sides(seed=0)[1]
    assert held_out < sides(seed=2, share=0.5)[1]
