"""Figures over training seeds and items: against analysis of variance, and on simulated runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from sailkit.stats.metrics import macro_f1
from sailkit.stats.seeds import SeedFigures, mean_over_seeds, over_seeds, seed_auroc, seed_figures


def share(counts):
    return counts[..., 0, 0] / counts.sum((-2, -1))


def tables(hits):
    """Counts of right and wrong answers; `hits` has a row for each run and a column for each item."""
    counts = np.zeros((*hits.shape, 1, 2), dtype=np.int64)
    counts[..., 0, 0], counts[..., 0, 1] = hits, 1 - hits
    return list(counts)


def simulated(rng, runs, items, between):
    """Right answers with effects of the run, the item and both."""
    logits = rng.normal(0, between, (runs, 1)) + rng.normal(0, 0.5, items) + rng.normal(0, 0.7, (runs, items))
    return (rng.random((runs, items)) < 1 / (1 + np.exp(-logits))).astype(int)


def without_item_noise(*figures):
    return SeedFigures(np.array(figures), np.zeros((440, len(figures))))


def test_three_old_differences_tell_nothing():
    result = over_seeds(without_item_noise(0.166, -0.055, -0.034))
    expected = stats.ttest_1samp([0.166, -0.055, -0.034], 0)  # without noise of items, it is the t test of the runs
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.degrees_of_freedom == 2
    low, high = expected.confidence_interval(0.95)
    assert (result.estimate.low, result.estimate.high) == pytest.approx((low, high))
    assert result.estimate.sign == 0
    assert result.detectable > 0.3
    assert 100 < result.seeds_needed < 300


def test_the_variance_is_that_of_an_analysis_of_variance():
    hits = simulated(np.random.default_rng(1), runs=4, items=150, between=1.0)
    runs, items = hits.shape
    by_run, by_item = hits.mean(1, keepdims=True), hits.mean(0, keepdims=True)
    ms_run = items * by_run.var(ddof=1)
    ms_item = runs * by_item.var(ddof=1)
    ms_rest = ((hits - by_run - by_item + hits.mean()) ** 2).sum() / ((runs - 1) * (items - 1))
    assert ms_run > ms_rest
    assert ms_item > ms_rest
    shared = (ms_item - ms_rest) / (runs * items)
    variance = ms_run / (runs * items) + shared
    freedom = variance**2 / ((ms_run / (runs * items)) ** 2 / (runs - 1) + shared**2 / (items - 1))
    result = over_seeds(seed_figures(tables(hits), share), least=0.0)
    assert result.estimate.value == pytest.approx(hits.mean())
    assert result.degrees_of_freedom == pytest.approx(freedom, rel=1e-6)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert result.estimate.high - result.estimate.value == pytest.approx(half, rel=1e-6)


def test_the_interval_of_simulated_runs_holds_the_true_value():
    rng = np.random.default_rng(2)
    covered, items_alone = 0, 0
    for _ in range(200):
        figures = seed_figures(tables(simulated(rng, runs=3, items=150, between=0.5)), share)
        estimate = over_seeds(figures, least=0.0).estimate
        covered += estimate.low <= 0.5 <= estimate.high  # by symmetry the expected share is one half
        means = figures.deviations.mean(1)
        items_alone += abs(estimate.value - 0.5) <= 1.96 * float(means @ means) ** 0.5
    assert covered / 200 >= 0.93
    assert items_alone / 200 < 0.7  # what an interval over the items of three given runs would be worth


def test_seeds_that_happen_to_agree_are_not_taken_for_certainty():
    rng = np.random.default_rng(3)
    hits = np.array([rng.permutation(np.repeat([1, 0], [60, 40])) for _ in range(3)])  # equal figures, other items
    result = over_seeds(seed_figures(tables(hits), share), least=0.0)
    assert result.estimate.high - result.estimate.low > 2 * 1.96 * (0.24 / 300) ** 0.5 * 0.95


def test_equal_runs_have_the_interval_of_their_items():
    hits = np.tile(simulated(np.random.default_rng(4), 1, 200, 0.0), (3, 1))
    three = over_seeds(seed_figures(tables(hits), share)).estimate
    single = over_seeds(seed_figures(tables(hits[:1]), share)).estimate
    assert (three.low, three.high) == pytest.approx((single.low, single.high))
    assert three.high - three.low == pytest.approx(2 * 1.97 * (hits[0].var(ddof=1) / 200) ** 0.5, rel=0.01)


def test_a_difference_of_nothing_has_an_interval():
    figures = seed_figures(tables(np.ones((3, 50), dtype=int)), share)
    result = over_seeds(figures - figures)
    assert result.estimate.low < 0 == result.estimate.value < result.estimate.high < 0.1
    assert result.p_value == 1


def test_independent_groups_without_noise_of_items_are_compared_by_welchs_test():
    a, b = [0.7, 0.75, 0.72], [0.6, 0.66, 0.59, 0.61]
    result = over_seeds(without_item_noise(*a), -without_item_noise(*b))
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.degrees_of_freedom == pytest.approx(expected.df)


def test_the_seeds_needed_give_the_power():
    rng = np.random.default_rng(5)
    needed = over_seeds(without_item_noise(0.1, 0.0, 0.05)).seeds_needed
    draws = rng.normal(0.05, 0.05, (20_000, needed))
    power = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    fewer = (stats.ttest_1samp(draws[:, :-1], 0, axis=1).pvalue < 0.05).mean()
    assert fewer < 0.8 <= power + 0.01


def test_no_number_of_seeds_makes_up_for_few_items():
    hits = np.array([[1] * 14 + [0] * 16] * 3)
    hits[1, 0], hits[2, 1] = 0, 0
    half = seed_figures(tables(np.array([[1, 0] * 15] * 3)), share)
    result = over_seeds(seed_figures(tables(hits), share) - half)
    assert abs(result.estimate.value) < 0.08
    assert result.seeds_needed is None


def test_the_jackknife_of_macro_f1_agrees_with_the_bootstrap():
    rng = np.random.default_rng(6)
    counts = np.zeros((400, 2, 4), dtype=np.int64)
    gold = rng.integers(0, 2, 400)
    counts[np.arange(400), gold, np.where(rng.random(400) < 0.7, gold, 1 - gold)] = 1
    figures = seed_figures([counts], macro_f1)
    drawn = [float(macro_f1(counts[rng.integers(0, 400, 400)].sum(0).astype(float))) for _ in range(2000)]
    assert float((figures.deviations**2).sum()) ** 0.5 == pytest.approx(np.std(drawn), rel=0.1)


def test_the_interval_of_a_mean_stays_within_the_range_of_its_figure():
    figures = mean_over_seeds([0.9, 0.95, 1.0])
    assert figures.high > 1
    assert mean_over_seeds([0.9, 0.95, 1.0], 0.0, 1.0) == replace(figures, high=1.0)


def test_the_area_of_each_run_is_that_of_scikit_learn():
    """Units have several items, which may be of both classes, and scores may be equal."""
    rng = np.random.default_rng(3)
    units = np.repeat(np.arange(300), 2)
    gold = rng.random((3, 600)) < 0.4
    scores = np.round(gold + rng.normal(0, 1, (2, 3, 600)), 1)
    figures = seed_auroc(gold.tolist(), scores.tolist(), units.tolist())
    expected = [np.mean([roc_auc_score(g, s) for g, s in zip(gold, of_run, strict=True)]) for of_run in scores]
    assert figures.figures == pytest.approx(expected)
    without = [np.mean([roc_auc_score(g[units != u], s[units != u]) for g, s in zip(gold, scores[0], strict=True)])
               for u in range(300)]  # fmt: skip
    deviations = (np.array(without) - np.mean(without)) * np.sqrt(299 / 300)
    assert figures.deviations[:, 0] == pytest.approx(deviations)


def test_a_class_in_a_single_unit_has_no_area():
    assert seed_auroc([[True, False, False]], [[[0.1, 0.2, 0.3]]], [0, 1, 2]) is None
    assert seed_auroc([[True, True, True]], [[[0.1, 0.2, 0.3]]], [0, 1, 2]) is None
    perfect = seed_auroc([[True, True, *[False] * 98]], [[[0.9, 0.8, *[0.1] * 98]]], list(range(100)))
    assert (perfect.figures.tolist(), perfect.units) == ([1], 2)
    assert over_seeds(perfect, least=0.0).estimate.low < 0.5, "two items of a class tell little"
