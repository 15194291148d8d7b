"""Training in a model's own chat template: of those that write before an answer, or end it in their own way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from chat_families import CLOSING, save, tokenizer
from sailkit.distillation.distill import distill
from sailkit.evaluation.evidence import EvidenceStyle
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.prompts.sail import conversation, read_verification
from sailkit.records import TrainingExample
from sailkit.training.finetune import finetune
from sailkit.training.merge import merge
from small_models import student
from small_rows import example, write

pytest.importorskip("trl")
QUICK = [
    "training.bf16=false", "training.max_length=1024", "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=1", "training.eval_strategy=no",
]  # fmt: skip


def same(i: int) -> TrainingExample:
    """Rows of one search result that all get the same completion."""
    return replace(example(2 * i), response="Yes.")


@pytest.mark.parametrize("family", ["qwen3", "no-generation-prompt", pytest.param("chatml", marks=pytest.mark.long)])
def test_a_tuned_model_writes_what_it_learnt_and_ends_with_the_turn(family, tmp_path):
    made = tokenizer(family)
    base, end = save(tmp_path / "base", made), made.convert_tokens_to_ids(CLOSING[family])
    assert end != made.eos_token_id
    steps = [*QUICK, "training.max_steps=60", "training.learning_rate=1e-2"]
    data = write(tmp_path / "data", map(same, range(8)))
    finetune(out=tmp_path / "run", model=str(base), data=[str(data)], style="chat", set=steps)
    tuned = load_model(str(tmp_path / "run" / "model"), ModelOptions(dtype="float32"))
    form = EvidenceStyle("chat", verify=True, most=1, bound=200)
    prompts = [conversation(replace(same(i), style="chat")) for i in range(20, 23)]
    for reply in tuned.generate(prompts, 200, lambda _: False):
        assert not reply.cut_off
        sentence, verdicts = form.sentence(reply.text, 1)
        assert verdicts == read_verification(sentence, 1) == ("distracting",)
        assert reply.text.removeprefix(sentence).strip() == "Yes."
    assert GenerationConfig.from_pretrained(tmp_path / "run" / "model").eos_token_id == [made.eos_token_id, end]
    assert GenerationConfig.from_pretrained(base).eos_token_id == made.eos_token_id


def test_merged_adapters_end_with_the_turn_where_they_were_trained_to(tmp_path):
    made = tokenizer("phi3")
    base = save(tmp_path / "base", made)
    for style, ends in (("chat", True), ("sail-fixed", False)):
        more = [*QUICK, "training.max_steps=1", "lora={r: 2}", "dtype=float32"]
        data = write(tmp_path / "data", map(same, range(4)))
        finetune(out=tmp_path / style, model=str(base), data=[str(data)], style=style, set=more)
        merge(tmp_path / style / "model", out=tmp_path / f"{style} merged")
        found = AutoModelForCausalLM.from_pretrained(tmp_path / f"{style} merged").generation_config.eos_token_id
        end = made.convert_tokens_to_ids("<|end|>")
        assert found == ([made.eos_token_id, end] if ends else made.eos_token_id)


@pytest.mark.parametrize("family", ["qwen3", "llama2-space"])
def test_a_student_whose_template_writes_before_the_answer_is_taught_in_chat(family, tmp_path):
    teacher = student(tmp_path / "teacher")
    pupil = save(tmp_path / "pupil", tokenizer(family, "byte-fallback"), 1)
    data = write(tmp_path / "data", map(example, range(8)), map(example, range(8, 12)))
    found = distill(
        teacher=str(teacher), model=str(pupil), data=[str(data)], out=tmp_path / "run", style="chat",
        teacher_style="sail-fixed", set=[*QUICK, "training.max_steps=8", "training.learning_rate=1e-2"],
    )  # fmt: skip
    assert found.to_json()["training_targets"]["rows_without_teacher"] == 0
    assert found.to_json()["training_targets"]["aligned"] > 0.3
    assert found.to_json()["tuned"]["kl"] < found.to_json()["base"]["kl"]
    config = json.loads((tmp_path / "run" / "student" / "model" / "generation_config.json").read_text())
    end = tokenizer(family, "byte-fallback").convert_tokens_to_ids(CLOSING[family])
    assert end in config["eos_token_id"]
