"""What a measured model is shown: its own evidence, other items', or none, in the form of training."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import chat_families
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.evidence import (
    EvidenceStyle,
    evidence_style_for,
    with_matching_template,
    with_results_of,
    with_search_results,
)
from sailkit.models import local
from sailkit.models.base import ModelOptions
from sailkit.prompts.render import Renderer
from sailkit.prompts.sail import STYLES, render, verification
from sailkit.records import Example, SearchResult, TrainingExample

VERDICTS = st.sampled_from(["informative", "distracting"])
SMALL = {"model": "tiny", "chat_template": None}


class Told:
    """A model that says these things of itself, with a token for each word."""

    def __init__(self, **described):
        self.described = described

    def describe(self):
        return self.described

    def count_tokens(self, text):
        return len(text.split())


def item(number: int, results: int = 4, group: str = "") -> Example:
    evidence = tuple(SearchResult(f"passage {number}.{i}", f"title {number}") for i in range(results))
    stances = tuple("yes" if i % 2 else None for i in range(results))
    return Example(str(number), f"claim {number}", "yes", evidence, stances, group or str(number))


ITEMS = [item(number) for number in range(12)]


def test_own_evidence_is_the_first_of_it():
    found = with_search_results(ITEMS, "evidence", 2, 0, ITEMS)
    assert [[r.body for r in one.evidence] for one in found[:2]] == [
        ["passage 0.0", "passage 0.1"],
        ["passage 1.0", "passage 1.1"],
    ]
    assert found[0].stances == (None, "yes")


def test_random_results_are_as_many_and_of_other_groups():
    twins = [item(number, number % 5, group=str(number // 2)) for number in range(12)]
    for one in with_search_results(twins, "random", 3, 0, twins):
        assert len(one.evidence) == min(3, int(one.id) % 5)
        assert len({result.body for result in one.evidence}) == len(one.evidence)
        for result in one.evidence:
            assert int(result.title.split()[1]) // 2 != int(one.id) // 2
        assert one.stances == (None,) * len(one.evidence)  # known to be distracting


def test_near_results_share_words_and_random_ones_fill_up():
    subjects = ["otters swim in cold rivers", "comets orbit the sun", "violins have four strings"]
    texts = [f"{subject} as the {paper} says" for paper in ("daily", "weekly", "monthly") for subject in subjects]
    items = [
        Example(str(n), text, "yes", (SearchResult(f"It is said that {text}."),), ("yes",), str(n))
        for n, text in enumerate(texts)
    ]
    near = with_search_results(items, "near", 1, 0, items)
    for example, shown in zip(items, near, strict=True):
        assert [result.body for result in shown.evidence] != [result.body for result in example.evidence]
        assert example.text.split()[0] in shown.evidence[0].body
        assert shown.stances == (None,)
    alone = [*items[:3], item(7, results=1)]
    assert [len(example.evidence) for example in with_search_results(alone, "near", 1, 0, alone)] == [1, 1, 1, 1]


def test_a_draw_hangs_on_id_and_seed_alone():
    forward, backward = (
        with_search_results(ITEMS, "random", 3, 0, ITEMS),
        with_search_results(ITEMS[::-1], "random", 3, 0, ITEMS),
    )
    assert forward == backward[::-1]
    assert with_search_results(ITEMS[3:5], "random", 3, 0, ITEMS) == forward[3:5]
    assert with_search_results(ITEMS, "random", 3, 1, ITEMS) != forward


def test_results_of_a_search_replace_those_of_the_data(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [{"id": str(n), "instruction": "?", "results": [{"title": "t", "body": f"hit {n}"}]} for n in (2, 1, 0)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    searched = with_results_of(tmp_path, ITEMS[:3])
    assert [(e.id, [r.body for r in e.evidence], e.stances) for e in searched] == [
        ("0", ["hit 0"], ()), ("1", ["hit 1"], ()), ("2", ["hit 2"], ()),
    ]  # fmt: skip
    assert with_results_of(file, ITEMS[:3]) == searched
    with pytest.raises(UserError, match="no results for 1 of 4 items, such as '3'"):
        with_results_of(file, ITEMS[:4])


def test_results_of_another_item_are_refused(tmp_path):
    """Rows that a search numbered by itself must not be joined with other items of the same numbers."""
    file = tmp_path / "results.jsonl"

    def write(queries):
        rows = [{"id": str(n), "instruction": text, "results": [{"body": "hit"}]} for n, text in enumerate(queries)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    texts = [item.text for item in ITEMS[:3]]
    write(texts)
    assert len(with_results_of(file, ITEMS[:3])) == 3
    write([texts[0], texts[2], texts[1]])
    with pytest.raises(UserError, match="the results of '1' are those of item '2'; search with the ids"):
        with_results_of(file, ITEMS[:3])


def test_results_of_rows_with_shifted_numbers_are_refused(tmp_path):
    """The task leaves a row out that the search counted, and no query is the text of an item in use."""
    file = tmp_path / "results.jsonl"
    texts = ["a row without a label", *(item.text for item in ITEMS)]
    rows = [{"id": str(n), "instruction": text, "results": [{"body": "hit"}]} for n, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="the results of '0' are those of another text, and its own are those of '1'"):
        with_results_of(file, ITEMS[:1])


def test_other_results_are_drawn_where_nearly_all_are_of_the_own_group():
    rows = [item(number, 1, "large") for number in range(99)] + [item(99, 1, "small"), item(100, 1, "small")]
    drawn = with_search_results(rows, "random", 1, 0, rows)
    assert {one.evidence[0].body for one in drawn[:99]} <= {"passage 99.0", "passage 100.0"}
    rows = [item(number, 2, "large") for number in range(99)] + [item(99, 1, "small"), item(100, 1, "small")]
    assert {len({r.body for r in one.evidence}) for one in with_search_results(rows, "random", 2, 0, rows)[:99]} == {2}


def test_none_is_none():
    assert all(one.evidence == () for one in with_search_results(ITEMS, "none", 3, 0, ITEMS))


def test_too_few_others_are_an_error():
    with pytest.raises(UserError, match="item 0: the other items have too few search results"):
        with_search_results(ITEMS[:1], "random", 3, 0, ITEMS[:1])
    with pytest.raises(UserError, match="give `search_run`, or the task an `evidence` field"):
        with_search_results([Example("1", "x", "yes")], "evidence", 3, 0, [])


def test_the_form_is_that_of_training_unless_told_otherwise():
    def form(style, verify, most, **described):
        found = evidence_style_for(Told(**{**SMALL, **described}), style, verify, most)
        return found.style, found.verify

    trained = {"chat_template": "abc", "trained_styles": ["sail-fixed"]}
    assert form("auto", "auto", 3, **trained) == ("sail-fixed", True)
    assert form("chat", "off", 3, **trained) == ("chat", False)
    assert form("auto", "auto", 3, chat_template="abc") == ("chat", False)
    assert form("auto", "on", 3) == ("sail-fixed", True)
    assert form("auto", "on", 0, **trained) == ("sail-fixed", False)  # nothing to verify
    assert form("auto", "auto", 3, **trained, trained_order="answer-first") == ("sail-fixed", False)
    # A folder from elsewhere may say anything.
    assert form("auto", "auto", 1, trained_styles=["../x", 3]) == ("sail-fixed", False)
    with pytest.raises(UserError, match="a server does not go on"):
        form("auto", "on", 3, served_model="x")
    with pytest.raises(UserError, match="at most 6 search results"):
        form("auto", "on", 7)
    with pytest.raises(UserError, match="was trained to answer before it judges"):
        form("auto", "on", 3, **trained, trained_order="answer-first")


def test_a_server_cannot_be_asked_in_the_style_of_plain_text():
    server = Told(**{**SMALL, "chat_template": "server", "served_model": "m"})
    server.name = "endpoint:m@http://127.0.0.1:9/v1"
    found = evidence_style_for(server, "sail-fixed", "off", 3)
    for chat in ("auto", "off"):
        with pytest.raises(UserError, match="applies its chat template; use `style='chat'`"):
            with_matching_template(server, found, server.name, ModelOptions(chat=chat))


def test_the_bound_holds_every_sentence_and_its_end():
    found = evidence_style_for(Told(**SMALL), "auto", "on", 3)
    assert len(found.sentences) == 2 + 4 + 8
    assert found.bound == 2 + max(len(sentence.split()) for sentence in found.sentences)


@given(st.lists(VERDICTS, min_size=1, max_size=4), st.sampled_from(STYLES), st.text(max_size=20))
def test_a_sentence_is_found_whatever_comes_behind_it(verdicts, style, behind):
    form = EvidenceStyle(style, True, 4)
    sentence = verification(verdicts, style)
    assert form.verified(f" {sentence} {behind}")
    assert form.sentence(f" {sentence} {behind}", len(verdicts)) == (sentence, tuple(verdicts))
    assert not form.verified(sentence[:-1])
    assert form.sentence(sentence[:-1], len(verdicts)) == (sentence[:-1], None)


@pytest.mark.parametrize("style", STYLES)
def test_a_measured_prompt_has_the_ids_of_a_training_prompt(shared, style):
    """Up to the answer, and behind the verification sentence too: else the model is measured on what it never saw."""
    name = "qwen" if style == "chat" else "llama"
    tokenizer = tokenizer_of(shared, name)
    results = item(1, 2).evidence
    row = TrainingExample(
        "1", "Is this right?\n\nClaim: claim 1", "", results, ("informative", "distracting"), "Yes", style
    )
    rendered = render(row, tokenizer)
    renderer = Renderer(tokenizer, chat=style == "chat", context=4096)
    form = EvidenceStyle(style, True, 2)
    prompt = form.prompt(row.instruction, item(1, 2))
    asked = renderer.render(prompt, 8).ids
    first = rendered.completion_mask.index(True)
    assert rendered.ids[:first] == asked
    sentence = verification(row.judgements, style)
    begun = renderer.render(form.behind(prompt, sentence), 8)
    answer = renderer.answer_ids(begun, "Yes")
    assert rendered.ids[: len(begun.ids) + len(answer)] == (*begun.ids, *answer)


def tokenizer_of(shared, name):
    if name == "llama":
        return AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def test_what_a_model_wrote_holds_no_special_token(shared):
    tokenizer = tokenizer_of(shared, "qwen")
    renderer = Renderer(tokenizer, chat=True, context=4096)
    form = EvidenceStyle("chat", True, 2)
    prompt = form.behind(form.prompt("Is it?", item(1, 2)), "So.<|im_end|>")
    ids = renderer.render(prompt, 8).ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_a_style_without_the_chat_template_takes_the_weights_that_are_loaded(tmp_path, monkeypatch):
    folder = chat_families.save(tmp_path / "model", chat_families.tokenizer("chatml"))
    loads, real = [], local.load_pretrained
    monkeypatch.setattr(local, "load_pretrained", lambda *args, **how: loads.append(args) or real(*args, **how))
    for chat in ("auto", "off"):
        evaluate(
            model=str(folder), task="sample-facts", search="evidence", style="sail-fixed", limit=6,
            options=ModelOptions(chat=chat), out=tmp_path / chat,
        )  # fmt: skip
    assert len(loads) == 2
    settings = [json.loads((tmp_path / chat / "manifest.json").read_text())["settings"] for chat in ("auto", "off")]
    assert list(settings[0].items()) == list(settings[1].items())
    rows = [(tmp_path / chat / "predictions.jsonl").read_bytes() for chat in ("auto", "off")]
    assert rows[0] == rows[1]
    assert "im_start" not in rows[0].decode()
