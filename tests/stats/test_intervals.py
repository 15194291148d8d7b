"""Intervals against scipy and against what they promise: to hold the truth, of single items and of groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sailkit.stats import metrics
from sailkit.stats.intervals import (
    LEVEL,
    Estimate,
    Units,
    bounded,
    interval,
    proportion,
    read_estimates,
    resample,
    share,
)

LABELS = ("a", "b")
# Shares of (true label, outcome): nine of ten right, with as many of each label; and a rare label that is often missed.
EVEN = np.array([[0.45, 0.05, 0, 0], [0.05, 0.45, 0, 0]])
RARE = np.array([[0.75, 0.05, 0, 0], [0.08, 0.12, 0, 0]])
SELDOM = np.array([[0.85, 0.1, 0, 0], [0.02, 0.03, 0, 0]])  # of 20 items, one sample in three has none of the second


@given(st.integers(1, 2000), st.data())
def test_a_proportion_has_its_exact_interval(total, data):
    count = data.draw(st.integers(0, total))
    expected = stats.binomtest(count, total).proportion_ci(LEVEL, "exact")
    found = proportion(count, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.low <= found.value == count / total <= found.high


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(10, 10, 0.6915, 1), (0, 20, 0, 0.1684), (3, 3, 0.2924, 1), (654, 907, 0.691, 0.750)],
)
def test_known_proportions(count, total, low, high):
    found = proportion(count, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


def test_of_nothing_nothing_is_known():
    assert proportion(0, 0) == Estimate(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("right", "wrong"), [(10, 0), (0, 20), (17, 3), (200, 100)])
def test_drawing_gives_the_exact_interval_of_a_proportion(right, wrong):
    counts = np.array([[right, wrong, 0, 0], [0, 0, 0, 0]])
    drawn = resample(Units.of_counts(counts), 1).estimate(metrics.accuracy)
    exact = proportion(right, right + wrong)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40))
def test_units_hold_every_item_once(items):
    cells = np.array([(row, column) for row, column, _ in items])
    groups = [str(group) for *_, group in items]
    single, grouped = Units.of_cells(cells, (2, 4)), Units.of_cells(cells, (2, 4), groups)
    alone = Units.of_cells(cells, (2, 4), [str(i) for i in range(len(items))])
    assert (single.table == grouped.table).all()
    assert (single.number, grouped.number) == (len(items), len(set(groups)))
    assert single.single
    # Groups of one item each are items.
    assert np.array_equal(np.sort(single.times), np.sort(alone.times))
    assert resample(single, 3).estimate(metrics.macro_f1) == resample(alone, 3).estimate(metrics.macro_f1)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(2, 6))
def test_items_said_over_again_say_no_more(hits, times):
    """Each item reworded: the interval is that of the items, and not of so many times as many."""
    once = share(hits)
    groups = [str(i) for i in range(len(hits)) for _ in range(times)]
    again = share([hit for hit in hits for _ in range(times)], groups)
    assert again.value == pytest.approx(once.value)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=0.03)


@given(st.lists(st.integers(0, 5), min_size=8, max_size=8), st.integers(0, 2))
def test_every_statistic_lies_within_its_interval(cells, seed):
    drawn = resample(Units.of_counts(np.array(cells).reshape(2, 4)), seed, 500)
    for name, statistic in metrics.STATISTICS.items():
        found = drawn.estimate(statistic)
        assert found.low <= found.value <= found.high, name


def test_no_figure_of_a_faultless_set_is_certain():
    found = metrics.confusion_estimates(metrics.confusion(["a"] * 5 + ["b"] * 5, ["a"] * 5 + ["b"] * 5, LABELS), LABELS)
    for name, estimate in found.items():
        assert estimate.value == estimate.high == pytest.approx(1)
        assert estimate.low < 0.8, name


def test_a_class_of_two_items_leaves_more_open_than_one_of_two_hundred():
    gold = ["a"] * 200 + ["b"] * 2
    found = metrics.confusion_estimates(metrics.confusion(gold, gold, LABELS), LABELS)
    assert found["f1_a"].low > 0.95
    assert found["f1_b"].low < 0.4
    assert found["balanced_accuracy"].low < 0.65


def test_of_a_label_that_no_item_has_nothing_is_known():
    found = metrics.confusion_estimates(metrics.confusion(["a"] * 20, ["a"] * 18 + ["b"] * 2, LABELS), LABELS)
    assert (found["f1_b"].low, found["f1_b"].high > 0.8) == (0, True)
    assert found["balanced_accuracy"].low < 0.5
    assert found["mcc"].low < 0 < found["mcc"].high


def test_draws_that_never_differ_leave_open_what_the_sample_cannot_know():
    same = np.full(1000, 1.0)
    assert bounded(1.0, same, 10).low == pytest.approx(proportion(10, 10).low)
    assert bounded(0.0, same * 0, 20).high == pytest.approx(proportion(0, 20).high)
    assert bounded(0.0, same * 0, 50, -1.0) == Estimate(
        0.0, pytest.approx(-0.142, abs=1e-3), pytest.approx(0.142, abs=1e-3)
    )
    varied = np.random.default_rng(0).random(1000)
    assert bounded(0.5, varied, 30) == Estimate(0.5, *interval(varied, 30))


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=50), st.integers(1, 100))
def test_a_figure_beside_all_of_its_draws_lies_within_its_interval(value, values, units):
    found = bounded(value, np.array(values), units)
    assert 0 <= found.low <= value == found.value <= found.high <= 1


def test_few_units_take_further_percentiles():
    """Means of eight normal values: the plain percentile interval holds the truth about nine times in ten."""
    rng = np.random.default_rng(0)
    hits = {None: 0, 8: 0}
    for _ in range(400):
        values = rng.normal(size=8)
        means = rng.multinomial(8, np.full(8, 1 / 8), 1000) @ values / 8
        for units in hits:
            low, high = interval(means, units)
            hits[units] += low <= 0 <= high
    assert hits[None] < 0.92 * 400 < 0.935 * 400 < hits[8]


def coverage(cells: np.ndarray, n: int, trials: int) -> dict[str, float]:
    """How often the interval of each statistic holds the value of the distribution."""
    rng = np.random.default_rng(3)
    truth = {name: float(f(cells)) for name, f in metrics.STATISTICS.items()}
    hits = dict.fromkeys(truth, 0)
    for seed in range(trials):
        drawn = resample(Units.of_counts(rng.multinomial(n, cells.ravel()).reshape(cells.shape)), seed, 1000)
        for name, f in metrics.STATISTICS.items():
            found = drawn.estimate(f)
            hits[name] += found.low <= truth[name] <= found.high
    return {name: count / trials for name, count in hits.items()}


@pytest.mark.parametrize("cells", [EVEN, RARE], ids=["even", "rare"])
def test_intervals_of_hundreds_hold_the_truth_as_often_as_they_say(cells):
    # 95 % of 200, give or take three standard deviations of such a count.
    assert all(0.9 <= held <= 1 for held in coverage(cells, 300, 200).values())


@pytest.mark.long
@pytest.mark.parametrize(
    ("cells", "n"),
    [(EVEN, 8), (EVEN, 20), (RARE, 20), (SELDOM, 20), (EVEN, 60), (RARE, 60), (SELDOM, 60)],
    ids=["even-8", "even-20", "rare-20", "seldom-20", "even-60", "rare-60", "seldom-60"],
)
def test_intervals_of_few_items_hold_the_truth(cells, n):
    held = coverage(cells, n, 2000)
    assert all(value >= 0.93 for value in held.values()), held


@pytest.mark.long
def test_a_proportion_of_twenty_holds_the_truth():
    rights = np.random.default_rng(0).binomial(20, 0.9, 20_000)
    held = np.mean([(e := proportion(int(k), 20)).low <= 0.9 <= e.high for k in rights])
    assert 0.93 <= held < 0.995


def grouped_coverage(groups: int, size: int, spread: tuple[float, float], trials: int) -> tuple[float, float]:
    """How often the interval of an accuracy over groups of reworded items holds the truth; and one over items."""
    rng = np.random.default_rng(7)
    names = [str(i) for i in range(groups) for _ in range(size)]
    truth, hits, ignoring = spread[0] / sum(spread), 0, 0
    for seed in range(trials):
        rights = rng.random((groups, size)) < rng.beta(*spread, size=(groups, 1))
        found, plain = share([*rights.ravel()], names, seed), share([*rights.ravel()])
        hits += found.low <= truth <= found.high
        ignoring += plain.low <= truth <= plain.high
    return hits / trials, ignoring / trials


def test_groups_that_are_ignored_make_intervals_lie():
    held, ignoring = grouped_coverage(30, 5, (1.8, 0.2), 150)
    assert held >= 0.93 > 0.88 > ignoring


@pytest.mark.long
@pytest.mark.parametrize(("groups", "size"), [(10, 5), (20, 5), (100, 5), (20, 20)])
@pytest.mark.parametrize("spread", [(0.9, 0.1), (4.0, 1.0)])
def test_intervals_over_groups_hold_the_truth(groups, size, spread):
    assert grouped_coverage(groups, size, spread, 500)[0] >= 0.93


def test_estimates_are_read_back_from_flat_names():
    flat = {
        "n": 3,
        **Estimate(0.5, 0.2, 0.8).flat("accuracy"),
        **Estimate(0.0, -0.1, 0.1).flat("accuracy_difference"),
        **{"kappa": None, "kappa_low": None, "kappa_high": None},
        "price_low": 1.0,
    }
    assert read_estimates(flat) == {
        "accuracy": Estimate(0.5, 0.2, 0.8),
        "accuracy_difference": Estimate(0.0, -0.1, 0.1),
    }
