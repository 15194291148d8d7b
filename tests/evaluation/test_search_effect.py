"""What search gives: one verdict, one table, one plot and one list of flags, before everything else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sailkit.evaluation.report import report_on
from sailkit.rendering.model import Flags, Headline, Intervals, Table
from test_reporting import LABELS, prediction, run_folder

N = 80
SEARCHES = {"own": "evidence", "others": "random", "none": "none"}


def answers(right: int, group: int = 1):
    """`right` of N answers are right, over both labels alike."""
    rows = []
    for i in range(N):
        gold = i % 2
        label = LABELS[gold if (i // 2) % (N // 2) < right // 2 else 1 - gold]
        rows.append(prediction(i, label=label, group=f"group {i // group}" if group > 1 else ""))
    return rows


def supports_everything():
    return [prediction(i, label=LABELS[0]) for i in range(N)]


def folder(tmp_path, name, rows, search, model="tuned", **more):
    return run_folder(tmp_path / name, rows, search=search, model=model, weights_sha256=model * 8, **more)


def six(tmp_path, own):
    tuned = {"own": answers(own), "others": answers(40), "none": answers(40)}
    return [
        *(folder(tmp_path, f"tuned_{name}", rows, SEARCHES[name]) for name, rows in tuned.items()),
        *(folder(tmp_path, f"base_{name}", supports_everything(), SEARCHES[name], "base") for name in tuned),
    ]


def test_it_is_the_first_of_a_report_and_its_verdict(tmp_path):
    made = report_on(six(tmp_path, 70))
    first = made.sections[0]
    assert first.heading == "What search gives"
    assert [type(block) for block in first.blocks] == [Headline, Table, Intervals, Flags]
    headline, table, plot, flags = first.blocks
    assert made.verdict == headline.text
    given = re.fullmatch(
        r"An item's own search results give tuned \+(0\.\d\d) \[\+(0\.\d\d), \+(0\.\d\d)\] macro-F1, "
        r"base \+0\.00 \[-0\.\d\d, \+0\.\d\d\]",
        headline.text,
    )
    assert float(given[1]) == pytest.approx(70 / N - 0.5, abs=0.02)
    assert float(given[2]) < float(given[1]) < float(given[3])
    assert [row.name for row in table.groups[0].rows] == ["tuned", "base", "always SUPPORTS"]
    assert [cell.point for cell in table.groups[0].rows[0].cells] == pytest.approx([70 / N, 0.5, 0.5, 70 / N - 0.5])
    assert [row.name.split(", ")[0] for row in plot.figures["Macro-F1"]] == ["tuned"] * 3 + ["base"] * 3
    (constant,) = flags.messages["constant-predictor"]
    assert constant.startswith("base_own: the answers are SUPPORTS for 80 of 80 items")
    assert constant.endswith("; likewise base_others and base_none")
    assert [section.heading for section in made.sections[1:3]] == ["Each pair", "Reasons for doubt"]


@pytest.mark.parametrize(("own", "words"), [(44, "Cannot tell whether search helps tuned: macro-F1 +0."),
                                            (10, "An item's own search results cost tuned macro-F1: -0.")])  # fmt: skip
def test_a_missing_effect_is_said(tmp_path, own, words):
    assert report_on(six(tmp_path, own)).verdict.startswith(words)


def test_items_in_few_groups_are_too_few(tmp_path):
    sets = [
        folder(tmp_path, f"tuned_{name}", answers(right, group=8), SEARCHES[name])
        for name, right in (("own", 70), ("others", 40))
    ]
    assert report_on(sets).verdict.startswith("10 items or groups of items are too few to tell what search gives tuned")


def test_without_both_searches_of_the_first_model_there_is_none(tmp_path):
    made = report_on([path for path in six(tmp_path, 70) if path.name != "tuned_others"])
    assert made.sections[0].heading == "Verdict"


def test_another_model_without_both_searches_is_left_out(tmp_path):
    made = report_on([path for path in six(tmp_path, 70) if path.name != "base_own"])
    assert made.sections[0].heading == "What search gives"
    assert made.verdict.startswith("An item's own search results give tuned +0.")
    assert "base" not in made.verdict


def test_a_model_is_named_by_whole_words_that_its_sets_share(tmp_path):
    sets = [folder(tmp_path, name, answers(right), SEARCHES[kind]) for name, kind, right in
            (("own", "own", 70), ("other", "others", 40))]  # fmt: skip
    assert " give o " not in report_on(sets).verdict
    names = {"my_model_own": ("own", 70), "my_model_others": ("others", 40)}
    sets = [folder(tmp_path, name, answers(right), SEARCHES[kind]) for name, (kind, right) in names.items()]
    assert " give my_model " in report_on(sets).verdict


def test_two_measurements_of_one_kind_are_pairs_and_no_more(tmp_path):
    again = folder(tmp_path, "tuned_again", answers(60), "evidence")
    assert report_on([*six(tmp_path, 70), again]).sections[0].heading == "Verdict"


def test_a_model_that_verifies_has_a_row_of_coverage(tmp_path):
    """The share of items where it calls a result informative; the base, which verifies nothing, has no such row."""
    sets = []
    for name, informative in (("own", 60), ("others", 8)):
        verdicts = ["informative" if i < informative else "distracting" for i in range(N)]
        turns = [
            {"prompt": "", "raw_output": "", "completion_tokens": 1, "verdicts": [verdict]} for verdict in verdicts
        ]
        rows = [replace(row, turns=(turn,)) for row, turn in zip(answers(60), turns, strict=True)]
        sets.append(folder(tmp_path, f"tuned_{name}", rows, SEARCHES[name]))
    for name in ("own", "others"):
        sets.append(folder(tmp_path, f"base_{name}", supports_everything(), SEARCHES[name], "base"))
    table = report_on(sets).sections[0].blocks[1]
    (row,) = table.groups[1].rows
    assert row.name == "tuned"
    assert [cell.point for cell in row.cells] == [60 / N, 8 / N, None]


@pytest.mark.parametrize("changes", [{"calibrate": True}, {"results": 1}, {"style": "chat"}])
def test_sets_that_differ_in_more_than_search_show_no_effect_of_search(tmp_path, changes):
    common = {"calibrate": False, "results": 3, "style": "sail-fixed"}
    own = folder(tmp_path, "tuned_own", answers(70), "evidence", **common)
    same = folder(tmp_path, "tuned_others", answers(40), "random", **common)
    other = folder(tmp_path, "tuned_other", answers(40), "random", **{**common, **changes})
    assert report_on([own, same]).sections[0].heading == "What search gives"
    assert report_on([own, other]).sections[0].heading == "Verdict"


def test_models_of_one_name_are_told_apart_by_their_paths(tmp_path):
    sets = [
        folder(tmp_path / model, name, answers(right), SEARCHES[name], f"runs/{model}/model")
        for model in ("first", "second")
        for name, right in (("own", 70), ("others", 40))
    ]
    page = report_on(sets)
    assert " give first/model +" in page.verdict
    assert ", second/model +" in page.verdict
    assert [row.name for row in page.sections[0].blocks[1].groups[0].rows][:2] == ["first/model", "second/model"]
