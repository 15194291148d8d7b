"""Groups of runs side by side: several training seeds, each measured on the same items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sailkit import runs
from sailkit.cli import main
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.group_results import GroupComparison
from sailkit.evaluation.groups import is_group, load_group
from sailkit.evaluation.predictions import PREDICTIONS, to_row
from sailkit.files import jsonl
from sailkit.prompts.parse import ANSWER_RULES_VERSION
from sailkit.records import Prediction
from sailkit.reporting import report
from sailkit.stats import metrics
from sailkit.stats.intervals import ALPHA
from sailkit.stats.seeds import POWER

LABELS = ["SUPPORTS", "REFUTES"]
ITEMS = 440


def run(folder: Path, accuracy: float, model: str, search: str, seed: int, **changes: object) -> Path:
    """A finished evaluation whose share of right answers is `accuracy`, at random items."""
    right = np.random.default_rng(seed).permutation(ITEMS) < round(accuracy * ITEMS)
    rows = []
    for n, hit in enumerate(right):
        gold, other = LABELS if n % 10 < 7 else LABELS[::-1]
        scores = {gold: 0.7, other: 0.3} if hit else {gold: 0.3, other: 0.7}
        label = "informative" if search == "evidence" else "distracting"
        turn = {"judgements": [label], "verdicts": [label if hit else "distracting"]}
        answer = gold if hit else other
        rows.append(Prediction(str(n), n, f"Claim {n}", gold, answer, "answered", "text", scores=scores, turns=(turn,)))
    settings = {
        "labels": LABELS, "rules_version": ANSWER_RULES_VERSION, "task": "climate-fever", "protocol": "direct",
        "model": f"runs/{model}", "weights_sha256": model, "search": search, "n": ITEMS, **changes,
    }  # fmt: skip
    with runs.open_run(folder, "evaluate", settings) as opened:
        jsonl.write_atomic(opened.path(PREDICTIONS), "".join(jsonl.dumps(to_row(p)) + "\n" for p in rows))
    return folder


def group(folder: Path, accuracies: list[float], model: str, search: str, **changes: object) -> Path:
    for seed, accuracy in enumerate(accuracies):
        number = 100 * seed + 10 * (search == "random") + len(model)
        run(folder / f"seed-{seed}", accuracy, f"{model}-{seed}", search, number, **changes)
    return folder


def complaint(*sets: object, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        compare(*sets, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def old(tmp_path):
    """Three seeds of which the first alone uses its search results, as a recipe of ours once gave."""
    return (
        group(tmp_path / "evidence", [0.646, 0.405, 0.448], "tuned", "evidence"),
        group(tmp_path / "random", [0.48, 0.459, 0.486], "tuned", "random"),
    )


def test_models_that_verify_have_coverage_over_seeds(old):
    """Here a model calls a result informative where its answer is right, and no result of other claims."""
    result = compare(*old)
    own, others = (each.figures for each in result.groups)
    assert own["coverage"].value == pytest.approx(np.mean([0.646, 0.405, 0.448]), abs=0.002)
    assert (own["selected_accuracy"].value, own["rejected_accuracy"].value) == (1, 0)
    assert others["coverage"].value == 0
    assert "selected_accuracy" not in others
    difference = result.pairs[0].differences["coverage"].estimate
    assert difference.value == pytest.approx(own["coverage"].value)
    assert not [name for name in result.pairs[0].differences if name.startswith(("selected", "rejected"))]
    assert "Coverage" in str(result)


def test_a_lucky_seed_among_three_tells_nothing(old):
    result = compare(*old)
    assert isinstance(result, GroupComparison)
    (pair,) = result.pairs
    assert pair.by_run["accuracy"] == pytest.approx((0.166, -0.054, -0.038), abs=3e-3)
    assert (pair.paired, pair.seeds, pair.verdict) == (True, (3, 3), "cannot tell")
    assert pair.verdict_text == "cannot tell whether evidence or random is better"
    assert "seeds would be needed" in pair.remark
    assert "3 seeds" in pair.remark
    assert "what the search results give" in pair.remark
    # The first run alone would have been "better", and so would a test over items that ignores the seeds.
    single = compare(old[0] / "seed-0", old[1] / "seed-0")
    assert single.pairs[0].verdict == "better"


def test_an_effect_in_every_seed_is_a_verdict(tmp_path):
    sets = (
        group(tmp_path / "evidence", [0.80, 0.83, 0.82], "tuned", "evidence"),
        group(tmp_path / "random", [0.55, 0.57, 0.54], "tuned", "random"),
    )
    (pair,) = compare(*sets).pairs
    assert (pair.verdict, pair.verdict_text) == ("better", "evidence is better than random")
    assert pair.differences["accuracy"].estimate.low > 0.15
    assert pair.differences["accuracy"].seeds_needed <= 3
    turned = compare(*sets[::-1]).pairs[0]
    assert turned.verdict == "worse"
    assert turned.p_value_holm == pytest.approx(pair.p_value_holm)


def test_figures_are_those_of_the_runs(old):
    result = compare(*old, measure="macro_f1")
    for path, figures in zip(old, result.groups, strict=True):
        for name, value in zip(figures.runs, figures.by_run["macro_f1"], strict=True):
            rows = [row for _, row in jsonl.read_rows(path / name / PREDICTIONS)]
            counts = metrics.confusion([row["gold"] for row in rows], [row["label"] for row in rows], LABELS)
            assert value == pytest.approx(float(metrics.macro_f1(counts)))
        mean = figures.figures["macro_f1"]
        assert mean.value == pytest.approx(np.mean(figures.by_run["macro_f1"]))
        assert mean.low < mean.value < mean.high
    assert "macro-F1" in result.pairs[0].remark
    (row,) = result.to_frame().to_dict("records")
    assert row["macro_f1_difference"] == result.pairs[0].differences["macro_f1"].estimate.value


def test_runs_are_paired_by_their_weights_whatever_their_names(old):
    for number, name in enumerate(("c", "a", "b")):
        (old[1] / f"seed-{number}").rename(old[1] / name)
    (pair,) = compare(*old).pairs
    assert pair.paired
    assert pair.by_run["accuracy"] == pytest.approx((0.166, -0.054, -0.038), abs=3e-3)
    by_run = [compare(old[0] / f"seed-{n}", old[1] / name).pairs[0].flagging for n, name in enumerate("cab")]
    assert pair.flagging.mcc.value == pytest.approx(np.mean([figures.mcc.value for figures in by_run]))


def test_flags_and_areas_are_means_over_seeds(old, capsys):
    result = compare(*old)
    (pair,) = result.pairs
    by_run = [compare(*(path / f"seed-{seed}" for path in old)).pairs[0].flagging for seed in range(3)]
    assert pair.flagging.mcc.value == pytest.approx(np.mean([figures.mcc.value for figures in by_run]))
    assert pair.flagging.informative.value == pytest.approx((0.646 + 0.405 + 0.448) / 3, abs=1e-3)
    assert [group.flagging.mcc for group in result.groups] == [None, None]  # a group has results of one kind
    for group in result.groups:  # the scores are as good as the answers
        assert group.by_run["auroc"] == pytest.approx(group.by_run["balanced_accuracy"])
    assert pair.differences["auroc"].p_value == pytest.approx(pair.differences["balanced_accuracy"].p_value)
    values = result.to_json()
    assert (values["flag_mcc"], values["auroc_difference"]) == (
        pair.flagging.mcc.value, pair.differences["auroc"].estimate.value,
    )  # fmt: skip
    main(["compare", *map(str, old)])
    printed = capsys.readouterr().out
    assert f"MCC {pair.flagging.mcc.value:.3f}" in printed
    assert "AUROC" in printed


def test_an_area_is_of_runs_whose_items_all_have_scores(tmp_path, old):
    """Of the labels that occur; without scores a group has no area, and neither have its differences."""
    labels = [*LABELS, "NEITHER"]
    three = [run(tmp_path / f"three-{seed}", 0.6, f"t{seed}", "evidence", seed, labels=labels) for seed in range(2)]
    for path in three:
        rows = [row for _, row in jsonl.read_rows(path / PREDICTIONS)]
        rows = [{**row, "scores": {**row["scores"], "NEITHER": 0.0}} for row in rows]
        (path / PREDICTIONS).write_text("".join(jsonl.dumps(row) + "\n" for row in rows))
    (figures,) = compare(",".join(map(str, three)), ",".join(map(str, three[::-1]))).groups[:1]
    assert figures.by_run["auroc"] == pytest.approx(figures.by_run["balanced_accuracy"])

    path = old[0] / "seed-1" / PREDICTIONS
    first, *rows = [row for _, row in jsonl.read_rows(path)]
    path.write_text("".join(jsonl.dumps(row) + "\n" for row in ({**first, "scores": {}}, *rows)))
    result = compare(*old)
    assert ["auroc" in group.figures for group in result.groups] == [False, True]
    assert "auroc" not in result.pairs[0].differences
    written = report(*old, out=tmp_path / "page.html").markdown.read_text()
    assert "| AUROC | – |" in written


def test_groups_of_other_models_are_independent(tmp_path):
    first = group(tmp_path / "first", [0.7, 0.71, 0.69], "first", "evidence")
    second = group(tmp_path / "second", [0.5, 0.52, 0.49, 0.51], "second", "evidence")
    (pair,) = compare(first, second).pairs
    assert (pair.paired, pair.seeds, pair.by_run, pair.verdict) == (False, (3, 4), {}, "better")
    assert pair.differences["accuracy"].degrees_of_freedom > 2


def test_groups_that_share_some_models_are_refused(tmp_path):
    own = group(tmp_path / "own", [0.7, 0.71, 0.69], "tuned", "evidence")
    other = group(tmp_path / "other", [0.5, 0.52], "tuned", "random")
    with pytest.raises(UserError, match=r"own and other share only some .* or leave out own/seed-2$"):
        compare(own, other)


def test_means_of_equal_runs_are_no_difference(tmp_path):
    three, two = ([run(tmp_path / f"{n}-{i}", 0.7, f"{n}-{i}", "evidence", seed=0) for i in range(n)] for n in (3, 2))
    (pair,) = compare(*(",".join(map(str, paths)) for paths in (three, two))).pairs
    # 308 of 440: the mean of three such shares and that of two differ in their last bit.
    assert pair.differences["accuracy"].p_value == pair.p_value_holm == 1
    assert (pair.seeds, pair.verdict) == ((3, 2), "cannot tell")


def test_what_search_gives_one_group_beyond_another(tmp_path):
    tuned = [
        group(tmp_path / "tuned-evidence", [0.80, 0.83, 0.82], "tuned", "evidence"),
        group(tmp_path / "tuned-random", [0.55, 0.57, 0.54], "tuned", "random"),
    ]
    base = [run(tmp_path / f"base-{s}", 0.6, "base", s, seed=7) for s in ("random", "evidence")]
    result = compare(*tuned, *base, measure="accuracy")
    assert len(result.pairs) == 6
    (interaction,) = result.interactions
    assert interaction.a == "tuned-evidence - tuned-random"
    assert interaction.b == "base-evidence - base-random"
    assert interaction.differences["accuracy"].estimate.value == pytest.approx(0.263, abs=5e-3)
    assert interaction.verdict == "better"
    assert "larger" in interaction.verdict_text
    assert interaction.seeds == (3, 1)
    assert f"p = {interaction.p_value_holm:.3g} after Holm's adjustment for 7 differences" in interaction.remark
    for difference in (*result.pairs, interaction):  # at the strictest level of Holm's seven tests
        estimate = difference.differences["accuracy"]
        if 1 < estimate.degrees_of_freedom < np.inf:
            error = estimate.estimate.value / stats.t.isf(estimate.p_value / 2, estimate.degrees_of_freedom)
            freedom, shift = estimate.degrees_of_freedom, estimate.detectable / abs(error)
            critical = stats.t.isf(ALPHA / 7 / 2, freedom)
            assert stats.nct.sf(critical, freedom, shift) == pytest.approx(POWER, abs=1e-3)
    values = result.to_json()
    assert values["interactions"][0]["accuracy_difference_low"] > 0.1
    assert [g["runs"] for g in values["run_groups"]][2:] == [["base-random"], ["base-evidence"]]


def test_two_draws_of_random_results_have_no_interaction(tmp_path, old):
    again = group(tmp_path / "again", [0.5, 0.5, 0.5], "tuned", "random")
    result = compare(*old, again)
    assert (len(result.pairs), result.interactions) == (3, ())


def test_a_list_that_is_too_long_for_a_path_is_a_list():
    assert is_group(",".join(f"run-{number}" for number in range(100)))


def test_a_list_of_no_runs_is_one_line():
    with pytest.raises(UserError, match="',' names no run folder"):
        load_group(",")


def test_groups_may_be_listed(tmp_path):
    folders = {search: [] for search in ("evidence", "random")}
    for seed in range(3):
        for search, paths in folders.items():
            accuracy = 0.8 if search == "evidence" else 0.6
            paths.append(run(tmp_path / f"seed-{seed}" / search, accuracy, f"m{seed}", search, seed))
    evidence, random = (",".join(map(str, paths)) for paths in folders.values())
    result = compare(evidence, random)
    assert result.names == ("evidence", "random")
    assert result.groups[0].runs == ("seed-0", "seed-1", "seed-2")
    assert result.pairs[0].paired
    assert result.pairs[0].verdict == "better"


def test_a_folder_of_unlike_runs_is_no_group(tmp_path, old):
    run(tmp_path / "mixed" / "a", 0.5, "m1", "evidence", 1)
    run(tmp_path / "mixed" / "b", 0.5, "m2", "random", 2)
    assert "a and b differ in search" in complaint(tmp_path / "mixed", old[0])
    run(tmp_path / "twice" / "a", 0.5, "m1", "evidence", 1)
    run(tmp_path / "twice" / "b", 0.5, "m1", "evidence", 2)
    assert "a and b are runs of the same model" in complaint(tmp_path / "twice", old[0])
    assert "for groups of runs" in complaint(old[0] / "seed-0", old[1] / "seed-0", measure="macro_f1")
    (old[1] / "seed-2" / PREDICTIONS).write_text("")
    assert "not finished" in complaint(*old)


def test_results_of_a_search_are_not_taken_for_those_of_the_data(tmp_path):
    own = run(tmp_path / "own", 0.6, "tuned", "evidence", 1, searched_sha256="a")
    data = run(tmp_path / "data", 0.6, "tuned", "evidence", 2)
    random = run(tmp_path / "random", 0.5, "tuned", "random", 3)
    assert compare(own, data).pairs[0].factors == {"searched_sha256": ["a", None]}
    assert "what the search results give" not in compare(own, random).pairs[0].remark
    assert "what the search results give" in compare(data, random).pairs[0].remark
    other = run(tmp_path / "other", 0.6, "tuned-1", "evidence", 4, searched_sha256="b")
    assert "searched_sha256" in complaint(f"{own},{other}", random)
    none = run(tmp_path / "none", 0.4, "tuned", "none", 5)
    assert "searched_sha256" not in compare(own, none).pairs[0].factors


def test_the_command_prints_verdict_and_seeds(old, capsys):
    main(["compare", *map(str, old), "--measure", "macro_f1"])
    printed = capsys.readouterr().out
    assert "cannot tell whether evidence or random is better" in printed
    for text in ("seeds needed", "seed-2", "mean over seeds", "evidence minus random"):
        assert text in printed


def test_a_page_on_groups_opens_with_what_search_gives(tmp_path):
    random = group(tmp_path / "random", [0.55, 0.57, 0.54], "tuned", "random")
    evidence = group(tmp_path / "evidence", [0.80, 0.83, 0.82], "tuned", "evidence")
    base = run(tmp_path / "base", 0.6, "base", "random", seed=7)
    written = report(random, base, evidence, out=tmp_path / "page.html")
    assert written.verdict == "random is worse than evidence"
    page = written.markdown.read_text()
    for text in ("440 items, 7 runs", "random is worse than evidence", "over seeds and items", "tuned-0, tuned-1"):
        assert text in page
    single = report(evidence, out=tmp_path / "single.html")
    assert single.verdict == "evidence, 440 items, 3 runs"


def test_a_run_that_always_answers_the_same_is_flagged(tmp_path, old):
    constant = tmp_path / "constant"
    for seed, path in enumerate(sorted(old[0].iterdir())):
        rows = [{**row, "label": LABELS[0]} for _, row in jsonl.read_rows(path / PREDICTIONS)]
        settings = jsonl.read_json(path / "manifest.json")["settings"]
        with runs.open_run(constant / f"seed-{seed}", "evaluate", settings) as opened:
            jsonl.write_atomic(opened.path(PREDICTIONS), "".join(jsonl.dumps(row) + "\n" for row in rows))
    messages = compare(constant, old[1]).to_json()["flag_messages"]["constant-predictor"]
    assert [message.split(" are ")[0] for message in messages] == [
        f"the answers of constant, seed-{i}" for i in range(3)
    ]
