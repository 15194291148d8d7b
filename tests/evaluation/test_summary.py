"""Figures and flags: each flag where it belongs, none where it does not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from sailkit.evaluation.summary import CONSTANT_SHARE, UNREADABLE_SHARE, USUAL_NOISE, summarise_predictions
from sailkit.records import AnswerScore, Prediction
from sailkit.stats.intervals import LEAST_UNITS

LABELS = ("yes", "no")


def predictions(*groups: tuple[int, str | None, str], reference: list[str | None] | None = None) -> list[Prediction]:
    """Groups of (how many, gold, label or outcome)."""
    rows = []
    for count, gold, said in groups:
        for _ in range(count):
            label, outcome = (said, "answered") if said in LABELS else (None, said)
            asked = reference[len(rows)] if reference else None
            rows.append(
                Prediction(f"{len(rows)}", len(rows), "", gold, label, outcome, "text", reference=asked)  # type: ignore[arg-type]
            )
    return rows


def scored(gold: str, *logprobs: float, bias: float = 0.0) -> Prediction:
    """A prediction by scores; a bias is taken off the first label's, as calibration does."""
    logs = {LABELS[0]: logprobs[0] - bias, LABELS[1]: logprobs[1]}
    total = sum(map(math.exp, logs.values()))
    scores = {label: math.exp(value) / total for label, value in logs.items()}
    answers = {label: AnswerScore(label, (1,), value) for label, value in zip(LABELS, logprobs, strict=True)}
    best = max(logs, key=lambda label: logs[label])
    return Prediction("0", 0, "", gold, best, "answered", "logprob", scores, answers)


def codes(rows: list[Prediction], dtype: str | None = None) -> list[str]:
    return [flag.code for flag in summarise_predictions(rows, LABELS, dtype).flags]


GOOD = [(60, "yes", "yes"), (30, "no", "no"), (5, "yes", "no"), (5, "no", "yes")]


def test_answers_that_end_within_a_thought_are_counted():
    rows = predictions(*GOOD, (2, "no", "unreadable"))
    rows[-1] = replace(rows[-1], raw_output="<think>\nIt says no")
    rows[0] = replace(rows[0], raw_output="<think>\nIt says no.\n</think>\n\nYes")
    (flag,) = summarise_predictions(rows, LABELS).flags
    assert flag.code == "open-thoughts"
    assert flag.message.startswith("1 of 102 answers end within a thought")


def test_a_good_result_has_no_flags():
    assert codes(predictions(*GOOD)) == []


def test_figures_are_those_of_scikit_learn():
    rows = predictions(*GOOD, (2, "no", "unreadable"), (1, "yes", "refused"))
    figures = summarise_predictions(rows, LABELS).to_json()
    gold, said = [r.gold for r in rows], [r.predicted for r in rows]
    settings = {"labels": LABELS, "zero_division": 0}
    for prefix in ("", "human_"):
        assert figures[f"{prefix}accuracy"] == pytest.approx(sk.accuracy_score(gold, said))
        assert figures[f"{prefix}macro_f1"] == pytest.approx(sk.f1_score(gold, said, average="macro", **settings))
        assert figures[f"{prefix}weighted_f1"] == pytest.approx(sk.f1_score(gold, said, average="weighted", **settings))
        f1_yes, f1_no = sk.f1_score(gold, said, average=None, **settings)
        assert (figures[f"{prefix}f1_yes"], figures[f"{prefix}f1_no"]) == pytest.approx((f1_yes, f1_no))
    assert figures["confusion"]["counts"] == [[60, 5, 0, 1], [5, 30, 2, 0]]
    assert figures["confusion"]["columns"] == ["yes", "no", "unreadable", "refused"]
    assert (figures["majority_label"], figures["against"], figures["n"]) == ("yes", "human", 103)


def test_every_f1_says_which_it_is_and_every_figure_fits_json():
    rows = predictions(*GOOD, reference=["yes"] * 90 + ["no"] * 10)
    figures = summarise_predictions(rows, LABELS).to_json()
    json.dumps(figures, allow_nan=False)
    named = [name for name in figures if "f1" in name]
    assert len(named) > 20
    for name in named:
        assert any(kind in name for kind in ("macro_f1", "weighted_f1", "f1_yes", "f1_no")), name
    assert not {"f1", "human_f1", "reference_f1"} & figures.keys()


@pytest.mark.parametrize(("others", "constant"), [(0, True), (2, True), (3, False)])
def test_a_constant_predictor(others, constant):
    assert CONSTANT_SHARE == 0.98
    rows = predictions((60 - others, "yes", "yes"), (40, "no", "yes"), (others, "yes", "no"))
    assert ("constant-predictor" in codes(rows)) == constant


def test_silence_is_no_constant_label():
    assert codes(predictions((50, "yes", "unreadable"), (50, "no", "unreadable"))) == [
        "below-baseline",
        "unreadable-answers",
    ]


@pytest.mark.parametrize(("silent", "flagged"), [(0, False), (2, False), (3, True)])
@pytest.mark.parametrize("outcome", ["unreadable", "refused"])
def test_answers_without_a_label(silent, flagged, outcome):
    assert UNREADABLE_SHARE == 0.02
    rows = predictions((60 - silent, "yes", "yes"), (40, "no", "no"), (silent, "yes", outcome))
    summary = summarise_predictions(rows, LABELS)
    figures, flags = summary.flat(), summary.flags
    assert ("unreadable-answers" in [flag.code for flag in flags]) == flagged
    assert figures[outcome] == silent
    assert figures["accuracy"] == figures["accuracy_if_unanswered_wrong"] == (100 - silent) / 100
    assert figures["accuracy_if_unanswered_right"] == 1.0


def test_unreadable_and_refused_count_together():
    rows = predictions((57, "yes", "yes"), (40, "no", "no"), (2, "yes", "unreadable"), (1, "yes", "refused"))
    assert codes(rows) == ["unreadable-answers"]


@pytest.mark.parametrize(
    ("right", "flags"),
    [
        (90, []),
        (72, []),
        (65, ["baseline-within-interval"]),
        (60, ["baseline-within-interval"]),
        (45, ["below-baseline"]),
    ],
)
def test_the_baseline_is_always_in_view(right, flags):
    """Always answering yes gets 60 of 100; 95 % intervals reach about 0.09 to either side."""
    wrong_yes, wrong_no = (100 - right) // 2, (101 - right) // 2
    rows = [(60 - wrong_yes, "yes", "yes"), (wrong_yes, "yes", "no")]
    rows += [(40 - wrong_no, "no", "no"), (wrong_no, "no", "yes")]
    assert codes(predictions(*rows)) == flags


def test_the_baseline_itself_is_within_its_interval():
    found = codes(predictions((60, "yes", "yes"), (40, "no", "yes")))
    assert found == ["constant-predictor", "baseline-within-interval"]


def test_figures_against_a_reference_stand_beside_the_human_ones():
    rows = predictions(*GOOD, reference=["yes"] * 50 + ["no"] * 50)
    summary = summarise_predictions(rows, LABELS)
    figures, flags = summary.flat(), summary.flags
    gold, asked, said = ([getattr(r, name) for r in rows] for name in ("gold", "reference", "predicted"))
    assert figures["against"] == "reference"
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(asked, said))
    assert figures["human_accuracy"] == pytest.approx(sk.accuracy_score(gold, said))
    assert figures["reference_kappa"] == pytest.approx(sk.cohen_kappa_score(asked, gold))
    assert figures["reference_agreement"] == pytest.approx(sk.accuracy_score(gold, asked))
    assert (figures["majority_accuracy"], figures["reference_majority_accuracy"]) == (0.65, 0.5)
    assert figures["reference_n"] == 100
    assert [flag.code for flag in flags] == ["reference-disagrees"]


@pytest.mark.parametrize(("flipped", "flagged"), [(0, False), (5, False), (20, True)])
def test_a_reference_that_disagrees_with_people(flipped, flagged):
    gold = ["yes"] * 60 + ["no"] * 30 + ["yes"] * 5 + ["no"] * 5
    swapped = ["no" if g == "yes" else "yes" for g in gold[:flipped]] + gold[flipped:]
    assert ("reference-disagrees" in codes(predictions(*GOOD, reference=swapped))) == flagged


def test_a_reference_of_one_label_has_no_kappa_and_agrees():
    rows = predictions((20, "yes", "yes"), reference=["yes"] * 20)
    summary = summarise_predictions(rows, LABELS)
    figures, flags = summary.flat(), summary.flags
    assert figures["reference_kappa"] is None
    assert "reference-disagrees" not in [f.code for f in flags]


def test_items_without_a_reference_are_left_out_of_its_figures_only():
    rows = predictions(*GOOD, reference=["yes"] * 60 + ["no"] * 30 + [None] * 10)
    figures = summarise_predictions(rows, LABELS).to_json()
    assert (figures["accuracy"], figures["human_accuracy"], figures["reference_n"]) == (1.0, 0.9, 90)


def test_data_without_any_labels_have_flags_but_no_figures():
    summary = summarise_predictions(predictions((10, None, "yes"), (5, None, "unreadable")), LABELS)
    figures, flags = summary.flat(), summary.flags
    assert "accuracy" not in figures
    assert [flag.code for flag in flags] == ["unreadable-answers"]


@pytest.mark.parametrize("dtype", [*USUAL_NOISE, None])
def test_near_ties_hang_on_the_number_format(dtype):
    noise = USUAL_NOISE.get(dtype or "", 0.0)
    for gap, tie in ((0.0, True), (noise * 0.9, True), (noise * 1.1 + 1e-9, False), (1.0, False)):
        rows = [scored("yes", -1.0, -1.0 - gap), scored("no", -3.0, -1.0)]
        summary = summarise_predictions(rows, LABELS, dtype)
        figures, flags = summary.flat(), summary.flags
        assert figures["near_ties"] == int(tie)
        assert ("near-ties" in [flag.code for flag in flags]) == tie


def test_near_ties_are_those_of_the_calibrated_scores():
    assert "near-ties" in codes([scored("yes", -1.0, -3.0, bias=2.0)], "float32")
    assert "near-ties" not in codes([scored("yes", -1.0, -1.0, bias=2.0)], "float32")


def test_a_certain_answer_is_no_tie():
    certain = Prediction("0", 0, "", "yes", "yes", "answered", "logprob", {"yes": 1.0, "no": 0.0})
    assert summarise_predictions([certain], LABELS, "bfloat16").near_ties == 0
    assert summarise_predictions(predictions(*GOOD), LABELS, "bfloat16").near_ties == 0


def test_ranking_and_calibration_need_scores_of_every_item():
    rows = [scored("yes", -0.1, -3.0), scored("no", -3.0, -0.1), scored("no", -1.0, -0.5), scored("yes", -0.9, -0.6)]
    figures = summarise_predictions(rows, LABELS).to_json()
    truth, chances = [r.gold == "no" for r in rows], [r.scores["no"] for r in rows]
    assert figures["auroc"] == pytest.approx(sk.roc_auc_score(truth, chances))
    assert 0 < figures["ece"] < 1
    figures = summarise_predictions([*rows, *predictions((1, "yes", "yes"))], LABELS).to_json()
    assert (figures["auroc"], figures["ece"]) == (None, None)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "unreadable", "refused"))), min_size=1))
def test_no_item_is_ever_left_out(pairs):
    rows = predictions(*((1, gold, said) for gold, said in pairs))
    figures = summarise_predictions(rows, LABELS).to_json()
    assert sum(map(sum, figures["confusion"]["counts"])) == figures["n"] == len(pairs)
    assert figures["accuracy"] == pytest.approx(sum(g == s for g, s in pairs) / len(pairs))


def test_flags_are_kept_by_code_with_every_sentence():
    rows = predictions((50, "yes", "no"), (50, "no", "yes"), reference=["yes"] * 50 + ["no"] * 50)
    found = summarise_predictions(rows, LABELS).to_json()
    assert found["flags"] == ["below-baseline"]
    assert ["human" in text or "reference" in text for text in found["flag_messages"]["below-baseline"]] == [True, True]


@pytest.mark.parametrize("count", [3, LEAST_UNITS - 1, LEAST_UNITS])
def test_few_items_are_flagged_however_right_they_are(count):
    summary = summarise_predictions(predictions((count - 1, "yes", "yes"), (1, "no", "no")), LABELS)
    figures, flags = summary.flat(), summary.flags
    assert figures["accuracy"] == 1.0
    assert figures["accuracy_low"] < 0.84
    few = [flag.message for flag in flags if flag.code == "few-items"]
    assert bool(few) == (count < LEAST_UNITS)
    assert all(text.startswith(f"{count} items are too few for a verdict, which takes 20") for text in few)


def test_no_interval_of_a_faultless_or_hopeless_set_is_a_point():
    for said, low, high in (("yes", 0.69, 1.0), ("no", 0.0, 0.31)):
        figures = summarise_predictions(predictions((10, "yes", said)), LABELS).to_json()
        assert (figures["accuracy_low"], figures["accuracy_high"]) == pytest.approx((low, high), abs=0.005)
        for name in ("macro_f1", "weighted_f1", "balanced_accuracy", "f1_yes"):
            assert figures[f"{name}_high"] - figures[f"{name}_low"] > 0.05, name


def test_items_in_groups_count_as_groups():
    """Thirty claims, each worded five times: as wide as the thirty alone, and few where there are nineteen."""
    single = predictions((24, "yes", "yes"), (6, "yes", "no"))
    reworded = [replace(p, id=f"{p.id}-{i}", group=p.id) for p in single for i in range(5)]
    alone, grouped, ignored = (
        summarise_predictions(rows, LABELS).to_json()
        for rows in (single, reworded, [replace(p, group="") for p in reworded])
    )
    assert (grouped["n"], grouped["groups"], "groups" in ignored) == (150, 30, False)
    for prefix in ("", "human_"):
        widths = [f[f"{prefix}accuracy_high"] - f[f"{prefix}accuracy_low"] for f in (alone, grouped, ignored)]
        assert widths[1] == pytest.approx(widths[0], rel=0.05)
        assert widths[2] < 0.6 * widths[1]
    (text,) = [f.message for f in summarise_predictions(reworded[:95], LABELS).flags if f.code == "few-items"]
    assert text.startswith("19 groups of items are too few for a verdict")


def test_the_reference_agrees_within_an_interval():
    rows = predictions((10, "yes", "yes"), reference=["yes"] * 10)
    figures = summarise_predictions(rows, LABELS).to_json()
    assert [figures[f"reference_agreement{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [1, 0.6915, 1], abs=5e-4
    )


def test_bounds_are_told_where_they_are_spoken_of():
    (text,) = [f.message for f in summarise_predictions(predictions(*GOOD, (10, "yes", "refused")), LABELS).flags]
    assert text == (
        "10 of 110 answers (9.1%) give no label; were all of them wrong or all right, the accuracy would be 0.8182 or "
        "0.9091"
    )


@pytest.mark.parametrize("by", ["prompt", "prompt_fingerprint"])
def test_equal_prompts_for_different_items(by):
    rows = [
        replace(p, text=f"Claim {i // 2}", **{by: "Hello!" if i < 6 else f"Claim {i // 2}?"})
        for i, p in enumerate(predictions(*GOOD))
    ]
    figures = summarise_predictions(rows, LABELS).to_json()
    assert figures["flags"] == ["equal-prompts"]
    assert figures["flag_messages"]["equal-prompts"][0].startswith("6 of 100 items have the prompt of an item with")
    # One text twice has one prompt twice.
    assert codes([replace(p, **{by: f"Claim {i // 2}?"}) for i, p in enumerate(rows)]) == []
