"""Completions that one of two tokenizers cannot represent: counted before the teacher is loaded, and no dead end."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, Qwen2Config

import distilled
from sailkit.cli import main
from sailkit.distillation import teacher_cache as maker
from sailkit.distillation.completions import TokenizerPair, WithoutTeacher
from sailkit.distillation.distill import distill
from sailkit.distillation.records import ALIGNED, NONE
from sailkit.errors import UserError
from sailkit.prompts.render import as_text
from sailkit.prompts.sail import prompt_parts
from sailkit.training.tokenise import prepare
from small_models import changed, student, trained
from small_rows import example, write

pytest.importorskip("trl")
SET = ["training.bf16=false", "training.learning_rate=3e-3", "training.max_length=1024", "training.max_steps=2"]
DECOMPOSED = unicodedata.normalize("NFD", "Café, naïve Ångström.")
CANNOT = "the tokenizer cannot represent the completion"


@pytest.fixture(scope="module")
def teacher(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def composing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose tokenizer normalises to NFC, as Qwen's."""
    tokenizer = changed(trained("byte-level"), lambda spec: spec.update(normalizer={"type": "NFC"}))
    return student(tmp_path_factory.mktemp("composing"), tokenizer=tokenizer)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def kinds_of(run: Path) -> list[set[int]]:
    compiled = load_file(run / "targets-train.safetensors")
    return [set(kind.tolist()) for kind in np.split(compiled["kind"], compiled["rows"][1:-1])]


def test_words_that_the_student_cannot_spell_are_learnt_without_the_teacher(teacher, composing, tmp_path, capsys):
    strange = [replace(example(i), id=f"nfd {i}", response=DECOMPOSED) for i in (1, 25)]
    data = write(tmp_path / "data", [example(0), strange[0], example(2)], [example(24), strange[1]])
    found = distill(teacher=str(teacher), model=str(composing), data=[str(data)], out=tmp_path / "run", set=SET)
    for part in ("training_targets", "held_out_targets"):
        assert found.to_json()[part]["rows_without_teacher"] == 1
    first, second, third = kinds_of(tmp_path / "run")
    assert second == {NONE}
    assert ALIGNED in first & third
    assert rows_of(tmp_path / "run" / "without_teacher.jsonl") == [
        {"id": "nfd 1", "file": "train.jsonl", "reason": f"student: {CANNOT}"},
        {"id": "nfd 25", "file": "held_out.jsonl", "reason": f"student: {CANNOT}"},
    ]
    assert found.to_json()["training"]["rows"] == 3
    told = capsys.readouterr().err
    for file in ("train", "held_out"):
        line = f"rows of {file}.jsonl without the teacher, for cross-entropy alone: 1 (student: {CANNOT}: 1)"
        assert line in told
    assert told.index("without the teacher") < told.index("teacher and student have another tokenizer")


@pytest.mark.long
def test_a_dry_run_counts_them_with_the_real_tokenizers(shared, tmp_path, capsys):
    chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    chat += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    qwen = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    qwen.chat_template = chat
    qwen.save_pretrained(tmp_path / "student")
    Qwen2Config(vocab_size=151_936, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2).save_pretrained(tmp_path / "student")  # fmt: skip
    LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama").save_pretrained(tmp_path / "teacher")
    AutoConfig.for_model("llama").save_pretrained(tmp_path / "teacher")
    strange = [replace(example(i), response=f"{DECOMPOSED} {i}") for i in (1, 3)]
    long = replace(example(5), id="long", instruction="What do seals like? " * 200)
    data = write(tmp_path / "data", [example(0), *strange, long], [example(24)])
    told = {"teacher": str(tmp_path / "teacher"), "model": str(tmp_path / "student"), "data": [str(data)]}
    some = [*SET, "distillation.max_length=512", "training.max_length=2048"]
    found = distill(**told, style="chat", teacher_style="sail", dry_run=True, set=some)
    assert found.to_json()["rows_without_teacher"] == 3
    assert found.to_json()["without_teacher"] == {f"student: {CANNOT}": 2, "the teacher has no room for it": 1}
    assert found.to_json()["held_out_rows_without_teacher"] == 0
    words = ["distill", "--teacher", told["teacher"], "--model", told["model"], "--data", str(data), "--dry-run",
             "--teacher-style", "sail", "--style", "chat"]  # fmt: skip
    main([*words, *(word for one in some for word in ("--set", one))])
    assert "3 rows and 0 held-out ones without the teacher" in " ".join(capsys.readouterr().out.split())
    write(data, strange)
    with pytest.raises(UserError, match=rf"the teacher can teach none of the 2 rows \(student: {CANNOT}: 2\)"):
        distill(**told, style="chat", teacher_style="sail", dry_run=True, set=some)


def test_nothing_to_teach_is_refused_before_the_teacher_is_loaded(teacher, composing, tmp_path):
    data = write(tmp_path / "data", [replace(example(1), response=DECOMPOSED)], [example(24)])
    told = {"teacher": str(teacher), "model": str(composing), "data": [str(data)], "set": SET}
    with pytest.raises(UserError, match=r"none of the 1 rows .*; `method='sequence'`"):
        distill(**told, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["logits", "both"])
def test_a_tokenizer_of_another_kind_is_refused_before_the_teacher_reads(teacher, tmp_path, method):
    model = student(tmp_path / "student", tokenizer=distilled.tokenizer())
    data = write(tmp_path / "data", [example(0)], [example(24)])
    with pytest.raises(UserError, match="of the WordLevel kind, whose tokens do not stand for bytes"):
        distill(teacher=str(teacher), model=str(model), data=[str(data)], out=tmp_path / "run", set=SET, method=method)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs={num_decay_steps: 99}"],
         "num_decay_steps 99 does not fit"),
        (["lora.r=2", "adapters=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_settings_of_training_are_refused_before_the_teacher_reads(teacher, tmp_path, settings, message):
    data = write(tmp_path / "data", [example(0)], [example(24)])
    options = {"teacher": str(teacher), "student_layers": 1, "data": [str(data)], "out": tmp_path / "run"}
    with pytest.raises(UserError, match=message):
        distill(**options, set=[*SET, *settings])
    assert not (tmp_path / "run").exists()


def test_nothing_held_out_is_told_before_the_teacher_is_loaded(teacher, tmp_path, capsys):
    data = write(tmp_path / "data", [example(0)])
    run = tmp_path / "run"
    distill(teacher=str(teacher), student_layers=1, data=[str(data)], out=run, set=SET)
    told = capsys.readouterr().err
    assert told.count("no rows are held out") == 1
    assert told.index("no rows are held out") < told.index("teacher and student have the same tokenizer")
    distill(teacher=str(teacher), student_layers=1, data=[str(data)], out=run, set=SET)
    assert "no rows are held out" not in capsys.readouterr().err


def test_the_same_tokenizer_teaches_what_it_normalises(composing, tmp_path):
    data = write(tmp_path / "data", [example(0), replace(example(1), response=DECOMPOSED)], [example(24)])
    found = distill(teacher=str(composing), student_layers=1, data=[str(data)], out=tmp_path / "run", set=SET)
    assert found.to_json()["training_targets"]["rows_without_teacher"] == 0
    assert kinds_of(tmp_path / "run") == [{ALIGNED}, {ALIGNED}]
    assert (tmp_path / "run" / "without_teacher.jsonl").read_text() == ""


def test_answers_that_the_student_cannot_spell_are_no_dead_end(teacher, composing, tmp_path):
    examples = [example(0), example(1)]
    said = [{"prompt": as_text(prompt_parts(one)), "response": text}
            for one, text in zip(examples, ("Red.", DECOMPOSED), strict=True)]  # fmt: skip
    (tmp_path / "said.json").write_text(json.dumps(said))
    data = write(tmp_path / "data", examples, [example(24)])
    found = distill(teacher=str(teacher), model=str(composing), data=[str(data)], out=tmp_path / "run", set=SET,
                    method="both", teacher_outputs=tmp_path / "said.json")  # fmt: skip
    assert found.to_json()["training_targets"]["rows_without_teacher"] == 1
    assert [row["id"] for row in rows_of(tmp_path / "run" / "without_teacher.jsonl")] == ["1"]
    assert found.to_json()["training"]["rows"] == 2


def test_held_out_rows_that_the_teacher_has_no_room_for_are_no_dead_end_behind_its_answers(teacher, tmp_path):
    said = [{"prompt": as_text(prompt_parts(example(0))), "response": "Red."}]
    (tmp_path / "said.json").write_text(json.dumps(said))
    long = replace(example(24), instruction="What do seals like? " * 20)
    data = write(tmp_path / "data", [example(0)], [long])
    found = distill(teacher=str(teacher), model=str(student(tmp_path / "student")), data=[str(data)],
                    out=tmp_path / "run", set=[*SET, "distillation.max_length=300"], method="sequence",
                    teacher_outputs=tmp_path / "said.json")  # fmt: skip
    assert "tuned" not in found.to_json()  # not measured against the teacher
    assert found.to_json()["training"]["held_out_rows"] == 1
    assert rows_of(tmp_path / "run" / "without_teacher.jsonl")[0]["file"] == "held_out.jsonl"


def test_a_teacher_that_cannot_spell_them_does_not_stop_it_either(composing, tmp_path):
    data = write(tmp_path / "data", [example(0), replace(example(1), response=DECOMPOSED)], [example(24)])
    plain = student(tmp_path / "plain", tokenizer=trained("byte-fallback"))
    found = distill(teacher=str(composing), model=str(plain), data=[str(data)], out=tmp_path / "run", set=SET)
    assert found.to_json()["training_targets"]["rows_without_teacher"] == 1
    assert rows_of(tmp_path / "run" / "without_teacher.jsonl")[0]["reason"] == f"teacher: {CANNOT}"


def test_each_side_says_why():
    nfc = changed(trained("byte-level"), lambda spec: spec.update(normalizer={"type": "NFC"}))
    plain = trained("byte-fallback")
    rows = [example(0), replace(example(1), response=DECOMPOSED), replace(example(2), response="\u200b")]
    for teacher, other, side in ((nfc, plain, "teacher"), (plain, nfc, "student")):
        laid = TokenizerPair(teacher, other, 1000, None).tokenise(prepare(rows, other, 1000))
        assert laid[0].teacher.length == laid[0].student.length
        assert laid[1] == WithoutTeacher("1", f"{side}: {CANNOT}")
        assert (
            laid[2].student.between(*map(int, (laid[2].student.length - 3, laid[2].student.length))) == b"\xe2\x80\x8b"
        )
    short = TokenizerPair(plain, nfc, 10, None).tokenise(prepare(rows, nfc, 1000))
    assert {one.reason for one in short} == {"the teacher has no room for it"}


def test_a_row_whose_completion_the_teacher_would_merge_with_its_prompt_is_not_too_long(monkeypatch):
    """The reason tells what to do: a longer `max_length` helps only rows that are too long."""
    plain = trained("byte-fallback")
    prepared = prepare([example(0)], plain, 1000)
    pair = TokenizerPair(trained("byte-level"), plain, 1000, None)
    monkeypatch.setattr("sailkit.prompts.border.Border._keeps_tokens", lambda *_: False)
    (row,) = pair.tokenise(prepared)
    assert row.reason.startswith("teacher: the tokenizer merges the end of the prompt with the beginning")


def test_rows_are_read_once_for_a_cache_that_was_made_before(teacher, composing, tmp_path):
    strange = replace(example(1), response=DECOMPOSED)
    data = write(tmp_path / "data", [example(0), strange], [example(24)])
    maker.teacher_cache(teacher=str(teacher), data=[str(data)], out=tmp_path / "cache")
    found = distill(teacher=str(teacher), model=str(composing), data=[str(data)], out=tmp_path / "run", set=SET,
                    cache=tmp_path / "cache")  # fmt: skip
    assert found.to_json()["training_targets"]["rows_without_teacher"] == 1


@pytest.mark.parametrize(
    ("name", "tokenizer", "why"),
    [("endpoint:m@http://127.0.0.1:9/v1", None, "an endpoint needs `teacher_tokenizer`"),
     ("", "teacher", "`teacher_tokenizer` goes with an endpoint")],
)  # fmt: skip
def test_a_teacher_that_could_not_be_asked_afterwards_is_refused_first(teacher, tmp_path, name, tokenizer, why):
    said = [{"prompt": as_text(prompt_parts(example(0))), "response": "Red."}]
    (tmp_path / "said.json").write_text(json.dumps(said))
    data = write(tmp_path / "data", [example(0)], [example(24)])
    with pytest.raises(UserError, match=why):
        distill(teacher=name or str(teacher), model=str(student(tmp_path / "student")), data=[str(data)],
                out=tmp_path / "run", set=SET, method="sequence", teacher_outputs=tmp_path / "said.json",
                teacher_tokenizer=teacher if tokenizer else None)  # fmt: skip
    assert not (tmp_path / "run").exists()
