"""Chat templates that read the clock: one day for a run, kept when it goes on, and the same for all who take part."""

from __future__ import annotations

import json
from datetime import date as day

import pytest

from chat_families import TEMPLATES, save, tokenizer
from sailkit.distillation import distill as distill_stage
from sailkit.distillation.distill import distill
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.prompts import chat_template
from sailkit.prompts.chat_template import ChatTemplate
from sailkit.prompts.render import Renderer, step_prompt
from sailkit.training import finetune as finetune_stage
from sailkit.training.finetune import finetune
from small_rows import example, write

ASK = [{"role": "user", "content": "Hello"}]
QUICK = [
    "training.bf16=false", "training.max_length=1024", "training.max_steps=1", "training.eval_strategy=no",
    "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=1",
]  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Sets the day of this machine."""

    def set_day(text: str) -> None:
        for module in (chat_template, finetune_stage, distill_stage):
            monkeypatch.setattr(module, "today", lambda: text)

    return set_day


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())["settings"]


@pytest.mark.parametrize("family", ["llama3", "smollm3", "gpt-oss"])
def test_today_is_what_the_template_says_by_itself(family):
    made = tokenizer(family)
    own = made.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    template = ChatTemplate(made)
    if template.date == day.today().isoformat():  # and not at midnight
        assert template.render(ASK, generation_prompt=True) == own


@pytest.mark.parametrize(
    ("family", "text"),
    [("llama3", "Today Date: 09 Mar 2025<"), ("smollm3", "Today: 09 March 2025\n"), ("gpt-oss", ">2025-03-09<")],
)
def test_a_day_that_is_given_is_the_one_in_the_prompt(family, text):
    template = ChatTemplate(tokenizer(family), "2025-03-09")
    assert text in template.render(ASK, generation_prompt=True)
    assert template.date == "2025-03-09"


def test_every_code_stands_for_what_it_does_in_python():
    made = tokenizer("chatml")
    form = "%A %a %B %b %d %-d %j %m %y %Y %H:%M:%S %I %p %W %w 100%% {x} "
    made.chat_template = (
        f"\n  {{% if strftime_now is defined %}}{{{{ strftime_now('{form}') }}}}{{% endif %}}\n" + TEMPLATES["chatml"]
    )
    text = ChatTemplate(made, "2025-03-09").render(ASK, generation_prompt=True)
    expected = "Sunday Sun March Mar 09 9 068 03 25 2025 00:00:00 12 AM 09 0 100% {x} "
    real = made.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert text == real[: real.index(day.today().strftime("%A"))] + expected + real[real.index("{x} ") + 4 :]


def test_a_template_that_reads_no_clock_has_no_day():
    template = ChatTemplate(tokenizer("chatml"), "2025-03-09")
    assert template.date is None
    one, other = (
        Renderer(tokenizer("llama3"), chat=True, context=999, date=day) for day in ("2025-03-09", "2025-03-10")
    )
    prompt = step_prompt("{text}", "x", [])
    assert one.render(prompt, 8).ids != other.render(prompt, 8).ids
    assert one.border.describe() == {"date": "2025-03-09"}


@pytest.mark.parametrize("text", ["09.03.2025", "2025-3-9", "20250309", "2025-02-30", "yesterday", ""])
def test_what_is_no_day_is_one_line(text, tmp_path):
    with pytest.raises(UserError, match="`date` should be a day as YYYY-MM-DD"):
        load_model("nothing", ModelOptions(date=text))


def test_an_evaluation_keeps_its_day_over_midnight(tmp_path, clock):
    model = save(tmp_path / "model", tokenizer("llama3"))
    asked = {
        "model": str(model),
        "task": "sample-claims",
        "limit": 2,
        "out": tmp_path / "run",
        "options": ModelOptions(dtype="float32"),
    }
    clock("2025-03-09")
    figures = evaluate(**asked).to_json()
    assert manifest(tmp_path / "run")["date"] == "2025-03-09"
    clock("2025-03-10")
    (tmp_path / "run" / "predictions.jsonl").unlink()  # as if it had been stopped
    assert evaluate(**asked).to_json() == figures
    assert "Today Date: 09 Mar 2025" in (tmp_path / "run" / "predictions.jsonl").read_text()
    with pytest.raises(UserError, match='date: "2025-03-09" there, "2025-03-10" now'):
        evaluate(**{**asked, "options": ModelOptions(dtype="float32", date="2025-03-10")})
    evaluate(**{**asked, "model": str(save(tmp_path / "other", tokenizer("chatml"))), "out": tmp_path / "no-clock"})
    assert "date" not in manifest(tmp_path / "no-clock")


def test_a_training_goes_on_after_midnight_and_its_model_is_asked_on_that_day(tmp_path, clock):
    model, data = save(tmp_path / "model", tokenizer("llama3")), write(tmp_path / "data", map(example, range(4)), ())
    asked = {"model": str(model), "data": [str(data)], "out": tmp_path / "run", "style": "chat", "set": QUICK}
    clock("2025-03-09")
    figures = finetune(**asked)
    clock("2025-03-10")
    assert finetune(**asked) == figures
    assert manifest(tmp_path / "run")["recipe"]["date"] == "2025-03-09"
    assert json.loads((tmp_path / "run" / "model" / "sailkit.json").read_text())["date"] == "2025-03-09"
    assert load_model(str(tmp_path / "run" / "model")).describe()["date"] == "2025-03-09"
    assert load_model(str(model)).describe()["date"] == "2025-03-10"
    finetune(**{**asked, "model": str(save(tmp_path / "other", tokenizer("chatml"))), "out": tmp_path / "no-clock"})
    assert "date" not in manifest(tmp_path / "no-clock")["recipe"]


@pytest.mark.long
def test_teacher_and_student_have_one_day(tmp_path, clock):
    teacher, student = (
        save(tmp_path / "teacher", tokenizer("gpt-oss")),
        save(tmp_path / "student", tokenizer("llama3"), 1),
    )
    data = write(tmp_path / "data", map(example, range(4)), map(example, range(4, 6)))
    asked = {"teacher": str(teacher), "model": str(student), "data": [str(data)], "style": "chat",
             "teacher_style": "chat", "out": tmp_path / "run", "set": QUICK}  # fmt: skip
    clock("2025-03-09")
    figures = distill(**asked)
    clock("2025-03-10")
    assert distill(**asked) == figures
    days = [
        manifest(tmp_path / "run")["recipe"]["student"]["date"],
        manifest(tmp_path / "run" / "teacher")["date"],
        manifest(tmp_path / "run" / "student")["recipe"]["date"],
    ]
    assert days == ["2025-03-09"] * 3
    # A cache of yesterday serves today, on its own day.
    again = {**asked, "out": tmp_path / "again", "cache": tmp_path / "run" / "teacher"}
    assert distill(**again).metrics["base"] == figures.metrics["base"]
    with pytest.raises(UserError, match="date: 2025-03-09 there, 2025-03-10 now"):
        distill(**{**again, "out": tmp_path / "other"}, date="2025-03-10")
