"""Sets of predictions side by side: two real models, the same under other names, and small made-up files."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from scipy import stats
from sklearn import metrics as sk

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.predictions import PREDICTIONS, REFERENCE_FOLDER, to_row
from sailkit.files import jsonl
from sailkit.prompts.parse import ANSWER_RULES_VERSION
from sailkit.records import Prediction

SETTINGS = {
    "labels": ["SUPPORTS", "REFUTES"],
    "rules_version": ANSWER_RULES_VERSION,
    "model": "small",
    "weights_sha256": "abc",
    "task": "climate-fever",
    "protocol": "direct",
}


def answers(right: list[bool]) -> list[Prediction]:
    """Half of the claims hold; each is answered rightly or wrongly."""
    rows = []
    for n, hit in enumerate(right):
        gold, other = SETTINGS["labels"] if n % 2 else SETTINGS["labels"][::-1]
        rows.append(Prediction(str(n), n, f"Claim {n}", gold, gold if hit else other, "answered", "text"))
    return rows


def run(folder: Path, rows: list[Prediction], reference: list[str] | None = None, **changes: object) -> Path:
    """A finished run folder, written as an evaluation writes it."""
    settings = {**SETTINGS, "n": len(rows), **changes}
    with runs.open_run(folder, "evaluate", settings) as opened:
        jsonl.write_atomic(opened.path(PREDICTIONS), "".join(jsonl.dumps(to_row(p)) + "\n" for p in rows))
        if reference is not None:
            lines = "".join(jsonl.dumps({"id": str(n), "label": label}) + "\n" for n, label in enumerate(reference))
            jsonl.write_atomic(opened.path(f"{REFERENCE_FOLDER}/{PREDICTIONS}"), lines)
    return folder


def recording(path: Path, labels: list[str], outputs: list[str]) -> Path:
    pairs = enumerate(zip(labels, outputs, strict=True))
    rows = [{"id": n, "label": label, "output": output} for n, (label, output) in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def complaint(*sets: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        compare(*sets, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_recorded_models_against_scikit_learn_and_scipy(recordings):
    found = compare(recordings.llama, recordings.sail, task=recordings.task).to_json()
    rows = {}
    for model, path in (("a", recordings.llama), ("b", recordings.sail)):
        ids = [row["id"] for _, row in jsonl.read_rows(path)]
        human, _, _, said = recordings.columns(path)
        rows[model] = dict(zip(ids, zip(human, said, strict=True), strict=True))
    right = {m: {i for i, (truth, said) in items.items() if truth == said} for m, items in rows.items()}
    only_a, only_b = len(right["a"] - right["b"]), len(right["b"] - right["a"])
    assert (only_a, only_b) == (found["only_a"], found["only_b"]) == (153, 62)
    assert (found["n"], found["both_right"], found["both_wrong"]) == (907, 439, 253)
    assert found["p_value"] == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    assert found["p_value"] == found["p_value_holm"] < 1e-8
    labels = (recordings.yes, recordings.no)
    for model, items in rows.items():
        truth, said = zip(*items.values(), strict=True)
        assert found[f"{model}_accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
        for average in ("macro", "weighted"):
            f1 = sk.f1_score(truth, said, labels=labels, average=average, zero_division=0)
            assert found[f"{model}_{average}_f1"] == pytest.approx(f1)
    for name in ("accuracy", "macro_f1"):
        difference = found[f"a_{name}"] - found[f"b_{name}"]
        assert found[f"{name}_difference"] == pytest.approx(difference)
        assert 0 < found[f"{name}_difference_low"] < difference < found[f"{name}_difference_high"]


def test_the_verdict_on_two_recorded_models(recordings):
    found = compare(recordings.llama, recordings.sail, task=recordings.task).to_json()
    assert found["verdict"] == "better"
    assert found["verdict_text"] == "climate-fever.llama2-7b-chat is better than climate-fever.sail-7b"
    assert (found["majority_label"], found["majority_accuracy"]) == (recordings.yes, pytest.approx(0.7211, abs=5e-5))
    assert found["flags"] == ["below-majority", "references-disagree", "missing-provenance"]
    assert len(found["flag_messages"]["below-majority"]) == 2
    (text,) = found["flag_messages"]["references-disagree"]
    assert text.endswith("disagree on 20 of 907 items; human labels are used")
    assert found["reference_disagreements"] == 20
    turned = compare(recordings.sail, recordings.llama, task=recordings.task).to_json()
    assert (turned["verdict"], turned["p_value"]) == ("worse", found["p_value"])
    assert turned["accuracy_difference"] == pytest.approx(-found["accuracy_difference"])


def test_against_references_only_items_with_one_reference_count(recordings):
    found = compare(recordings.llama, recordings.sail, task=recordings.task, against="reference").to_json()
    references, said = [], []
    for path in (recordings.llama, recordings.sail):
        ids = [row["id"] for _, row in jsonl.read_rows(path)]
        _, reference, _, answer = recordings.columns(path)
        references.append(dict(zip(ids, reference, strict=True)))
        said.append(dict(zip(ids, answer, strict=True)))
    shared = [i for i, label in references[0].items() if references[1][i] == label]
    assert (found["n"], found["left_out"]) == (len(shared), 907 - len(shared)) == (887, 20)
    for model, answer in zip("ab", said, strict=True):
        accuracy = sk.accuracy_score([references[0][i] for i in shared], [answer[i] for i in shared])
        assert found[f"{model}_accuracy"] == pytest.approx(accuracy)
    assert found["flag_messages"]["references-disagree"][0].endswith("those are left out")


def test_the_order_of_rows_changes_nothing(tmp_path):
    rows = answers([n % 3 > 0 for n in range(60)])
    a = run(tmp_path / "a", answers([n % 5 > 0 for n in range(60)]))
    b, c = run(tmp_path / "b", rows), run(tmp_path / "c" / "b", rows[::-1])
    assert compare(a, b).to_json() == compare(a, c).to_json()


@pytest.mark.parametrize("count", [1, 5, 100])
def test_equal_sets_cannot_be_told_apart(tmp_path, count):
    rows = answers([n % 4 > 0 for n in range(count)])
    found = compare(run(tmp_path / "a", rows), run(tmp_path / "b", rows)).to_json()
    assert (found["verdict"], found["p_value"], found["accuracy_difference"]) == ("cannot tell", 1.0, 0.0)
    assert (found["only_a"], found["only_b"]) == (0, 0)
    # A text that says how fine the test is must not call it infinitely fine.
    assert found["minimum_detectable_difference"] >= min(1.0, 6 / count)


@pytest.mark.parametrize(("better", "verdict"), [(5, "cannot tell"), (6, "better")])
def test_the_verdict_turns_at_five_percent(tmp_path, better, verdict):
    a = run(tmp_path / "a", answers([True] * 40))
    b = run(tmp_path / "b", answers([n >= better for n in range(40)]))
    found = compare(a, b).to_json()
    assert found["verdict"] == verdict
    assert (found["p_value"] < 0.05) == (verdict == "better")


def test_three_sets_are_adjusted_together(tmp_path):
    hits = {"a": [True] * 80, "b": [n >= 7 for n in range(80)], "c": [n % 10 >= 3 for n in range(80)]}
    comparison = compare(*(run(tmp_path / name, answers(right)) for name, right in hits.items()))
    found = comparison.to_json()
    pairs = {(p["a"], p["b"]): p for p in found["comparisons"]}
    frame = comparison.to_frame().set_index(["a", "b"])
    assert frame["verdict"].to_dict() == {pair: p["verdict"] for pair, p in pairs.items()}
    assert frame["accuracy_difference_low"].to_dict() == {
        pair: p["accuracy_difference_low"] for pair, p in pairs.items()
    }
    raw = {}
    for (x, one), (y, other) in combinations(hits.items(), 2):
        only = [sum(p and not q for p, q in zip(*sides, strict=True)) for sides in ((one, other), (other, one))]
        raw[x, y] = stats.binomtest(only[0], sum(only)).pvalue
    adjusted = dict(zip(raw, slow_holm(list(raw.values())), strict=True))
    assert {pair: p["p_value"] for pair, p in pairs.items()} == pytest.approx(raw)
    assert {pair: p["p_value_holm"] for pair, p in pairs.items()} == pytest.approx(adjusted)
    assert {pair: p["verdict"] for pair, p in pairs.items()} == {
        pair: "better" if p < 0.05 else "cannot tell" for pair, p in adjusted.items()
    }
    alone = compare(tmp_path / "a", tmp_path / "b").to_json()
    assert pairs["a", "b"]["minimum_detectable_difference"] > alone["minimum_detectable_difference"]
    assert found["names"] == ["a", "b", "c"]
    assert "verdict" not in found


def slow_holm(p_values: list[float]) -> list[float]:
    """Holm's adjustment by its definition: each p-value's own, raised to the largest before it."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    own = {i: min(1.0, p_values[i] * (len(order) - rank)) for rank, i in enumerate(order)}
    return [max(own[j] for j in order[: order.index(i) + 1]) for i in range(len(p_values))]


def test_a_difference_before_the_adjustment_only_cannot_be_told(tmp_path):
    six = answers([n >= 6 for n in range(40)])
    a, b, c = (run(tmp_path / name, rows) for name, rows in (("a", answers([True] * 40)), ("b", six), ("c", six)))
    assert compare(a, b).to_json()["verdict"] == "better"
    assert {pair["verdict"] for pair in compare(a, b, c).to_json()["comparisons"]} == {"cannot tell"}


def test_groups_are_drawn_and_tested_whole(tmp_path):
    """Forty claims worded five times each; b fails on six claims, in all their wordings: six facts, and not thirty."""
    rows = [replace(p, group=f"claim-{p.index // 5}") for p in answers([True] * 200)]
    failed = [replace(p, group=f"claim-{p.index // 5}") for p in answers([n >= 30 for n in range(200)])]
    found = compare(run(tmp_path / "a", rows), run(tmp_path / "b", failed)).to_json()
    assert (found["test"], found["groups"], found["n"]) == ("exact sign-flip test over groups", 40, 200)
    assert found["p_value"] == pytest.approx(2 * 0.5**6)
    alone = compare(
        run(tmp_path / "c", answers([True] * 40)), run(tmp_path / "d", answers([n >= 6 for n in range(40)]))
    ).to_json()
    assert (alone["test"], alone["p_value"]) == ("exact McNemar test", pytest.approx(2 * 0.5**6))
    names = ("minimum_detectable_difference", "accuracy_difference_low", "accuracy_difference_high", "b_accuracy_low")
    assert [found[name] for name in names] == pytest.approx([alone[name] for name in names], abs=0.01)
    # One of the two files may be from before groups were kept.
    old = run(tmp_path / "e", answers([n >= 30 for n in range(200)]))
    assert compare(tmp_path / "a", old).to_json()["p_value"] == found["p_value"]


def test_sets_that_agree_on_every_item_may_still_differ(tmp_path):
    rows = answers([n % 4 > 0 for n in range(40)])
    found = compare(run(tmp_path / "a", rows), run(tmp_path / "b", rows)).to_json()
    assert found["accuracy_difference"] == 0
    # Of 40 items, none tells a from b: up to 8.8 % of all could, by the exact interval.
    assert found["accuracy_difference_low"] == pytest.approx(-0.088, abs=0.01)
    assert found["accuracy_difference_high"] == pytest.approx(0.088, abs=0.01)


@pytest.mark.parametrize(("count", "verdict"), [(19, "cannot tell"), (20, "better")])
def test_no_verdict_on_few_items(tmp_path, count, verdict):
    found = compare(
        run(tmp_path / "a", answers([True] * count)), run(tmp_path / "b", answers([False] * count))
    ).to_json()
    assert found["verdict"] == verdict
    assert ("few-items" in found["flags"]) == (count < 20)
    if count < 20:
        assert found["remark"] == "19 items are too few"


def test_sets_of_one_name_are_numbered(tmp_path):
    rows = answers([True] * 10)
    found = compare(
        run(tmp_path / "x" / "out", rows), run(tmp_path / "y" / "out", rows), run(tmp_path / "z", rows)
    ).to_json()
    assert found["names"] == ["out (1)", "out (2)", "z"]
    assert [(p["a"], p["b"]) for p in found["comparisons"]] == list(combinations(found["names"], 2))


@pytest.mark.parametrize(
    ("changes", "factors", "flagged"),
    [
        ({}, {}, False),
        (
            {"model": "large", "weights_sha256": "def"},
            {"model": ["small", "large"], "weights_sha256": ["abc", "def"]},
            False,
        ),
        ({"protocol": "fair"}, {"protocol": ["direct", "fair"]}, False),
        ({"model": "large", "protocol": "fair"}, {"model": ["small", "large"], "protocol": ["direct", "fair"]}, True),
    ],
)
def test_a_verdict_says_what_the_sets_differ_in(tmp_path, changes, factors, flagged):
    a = run(tmp_path / "a", answers([True] * 40))
    b = run(tmp_path / "b", answers([n > 20 for n in range(40)]), **changes)
    found = compare(a, b).to_json()
    assert found["factors"] == factors
    assert ("several-factors" in found["flags"]) == flagged
    if factors:
        assert found["remark"] == f"they differ in {', '.join(name for name in factors if name != 'weights_sha256')}"


def test_verifying_counts_by_itself_only_where_both_sets_have_search_results(tmp_path):
    rows = answers([True] * 40)
    others = run(tmp_path / "others", rows, search="random", verify=True)
    without = run(tmp_path / "without", rows, search="none", verify=False)
    own = run(tmp_path / "own", rows, search="evidence", verify=False)
    found = compare(others, without).to_json()
    presence = "the difference is what the mere presence of search results does"
    assert found["remark"].endswith(f"they differ in search; {presence}")
    assert "several-factors" not in found["flags"]
    found = compare(own, others).to_json()
    assert found["remark"].endswith("they differ in search, verify")
    assert "several-factors" in found["flags"]


def test_days_that_a_chat_template_shows_are_a_difference(tmp_path):
    rows = answers([True] * 40)
    first, second = (run(tmp_path / day, rows, date=day) for day in ("2026-01-01", "2026-01-02"))
    assert compare(first, second).to_json()["factors"] == {"date": ["2026-01-01", "2026-01-02"]}
    assert compare(first, run(tmp_path / "none", rows)).to_json()["factors"] == {}  # its template reads no clock


def test_a_constant_that_wins_accuracy_alone_is_told(tmp_path):
    """Four of five claims hold; one model says so of all, the other finds those that do not."""
    gold = ["SUPPORTS"] * 160 + ["REFUTES"] * 40
    doubts = ["REFUTES"] * 70 + ["SUPPORTS"] * 90 + ["REFUTES"] * 40
    sets = []
    for name, said in (("doubter", doubts), ("constant", ["SUPPORTS"] * 200)):
        rows = [
            Prediction(str(n), n, f"Claim {n}", truth, word, "answered", word)
            for n, (truth, word) in enumerate(zip(gold, said, strict=True))
        ]
        sets.append(run(tmp_path / name, rows, model=name))
    found = compare(*sets).to_json()
    assert found["verdict_text"] == "doubter is worse than constant in accuracy, better in macro-F1"
    assert "measures-disagree" in found["flags"]
    assert "doubter minus constant: accuracy -0.1500, macro-F1 +0.1" in found["flag_messages"]["measures-disagree"][0]


def test_what_a_recording_does_not_say_is_missing(tmp_path):
    recorded = recording(tmp_path / "old.jsonl", ["REFUTES", "SUPPORTS"], ["Wrong", "Correct"])
    found = compare(run(tmp_path / "a", answers([True, True])), recorded).to_json()
    assert found["verdict"] == "cannot tell"
    texts = found["flag_messages"]["missing-provenance"]
    assert texts[-1] == "old does not say its model, prompt and settings"
    assert "model" in found["unknown_provenance"]["old"]


def test_unreadable_answers_are_wrong_and_stay(tmp_path):
    labels = ["SUPPORTS", "REFUTES"] * 20
    a = recording(tmp_path / "a.jsonl", labels, ["Correct", "Wrong"] * 20)
    b = recording(tmp_path / "b.jsonl", labels, ["Correct", "Hm."] * 10 + ["I cannot say.", "Wrong"] * 10)
    found = compare(a, b).to_json()
    assert (found["n"], found["a_accuracy"], found["b_accuracy"], found["only_a"]) == (40, 1.0, 0.5, 20)
    assert (found["b_accuracy_if_unanswered_wrong"], found["b_accuracy_if_unanswered_right"]) == (0.5, 1.0)


def test_sets_that_cannot_be_compared_are_refused(tmp_path):
    rows = answers([True] * 6)
    a = run(tmp_path / "a", rows)
    assert "have different items: 6 and 5, 1 in only one of them, such as '5'" in complaint(
        a, run(tmp_path / "b", rows[:5])
    )
    assert "have different items" in complaint(tmp_path / "b", a)
    flipped = [Prediction(p.id, p.index, p.text, "SUPPORTS", p.label, "answered", "text") for p in rows]
    assert "differ in the gold label of 3 items, such as '0'" in complaint(a, run(tmp_path / "c", flipped))
    texts = [Prediction(p.id, p.index, "Another", p.gold, p.label, "answered", "text") for p in rows]
    assert "differ in the text of 6 items" in complaint(a, run(tmp_path / "d", texts))
    other = run(tmp_path / "e", rows, labels=["REFUTES", "SUPPORTS"])
    assert "have other labels: SUPPORTS, REFUTES against REFUTES, SUPPORTS" in complaint(a, other)
    old = run(tmp_path / "f", rows, rules_version=ANSWER_RULES_VERSION - 1)
    versions = f"version {ANSWER_RULES_VERSION} against {ANSWER_RULES_VERSION - 1}"
    assert f"were read by other rules ({versions})" in complaint(a, old)
    assert "have other labels" in complaint(a, a, other)
    assert complaint(a) == "compare needs two or more run folders or files"
    for more in ({"task": "hsd"}, {"fields": ["text=claim"]}):
        assert complaint(a, a, **more) == "`task` and `fields` are for recorded outputs, and all of these are runs"
    assert "share no reference labels; see `against`" in complaint(a, run(tmp_path / "g", rows), against="reference")


def test_runs_that_are_not_finished_are_refused(tmp_path):
    rows = answers([True] * 6)
    a = run(tmp_path / "a", rows)
    half = run(tmp_path / "half", rows[:3], n=6)
    assert f"{half} is not finished (3 of 6 items); run the same  sailkit evaluate  again" in complaint(a, half)
    asked = run(tmp_path / "asked", rows, reference=["SUPPORTS"] * 4)
    assert f"{asked} is not finished (4 of 6 reference labels)" in complaint(a, asked)
    whole = run(tmp_path / "whole", rows, reference=["SUPPORTS"] * 6)
    assert compare(a, whole, against="reference").to_json()["a_accuracy"] == 0.5
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in complaint(a, tmp_path / "empty")
    with runs.open_run(tmp_path / "other", "reference", {}):
        assert "holds a run of 'reference', not of 'evaluate'" in complaint(a, tmp_path / "other")
    (half / PREDICTIONS).write_text('{"id": "0"}\n')
    assert "line 1: not a prediction" in complaint(a, half)


def test_the_number_of_search_results_counts_by_itself_where_both_sets_have_some(tmp_path):
    """Three own results against one of other items is not what the results give, apart from their mere presence."""
    rows = answers([True] * 40)
    own = run(tmp_path / "own", rows, search="evidence", results=3)
    others = run(tmp_path / "others", rows, search="random", results=1)
    without = run(tmp_path / "without", rows, search="none", results=None)
    found = compare(own, others).to_json()
    assert found["remark"].endswith("they differ in search, results")
    assert "several-factors" in found["flags"]
    assert "several-factors" not in compare(own, without).to_json()["flags"]
