"""How a step is cut into batches: every row once, like with like, and no batch larger than it has to be."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sailkit.training.batches import CurriculumFirst, balanced_batches, regroup_by_length  # noqa: E402
from sailkit.training.tokenise import IGNORED  # noqa: E402


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.data())
def test_every_row_once_and_no_batch_larger_than_of_equally_many_rows(lengths, draw):
    parts = draw.draw(st.integers(1, len(lengths)))
    found = balanced_batches(lengths, parts)
    assert len(found) == parts
    assert all(found)
    assert sorted(i for places in found for i in places) == list(range(len(lengths)))
    size = -(-len(lengths) // parts)
    longest = sorted(lengths, reverse=True)
    plain = max(longest[i] * len(longest[i : i + size]) for i in range(0, len(longest), size))
    assert max(len(places) * max(lengths[i] for i in places) for places in found) <= plain


def test_long_rows_stand_alone_and_short_ones_together():
    assert balanced_batches([10, 900, 20, 400, 15, 30, 800, 300], 4) == [[1], [6], [3, 7], [5, 2, 4, 0]]


def batch(*lengths: int, first: int) -> dict:
    widest = max(lengths)
    ids = [[first + i] * n + [7] * (widest - n) for i, n in enumerate(lengths)]
    labels = [[IGNORED] + [first + i] * (n - 1) + [IGNORED] * (widest - n) for i, n in enumerate(lengths)]
    mask = [[1] * n + [0] * (widest - n) for n in lengths]
    made = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(values) for name, values in made.items()}


def seen(batches) -> list:
    rows = (row for one in batches for row in zip(*(one[name].tolist() for name in sorted(one)), strict=True))
    return sorted(
        tuple((i, label) for i, label, kept in zip(ids, labels, mask, strict=True) if kept)
        for mask, ids, labels in rows
    )


def test_rows_stay_what_they_are_and_padding_goes():
    before = [batch(9, 2, first=20), batch(3, 8, first=30)]
    after = regroup_by_length(before)
    assert seen(after) == seen(before)
    assert [tuple(one["input_ids"].shape) for one in after] == [(2, 9), (2, 3)]
    for one in after:
        assert (one["labels"][one["attention_mask"] == 0] == IGNORED).all()


def test_a_batch_alone_or_packed_stays_as_it_is():
    (alone,) = one = [batch(9, 2, first=20)]
    assert regroup_by_length(one)[0] is alone
    packed = [{"input_ids": torch.ones(1, 5), "position_ids": torch.arange(5)[None]}] * 2
    assert regroup_by_length(packed) == packed


def test_a_curriculum_comes_once_and_later_epochs_are_passes_over_the_other_rows():
    order = CurriculumFirst(10, 4, seed=3)
    epochs = []
    for epoch in range(4):
        order.set_epoch(epoch)
        epochs.append(list(order))
    assert epochs[0] == list(range(10))
    assert {len(epoch) for epoch in epochs} == {len(order)} == {10}
    later = [row for epoch in epochs[1:] for row in epoch]
    passes = [later[i : i + 6] for i in range(0, 30, 6)]
    assert all(sorted(rows) == [4, 5, 6, 7, 8, 9] for rows in passes)
    assert len(set(map(tuple, passes))) > 1
    other = CurriculumFirst(10, 4, seed=4)
    other.set_epoch(1)
    assert list(other) != epochs[1]
    alone = CurriculumFirst(3, 3, seed=0)  # no other row fits
    alone.set_epoch(1)
    assert sorted(alone) == [0, 1, 2]
