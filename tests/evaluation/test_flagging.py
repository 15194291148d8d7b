"""Verdicts on search results against their labels, pooled over items and over runs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef, recall_score

from sailkit.evaluation.flagging import Flagging, flagging, flagging_over_seeds
from sailkit.records import Prediction

VERDICTS = ("informative", "distracting")
RESULTS = st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1, max_size=3)


def prediction(number: int, results: list[tuple[str, str]], verdicts: bool = True) -> Prediction:
    turn = {"judgements": [label for label, _ in results], "verdicts": [v for _, v in results] if verdicts else None}
    return Prediction(str(number), number, "claim", "yes", "yes", "answered", "logprob", turns=(turn,))


@settings(max_examples=40, deadline=None)
@given(st.lists(RESULTS, min_size=1, max_size=12))
def test_the_figures_are_those_of_scikit_learn(items):
    figures = flagging([prediction(number, results) for number, results in enumerate(items)])
    labels, verdicts = zip(*[pair for results in items for pair in results], strict=True)
    assert figures.results == len(labels)
    for label, share in zip(VERDICTS, (figures.informative, figures.distracting), strict=True):
        if label not in labels:
            assert share is None
            continue
        assert share.value == pytest.approx(recall_score(labels, verdicts, labels=[label], average="macro"))
        assert share.low <= share.value <= share.high
    assert (figures.mcc is None) == (len(set(labels)) == 1)
    if figures.mcc:
        assert figures.mcc.value == pytest.approx(matthews_corrcoef(labels, verdicts))
        assert figures.mcc.low <= figures.mcc.value <= figures.mcc.high
    assert Flagging.from_flat(json.loads(json.dumps(figures.flat()))) == figures


def test_a_missing_verdict_is_never_right():
    both = [prediction(0, [("informative", "informative")]), prediction(1, [("distracting", "distracting")], False)]
    figures = flagging(both)
    assert (figures.informative.value, figures.distracting.value) == (1, 0)


def test_without_verdicts_or_labels_there_are_no_figures():
    assert flagging([Prediction("0", 0, "claim", "yes", "yes", "answered", "logprob")]) is None
    unlabelled = {"verdicts": ["informative"], "raw_output": ""}
    assert flagging([Prediction("0", 0, "claim", "yes", "yes", "answered", "logprob", turns=(unlabelled,))]) is None
    assert Flagging.from_flat({"accuracy": 1.0}) is None
    of_search = Prediction("0", 0, "claim", "yes", "yes", "answered", "logprob", turns=(unlabelled,))
    random = prediction(1, [("distracting", "distracting")])
    assert flagging([of_search, random]) == flagging([random])


def test_results_of_one_item_in_two_runs_are_one_unit():
    alone = [prediction(number, [("informative", "informative")]) for number in range(30)]
    alone += [prediction(100 + number, [("distracting", VERDICTS[number % 2])]) for number in range(30)]
    paired = alone[:30] + [prediction(number, [("distracting", VERDICTS[number % 2])]) for number in range(30)]
    assert flagging(alone).mcc.value == flagging(paired).mcc.value
    assert flagging(alone).mcc != flagging(paired).mcc


@settings(max_examples=40, deadline=None)
@given(st.lists(RESULTS, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_figures_over_seeds_are_the_means_of_those_of_the_models(items, rng):
    """Each model judges the same labelled results, with verdicts of its own."""
    models = [
        [
            prediction(number, [(label, rng.choice(VERDICTS)) for label, _ in results])
            for number, results in enumerate(items)
        ]
        for _ in range(3)
    ]
    mean, single = flagging_over_seeds(models), [flagging(model) for model in models]
    assert mean.results == single[0].results
    for name in ("informative", "distracting", "mcc"):
        values = [getattr(figures, name) for figures in single]
        estimate = getattr(mean, name)
        assert (estimate is None) == (None in values)
        if estimate:
            assert estimate.value == pytest.approx(sum(value.value for value in values) / 3)
            assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9


def test_three_results_that_are_all_right_are_not_certain_among_500_items():
    items = [prediction(n, [("informative" if n < 3 else "distracting",) * 2]) for n in range(500)]
    for runs in ([items], [items, items, items]):
        figures = flagging_over_seeds(runs)
        assert figures.informative.low < 0.5 < 0.95 < figures.distracting.low
        assert figures.mcc.low < 0.5


def test_the_interval_over_seeds_is_wider_than_that_of_a_model_if_seeds_differ():
    def model(share: float) -> list[Prediction]:
        verdicts = [VERDICTS[number >= 100 * share] for number in range(100)]
        return [prediction(i, [("informative", verdict), ("distracting", "distracting")])
                for i, verdict in enumerate(verdicts)]  # fmt: skip

    figures = [flagging_over_seeds(models) for models in ([model(0.7)], [model(0.9), model(0.7), model(0.5)])]
    alone, several = (each.informative for each in figures)
    assert (alone.value, several.value) == pytest.approx((0.7, 0.7))
    assert several.high - several.low > 2 * (alone.high - alone.low)
    assert flagging_over_seeds([model(0.7), []]) is None
