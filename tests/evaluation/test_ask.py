"""A model that was trained to verify first is measured as it was trained: a tiny real one, from data to verdict."""

from __future__ import annotations

import json
import random

import pytest

from sailkit.data.build_task import build_task
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.results import Evaluation
from sailkit.models.base import ModelOptions
from sailkit.prompts.sail import verification
from sailkit.reporting import report
from sailkit.tasks.task import in_half, load_task
from sailkit.training.finetune import finetune

pytest.importorskip("trl")
TASK = """
name: colours
data:
  fields:
    id: id
    text: claim
    label: label
    evidence: {list: found, body: text, title: title, stance: says, stances: {for: good, against: bad}}
labels: {good: {answer: happy}, bad: {answer: sad}}
protocols:
  direct:
    wordings:
      plain: "Was it {answers}? {text}"
      other: "{text} {answers}?"
      shown: "{evidence} {text} {answers}?"
"""
COLOURS = ["red", "blue", "green", "pink", "black", "white", "yellow", "brown"]


def row(number: int) -> dict:
    """The passage about the same colour tells; the claim does not."""
    colour, good = COLOURS[number % 8], random.Random(number).random() < 0.5
    found = [
        {
            "title": colour,
            "text": f"The {colour} dog was {'happy' if good else 'sad'}.",
            "says": "for" if good else "against",
        },
        {"title": "Day", "text": "It was a sunny day and the girl went out.", "says": "nothing"},
    ]
    return {
        "id": str(number),
        "claim": f"A {colour} dog number {number}.",
        "label": "good" if good else "bad",
        "found": found,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared):
    """A task, its data, and a tiny model trained on half of it."""
    place = tmp_path_factory.mktemp("tuned")
    (place / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(80)))
    (place / "colours.yaml").write_text(TASK)
    build_task(str(place / "colours.yaml"), data=place / "rows.jsonl", half="first", style="sail-fixed", held_out=0,
               distractors=["own"], shares="0,0.4,0.6", out=place / "data")  # fmt: skip
    changes = [
        "bf16=false",
        "learning_rate=3e-3",
        "max_length=512",
        "num_train_epochs=8",
        "gradient_accumulation_steps=4",
    ]
    finetune(out=place / "run", model=str(shared / "models" / "stories260k"), data=[str(place / "data")],
             set=[f"training.{change}" for change in changes])  # fmt: skip
    return place


def measure(place, out, half="second", **options):
    return evaluate(
        model=str(place / "run" / "model"), task=str(place / "colours.yaml"), data=place / "rows.jsonl", half=half,
        options=ModelOptions(dtype="float32"), out=place / out, **options,
    ).to_json()  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def settings_of(folder):
    return json.loads((folder / "manifest.json").read_text())["settings"]


def test_items_that_training_data_were_drawn_from_are_flagged(place):
    assert "trained-items" not in measure(place, "unseen", limit=9)["flags"]
    figures = measure(place, "seen", half=None, limit=9)
    (message,) = figures["flag_messages"]["trained-items"]
    examples = load_task(place / "colours.yaml").load(place / "rows.jsonl").examples[:9]
    seen = sum(in_half(example, "first") for example in examples)
    assert 0 < seen < 9
    assert message == (
        f"{seen} of 9 items are among those that training data were drawn from: evaluate with --half second"
    )


def test_it_verifies_before_it_answers_and_both_are_kept(place):
    measure(place, "evidence", search="evidence", results=2)
    settings = settings_of(place / "evidence")
    assert (settings["style"], settings["verify"], settings["search"], settings["half"]) == (
        "sail-fixed", True, "evidence", "second",
    )  # fmt: skip
    read = 0
    for one in rows_of(place / "evidence"):
        (turn,) = one["turns"]
        assert one["prompt"].startswith(turn["prompt"])
        said = one["prompt"].removeprefix(turn["prompt"]).strip()
        if turn["verdicts"] is not None:
            assert said == verification(turn["verdicts"], "sail-fixed")
            read += 1
        stances = {"for": "informative", "against": "informative", "nothing": "distracting"}
        assert turn["judgements"] == [stances[result["says"]] for result in row(int(one["id"]))["found"]]
        assert set(one["scores"]) == {"good", "bad"}
    assert read > 30  # it did learn to say the sentence


def test_random_results_are_of_other_items_and_none_are_none(place):
    for condition in ("random", "none"):
        measure(place, condition, search=condition, results=2)
    for one in rows_of(place / "random"):
        assert f"number {one['id']}." in one["prompt"]
        assert len(one["turns"]) == 1
    none = rows_of(place / "none")
    assert all(one["turns"] == [] for one in none)
    assert all("### Search Result: \nNone" in one["prompt"] for one in none)


def test_what_search_gives_is_told_apart_from_what_training_taught(place, tmp_path):
    measure(place, "evidence", search="evidence", results=2)
    measure(place, "random", search="random", results=2)
    evaluation = measure(place, "evidence", search="evidence", results=2)
    assert -1 <= evaluation["flag_mcc_low"] <= evaluation["flag_mcc"] <= evaluation["flag_mcc_high"] <= 1
    assert f"{evaluation['coverage']:.1%} of the items have a result that the model calls informative" in str(
        Evaluation.load(place / "evidence")
    )
    page = report(place / "evidence", place / "random", out=tmp_path).markdown.read_text()
    assert "Share of the items with one (coverage)" in page
    comparison = compare(place / "evidence", place / "random")
    assert "search results with labels, the model judges correctly" in str(comparison)
    found = comparison.to_json()
    assert found["flag_results"] == 2 * evaluation["flag_results"]
    assert list(found["factors"]) == ["search"]
    assert "what the search results give" in found["remark"]
    assert found["macro_f1_difference_low"] <= found["macro_f1_difference"] <= found["macro_f1_difference_high"]


def test_without_verification_nothing_is_said_first(place):
    measure(place, "unverified", search="evidence", results=2, verify="off", limit=4)
    assert all(one["turns"] == [] for one in rows_of(place / "unverified"))


def test_a_wording_that_places_its_evidence_is_shown_the_same_results(place):
    measure(place, "placed", search="random", results=1, wording="shown", limit=6)
    assert settings_of(place / "placed")["style"] is None
    own = {one["id"]: COLOURS[int(one["id"]) % 8] for one in rows_of(place / "placed")}
    for one in rows_of(place / "placed"):
        assert one["prompt"].startswith("(1) ")
        assert f"The {own[one['id']]} dog" not in one["prompt"] or f"number {one['id']}" in one["prompt"]


def test_a_generated_answer_follows_the_sentence_too(place):
    measure(place, "generated", search="evidence", results=2, answer="generate", limit=4)
    for one in rows_of(place / "generated"):
        assert len(one["turns"]) == 1
        assert one["raw_output"] is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "evidence", "results": 0}, "`max_results` should be at least 1"),
        ({"search": "evidence", "style": "chat"}, "`style='chat'`: .* has no chat template; use `style='sail-fixed'`"),
        ({"search": "evidence", "results": 2, "few_shot": "rows.jsonl"}, "`few_shot` does not go with `search`"),
    ],
)
def test_what_does_not_go_together_is_one_line(place, options, message):
    if "few_shot" in options:
        shots = place / "shots.jsonl"
        shots.write_text("".join(json.dumps(row(number)) + "\n" for number in range(500, 510)))
        options = {**options, "few_shot": shots}
    with pytest.raises(UserError, match=message):
        measure(place, "refused", **options)
    assert not (place / "refused").exists()


def test_results_of_a_search_are_not_judged_so_none_of_them_is_near(place, tmp_path):
    with pytest.raises(UserError, match="`search='near'` needs the data's own judged results"):
        measure(place, "refused", search="near", search_run=tmp_path)
