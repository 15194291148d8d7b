"""A teacher's answers as training data: what it said, to the letter, and nothing that it did not finish saying."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sailkit.data.exports import example_row, export, in_text, read_examples, read_row
from sailkit.distillation.teacher_answers import teacher_answers, with_reply
from sailkit.errors import UserError
from sailkit.files.jsonl import read_rows
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.render import as_text
from sailkit.prompts.sail import STYLES, completion, conversation, render, verification
from sailkit.records import SearchResult, TrainingExample
from sailkit.testing import MisbehavingServer
from sailkit.training.tokenise import prepare

ICE, SUN = SearchResult("Bears wait on the ice.", "Ice"), SearchResult("It is hot.", "Sun")
BOTH = ("informative", "distracting")


def example(name: str = "1", style: str = "sail-fixed", results=(ICE, SUN)) -> TrainingExample:
    return TrainingExample(name, f"Who waits, {name}?", "", results, BOTH[: len(results)], "A bear.", style)


def write(folder: Path, *parts) -> str:
    folder.mkdir()
    for name, examples in zip(("train", "held_out"), parts, strict=False):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in examples))
    return str(folder)


def say(path: Path, rows) -> Path:
    path.write_text(json.dumps([{"prompt": prompt, "response": response} for prompt, response in rows]))
    return path


def asked(one: TrainingExample) -> str:
    return as_text(conversation(one)[0].parts)


@pytest.fixture(scope="module")
def stories(shared: Path) -> LocalModel:
    """Tells stories without end; here its answers end with the line, as its generation config says."""
    source = shared / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<0x0A>")]
    return LocalModel("stories", model.eval(), tokenizer, ModelOptions(), {})


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("said", "judgements"),
    [
        ("{sentence} A bear.", BOTH),
        ("{sentence} A  bear.\n\nIt waits.", BOTH),
        ("A bear.", ()),
        ("{sentence}", ()),  # and no response
        ("{sentence}\nA bear.", ()),  # not as it is rendered
        ("{lower} A bear.", ()),
        ("Search result (1) is informative. A bear.", ()),
    ],
)
def test_what_was_said_is_the_completion(style, said, judgements):
    one = example(style=style)
    sentence = verification(BOTH, style)
    text = said.format(sentence=sentence, lower=sentence.lower())
    for around in (text, " " + text):  # a text style puts a space in front
        found = with_reply(one, around)
        assert completion(found) == text
        assert found.judgements == judgements
        assert (found.id, found.instruction, found.results) == (one.id, one.instruction, one.results)


@pytest.mark.parametrize("style", STYLES)
def test_rows_without_judgements_are_rendered_kept_and_exported(stories, style, tmp_path):
    one = replace(example(style=style), judgements=(), response="A bear. Search result (1) says so.")
    assert read_row(json.loads(json.dumps(example_row(one))), "") == one
    if style != "chat":
        rendered = render(one, stories.tokenizer)
        said = stories.tokenizer.decode(rendered.supervised, skip_special_tokens=True)
        assert said.strip() == one.response
    other = replace(example("2", style))
    for form in ("trl", "sail", "trl-parquet"):
        some = [other, one] if form == "sail" else [one, other]
        found = export(some, form, tmp_path / "x")
        assert found["ambiguous"] == 0
        expected = [replace(row, style="sail") if form == "sail" else row for row in some]
        assert read_examples(tmp_path / found["file"]) == [in_text(row) for row in expected]


def test_a_form_without_its_sentence_is_no_slip_unless_it_says_so(tmp_path):
    one = replace(example(style="sail"), judgements=(), response="A bear.")
    export([one], "sail", tmp_path / "x")
    (row,) = json.loads((tmp_path / "x.sail.json").read_text())
    del row["judged"]
    with pytest.raises(UserError, match="does not have the form"):
        read_row(row, "x")


def test_a_teacher_is_asked_as_in_training_and_answers_greedily(stories, tmp_path):
    rows = [example(str(i), results=(ICE, SUN)[: i % 3]) for i in range(7)]
    data = write(tmp_path / "data", rows[:5], rows[5:])
    figures = teacher_answers(stories, [data], tmp_path / "run", max_new_tokens=60)
    train, held_out = (read_examples(tmp_path / "run" / f"{name}.jsonl") for name in ("train", "held_out"))
    dropped = (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    assert figures.n_train + figures.n_held_out + len(dropped) == figures.n == 7
    assert list(figures.to_json())[-2:] == ["answers", "in_order"]
    assert {json.loads(line)["reason"] for line in dropped} <= {
        "the answer did not end within the limit",
        "empty answer",
    }
    for found in [*train, *held_out]:
        one = next(row for row in rows if row.id == found.id)
        prompt = prepare([one], stories.tokenizer, 512)
        ids = prompt.ids[0][: next(i for i, label in enumerate(prompt.labels[0]) if label >= 0)]
        with torch.inference_mode():
            made = stories.model.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :]
        assert made[-1] in stories.model.generation_config.eos_token_id
        text = stories.tokenizer.decode(made[:-1], skip_special_tokens=True).strip()
        assert completion(found) == text
    assert prepare(train, stories.tokenizer, 512).examples == tuple(train)


def test_a_stopped_run_goes_on_with_the_same_bytes(stories, tmp_path):
    data = write(tmp_path / "data", [example(str(i)) for i in range(24)])
    teacher_answers(stories, [data], tmp_path / "run", max_new_tokens=30)
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    log = files["answers.jsonl"]
    for name in files:
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "answers.jsonl").write_bytes(log[: 2 * len(log) // 3])
    teacher_answers(stories, [data], tmp_path / "run", max_new_tokens=30)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")} == files
    with pytest.raises(UserError, match=r"another run \(max_new_tokens: 30 there, 31 now"):
        teacher_answers(stories, [data], tmp_path / "run", max_new_tokens=31)


def test_an_answer_without_an_end_is_dropped(shared, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=4, max_position_embeddings=512, initializer_range=0.5)  # fmt: skip
    model = LocalModel("random", LlamaForCausalLM(config).eval(), tokenizer, ModelOptions(), {})
    data = write(tmp_path / "data", [example("1"), replace(example("long"), instruction="Who? " * 300)])
    with pytest.raises(UserError, match="no answer is left to train on; the first was dropped: the answer did not end"):
        teacher_answers(model, [data], tmp_path / "run", max_new_tokens=12)


def test_prompts_that_are_too_long_and_those_that_cannot_be_rendered_are_counted_apart(stories, shared, tmp_path):
    smaller = LlamaForCausalLM.from_pretrained(shared / "models" / "stories260k").eval()
    smaller.resize_token_embeddings(505)
    smaller.generation_config.eos_token_id = stories.tokenizer.convert_tokens_to_ids(".")  # ends with a sentence
    model = LocalModel("smaller", smaller, stories.tokenizer, ModelOptions(), {})
    unknown = replace(example("unknown"), instruction=stories.tokenizer.decode([508]))
    rows = [example("1"), example("2"), replace(example("long"), instruction="Who? " * 300), unknown]
    answers = teacher_answers(model, [write(tmp_path / "data", rows)], tmp_path / "run", max_new_tokens=60)
    assert answers.dropped == {"the prompt cannot be rendered": 1, "the prompt is too long": 1}
    reasons = {row["id"]: row["reason"] for _, row in read_rows(tmp_path / "run" / "dropped.jsonl")}
    assert reasons["long"].startswith("the prompt is too long: example 'long': the prompt has ")
    assert reasons["unknown"].startswith("the prompt cannot be rendered: ")


def test_an_endpoint_is_asked_in_the_chat_style(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "data", [example("1", "chat"), example("2", "chat", ())])
    with MisbehavingServer(text=verification(BOTH, "chat") + " A bear.") as server:
        teacher = load_model(f"endpoint:any@{server.url}")
        figures = teacher_answers(teacher, [data], tmp_path / "run")
        sent = sorted(request.body["messages"][0]["content"] for request in server.requests)
        with pytest.raises(UserError, match="has a chat template, and style 'sail' does not go with it"):
            teacher_answers(teacher, [data], tmp_path / "other", style="sail")
    rows = read_examples(tmp_path / "run")
    assert [one.judgements for one in rows] == [BOTH, ()]
    assert [completion(one) for one in rows] == [verification(BOTH, "chat") + " A bear."] * 2
    assert sent == sorted(map(asked, [example("1", "chat"), example("2", "chat", ())]))
    assert figures.unjudged == 0


def test_answers_of_a_file_belong_to_their_prompts(tmp_path):
    rows = [example("1"), example("2"), example("3")]
    data = write(tmp_path / "data", rows[:2], rows[2:])
    file = say(tmp_path / "teacher_outputs.json", [(asked(one), f"Bear {one.id}.") for one in reversed(rows)])
    figures = teacher_answers(file, [data], tmp_path / "run")
    assert [one.response for one in read_examples(tmp_path / "run")] == ["Bear 1.", "Bear 2."]
    assert [one.response for one in read_examples(tmp_path / "run" / "held_out.jsonl")] == ["Bear 3."]
    assert (figures.n_train, figures.n_held_out, figures.unjudged) == (2, 1, 3)
    assert not figures.in_order


def test_thoughts_are_not_learnt(tmp_path):
    rows = [example(str(i), "chat") for i in range(6)]
    data = write(tmp_path / "data", rows)
    sentence = verification(BOTH, "chat")
    responses = [
        f"<think>\nSearch result (1) is distracting.\n</think>\n\n{sentence} A bear.",
        f"Hm.\n</think>\n\n{sentence} A bear.",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A bear.<|return|>",
        "<think>\nWho waits? It is a",
        "[THINK]Hm.[/THINK]",
        f"{sentence} A bear.",
    ]
    say(tmp_path / "x.json", zip(map(asked, rows), responses, strict=True))
    figures = teacher_answers(tmp_path / "x.json", [data], tmp_path / "run")
    kept = read_examples(tmp_path / "run")
    assert [completion(one) for one in kept] == [f"{sentence} A bear."] * 2 + ["A bear.", f"{sentence} A bear."]
    assert [one.judgements for one in kept] == [BOTH, BOTH, (), BOTH]
    assert figures.dropped == {"empty answer": 1, "the answer ended within a thought": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "<think>\nWho waits? It is a", "choice": {"finish_reason": "length"}},
        {"message": {"content": None, "reasoning_content": "Who waits?"}, "choice": {"finish_reason": "length"}},
    ],
)
def test_a_thought_without_an_end_is_told_from_a_long_answer(tmp_path, monkeypatch, fields):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "data", [example("1", "chat")])
    with MisbehavingServer(**fields) as server:
        teacher = load_model(f"endpoint:any@{server.url}")
        with pytest.raises(UserError, match="first was dropped: the answer ended within a thought"):
            teacher_answers(teacher, [data], tmp_path / "run")


@pytest.mark.parametrize("wording", [None, "", "Q: {instruction}  {input}\nA:"])
def test_answers_of_a_file_may_be_in_order(tmp_path, capsys, wording):
    rows = [replace(example(str(i)), input=f"It is\n{i}.") for i in (1, 2, 3)]
    data = write(tmp_path / "data", rows)
    responses = ["Bear 1.", " ", "Bear 3."]
    if wording is None:
        (tmp_path / "x.json").write_text(json.dumps([{"response": text} for text in responses]))
    else:
        prompts = [wording.format(instruction=one.instruction, input=one.input) for one in rows]
        say(tmp_path / "x.json", zip(prompts, responses, strict=True))
    figures = teacher_answers(tmp_path / "x.json", [data], tmp_path / "run")
    assert [one.response for one in read_examples(tmp_path / "run")] == ["Bear 1.", "Bear 3."]
    assert figures.dropped == {"empty answer": 1}
    assert figures.in_order
    told = capsys.readouterr().err
    assert ("worded in another way" if wording else "has no prompts") in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "prompts",
    [["one"], ["one", "two"], ["one", "two", "three"], ["{first}", "two"], ["Who waits, 2?", "Who waits, 1?"]],
)
def test_answers_to_other_prompts_are_told(tmp_path, prompts):
    data = write(tmp_path / "data", [example("1"), example("2")])
    file = say(tmp_path / "x.json", [(prompt.format(first=asked(example("1"))), "Bear.") for prompt in prompts])
    with pytest.raises(
        UserError, match=r"answers do not belong to these 2 rows: [12] of the prompts .* example '[12]'"
    ):
        teacher_answers(file, [data], tmp_path / "run")


def test_a_prompt_of_the_other_row_is_not_enough_where_all_ask_the_same(tmp_path):
    rows = [replace(example(str(i)), instruction="Is it true?", input=f"Claim {i}.") for i in (1, 2)]
    data = write(tmp_path / "data", rows)
    file = say(tmp_path / "x.json", [(f"Is it true? {one.input}", "Yes.") for one in reversed(rows)])
    with pytest.raises(UserError, match="do not belong to these 2 rows"):
        teacher_answers(file, [data], tmp_path / "run")


def test_a_file_without_answers_is_told(tmp_path):
    data = write(tmp_path / "data", [example("1")])
    for rows, name in (
        ('{"prompt": "x", "output": "y"}', "response"),
        ('{"response": "y"}, {"prompt": "x"}', "prompt"),
    ):
        (tmp_path / "x.json").write_text(f"[{rows}]")
        with pytest.raises(UserError, match=f"row 1: field '{name}' should be text"):
            teacher_answers(tmp_path / "x.json", [data], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_id_in_two_data_sets_is_told_apart(tmp_path):
    data = [write(tmp_path / name, [example("1"), example("2")]) for name in ("a", "b")]
    file = say(tmp_path / "x.json", [("", f"Bear {i}.") for i in range(4)])
    teacher_answers(file, data, tmp_path / "run")
    assert [(one.id, one.response) for one in read_examples(tmp_path / "run")] == [
        ("1", "Bear 0."), ("2", "Bear 1."), ("1#2", "Bear 2."), ("2#2", "Bear 3."),
    ]  # fmt: skip
