"""Answers with and without a search result that the model calls informative."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from sailkit.evaluation.selective import Selective, selective, selective_over_seeds
from sailkit.evaluation.summary import summarise_predictions
from sailkit.records import Prediction

LABELS = ("yes", "no")
ITEMS = st.lists(
    st.tuples(
        st.sampled_from(LABELS),  # the true label
        st.sampled_from((*LABELS, None)),  # the answer
        st.lists(st.sampled_from(("informative", "distracting")), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=20,
)


def prediction(number, gold, label, verdicts, group="") -> Prediction:
    turns = () if verdicts == () else ({"raw_output": "Search result (1) is ...", "verdicts": verdicts},)
    outcome = "answered" if label else "unreadable"
    return Prediction(str(number), number, "claim", gold, label, outcome, "logprob", turns=turns, group=group)


def figures_of(items, groups=None):
    predictions = [prediction(i, *item, groups[i] if groups else "") for i, item in enumerate(items)]
    return selective(predictions, [gold for gold, *_ in items], LABELS)


@settings(max_examples=40, deadline=None)
@given(ITEMS)
def test_the_figures_of_each_part_are_those_of_scikit_learn(items):
    figures = figures_of(items)
    chosen = ["informative" in verdicts for *_, verdicts in items]
    assert figures.coverage.value == pytest.approx(sum(chosen) / len(items))
    for part, which in ((figures.selected, True), (figures.rejected, False)):
        rows = [(gold, label or "") for (gold, label, _), own in zip(items, chosen, strict=True) if own == which]
        assert (part is None) == (not rows)
        if part:
            golds, answers = zip(*rows, strict=True)
            assert part.n == len(rows)
            assert part.accuracy.value == pytest.approx(accuracy_score(golds, answers))
            expected = f1_score(golds, answers, labels=LABELS, average="macro", zero_division=0)
            assert part.macro_f1.value == pytest.approx(expected)
            assert part.majority_accuracy == max(map(golds.count, LABELS)) / len(golds)
            assert part.accuracy.low <= part.accuracy.value <= part.accuracy.high
    assert Selective.from_flat(json.loads(json.dumps(figures.flat()))) == figures


def test_an_unreadable_verification_selects_nothing_and_items_without_results_do_not_count():
    items = [("yes", "yes", None), ("yes", "yes", ["informative"]), ("yes", "no", ())]
    figures = figures_of(items)
    assert figures.coverage.value == 0.5
    assert (figures.selected.n, figures.rejected.n) == (1, 1)
    assert figures_of([("yes", "no", ())]) is None


def test_intervals_are_over_groups_where_items_are_grouped():
    items = [("yes", ("yes", "no")[i % 10 > 6], ["informative"]) for i in range(100)]
    single, grouped = figures_of(items), figures_of(items, [str(i // 25) for i in range(100)])
    assert single.selected.accuracy.value == grouped.selected.accuracy.value
    assert single.coverage.low < 1
    assert grouped.coverage.low < single.coverage.low  # four groups tell less than a hundred items


def test_a_summary_has_them_and_reads_them_again():
    predictions = [prediction(i, "yes", "yes", [("informative", "distracting")[i % 2]]) for i in range(40)]
    summary = summarise_predictions(predictions, LABELS)
    assert summary.figures["coverage"].value == 0.5
    flat = json.loads(json.dumps(summary.to_json()))
    assert flat["selected_n"] == flat["rejected_n"] == 20
    assert summary.fields_of(flat)["selective"] == summary.selective


@settings(max_examples=20, deadline=None)
@given(ITEMS, st.randoms(use_true_random=False))
def test_over_seeds_each_run_has_the_figures_that_it_has_alone(items, rng):
    """Each model answers and judges the same items in its own way."""
    golds = [gold for gold, *_ in items]
    models = []
    for _ in range(3):
        answers, verdicts = ([each[i] for each in items] for i in (1, 2))
        rng.shuffle(answers)
        rng.shuffle(verdicts)
        models.append([prediction(i, *row) for i, row in enumerate(zip(golds, answers, verdicts, strict=True))])
    over = selective_over_seeds(models, golds, LABELS, range(len(items)))
    alone = [selective(model, golds, LABELS) for model in models]
    assert list(over["coverage"].figures) == pytest.approx([figures.coverage.value for figures in alone])
    for name in ("selected", "rejected"):
        parts = [getattr(figures, name) for figures in alone]
        assert (f"{name}_accuracy" in over) == all(parts)
        if all(parts):
            of_part = over[f"{name}_accuracy"]
            assert list(of_part.figures) == pytest.approx([part.accuracy.value for part in parts])
            assert of_part.units == min(part.n for part in parts)


def test_over_seeds_there_are_none_if_a_model_judged_no_results():
    judged, silent = prediction(0, "yes", "yes", ["informative"]), prediction(0, "yes", "yes", ())
    assert selective_over_seeds([[judged], [judged]], ["yes"], LABELS, [0])
    assert selective_over_seeds([[judged], [silent]], ["yes"], LABELS, [0]) == {}
