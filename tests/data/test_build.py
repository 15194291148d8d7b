"""Labelled results in, training data out: nothing lost or doubled, the same bytes again, draws that only ids decide."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sailkit import runs
from sailkit.data.build import build
from sailkit.data.exports import read_examples
from sailkit.data.results import TrainingData
from sailkit.data.rows import candidate_positions
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.audit import audit
from sailkit.labeling.audit_file import score_folder
from sailkit.labeling.base import verdict_for
from sailkit.labeling.label import label
from sailkit.labeling.labels_file import LABELS, labels_row
from sailkit.records import Instruction, Judgement, Searched, SearchResult
from sailkit.rendering import terminal
from sailkit.retrieval.instructions import read_searched, searched_row


def searched(i: int, **fields: str) -> Searched:
    """A row with three results of one engine and two of BM25."""
    results = [SearchResult(f"dense {i} {n}", "T", source="dense", rank=n) for n in (1, 2, 3)]
    results += [SearchResult(f"bm25 {i} {n}", "T", source="bm25", rank=n) for n in (1, 2)]
    one = {"instruction": f"Question {i}?", "output": f"Answer {i}.", **fields}
    return Searched(Instruction(str(i), **one), tuple(results))


class Data:
    """Results and labels as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = [searched(i) for i in range(400)]

    def results(self) -> Path:
        path = self.folder / "results.jsonl"
        path.write_text("".join(jsonl.dumps(searched_row(row)) + "\n" for row in self.rows))
        return path

    def label(self, name: str = "a", scores=(0.9, 0.1, 0.8, 0.3, 0.6), threshold: float = 0.5) -> Path:
        folder = self.folder / f"labels-{name}"
        with runs.open_run(folder, "label", {"labeler": {"labeler": name}, "threshold": threshold}):
            lines = []
            for row in self.rows:
                judged = [
                    Judgement(score, verdict_for(score, threshold))
                    if score is not None
                    else Judgement(None, None, "failed")
                    for score, _ in zip(scores, row.results, strict=False)
                ]
                lines.append(jsonl.dumps(labels_row(row, judged)) + "\n")
            (folder / LABELS).write_text("".join(lines))
        return folder

    def build(self, out: str = "built", labels: list[Path] | None = None, **options: Any) -> dict[str, Any]:
        labels = [self.label()] if labels is None else labels
        return build(results=self.results(), labels=labels, out=self.folder / out, **options).to_json()

    def examples(self, out: str = "built"):
        return [one for name in ("train", "held_out") for one in self.read(f"{name}.jsonl", out)]

    def read(self, name: str, out: str = "built"):
        path = self.folder / out / name
        return read_examples(path) if path.read_text() else []


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "manifest.json")}


def test_nothing_is_lost_or_doubled(data, tmp_path):
    data.rows[3] = searched(3, instruction="  ")
    data.rows[4] = searched(4, output="")
    data.rows[5] = Searched(Instruction("5", "No results?", output="None."))
    task = tmp_path / "own.yaml"
    task.write_text(
        "name: own\ndata: {fields: {id: id, text: text, label: label}}\nlabels: {a: {answer: A}, b: {answer: B}}\n"
        "protocols: {direct: {wordings: {plain: '{text} {answers}'}}}\n"
    )
    (tmp_path / "own.jsonl").write_text('{"id": "x", "text": "question 6", "label": "a"}\n')
    card = data.build(exclude_task=[f"{task}={tmp_path / 'own.jsonl'}"], held_out=0.2)
    assert card["n_in"] == card["n_train"] + card["n_held_out"] + card["n_dropped"] + card["n_removed"] == 400
    assert card["dropped"] == {"empty instruction": 1, "empty output": 1}
    lists = {name: list(jsonl.read_rows(tmp_path / "built" / f"{name}.jsonl")) for name in ("dropped", "removed")}
    assert {row["id"] for _, row in lists["dropped"]} == {"3", "4"}
    assert [(row["id"], row["example"], row["kind"]) for _, row in lists["removed"]] == [("6", "x", "exact")]
    ids = [one.id for one in data.examples()] + [row["id"] for rows in lists.values() for _, row in rows]
    assert sorted(ids) == sorted(str(i) for i in range(400))
    assert next(one for one in data.examples() if one.id == "5").results == ()


def test_the_same_settings_are_the_same_bytes_and_others_are_refused(data, tmp_path):
    first = data.build(export=["sail", "trl"])
    before = files(tmp_path / "built")
    assert {"train.sail.json", "held_out.trl.jsonl", "card.md"} <= before.keys()
    again = data.build(labels=[tmp_path / "labels-a"], export=["sail", "trl"])
    assert again == first
    data.build("other", labels=[tmp_path / "labels-a"], export=["sail", "trl"])
    assert files(tmp_path / "other") == before == files(tmp_path / "built")
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        data.build(labels=[tmp_path / "labels-a"], export=["sail", "trl"], seed=1)
    data.build("seeded", labels=[tmp_path / "labels-a"], export=["sail", "trl"], seed=1)
    assert files(tmp_path / "seeded")["train.jsonl"] != before["train.jsonl"]


def test_a_stopped_build_is_finished_by_the_same_command(data, tmp_path):
    data.build()
    before = files(tmp_path / "built")
    for name in ("card.json", "held_out.jsonl"):
        (tmp_path / "built" / name).unlink()
    data.build(labels=[tmp_path / "labels-a"])
    assert files(tmp_path / "built") == before


def test_each_row_draws_for_itself(data):
    data.build()
    before = {one.id: one for one in data.examples()}
    data.rows = data.rows[::-1][:100]
    data.build("fewer", labels=[data.label("b")])
    assert all(before[one.id] == one for one in data.examples("fewer"))


def test_shares_are_those_of_sail_unless_changed(data):
    data.build()
    found = Counter(len(one.results) for one in data.examples())
    assert [found[n] / 400 for n in range(4)] == pytest.approx([0.2, 0.1, 0.3, 0.4], abs=0.07)
    card = data.build("one", labels=[data.folder / "labels-a"], shares="0,1")
    assert card["rows_by_results"] == {"1": card["n_train"]}


def test_results_come_from_the_top_and_the_best_bm25_hit_in_random_order(data):
    data.build(top=2, shares="0,0,0,1")
    found = [tuple((r.source, r.rank) for r in one.results) for one in data.examples()]
    assert {place for row in found for place in row} == {("dense", 1), ("dense", 2), ("bm25", 1)}
    assert len(set(found)) == 6


def test_bm25_alone_gives_the_top_results_and_copies_count_once():
    bm25 = [SearchResult(f"b{n}", source="bm25", rank=n) for n in (1, 2, 3)]
    assert candidate_positions(bm25, 2) == [0, 1]
    assert candidate_positions([*bm25, SearchResult("b1", source="dense", rank=1)], 5) == [3]
    assert candidate_positions([SearchResult("x"), SearchResult("y")], 1) == [0]
    assert candidate_positions((), 5) == []


def test_judgements_follow_their_results(data):
    data.build()
    right = {"dense": {1: "informative", 2: "distracting", 3: "informative"}, "bm25": {1: "distracting"}}
    for one in data.examples():
        assert one.judgements == tuple(right[r.source][r.rank] for r in one.results)


@pytest.mark.parametrize(
    ("mix", "threshold", "informative"),
    [("mean", None, {1, 3}), ("all", None, {3}), ("any", None, {1, 2, 3}), ("mean", 0.8, {3}), ("any", 0.85, {1, 3})],
)
def test_several_labelers_are_mixed(data, mix, threshold, informative):
    labels = [data.label("a", (0.9, 0.1, 0.8, 0.3, 0.3)), data.label("b", (0.3, 0.5, 0.9, 0.1, 0.1))]
    data.build(labels=labels, mix=mix, threshold=threshold)
    for one in data.examples():
        for result, said in zip(one.results, one.judgements, strict=True):
            assert (said == "informative") == (result.source == "dense" and result.rank in informative)


def test_a_result_without_verdict_is_no_candidate(data):
    card = data.build(labels=[data.label("a", (None, 0.9, None, None, None))], shares="0,0,1")
    assert {tuple(r.rank for r in one.results) for one in data.examples()} == {(2,)}
    assert card["candidates"] == {"informative": 400, "failed": 1200}
    assert card["fewer_results_than_drawn"] == 400


def test_the_same_instruction_is_always_on_one_side(data):
    data.rows = [searched(i, instruction=f"Question {i % 100}" + "?!. "[i // 100]) for i in range(400)]
    card = data.build(held_out=0.3)
    sides = [{one.instruction.rstrip("?!. ") for one in data.read(f"{name}.jsonl")} for name in ("train", "held_out")]
    assert not sides[0] & sides[1]
    assert 0.15 < card["n_held_out"] / 400 < 0.45
    assert data.build("none", labels=[data.folder / "labels-a"], held_out=0)["n_held_out"] == 0


def test_one_sided_judgements_are_flagged(data):
    assert data.build()["flags"] == []
    card = data.build("low", labels=[data.folder / "labels-a"], threshold=0.05)
    assert card["flags"] == ["one-sided-judgements"]
    assert card["flag_messages"]["one-sided-judgements"][0].startswith("only 0.0% of the judgements in the training")
    assert card["flag_messages"]["one-sided-judgements"][0] in (data.folder / "low" / "card.md").read_text()
    assert data.build("bare", labels=[data.folder / "labels-a"], shares="1")["flags"] == ["no-judgements"]


def test_the_card_says_what_the_data_are(data, tmp_path):
    card = data.build(threshold=0.7)
    assert card == json.loads((tmp_path / "built" / "card.json").read_text())
    assert card["labelers"] == [{"labeler": "a"}]
    assert card["audit"] is None
    assert card["results_sha256"] == jsonl.file_fingerprint([tmp_path / "results.jsonl"])
    shown = [said for one in data.read("train.jsonl") for said in one.judgements]
    assert card["judgement_shares"]["informative"] == round(shown.count("informative") / len(shown), 4)
    assert card["words"]["response"] == {"mean": 2.0, "median": 2, "p95": 2, "max": 2}
    assert (card["results_without_text"], card["cut_tokens_in_labelling"]) == (0, 0)


def test_training_data_are_read_back_from_their_folder(data, tmp_path):
    card = data.build(held_out=0.2)
    read = TrainingData.load(tmp_path / "built")
    assert read.to_json() == card
    assert read == build(results=data.results(), labels=[tmp_path / "labels-a"], out=tmp_path / "built", held_out=0.2)
    assert read.examples() == data.read("train.jsonl")
    assert [one.id for one in read.examples(held_out=True)] == [one.id for one in data.read("held_out.jsonl")]
    frame = read.to_frame()
    assert list(frame["held_out"]) == [False] * read.n_train + [True] * read.n_held_out
    assert sum(read.judgements.values()) == sum(len(one.results) for one in read.examples())
    with pytest.raises(UserError, match=r"labels-a holds a run of 'label', not of 'build' or 'build-task'"):
        TrainingData.load(tmp_path / "labels-a")
    (tmp_path / "built" / "card.json").unlink()
    with pytest.raises(UserError, match="built is not finished"):
        TrainingData.load(tmp_path / "built")


def test_the_card_counts_what_was_cut_and_dropped(data, tmp_path):
    data.rows[0] = replace(data.rows[0], dropped_results=2)
    folder = data.label()
    lines = (folder / LABELS).read_text().replace('"cut_tokens":0', '"cut_tokens":7')
    (folder / LABELS).write_text(lines)
    card = data.build(labels=[folder], top=2)
    assert card["cut_tokens_in_labelling"] == 400 * 3 * 7
    assert card["results_without_text"] == 2


def test_the_card_quotes_the_figures_of_its_labelers_only(data, tmp_path):
    figures = {"auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.8}
    rows = [{"labeler": name, "stratum": "official", "n": 9, **figures} for name in ("a", "b")]
    told = {"data": "climate-fever", "audits": rows, "differences": [{"examples": ["long"]}]}
    (tmp_path / "audit.json").write_text(json.dumps(told))
    card = data.build(audit=tmp_path / "audit.json", threshold=0.7)
    assert card["audit"]["audits"] == rows[:1]
    assert "differences" not in card["audit"]
    page = (tmp_path / "built" / "card.md").read_text()
    assert "| a | official | 9 | 0.700 [0.600, 0.800] | - [-, -] | - [-, -] |" in page
    told = {"data": "<script>x</script>", "audits": [{**rows[0], "stratum": "a |\n\n# Best\n\n[get it](http://x)"}]}
    (tmp_path / "strange.json").write_text(json.dumps(told))
    data.build("strange", audit=tmp_path / "strange.json", threshold=0.7)
    page = (tmp_path / "strange" / "card.md").read_text()
    assert not any(mark in page for mark in ("<script", "\n# Best", "[get it](")), "text from outside became markup"
    other = data.build("other", audit=tmp_path / "audit.json", labels=[data.label("c")], threshold=0.7)
    assert other["flag_messages"]["unaudited-labeler"] == ["the audit that is quoted does not measure c"]


PLUGIN = """
from sailkit.labeling.base import Score
class ContainsResponse:
    name, threshold = "contains-response", 0.5
    def describe(self): return {"labeler": self.name, "version": 1}
    def plan(self, pairs): return [[i] for i in range(len(pairs))]
    def score(self, pairs): return [Score(float(pair.instruction.output in pair.result.text)) for pair in pairs]
"""


def test_the_card_quotes_the_audit_of_a_plug_in_under_the_name_of_its_labels(data, tmp_path, monkeypatch):
    """An audit lists a labeler as it was given, as module:attribute; labels bear the name that it gives itself."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mylab.py").write_text(PLUGIN)
    texts = {"refute": "It is false: Bay {} rises.", "irrelevant": "A street in town {}"}
    pairs = [
        {"claim": f"Bay {i} rises", "evidence": text.format(i), "stance": stance}
        for i in range(40)
        for stance, text in texts.items()
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    audit(data=tmp_path / "pairs.jsonl", labeler=["mylab:ContainsResponse"], out=tmp_path / "audit")
    data.rows = [replace(searched(i), results=(SearchResult(f"Answer {i}."), SearchResult("x"))) for i in range(400)]
    label(results=data.results(), labeler="mylab:ContainsResponse", out=tmp_path / "labels")
    card = data.build(labels=[tmp_path / "labels"], audit=tmp_path / "audit" / "audit.json")
    assert [row["labeler"] for row in card["audit"]["audits"]] == ["contains-response"]
    assert card["audit"]["audits"][0]["auroc"] == 1
    share = "informative share by contains-response, corrected (PPI)"
    assert card["audit"][share][0] == pytest.approx(0.5)
    assert card["flags"] == []
    few = data.build("few", labels=[tmp_path / "labels"], audit=tmp_path / "audit" / "audit.json", limit=9)
    widths = [card["audit"][share][2] - card["audit"][share][1] for card in (card, few)]
    assert widths[0] < widths[1], "the share of the rows that are used"


def test_the_card_corrects_the_informative_share_by_the_audit(data, tmp_path):
    rows = [{"labeler": "a", "stratum": "official", "n": 9, "auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.8}]
    (tmp_path / "audit.json").write_text(json.dumps({"data": "pairs", "audits": rows, "seed": 0}))
    people = [{"claim": str(i), "share": 1.0, "stance": "informative", "origin": "judged"} for i in range(40)]
    (tmp_path / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    scores = tmp_path / score_folder("a") / "scores.jsonl"
    scores.parent.mkdir()
    scores.write_text("".join(json.dumps({"id": str(i), "score": 0.0}) + "\n" for i in range(40)))
    card = data.build(audit=tmp_path / "audit.json", threshold=0.7)
    corrected = card["audit"]["informative share by a, corrected (PPI)"]
    assert corrected[0] == corrected[2] == 1.0, "people call all informative that the labeler rejects"
    assert "| audit: informative share by a, corrected (PPI) |" in (tmp_path / "built" / "card.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": "0.5,0.4"}, "`shares` '0.5,0.4': shares are between 0 and 1, and sum to 1"),
        ({"shares": "0.5,nan"}, "`shares`"),
        ({"shares": "-1,2"}, "`shares`"),
        ({"shares": "half"}, "write numbers between commas"),
        ({"style": "sail-fix"}, "did you mean 'sail-fixed'"),
        ({"mix": "most"}, "`mix` takes mean, all, any, not 'most'"),
        ({"export": ["json"]}, "`export` takes trl, trl-parquet, sail, not 'json'"),
        ({"held_out": 1}, "`held_out_share`"),
        ({"threshold": 2}, "`threshold`"),
        ({"top": 0}, "`top`"),
        ({"limit": 0}, "`limit`"),
        ({"labels": []}, "no `labels`"),
        ({"exclude_task": ["nothing"]}, "no task 'nothing'"),
        ({"exclude_task": ["climate-fever"]}, "does not carry its data"),
    ],
)
def test_bad_options_are_one_line(data, options, message):
    data.rows = data.rows[:2]
    with pytest.raises(UserError) as error:
        data.build(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (data.folder / "built").exists()


def test_labels_of_other_data_are_refused(data):
    labels = [data.label()]
    data.rows[7] = searched(7, output="Another answer.")
    with pytest.raises(UserError, match="line 8: labels of other data"):
        data.build(labels=labels)
    data.rows.pop()
    with pytest.raises(UserError, match="has 400 rows and the results have 399"):
        data.build(labels=labels)


def test_scores_that_are_no_numbers_are_refused(data):
    folder = data.label()
    (folder / LABELS).write_text((folder / LABELS).read_text().replace('"score":0.9', '"score":NaN', 1))
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        data.build(labels=[folder])


def test_results_that_were_never_searched_are_kept(data):
    path = data.results()
    rows = [{**row, "results": None} for _, row in jsonl.read_rows(path)]
    path.write_text("".join(jsonl.dumps(row) + "\n" for row in rows))
    data.rows = read_searched(path)
    card = data.build()
    assert card["n_train"] + card["n_held_out"] == 400
    assert card["fewer_results_than_drawn"] > 300 * 0.8
    assert card["flags"] == ["no-judgements"]


def test_real_claims_do_not_reach_the_training_set(data, shared):
    path = shared / "climate-fever" / "climate-fever.jsonl"
    claim = next(row["claim"] for _, row in jsonl.read_rows(path))
    data.rows = [searched(1, instruction="Is it so?", input=f"They wrote: {claim}"), searched(2)]
    card = data.build(exclude_task=[f"climate-fever={path}"])
    assert card["n_removed"] == 1
    assert card["exclude_task"][0]["examples"] == 1535


def test_a_build_without_any_training_row_is_an_error_that_counts_what_was_lost(data, tmp_path):
    (tmp_path / "own.jsonl").write_text(
        json.dumps({"claim": "They wrote: Ice melts.", "label": "SUPPORTS", "passages": []}) + "\n"
    )
    data.rows = [searched(1, instruction="They wrote: Ice melts.")]
    with pytest.raises(
        UserError, match=r"no row is left to train on: of 1, 0 were dropped, 1 hold an item of an excluded"
    ):
        data.build(exclude_task=[f"sample-claims={tmp_path / 'own.jsonl'}"])
    more = {"exclude_task": ["sample-facts=sample:facts-train.jsonl"], "out": tmp_path / "other"}
    data.rows = [searched(1)]
    assert data.build(**more)["n_train"] == 1


def test_a_set_without_search_results_is_told_and_not_a_fault(data, capsys):
    data.build(shares="1")
    terminal.write(TrainingData.load(data.folder / "built").report())
    said = capsys.readouterr().out
    assert "judgements in train: informative -, distracting -" in said
    assert "! no-judgements" in said


def test_a_held_out_share_that_gives_no_row_is_told(data, capsys):
    card = data.build(held_out=0.001)
    assert card["n_held_out"] == 0
    assert card["flag_messages"]["nothing-held-out"][0].startswith("a held-out share of 0.001 gave none of 400 rows")
    terminal.write(TrainingData.load(data.folder / "built").report())
    assert "! nothing-held-out" in capsys.readouterr().out
    assert "nothing-held-out" not in data.build("none", labels=[data.folder / "labels-a"], held_out=0)["flags"]
    assert "nothing-held-out" not in data.build("some", labels=[data.folder / "labels-a"], held_out=0.1)["flags"]


@pytest.mark.parametrize("text", ['{"kappa": NaN}', '{"a":' * 100_000], ids=["NaN", "deep"])
def test_an_audit_that_is_no_json_is_refused(data, tmp_path, text):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(UserError, match=r"audit.json: not valid JSON"):
        data.build(audit=tmp_path / "audit.json")


@pytest.mark.parametrize(
    "text", ["{}", '{"audits": "x"}', '{"audits": [1]}', '{"audits": [{}]}', '{"audits": [{"labeler": ["a"]}]}']
)
def test_an_audit_that_is_something_else_is_refused(data, tmp_path, text):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(UserError, match=r"audit.json is not what  sailkit audit  writes"):
        data.build(audit=tmp_path / "audit.json")
