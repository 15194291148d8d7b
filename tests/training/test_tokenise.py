"""Examples as ids and labels: what is supervised, what is shortened, what is dropped and said."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from sailkit.data.exports import example_row
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import SearchResult, TrainingExample
from sailkit.training.arguments import sft_config
from sailkit.training.recipe import read_recipe
from sailkit.training.tokenise import IGNORED, held_out_of, prepare, prepare_data, read_data

SEALS = TrainingExample(
    id="1",
    instruction="What do seals eat?",
    input="",
    results=(SearchResult("Seals eat fish and squid.", "Seals"), SearchResult("Banks lend money.", "Banks")),
    judgements=("informative", "distracting"),
    response="Fish.",
    style="sail-fixed",
)


@pytest.fixture(scope="module")
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "models" / "stories260k")


def test_the_completion_and_the_end_are_supervised_and_nothing_else(tokenizer):
    found = prepare([SEALS], tokenizer, 512)
    (ids,), (labels,) = found.ids, found.labels
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert labels[:first] == (IGNORED,) * first
    assert labels[first:] == ids[first:]
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:first]).endswith("### Response:")
    said = tokenizer.decode(ids[first:-1]).strip()
    assert said.startswith("Search result (1) is informative, and search result (2) is distracting.")
    assert said.endswith("Fish.")


def test_the_end_is_supervised_where_it_is_the_padding_too(tokenizer, shared):
    both = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    both.pad_token = both.eos_token
    assert prepare([SEALS], both, 512).labels == prepare([SEALS], tokenizer, 512).labels


def test_results_are_shortened_and_the_answer_never(tokenizer):
    whole = prepare([SEALS], tokenizer, 512)
    length = len(whole.ids[0])
    short = prepare([SEALS], tokenizer, length - 12)
    assert short.cut_tokens >= 12
    assert len(short.ids[0]) <= length - 12
    assert [x for x in short.labels[0] if x != IGNORED] == [x for x in whole.labels[0] if x != IGNORED]


def test_a_curriculum_comes_first_in_its_order_and_the_rest_in_that_of_the_seed(tokenizer, tmp_path):
    for name, ids in {"easy": "abcd", "rest": "efghijklmnop"}.items():
        jsonl.write_rows(tmp_path / f"{name}.jsonl", (example_row(replace(SEALS, id=letter)) for letter in ids))
    settings = {"model": "m", "data": str(tmp_path / "rest.jsonl"), "training": {"num_train_epochs": 1}}

    def order(**changes):
        rows, _ = prepare_data(read_recipe(None, settings | changes), tokenizer)
        return "".join(example.id for example in rows.examples)

    assert order() == "efghijklmnop"  # the sampler shuffles it
    easy = {"curriculum": str(tmp_path / "easy.jsonl")}
    orders = {order(**easy, training={"num_train_epochs": 1, "seed": seed}) for seed in range(3)}
    assert len(orders) == 3
    assert {(rows[:4], "".join(sorted(rows[4:]))) for rows in orders} == {("abcd", "efghijklmnop")}
    recipe = read_recipe(None, settings | easy)
    jsonl.write_rows(
        tmp_path / "easy.jsonl", (example_row(row) for row in (replace(SEALS, id="mute", response=""), SEALS))
    )
    assert prepare_data(recipe, tokenizer)[0].curriculum == 1
    assert sft_config(recipe, tmp_path, held_out=False).train_sampling_strategy == "sequential"


def test_what_does_not_fit_or_says_nothing_is_dropped_and_listed(tokenizer):
    rows = [SEALS, replace(SEALS, id="long", response="very " * 400), replace(SEALS, id="mute", response=" \n")]
    found = prepare(rows, tokenizer, 400)
    assert [one.id for one in found.examples] == ["1"]
    assert [row["id"] for row in found.dropped] == ["long", "mute"]
    assert found.figures()["dropped"] == 2
    with pytest.raises(UserError, match=r"no example is left to train on: example 'long' has \d+ tokens"):
        prepare(rows[1:], tokenizer, 400)
    with pytest.raises(UserError, match="no example is left to train on: no response"):
        prepare(rows[2:], tokenizer, 400)


def test_a_tokenizer_without_an_end_is_refused(shared):
    endless = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        prepare([SEALS], endless, 512)
    endless.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="no end-of-text token"):  # a line break ends no turn
        prepare([replace(SEALS, style="chat")], endless, 512)


def test_rows_of_two_data_sets_have_names_of_their_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(example_row(replace(SEALS, id="0", response=name))) + "\n")
    found = read_data([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [(one.id, one.response) for one in found] == [("0", "a"), ("0#2", "b")]


def test_several_data_sets_in_one_style(tmp_path, tokenizer):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps(example_row(replace(SEALS, id=name))) + "\n")
    (tmp_path / "a" / "held_out.jsonl").write_text("")  # build held nothing out
    (tmp_path / "b" / "held_out.jsonl").write_text(json.dumps(example_row(SEALS)) + "\n")
    paths = [str(tmp_path / "a"), str(tmp_path / "b" / "train.jsonl")]
    found = read_data(paths, style="sail")
    assert [(one.id, one.style) for one in found] == [("a", "sail"), ("b", "sail")]
    assert held_out_of([str(tmp_path / "a"), str(tmp_path / "b")]) == (str(tmp_path / "b"),)
    changed = prepare([replace(SEALS, response="Squid.")], tokenizer, 512)
    assert changed.fingerprint() != prepare([SEALS], tokenizer, 512).fingerprint()


def test_tokenising_many_examples_shows_progress(tokenizer, monkeypatch, capsys):
    clock = itertools.count(0, 3)  # seconds; a bar is shown for what takes longer than a few
    monkeypatch.setenv("SAILKIT_PROGRESS", "on")
    monkeypatch.setattr("sailkit.console.time.monotonic", lambda: next(clock))
    prepare([SEALS] * 999, tokenizer, 512)
    assert capsys.readouterr().err == ""
    prepare([SEALS] * 1000, tokenizer, 512)
    assert "tokenising: 1000/1000" in capsys.readouterr().err
