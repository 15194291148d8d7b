"""Shortcut baselines: what a view tells, out of fold and by group, and how far a model is above it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sailkit.records import Example, SearchResult, TrainingExample
from sailkit.stats.shortcut_items import as_table, by_question, example_items, training_baselines
from sailkit.stats.shortcuts import ShortcutItem, lead, sampled, shortcut_baselines, telling_views

WORDS = [f"word{number}" for number in range(40)]


def items(claim: str = "", body: str = "", more: int = 0, source: str = "", count: int = 200) -> list[ShortcutItem]:
    """Items whose label only the named view tells: by a word in claim or body, by more words, or by the engine."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        label = "yes" if number % 2 else "no"
        words = [" ".join(rng.choices(WORDS, k=8)) for _ in range(2)]
        if claim:
            words[0] += f" {claim}{label}"
        if body:
            words[1] += f" {body}{label}"
        if more and label == "yes":
            words[1] += " " + " ".join(rng.choices(WORDS, k=more))
        result = SearchResult(words[1], source=f"{source}{label}" if source else "web")
        rows.append(ShortcutItem(str(number), label, f"g{number // 4}", words[0], (result,)))
    return rows


@pytest.mark.parametrize(
    ("view", "settings"),
    [
        ("claim", {"claim": "surely"}),
        ("evidence", {"body": "surely"}),
        ("length", {"more": 9}),
        ("source", {"source": "engine"}),
    ],
)
def test_a_view_tells_what_it_holds_and_no_more(view, settings):
    baselines = {row.view: row for row in shortcut_baselines(items(**settings))}
    assert baselines[view].auroc.value > 0.98
    assert baselines[view].macro_f1.low > 0.9
    for other in {"claim", "evidence", "length"} - {view, *(["evidence"] if view == "length" else [])}:
        assert 0.35 < baselines[other].auroc.value < 0.65
    assert telling_views({"label": [baselines[view]]}).keys() == {"shortcut"}
    assert ("source" in baselines) == (view == "source")  # one engine and no titles tell nothing


def test_items_of_a_group_are_in_one_fold():
    """A word of the group gives the label away to a model that has met the group, and to no other."""
    rng = random.Random(1)
    labels = [rng.choice(["yes", "no"]) for _ in range(80)]
    rows = [
        ShortcutItem(f"{group}-{i}", labels[group], str(group), f"topic{group} {rng.choice(WORDS)}", ())
        for group in range(80)
        for i in range(4)
    ]
    (grouped,) = (row for row in shortcut_baselines(rows) if row.features == "tf-idf")
    assert grouped.groups == 80
    assert 0.35 < grouped.auroc.value < 0.65
    alone = [ShortcutItem(row.id, row.label, row.id, row.claim, ()) for row in rows]
    (single,) = (row for row in shortcut_baselines(alone) if row.features == "tf-idf")
    assert single.auroc.value > 0.95


def test_a_passage_is_judged_for_several_claims_in_one_fold():
    """Each passage is informative for the claims of its group and distracting for others: alone, it tells nothing."""
    rng = random.Random(3)
    passages = [SearchResult(" ".join([f"topic{i}", *rng.choices(WORDS, k=5)])) for i in range(60)]
    rows = []
    for group, passage in enumerate(passages):
        for copy in range(4):
            shown = (passage, rng.choice([other for other in passages if other != passage]))
            name = f"{group}-{copy}"
            verdicts = ("informative", "distracting")
            rows.append((str(group), TrainingExample(name, "claim " + name, "", shown, verdicts, name, "chat")))
    (evidence,) = (row for row in training_baselines(rows, seed=0)["judgement"] if row.view == "evidence")
    assert evidence.auroc.value == pytest.approx(0.5, abs=0.1)
    assert evidence.groups == 60


def in_groups(*counts: tuple[int, str, str]) -> list[ShortcutItem]:
    rng = random.Random(0)
    rows = [(label, group) for count, group, label in counts for _ in range(count)]
    return [
        ShortcutItem(str(i), label, group, " ".join(rng.choices(WORDS, k=8)), ())
        for i, (label, group) in enumerate(rows)
    ]


def test_groups_that_leave_a_fold_without_a_label_are_no_error(capsys):
    impossible = in_groups((11, "a", "yes"), (3, "a", "no"), (20, "b", "yes"), (39, "c", "no"))
    assert shortcut_baselines(impossible) == []
    assert "without shortcut baselines of 73 items: their 3 groups cannot be split" in capsys.readouterr().err
    assert shortcut_baselines(in_groups(*((4, f"{i}", ("yes", "no")[i % 2]) for i in range(8))))


@pytest.mark.parametrize("result", [SearchResult("body text", source="web"), SearchResult("a", url="//\\[x")])
def test_a_view_that_varies_within_one_fold_alone_is_left_out(result):
    rows = [ShortcutItem(str(i), ("yes", "no")[i % 2], str(i), f"claim {WORDS[i]}", ()) for i in range(40)]
    rows[7] = ShortcutItem("7", "no", "7", "claim", (result,))
    assert {row.view for row in shortcut_baselines(rows)} == {"claim", "length"}


def test_rows_that_ask_the_same_are_in_one_fold():
    texts = ("Name a bay.", "name a bay", "Name a port.")
    rows = [TrainingExample(str(i), text, "", (), (), "x", "chat") for i, text in enumerate(texts)]
    assert [group for group, _ in by_question(rows)] == ["0", "0", "2"]


def test_an_interval_is_wider_where_items_repeat():
    rows = items(claim="", count=200)
    copies = [
        ShortcutItem(f"{row.id}-{i}", row.label, row.group, row.claim, row.results) for row in rows for i in range(4)
    ]
    first, second = (shortcut_baselines(kind)[0].auroc for kind in (rows, copies))
    assert second.high - second.low == pytest.approx(first.high - first.low, rel=0.35)  # not halved by the copies


def test_embeddings_are_baselines_too():
    def encode(texts):
        return np.array([[float("surely" in text and text.endswith("yes")), len(text)] for text in texts])

    rows = shortcut_baselines(items(claim="surely"), encode=encode)
    assert [(row.view, row.features) for row in rows][:2] == [("claim", "tf-idf"), ("claim", "minilm")]
    assert rows[1].auroc.value > 0.98


def test_a_sample_is_of_whole_groups_and_of_frequent_labels():
    rows = [*items(count=200), *(ShortcutItem(f"r{i}", "rare", f"g{i}", "x", ()) for i in range(9))]
    chosen = sampled(rows, seed=0, most=100)
    assert {row.label for row in chosen} == {"yes", "no"}
    assert 80 <= len(chosen) <= 100
    groups = {row.group for row in chosen}
    assert len([row for row in rows if row.group in groups and row.label != "rare"]) == len(chosen)
    assert sampled(rows, seed=1, most=100) != chosen
    assert "196" in {row.id for row in sampled(rows, seed=0, most=40, first={"196"})}
    assert shortcut_baselines(sampled(rows[:12], seed=0)) == []


def test_a_group_too_large_for_a_sample_takes_no_room_from_others():
    large = [ShortcutItem(f"l{i}", "yes", "large", "x", ()) for i in range(90)]
    for seed in range(5):
        chosen = {row.group for row in sampled([*large, *items(count=200)], seed=seed, most=80)}
        assert "large" not in chosen
        assert len(chosen) == 20
    assert not sampled(large, seed=0, most=80)  # a single group leaves nothing to validate on


def test_the_lead_of_a_model_is_paired():
    gold = ["yes", "no"] * 50
    groups = [str(i // 2) for i in range(100)]
    wrong = [label if i % 5 else {"yes": "no", "no": "yes"}[label] for i, label in enumerate(gold)]
    same = lead(gold, wrong, wrong, groups, seed=0)
    assert (same.value, same.low <= 0 <= same.high) == (0.0, True)
    ahead, behind = lead(gold, gold, wrong, groups, seed=0), lead(gold, wrong, gold, groups, seed=0)
    assert ahead.low > 0.05
    assert behind.high < -0.05
    assert behind.value == pytest.approx(-ahead.value) == pytest.approx(-0.2)
    assert lead(gold, ["unreadable"] * 100, gold, groups, seed=0).value == -1.0


def test_a_model_may_answer_with_a_label_that_no_item_has():
    assert lead(["yes", "no"] * 20, ["maybe", "no"] * 20, ["yes", "no"] * 20, list(map(str, range(40))), 0).high < 0


def test_training_rows_are_audited_for_answers_and_judgements():
    rng = random.Random(2)
    rows = []
    for number in range(120):
        answer = ("Right", "Wrong")[number % 2]
        verdicts = ("informative", "distracting") if rng.random() < 0.5 else ("distracting", "informative")
        results = tuple(
            SearchResult(f"{number} {rng.choice(WORDS)} {'useful' if v == 'informative' else 'idle'}") for v in verdicts
        )
        text = f"{rng.choice(WORDS)} {answer.lower()}ly"
        rows.append((str(number), TrainingExample(str(number), text, "", results, verdicts, answer, "chat")))
    table = {(row["target"], row["view"]): row for row in as_table(training_baselines(rows, seed=0))}
    assert table["answer", "claim"]["auroc"] > 0.98
    assert table["judgement", "evidence"]["auroc"] > 0.98
    assert ("judgement", "claim") not in table
    assert table["judgement", "evidence"]["n"] == 240
    free = [
        (group, TrainingExample(row.id, row.instruction, "", (), (), f"text {row.id}", "chat")) for group, row in rows
    ]
    assert training_baselines(free, seed=0) == {}


def test_examples_without_a_label_are_left_out():
    examples = [Example("1", "a", None), Example("2", "b", "yes", group="g")]
    assert [(item.id, item.label, item.group) for item in example_items(examples)] == [("2", "yes", "g")]
