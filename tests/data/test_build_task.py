"""Training data from a task's own judged evidence: balanced, drawn by id, apart from what is measured on."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from sailkit.data.balance import match_frequencies, wording_auroc
from sailkit.data.build_task import build_task
from sailkit.data.exports import read_examples
from sailkit.data.results import BuiltTask
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import Example, original_id
from sailkit.tasks.task import in_half, load_task

TASK = """
name: own
data:
  fields:
    id: id
    group: pair
    text: claim
    label: label
    evidence: {list: found, body: text, title: title, stance: says, stances: {for: yes_, against: no_}}
labels: {yes_: {answer: Right}, no_: {answer: Wrong}}
protocols:
  direct:
    wordings:
      plain: "Is it so? {answers}.\\n{text}"
      short: "{text} {answers}?"
      shown: "{evidence}\\n{text} {answers}?"
"""
SUBJECTS = ["otters", "comets", "violins", "bridges", "lemons", "glaciers", "beetles", "clocks", "harbours", "spices"]


def row(number: int, label: str) -> dict:
    """Every third claim is denied, and such claims say so in their wording."""
    subject, stance = SUBJECTS[number % len(SUBJECTS)], "for" if label == "yes_" else "against"
    denied = "surely never" if label == "no_" and number % 2 else "often"
    found = [
        {"text": f"Passage {number} on {subject} settles it.", "title": subject, "says": stance},
        {"text": f"Another passage {number} on {subject} settles it as well.", "title": subject, "says": stance},
        {"text": f"Passage {number} on {subject} says nothing.", "title": subject, "says": "nothing"},
    ]
    told = " ".join(f"{word}{number}" for word in ("alpha", "beta", "gamma", "delta"))
    claim = f"Number {number}: {told} {subject} are {denied} found"
    return {"id": str(number), "pair": f"p{number // 2}", "claim": claim, "label": label, "found": found}


@pytest.fixture
def task(tmp_path):
    rows = [row(number, "no_" if number % 3 == 0 else "yes_") for number in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "own.yaml").write_text(TASK)
    return {"task": str(tmp_path / "own.yaml"), "data": tmp_path / "rows.jsonl"}


def rows_of(out, name="train"):
    return read_examples(out / f"{name}.jsonl")


def test_a_row_answers_as_its_informative_results_say(task, tmp_path):
    card = build_task(**task, out=tmp_path / "out", held_out=0.2).to_json()
    every = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "held_out")
    assert card["n_train"] + card["n_held_out"] == len(every) > 50
    kinds = set()
    for one in every:
        number, label, _ = one.id.split("/")
        assert one.response == {"yes_": "Right", "no_": "Wrong"}[label]
        assert f"Number {number}: " in one.instruction
        assert "{evidence}" not in one.instruction
        for result, said in zip(one.results, one.judgements, strict=True):
            settles = f"passage {number} on" in result.body.lower() and "settles it" in result.body
            assert (said == "informative") == settles
        kinds.add((len(one.results), len(set(one.judgements))))
    assert kinds >= {(0, 0), (1, 1), (2, 1), (2, 2), (3, 2)}
    shares = card["judgement_shares"]
    assert min(shares.values()) > 0.2


def test_the_result_is_read_back_from_its_folder(task, tmp_path):
    built = build_task(**task, out=tmp_path / "out")
    assert BuiltTask.load(tmp_path / "out") == built
    assert sum(built.labels.values()) == built.n_train == len(built.examples())
    assert built.wording_auroc["of the claims"] > 0.5


def test_labels_are_balanced_and_wording_tells_less(task, tmp_path):
    plain = build_task(**task, out=tmp_path / "plain", match_wording=False).to_json()
    matched = build_task(**task, out=tmp_path / "matched").to_json()
    assert abs(matched["labels"]["yes_"] - matched["labels"]["no_"]) <= 0.2 * matched["n_train"]
    assert plain["wording_auroc"]["of the claims"] == matched["wording_auroc"]["of the claims"]
    after = [card["wording_auroc"]["of the training rows"] for card in (plain, matched)]
    assert abs(after[1] - 0.5) < abs(after[0] - 0.5)


def test_a_group_is_on_one_side_of_every_split(task, tmp_path):
    examples = load_task(task["task"]).load(task["data"]).examples
    first = {one.id for one in examples if in_half(one, "first")}
    assert 20 < len(first) < 70
    for one in examples:
        twin = str(int(one.id) ^ 1)
        assert (one.id in first) == (twin in first)
    build_task(**task, out=tmp_path / "out", half="first", held_out=0.3)
    sides = [{one.id.split("/")[0] for one in rows_of(tmp_path / "out", name)} for name in ("train", "held_out")]
    assert sides[0] | sides[1] <= first
    assert not {int(i) // 2 for i in sides[0]} & {int(i) // 2 for i in sides[1]}


def test_claims_of_the_same_words_are_on_one_side_of_the_split(task, tmp_path):
    rows = [json.loads(line) for line in task["data"].read_text().splitlines()]
    for number, one in enumerate(rows):
        one["pair"] = str(number)
        if number % 2:
            one["claim"] = rows[number - 1]["claim"].upper() + "!"
    task["data"].write_text("".join(json.dumps(one) + "\n" for one in rows))
    build_task(**task, out=tmp_path / "out", held_out=0.3)
    sides = [
        {int(one.id.split("/")[0]) // 2 for one in rows_of(tmp_path / "out", name)} for name in ("train", "held_out")
    ]
    assert min(map(len, sides)) > 5
    assert not sides[0] & sides[1]


def test_claims_that_stand_in_the_other_half_too_are_removed(task, tmp_path):
    rows = [json.loads(line) for line in task["data"].read_text().splitlines()]
    examples = load_task(task["task"]).load(task["data"]).examples
    inside = next(one for one in examples if in_half(one, "first"))
    outside = next(one for one in examples if in_half(one, "second"))
    rows[int(outside.id)]["claim"] = inside.text + "!"
    task["data"].write_text("".join(json.dumps(one) + "\n" for one in rows))
    card = build_task(**task, out=tmp_path / "out", half="first").to_json()
    removed = [json.loads(line) for line in (tmp_path / "out" / "removed.jsonl").read_text().splitlines()]
    assert [(one["id"], one["example"], one["kind"]) for one in removed] == [(inside.id, outside.id, "exact")]
    assert card["n_removed"] == 1
    assert not any(one.id.startswith(f"{inside.id}/") for one in rows_of(tmp_path / "out"))


def test_the_order_of_the_file_decides_no_draw(task, tmp_path):
    build_task(**task, out=tmp_path / "one", match_wording=False)
    lines = task["data"].read_text().splitlines(keepends=True)
    task["data"].write_text("".join(reversed(lines)))
    build_task(**task, out=tmp_path / "two", match_wording=False, distractors=["own"])
    build_task(**task, out=tmp_path / "three", match_wording=False, distractors=["own"])
    assert (tmp_path / "two" / "train.jsonl").read_bytes() == (tmp_path / "three" / "train.jsonl").read_bytes()
    first, second = ({one.id: one for one in rows_of(tmp_path / name)} for name in ("one", "two"))
    shared = first.keys() & second.keys()
    assert len(shared) > 20
    for name in shared:
        informative = [
            {r.body for r, said in zip(one.results, one.judgements, strict=True) if said == "informative"}
            for one in (first[name], second[name])
        ]
        assert informative[0] == informative[1]
        assert first[name].instruction.count("Right") == second[name].instruction.count("Right")


def test_own_distractors_are_those_that_people_found_to_say_nothing(task, tmp_path):
    build_task(**task, out=tmp_path / "out", distractors=["own"], shares="0,0,1", supported=1.0)
    shown = [
        (one.id.split("/")[0], r.body)
        for one in rows_of(tmp_path / "out")
        for r, said in zip(one.results, one.judgements, strict=True)
        if said == "distracting"
    ]
    assert shown
    assert all(body == f"Passage {number} on {SUBJECTS[int(number) % 10]} says nothing." for number, body in shown)


def test_rows_that_nothing_decides_are_undecided_on_request(task, tmp_path):
    """Every row offers the third answer, and those with an informative result do not give it."""
    yaml = TASK.replace("no_: {answer: Wrong}", "no_: {answer: Wrong}, open: {answer: Unclear}")
    (tmp_path / "own.yaml").write_text(yaml + "default_labels: [yes_, no_]\nundecided_label: open\n")
    card = build_task(**task, out=tmp_path / "out", unsupported="undecided", supported=0.5).to_json()
    counts = Counter()
    for one in rows_of(tmp_path / "out"):
        label = one.id.split("/")[1] if "informative" in one.judgements else "open"
        assert one.response == {"yes_": "Right", "no_": "Wrong", "open": "Unclear"}[label]
        assert "Right or Wrong or Unclear" in one.instruction or "Right, Wrong or Unclear" in one.instruction
        counts[label] += 1
    assert card["labels"] == dict(sorted(counts.items()))
    assert min(counts.values()) > 10
    assert card["unsupported"] == "undecided"


def test_claims_that_nothing_decides_are_shown_with_their_own_results(task, tmp_path):
    """Nothing tells their answer: it is one of the labels, at random."""
    yaml = TASK.replace("no_: {answer: Wrong}", "no_: {answer: Wrong}, open: {answer: Unclear}")
    (tmp_path / "own.yaml").write_text(yaml + "default_labels: [yes_, no_]\nundecided_label: open\n")
    open_ = [row(number, "open") for number in range(90, 150)]
    for one in open_:
        one["found"] = one["found"][2:]
    decided = {**row(150, "yes_"), "label": "open"}  # a person called it open, and a passage decides it
    unjudged = {**row(151, "open"), "found": [{"text": "Nobody judged this one.", "title": "otters"}]}
    with task["data"].open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in [*open_, decided, unjudged])
    how = {"out": tmp_path / "out", "unsupported": "random", "distractors": ["own"], "shares": "0,0.5,0.5"}
    card = build_task(**task, **how, undecided_claims=True).to_json()
    rows = [one for name in ("train", "held_out") for one in rows_of(tmp_path / "out", name)]
    drawn = [one for one in rows if one.id.split("/")[1] == "open"]
    assert {one.id.split("/")[0] for one in drawn} == {str(number) for number in range(90, 150)}
    for one in drawn:
        assert set(one.judgements) == {"distracting"}
        number = one.id.split("/")[0]
        assert f"Passage {number} on {SUBJECTS[int(number) % 10]} says nothing." in [r.body for r in one.results]
    assert min(Counter(one.response for one in drawn).values()) > 15
    assert not any("Unclear" in one.instruction for one in rows)
    assert card["labels"].keys() == {"yes_", "no_"}
    assert card["wording_auroc"]["of the training rows"] is not None
    reasons = {one["id"]: one["reason"] for _, one in jsonl.read_rows(tmp_path / "out" / "dropped.jsonl")}
    assert reasons["151"] == "no judged evidence"
    few = build_task(**task, **{**how, "out": tmp_path / "few"}, undecided_claims=True, limit=3)
    assert {one.response for one in rows_of(few.folder)} <= {"Right", "Wrong"}
    reasons = {one["id"]: one["reason"] for _, one in jsonl.read_rows(few.folder / "dropped.jsonl")}
    assert {reasons[str(number)] for number in range(90, 150) if str(number) in reasons} == {"not drawn"}


def test_claims_that_nothing_decides_are_shown_with_near_misses_and_with_the_label_of_the_moment(task, tmp_path):
    yaml = TASK.replace("no_: {answer: Wrong}", "no_: {answer: Wrong}, open: {answer: Unclear}")
    (tmp_path / "own.yaml").write_text(yaml + "default_labels: [yes_, no_]\nundecided_label: open\n")
    with task["data"].open("a") as file:
        for number in range(90, 120):
            one = row(number, "open")
            file.write(json.dumps({**one, "found": one["found"][2:]}) + "\n")
    how = {**task, "out": tmp_path / "out", "unsupported": "undecided", "undecided_claims": True}
    for distractors in (["near"], ["own", "near"], None):
        out = tmp_path / f"out-{distractors}"
        built = build_task(**{**how, "out": out}, distractors=distractors)
        assert {"Unclear"} < {one.response for one in rows_of(built.folder)}
    (tmp_path / "own.yaml").write_text(
        yaml.replace("Unclear", "Open") + "default_labels: [yes_, no_]\nundecided_label: no_\n"
    )
    with pytest.raises(UserError, match='undecided_label: "open" there, "no_" now'):
        build_task(**{**how, "out": out})


def test_data_without_claims_that_nothing_decides_are_refused(task, tmp_path):
    yaml = TASK.replace("no_: {answer: Wrong}", "no_: {answer: Wrong}, open: {answer: Unclear}")
    how = {**task, "unsupported": "random", "undecided_claims": True}
    with pytest.raises(UserError, match=r"^`undecided_claims`: give task own an `undecided_label` in its YAML$"):
        build_task(**how, out=tmp_path / "out")
    (tmp_path / "own.yaml").write_text(yaml + "default_labels: [yes_, no_]\nundecided_label: open\n")
    with pytest.raises(UserError, match=r"the data have no claim of label open with judged evidence$"):
        build_task(**how, out=tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"unsupported": "random", "counterfactuals": "added"}])
def test_claims_that_nothing_decides_need_another_answer_and_no_pairs(task, tmp_path, options):
    with pytest.raises(UserError, match=r"^`undecided_claims`: such claims have neither a label nor counterfactual"):
        build_task(**task, out=tmp_path / "out", undecided_claims=True, **options)


def test_undecided_rows_need_a_label_of_the_task(task, tmp_path):
    with pytest.raises(UserError, match=r"`unsupported='undecided'`: give task own an `undecided_label` in its YAML"):
        build_task(**task, out=tmp_path / "out", unsupported="undecided")


def test_near_distractors_are_about_the_subject(task, tmp_path):
    build_task(**task, out=tmp_path / "out", distractors=["near"], shares="0,0,1", supported=1.0)
    subjects = []
    for one in rows_of(tmp_path / "out"):
        number = int(one.id.split("/")[0])
        for result, verdict in zip(one.results, one.judgements, strict=True):
            if verdict == "distracting":
                subjects.append(result.title == SUBJECTS[number % len(SUBJECTS)])
                assert f"assage {number} " not in result.body
    assert sum(subjects) > 0.9 * len(subjects) > 20


def test_candidates_are_drawn_as_often_as_they_should_be():
    """Without weights, the text that is a candidate of every draw would be drawn far more often than the others."""
    candidates = [["common", f"rare{i % 4}"] for i in range(400)]
    targets = {"common": 100.0, **{f"rare{i}": 75.0 for i in range(4)}}
    weights = match_frequencies(candidates, targets)
    drawn = sum(weights["common"] / sum(weights[text] for text in texts) for texts in candidates)
    assert drawn == pytest.approx(100, rel=0.05)
    assert match_frequencies([["a", "b"], []], {"a": 1.0}) == {"a": 1.0, "b": 0.0}
    assert match_frequencies([[]], {}) == {}


@pytest.mark.long
def test_neither_a_passage_nor_a_claim_of_built_data_tells_anything(shared, tmp_path):
    """Near misses would be longer passages, and claims are worded by their label, were neither balanced."""
    data = shared / "stance" / "fever.jsonl"
    card = build_task("fever", data=data, half="first", limit=3000, out=tmp_path / "out").to_json()
    tables = {(row["target"], row["view"]): row["auroc"] for row in card["shortcuts"]}
    assert tables.keys() == {("answer", "claim"), ("judgement", "question")} | {
        (target, view) for target in ("answer", "judgement") for view in ("evidence", "length")
    }
    assert all(0.45 < auroc < 0.55 for auroc in tables.values()), tables
    for view in ("claim", "length"):
        assert card[f"{view}_auroc"] == pytest.approx(tables["answer", view], abs=1e-4)
    assert card["evidence_auroc_low"] < card["evidence_auroc"] < card["evidence_auroc_high"]
    assert "shortcut" not in card["flags"]
    assert "| judgement | evidence alone (tf-idf) |" in (tmp_path / "out" / "card.md").read_text("utf-8")


def test_no_search_result_is_shown_twice(task, tmp_path):
    build_task(**task, out=tmp_path / "out", distractors=["own"], shares="0,0,0,1", supported=0.3)
    for one in rows_of(tmp_path / "out"):
        assert len({result.body for result in one.results}) == 3


def test_a_text_that_is_given_twice_is_shown_once(task, tmp_path):
    rows = [json.loads(line) for line in task["data"].read_text().splitlines()]
    for one in rows:
        one["found"] += [{**found, "title": "A copy"} for found in one["found"]]
    task["data"].write_text("".join(json.dumps(one) + "\n" for one in rows))
    build_task(**task, out=tmp_path / "out", shares="0,0,0,1", supported=1.0)
    for one in rows_of(tmp_path / "out"):
        assert len({result.body for result in one.results}) == 3


def test_a_text_that_decides_the_claim_is_not_distracting_where_it_was_not_judged(task, tmp_path):
    rows = [json.loads(line) for line in task["data"].read_text().splitlines()]
    for one in rows:
        one["found"].append({**one["found"][0], "says": "nothing"})
    task["data"].write_text("".join(json.dumps(one) + "\n" for one in rows))
    build_task(**task, out=tmp_path / "out", distractors=["own"], shares="0,0,1", supported=0.5)
    for one in rows_of(tmp_path / "out"):
        deciding = f"Passage {one.id.split('/')[0]} on "
        for result, said in zip(one.results, one.judgements, strict=True):
            assert said == "informative" or not (result.body.startswith(deciding) and "settles it" in result.body)


def test_no_row_is_written_in_a_published_wording_or_one_with_a_system_text(task, tmp_path):
    build_task(**task, out=tmp_path / "before")
    more = (
        '      published: {prompt: "As they asked: {text}", train: false}\n'
        '      judge: {system: You judge., prompt: "{text} {answers}?"}\n'
        '      worked: "{examples}{text} {answers}?"\n'
        '      twice: ["{text}?", "{previous} {answers}?"]\n'
    )
    (tmp_path / "own.yaml").write_text(TASK + more)
    build_task(**task, out=tmp_path / "after")
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_every_example_is_drawn_dropped_or_removed(task, tmp_path):
    card = build_task(**task, out=tmp_path / "out", limit=20, held_out=0).to_json()
    every = rows_of(tmp_path / "out")
    drawn = {one.id.split("/")[0] for one in every}
    dropped = {row["id"]: row["reason"] for _, row in jsonl.read_rows(tmp_path / "out" / "dropped.jsonl")}
    assert len(every) == 20
    assert set(dropped.values()) == {"not drawn"}
    assert not drawn & dropped.keys()
    assert len(drawn | dropped.keys()) == card["n_in"] == 90


def test_a_held_out_share_that_gives_no_row_is_told(task, tmp_path):
    card = build_task(**task, out=tmp_path / "out", limit=5, held_out=0.001).to_json()
    assert card["n_held_out"] == 0
    assert card["flag_messages"]["nothing-held-out"][0].startswith("a held-out share of 0.001 gave none of 5 rows")


def test_one_sided_judgements_are_told_with_the_options_that_mend_them(task, tmp_path):
    card = build_task(**task, out=tmp_path / "out", supported=0.1).to_json()
    (message,) = card["flag_messages"]["one-sided-judgements"]
    assert message.endswith("in the training set are informative; choose another --supported or --shares")


def test_every_seed_holds_out_the_same_groups(task, tmp_path):
    for seed in (0, 1):
        build_task(**task, out=tmp_path / str(seed), held_out=0.3, seed=seed)
    claims = {
        (seed, name): {int(row.id.split("/")[0]) // 2 for row in rows_of(tmp_path / str(seed), name)}
        for seed in (0, 1)
        for name in ("train", "held_out")
    }
    assert claims[0, "held_out"]
    for seed in (0, 1):
        assert not claims[seed, "held_out"] & claims[1 - seed, "train"]


def test_results_with_many_words_are_left_out(task, tmp_path):
    out = tmp_path / "out"
    build_task(**task, out=out, max_words=8)  # with its title, the second of each claim has nine words
    lengths = {len(result.text.split()) for example in rows_of(out) for result in example.results}
    assert (
        max(lengths)
        <= 8
        < max(len(result.text.split()) for result in load_task(task["task"]).load(task["data"]).examples[0].evidence)
    )


def test_counterfactual_claims_stand_beside_their_original(shared, tmp_path):
    settings = {"counterfactuals": "only", "match_wording": False, "shares": "0,1", "supported": 1, "held_out": 0.1}
    build_task("fever", data=shared / "stance" / "fever.jsonl", out=tmp_path / "out", max_words=12, **settings)
    originals = [original_id(example.id).split("/")[0] for example in rows_of(tmp_path / "out")]
    assert len(originals) > 20
    assert [len(list(rows)) for _, rows in itertools.groupby(originals)] == [4] * (len(originals) // 4)


@pytest.mark.parametrize("labels", [["yes_", "no_"], ["yes_", "no_", "no_"], ["yes_"] * 30 + ["no_"]])
def test_few_examples_are_balanced_without_a_look_at_their_wording(task, tmp_path, labels):
    rows = [row(number, label) for number, label in enumerate(labels)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**one, "pair": one["id"]}) + "\n" for one in rows))
    card = build_task(**task, out=tmp_path / "out", held_out=0).to_json()
    assert card["labels"]["yes_"] == card["labels"]["no_"]
    assert set(card["wording_auroc"].values()) == {None}


def test_a_label_that_no_evidence_supports_is_no_part_of_the_balance(task, tmp_path):
    build_task(**task, out=tmp_path / "two", held_out=0)
    (tmp_path / "own.yaml").write_text(
        TASK.replace("no_: {answer: Wrong}", "no_: {answer: Wrong}, open_: {answer: Open}")
    )
    build_task(**task, out=tmp_path / "three", held_out=0)
    ids = [[row.id for row in rows_of(tmp_path / name)] for name in ("two", "three")]
    assert ids[0] == ids[1] != []


def test_labels_that_are_never_worded_alike_are_told_with_the_mend(task, tmp_path):
    rows = [row(number, ("yes_", "no_")[number % 2]) for number in range(90)]
    for number, one in enumerate(rows):
        one |= {"pair": one["id"], "claim": f"{('yes', 'no')[number % 2]} {'word ' * 5}{number}"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(UserError, match=r"worded alike; use `match_wording=False`"):
        build_task(**task, out=tmp_path / "out")


def test_groups_that_cannot_be_split_with_both_labels_are_not_scored():
    counts = {"a": (9, 91), "b": (1, 99), "c": (0, 200)}  # positive and other examples of each group
    labels = [i < yes for yes, no in counts.values() for i in range(yes + no)]
    groups = [group for group, both in counts.items() for _ in range(sum(both))]
    examples = [Example(str(i), f"claim {i % 7}", None, group=group) for i, group in enumerate(groups)]
    assert wording_auroc(examples, [str(label) for label in labels]) is None


def test_a_single_label_is_nothing_to_balance(task, tmp_path):
    rows = [row(number, "yes_") for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(UserError, match="all judged evidence speaks for yes_"):
        build_task(**task, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supported": 1.5}, "`supported` should be between 0 and 1"),
        ({"distractors": ["far"]}, "`distractors` takes random, near, own, not 'far'"),
        ({"shares": "0.5,0.1"}, "`shares`"),
        ({"protocol": "fair"}, "has no protocol 'fair'"),
        ({"held_out": 1.0}, "use a smaller `held_out_share`"),
        ({"limit": 0}, "`limit` should be at least 1, not 0"),
        ({"limit": -2}, "`limit` should be at least 1, not -2"),
    ],
)
def test_bad_options_are_one_line(task, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_task(**task, out=tmp_path / "out", **options)


def test_evidence_that_nobody_judged_is_an_error(task, tmp_path):
    text = (tmp_path / "own.yaml").read_text().replace(", stance: says, stances: {for: yes_, against: no_}", "")
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match="no evidence that people judged; give its YAML a `stance`"):
        build_task(**task, out=tmp_path / "out")


def test_evidence_that_is_all_too_long_is_an_error(task, tmp_path):
    with pytest.raises(UserError, match="no evidence that people judged; use another `half` or a higher `max_words`"):
        build_task(**task, out=tmp_path / "out", max_words=2)


def test_claims_without_words_have_no_wording_to_match():
    sums = [Example(str(i), f"{i % 10} + 1 = 3 ?", None, group=str(i)) for i in range(120)]
    assert wording_auroc(sums, [str(i % 2) for i in range(120)]) is None


def test_wording_that_tells_nothing_is_at_chance():
    told = [Example(str(i), "yes word" if i % 2 else "no word", None, group=str(i)) for i in range(60)]
    assert wording_auroc(told, [str(i % 2) for i in range(60)]) == 1.0
    assert wording_auroc(told, ["one"] * 60) is None


@pytest.mark.long
def test_climate_fever_gives_up_its_wording(shared, tmp_path):
    card = build_task(
        "climate-fever", data=shared / "climate-fever" / "climate-fever.jsonl", half="first", out=tmp_path / "out"
    ).to_json()
    assert card["wording_auroc"]["of the claims"] > 0.6
    assert 0.45 < card["wording_auroc"]["of the training rows"] < 0.55
    assert min(card["judgement_shares"].values()) > 0.2
