"""One rule for batches of similar length: labels, scores and cached values depend on its plans in their low bits."""

from hypothesis import given
from hypothesis import strategies as st

from sailkit.models.batching import batch_by_length

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 200), st.data())
def test_a_batch_is_as_full_as_its_budget_allows(lengths, budget, data):
    counts = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    batches = batch_by_length(lengths, budget, sequences=counts)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        padded = lengths[batch[0]] * sum(counts[i] for i in batch)
        assert len(batch) == 1 or padded <= budget
        if following:
            assert padded + lengths[batch[0]] * counts[following[0]] > budget


def test_plans_stay_as_they_are():
    lengths = [7, 3, 9, 3, 12, 1, 7, 5, 0]
    assert batch_by_length(lengths, 18) == [[4], [2, 0], [6, 7], [1, 3, 5, 8]]
    assert batch_by_length(lengths, 18, sequences=[1, 2, 0, 1, 1, 3, 1, 0, 2]) == [[4, 2], [0, 6, 7], [1, 3, 5], [8]]
    assert batch_by_length(lengths, 1) == [[4], [2], [0], [6], [7], [1], [3], [5], [8]]
    assert batch_by_length([], 18) == []


def test_ties_are_ordered_and_another_bound_holds_too():
    lengths, prompts = [6, 6, 4, 6, 4], [3, 1, 2, 2, 0]
    assert batch_by_length(lengths, 100, ties=prompts) == [[1, 3, 0, 4, 2]]
    pairs = batch_by_length(lengths, 100, ties=prompts, fits=lambda batch: len(batch) <= 2)
    assert pairs == [[1, 3], [0, 4], [2]]
