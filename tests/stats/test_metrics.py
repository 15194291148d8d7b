"""Every metric against scikit-learn, scipy or a slow and obvious loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from sailkit.stats import metrics

LABELS = ("a", "b", "c")
COLUMNS = (*LABELS, "unreadable", "refused")


@st.composite
def answers(draw, labels=LABELS, min_size=1):
    """Gold labels and outcomes, sometimes with classes that do not occur."""
    size = draw(st.integers(min_size, 40))
    known = draw(st.sets(st.sampled_from(labels), min_size=1))
    said = draw(st.sets(st.sampled_from((*labels, "unreadable", "refused")), min_size=1))
    gold = draw(st.lists(st.sampled_from(sorted(known)), min_size=size, max_size=size))
    return gold, draw(st.lists(st.sampled_from(sorted(said)), min_size=size, max_size=size))


PAIRS = answers()


@given(PAIRS)
def test_confusion(pair):
    gold, said = pair
    expected = sk.confusion_matrix(gold, said, labels=COLUMNS)[: len(LABELS)]
    assert metrics.confusion(gold, said, LABELS).tolist() == expected.tolist()


@given(PAIRS)
def test_accuracies_and_f1s_are_those_of_scikit_learn(pair):
    gold, said = pair
    counts = metrics.confusion(gold, said, LABELS)
    settings = {"labels": LABELS, "zero_division": 0}
    assert metrics.accuracy(counts) == pytest.approx(sk.accuracy_score(gold, said))
    assert metrics.class_f1(counts) == pytest.approx(sk.f1_score(gold, said, average=None, **settings))
    assert metrics.macro_f1(counts) == pytest.approx(sk.f1_score(gold, said, average="macro", **settings))
    assert metrics.weighted_f1(counts) == pytest.approx(sk.f1_score(gold, said, average="weighted", **settings))
    recall = sk.recall_score(gold, said, labels=sorted(set(gold)), average="macro", zero_division=0)
    assert metrics.balanced_accuracy(counts) == pytest.approx(recall)


@given(PAIRS)
def test_matthews_correlation_takes_a_non_answer_as_a_class_of_its_own(pair):
    gold, said = pair
    assume(len({*gold, *said}) > 1)  # of one class alone scikit-learn warns
    value = metrics.mcc(metrics.confusion(gold, said, LABELS))
    assert value == pytest.approx(sk.matthews_corrcoef(gold, said), abs=1e-9)


@given(answers(LABELS, 2))
def test_kappa(pair):
    first, second = pair
    if len({*first, *second}) < 2:
        assert metrics.kappa(first, second) is None
    else:
        assert metrics.kappa(first, second) == pytest.approx(sk.cohen_kappa_score(first, second), abs=1e-9)


@given(PAIRS, st.randoms())
def test_no_figure_hangs_on_the_order_of_items(pair, random):
    gold, said = pair
    order = list(range(len(gold)))
    random.shuffle(order)
    counts = metrics.confusion(gold, said, LABELS)
    again = metrics.confusion([gold[i] for i in order], [said[i] for i in order], LABELS)
    assert metrics.confusion_estimates(counts, LABELS) == metrics.confusion_estimates(again, LABELS)


@given(PAIRS, st.permutations(LABELS))
def test_averages_do_not_hang_on_the_order_of_labels(pair, labels):
    one, other = (metrics.confusion(*pair, names) for names in (LABELS, labels))
    for name, statistic in metrics.STATISTICS.items():
        assert statistic(one) == pytest.approx(statistic(other)), name


@given(PAIRS)
def test_every_statistic_takes_a_stack_of_tables(pair):
    counts = metrics.confusion(*pair, LABELS)
    stack = np.stack([counts, 2 * counts, np.zeros_like(counts)])
    for name, statistic in metrics.STATISTICS.items():
        alone = float(statistic(counts))
        assert statistic(stack) == pytest.approx([alone, alone, 0.0]), name


@given(PAIRS)
def test_bounds_hold_every_way_of_reading_what_was_not_read(pair):
    gold, said = pair
    low, high = metrics.bounds(metrics.confusion(gold, said, LABELS))
    silent = [s in metrics.NOT_ANSWERED for s in said]
    right = [g if quiet else s for g, s, quiet in zip(gold, said, silent, strict=True)]
    assert low == pytest.approx(sk.accuracy_score(gold, said))
    assert high == pytest.approx(sk.accuracy_score(gold, right))
    assert high - low == pytest.approx(sum(silent) / len(said))


@given(PAIRS)
def test_baselines_are_what_such_answers_would_score(pair):
    gold, _ = pair
    counts = metrics.confusion(gold, gold, LABELS)
    majority = max(LABELS, key=gold.count)
    constant = [majority] * len(gold)
    f1 = sk.f1_score(gold, constant, labels=LABELS, average="macro", zero_division=0)
    assert metrics.majority_accuracy(counts) == pytest.approx(sk.accuracy_score(gold, constant))
    assert metrics.majority_macro_f1(counts) == pytest.approx(f1)
    # Guesses drawn from the labels themselves: every item meets every item's label.
    every = [g == guess for g, guess in itertools.product(gold, gold)]
    assert metrics.prior_accuracy(counts) == pytest.approx(np.mean(every))


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]])
def test_auroc(labels):
    rng = np.random.default_rng(0)
    for _ in range(20):
        gold = [str(g) for g in rng.choice(labels, 30)]
        scores = rng.dirichlet(np.ones(len(labels)), 30).round(1)  # rounded, so that some are tied
        rows = [dict(zip(labels, row, strict=True)) for row in scores]
        areas = [sk.roc_auc_score([g == label for g in gold], scores[:, i]) for i, label in enumerate(labels)]
        expected = np.mean(areas) if len(labels) > 2 else areas[1]
        assert metrics.auroc(gold, rows, labels) == pytest.approx(expected)


def test_auroc_with_classes_that_do_not_occur():
    rows = [{"a": 0.2, "b": 0.8, "c": 0.0}, {"a": 0.7, "b": 0.2, "c": 0.1}]
    assert metrics.auroc(["a", "a"], rows, LABELS) is None
    assert metrics.auroc([], [], LABELS) is None
    assert metrics.auroc(["b", "a"], rows, LABELS) == 1.0
    assert metrics.auroc(["a", "b"], rows, ("a", "b")) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 15))
def test_calibration_error_is_that_of_a_slow_loop(items, bins):
    total = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in items if b == min(int(c * bins), bins - 1)]
        if inside:
            gap = abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside]))
            total += gap * len(inside) / len(items)
    confidence, right = zip(*items, strict=True)
    assert metrics.expected_calibration_error(confidence, right, bins) == pytest.approx(total, abs=1e-9)


def test_calibration_error_of_known_cases():
    assert metrics.expected_calibration_error([1.0] * 4, [True] * 4) == 0
    assert metrics.expected_calibration_error([1.0] * 4, [False] * 4) == 1
    assert metrics.expected_calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    # Full certainty belongs to the last bin, not to one of its own.
    assert metrics.expected_calibration_error([1.0, 0.95], [False, True]) == pytest.approx(0.475)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    assume(only_a + only_b)
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert metrics.mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_without_discordant_items():
    assert metrics.mcnemar(0, 0) == 1.0


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40))
def test_a_sign_flip_test_of_single_items_is_mcnemars(only_a, only_b, equal):
    differences = [1] * only_a + [-1] * only_b + [0] * equal
    assert metrics.sign_flip(differences) == pytest.approx(metrics.mcnemar(only_a, only_b), rel=1e-9)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_sign_flip_test_counts_every_way_to_flip(differences):
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert metrics.sign_flip(differences) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_that_of_a_slow_loop(p_values):
    adjusted = metrics.holm(p_values)
    for i, p in enumerate(p_values):
        # Step down: at every p up to this one, times how many were still to be rejected.
        steps = [(sum(q >= other for q in p_values) * other) for other in p_values if other <= p]
        assert adjusted[i] == pytest.approx(min(1.0, max(steps)))
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


@given(PAIRS, st.integers(0, 3))
def test_intervals_are_ordered_and_hold_the_value(pair, seed):
    counts = metrics.confusion(*pair, LABELS)
    found = metrics.confusion_estimates(counts, LABELS, seed)
    assert list(found) == [*metrics.STATISTICS, "f1_a", "f1_b", "f1_c"]
    for name, e in found.items():
        assert -1 - 1e-9 <= e.low <= e.value <= e.high <= 1 + 1e-9, name


def power(difference: float, share: float, n: int, level: float = 0.05) -> float:
    """How often McNemar's test finds a difference, by trying it out."""
    rng = np.random.default_rng(0)
    share = max(share, difference)
    rates = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    trials = rng.multinomial(n, rates, 1500)
    return float(np.mean([metrics.mcnemar(int(a), int(b)) < level for a, b, _ in trials]))


@pytest.mark.parametrize(
    ("discordant", "n", "level"),
    [(215, 907, 0.05), (40, 200, 0.05), (300, 1000, 0.05 / 3), (12, 500, 0.05), (3, 500, 0.05), (0, 100, 0.01)],
)
def test_the_detectable_difference_is_detected_about_four_times_in_five(discordant, n, level):
    difference = metrics.minimum_detectable_difference(discordant, n, level=level)
    # The exact test is a little more careful than the normal approximation that predicts it.
    assert 0.68 <= power(difference, discordant / n, n, level) <= 0.86
    assert power(difference / 2, discordant / n, n, level) < 0.5


@given(st.integers(1, 5000), st.data())
def test_the_detectable_difference_is_a_difference_that_could_be(n, data):
    discordant = data.draw(st.integers(0, n))
    found = metrics.minimum_detectable_difference(discordant, n)
    assert 0 < found <= 1
    # Six items that all fall to one side are the least that is ever significant.
    assert found * n >= 6 or found == 1
    assert not math.isnan(found)
