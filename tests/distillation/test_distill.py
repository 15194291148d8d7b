"""The stage as a whole on small real models: what it leaves behind, that no kill changes it, mistakes in one line."""

from __future__ import annotations

import gc
import json
import random
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import forked
from sailkit.data.build_task import build_task
from sailkit.data.exports import example_row
from sailkit.distillation import teacher_cache as maker
from sailkit.distillation.distill import _open_run, distill
from sailkit.distillation.layers import evenly_spaced_layers, with_fewer_layers
from sailkit.distillation.recipe import read_distillation_recipe
from sailkit.distillation.records import ALIGNED, NONE
from sailkit.distillation.results import Distillation
from sailkit.distillation.setup import set_up
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.sources import resolve
from sailkit.packaged import sample_files
from sailkit.prompts.render import as_text
from sailkit.prompts.sail import prompt_parts
from sailkit.testing import MisbehavingServer
from sailkit.training.finetune import finetune
from sailkit.training.loading import load_for_training
from sailkit.training.merge import merge
from sailkit.training.recipe import Recipe
from small_models import student, trained, with_gaps
from small_rows import example, write

pytest.importorskip("trl")
RECIPES = Path(__file__).parents[2] / "recipes"
SET = ["training.bf16=false", "training.learning_rate=3e-3", "training.max_length=512", "training.logging_steps=1",
       "training.gradient_accumulation_steps=4", "training.num_train_epochs=2"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("build"), map(example, range(24)), map(example, range(24, 32)))


@pytest.fixture(scope="module")
def teacher(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def qwen(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student of Qwen's shape, with its real tokenizer and a padded output layer."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    config = Qwen2Config(vocab_size=151_936, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024,
                         tie_word_embeddings=True)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(teacher, data, out, *more, **options):
    return distill(teacher=str(teacher), data=[str(data)], out=out, set=[*SET, *more], **options)


@pytest.mark.long
def test_a_half_of_the_teacher_comes_back_to_it(teacher, data, tmp_path):
    found = teach(teacher, data, tmp_path / "run", "distillation.top_p=1.0", student_layers=3)
    assert found.to_json()["tuned"]["kl"] < 0.5 * found.to_json()["base"]["kl"]
    assert found.to_json()["tuned"]["agreement"] > found.to_json()["base"]["agreement"]
    assert found.to_json()["training_targets"]["aligned"] == 1
    assert Distillation.load(tmp_path / "run") == found
    assert found.to_json() == json.loads((tmp_path / "run" / "metrics.json").read_text())
    kl = found.figures["kl"]
    assert kl.value == pytest.approx(found.metrics["tuned"]["kl"])
    assert kl.low < kl.value < kl.high
    assert found.training.model == found.model
    assert found.model.is_dir()
    assert AutoConfig.from_pretrained(tmp_path / "run" / "student" / "model").num_hidden_layers == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "fidelity.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["base"] * 8 + ["tuned"] * 8
    assert all(len(row["flags"]) == len(row["teacher_flags"]) == 1 + int(row["id"]) % 2 for row in rows)
    assert distill(teacher=str(teacher), data=[str(data)], out=tmp_path / "run", student_layers=3,
                   set=[*SET, "distillation.top_p=1.0"]) == found  # fmt: skip
    with pytest.raises(
        UserError, match=r"another run \(recipe.student_layers: 3 there, 2 now; recipe.settings.top_p: "
    ):
        teach(teacher, data, tmp_path / "run", student_layers=2)


@pytest.mark.long
def test_one_model_is_freed_before_the_next_is_loaded(teacher, data, tmp_path, monkeypatch):
    """The teacher of the cache, the student with its optimizer, the teacher that flags, the student as it was."""
    kinds = (PreTrainedModel, torch.optim.Optimizer)
    others = {id(one) for one in gc.get_objects() if issubclass(type(one), kinds)}
    load, alive = AutoModelForCausalLM.from_pretrained, []

    def counted(*args, **more):
        found = [one for one in gc.get_objects() if issubclass(type(one), kinds) and id(one) not in others]
        alive.append([type(one).__name__ for one in found])
        return load(*args, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    gc.disable()
    try:
        teach(teacher, data, tmp_path / "run", "training.max_steps=1", model=str(student(tmp_path / "student")))
    finally:
        gc.enable()
    assert alive == [[]] * 5


@pytest.mark.parametrize("family", ["byte-level", pytest.param("qwen", marks=pytest.mark.long)])
def test_a_student_of_another_tokenizer_comes_nearer(teacher, data, tmp_path, request, family):
    model = request.getfixturevalue("qwen") if family == "qwen" else student(tmp_path / "student")
    more = ("training.learning_rate=5e-2", "training.max_length=1024")
    found = teach(teacher, data, tmp_path / "run", *more, model=str(model))
    targets = found.to_json()["training_targets"]
    assert targets["aligned"] > 0.5
    assert targets["student_bytes_per_token"] > 1 < targets["teacher_bytes_per_token"]
    assert found.to_json()["tuned"]["kl"] < 0.8 * found.to_json()["base"]["kl"]
    assert 0 <= found.to_json()["tuned"]["verification_agreement"] <= 1


@pytest.mark.long
def test_the_words_are_the_teachers_in_another_style_too(teacher, data, tmp_path):
    found = teach(teacher, data, tmp_path / "run", model=str(teacher), teacher_style="sail", style="sail-fixed")
    assert found.to_json()["training"]["rows"] == 24
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()]
    assert all(row["style"] == "sail-fixed" for row in rows)
    assert "I should ignore the search result and only utilize my own knowledge" in rows[0]["response"]


def test_a_sequence_student_learns_recorded_answers(teacher, data, tmp_path):
    answers = [{"prompt": as_text(prompt_parts(example(i))), "response": f" The answer is {i}."} for i in range(24)]
    (tmp_path / "said.json").write_text(json.dumps(answers))
    given = {"teacher_outputs": tmp_path / "said.json", "method": "sequence", "model": str(teacher)}
    found = distill(data=[str(data)], out=tmp_path / "run", set=SET, **given)
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [f"The answer is {i}." for i in range(24)]
    assert found.to_json()["training"]["rows"] == 24
    assert found.to_json()["answers_in_order"] is False
    assert "tuned" not in found.metrics  # nobody is there to compare it with


@pytest.fixture(scope="module")
def tuned(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learnt to answer, and to end."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    more = ["training.num_train_epochs=12", 'training.eval_strategy="no"', 'training.save_strategy="no"']
    finetune(out=out, model=str(teacher), data=[str(data)], set=[*SET, *more])
    return out / "model"


@pytest.mark.long
@pytest.mark.parametrize("method", ["both", "sequence"])
def test_a_teacher_answers_first(tuned, data, tmp_path, method):
    found = teach(tuned, data, tmp_path / "run", "distillation.max_new_tokens=150", method=method, student_layers=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()]
    assert 0 < len(rows) <= 24
    assert any(row["judgements"] for row in rows)
    assert {row["style"] for row in rows} == {"sail-fixed"}
    assert found.to_json()["tuned"]["kl"] < found.to_json()["base"]["kl"]
    assert ("training_targets" in found.metrics) == (method == "both")


@pytest.mark.long
def test_a_teacher_that_was_trained_without_its_chat_template_answers_without_it(tuned, data, tmp_path):
    shutil.copytree(tuned, tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "teacher")
    some = ("distillation.max_new_tokens=150", "training.max_steps=1")
    found = teach(tmp_path / "teacher", data, tmp_path / "run", *some, method="sequence", student_layers=1)
    assert found.training.rows > 0


@pytest.mark.long
def test_a_cache_is_shared_and_one_of_other_data_is_refused(teacher, data, tmp_path):
    first = teach(teacher, data, tmp_path / "first", student_layers=3)
    again = teach(teacher, data, tmp_path / "again", student_layers=3, cache=tmp_path / "first" / "teacher")
    assert again.metrics["tuned"] == first.metrics["tuned"]
    assert not (tmp_path / "again" / "teacher").exists()
    (tmp_path / "other.jsonl").write_text(json.dumps(example_row(example(99))) + "\n")
    with pytest.raises(UserError, match="k: 64 there, 32 now"):
        teach(teacher, data, tmp_path / "less", "distillation.k=32", student_layers=3,
              cache=tmp_path / "first" / "teacher")  # fmt: skip
    assert not (tmp_path / "less").exists()
    with pytest.raises(UserError, match="cache of other completions"):
        teach(teacher, tmp_path / "other.jsonl", tmp_path / "other", student_layers=3,
              cache=tmp_path / "first" / "teacher")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "more", "why"),
    [
        ({"model": "m", "method": "osmosis"}, (), "`method` takes sequence, logits, both, not 'osmosis'"),
        ({"model": "m", "student_layers": 3}, (), "leave out model"),
        ({"student_layers": 99}, (), "from 1 to 5"),
        ({"student_layers": 2}, ("training.optim=bogus",), "training: "),
        ({"student_layers": 2}, ("training.max_length=4",), "no example is left to train on"),
        ({"student_layers": 2}, ("training.label_smoothing_factor=0.1",), "not for distillation"),
        ({"student_layers": 2}, ("loss_weights={answer: 2}",), "not for the distillation of logits"),
        ({"student_layers": 2}, ("training.seed=-1",), "training.seed should be at least 0"),
        (
            {"student_layers": 2},
            ("training.optim=schedule_free_adamw",),
            "training: You need to install `schedulefree`",
        ),
        (
            {"student_layers": 2},
            ("training.dataloader_drop_last=true", "training.per_device_train_batch_size=32"),
            "24 rows are no whole batch",
        ),
        ({"student_layers": 2}, ("lora={target_modules: [nothing]}",), "does not fit the model"),
        ({"student_layers": 2, "method": "both"}, ("training.max_length=4",), "no example is left to train on"),
        ({"model": "m", "teacher_outputs": Path("said.json")}, (), "methods sequence and both"),
        ({"model": "m"}, ("distillation.topk=3",), "topk"),
        ({"model": "m"}, ("distillation.k=0",), "distillation.k"),
        ({"model": "m"}, ("distillation.top_p=1.5",), "distillation.top_p"),
        ({"model": "no/such"}, (), "no/such"),
    ],
)
def test_a_mistake_is_one_line(teacher, data, tmp_path, options, more, why):
    with pytest.raises(UserError, match=re.escape(why)) as told:
        teach(teacher, data, tmp_path / "run", *more, **options)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()  # so the right command can have it


def test_a_student_whose_context_is_too_short_is_told(teacher, data, tmp_path):
    long = example(1)
    long = replace(long, response="red balls. " * 300)
    (tmp_path / "long.jsonl").write_text(json.dumps(example_row(long)) + "\n")
    said = {"teacher_outputs": tmp_path / "said.json", "method": "sequence", "model": str(teacher)}
    (tmp_path / "said.json").write_text(
        json.dumps([{"prompt": as_text(prompt_parts(long)), "response": long.response}])
    )
    told = {"data": [str(tmp_path / "long.jsonl")], "set": ["training.max_length=4096"], **said}
    for how in ({"out": tmp_path / "run"}, {"dry_run": True}):
        with pytest.raises(UserError, match="takes 512"):
            distill(**told, **how)


def test_layers_that_there_are_not_are_told_by_a_dry_run(teacher, data):
    with pytest.raises(UserError, match="from 1 to 5"):
        teach(teacher, data, None, student_layers=99, dry_run=True)


def test_a_dry_run_reads_rows_in_the_style_of_the_student(teacher, tmp_path):
    chats = [replace(example(i), style="chat") for i in range(6)]
    data = write(tmp_path / "data", chats[:4], chats[4:])
    plan = teach(teacher, data, None, student_layers=2, style="sail-fixed", dry_run=True).to_json()
    assert (plan["rows"], plan["rows_without_teacher"], plan["held_out_rows_without_teacher"]) == (4, 0, 0)


def test_a_dry_run_reads_the_rows_that_the_run_does(teacher, tmp_path):
    """The teacher's answers need no responses, and held-out rows without one are not measured."""
    silent = [replace(example(i), response="") for i in range(8)]
    rows = str(write(tmp_path / "rows", silent, [*silent[:2], *map(example, range(8, 10))]))
    told = {"teacher": str(teacher), "student_layers": 3, "data": [rows], "set": SET, "dry_run": True}
    plan = distill(method="sequence", **told)
    assert (plan.training.rows, plan.teacher_answers, plan.training.held_out_rows) == (8, 8, 2)
    answers = {"teacher": None, "student_layers": None, "model": str(teacher), "teacher_outputs": "answers.json"}
    plan = distill(method="sequence", **{**told, **answers})
    assert (plan.teacher_tokens, plan.cache_bytes) == (0, 0)
    assert "teacher: 8 recorded answers" in str(plan)
    with pytest.raises(UserError, match="no response"):
        distill(method="logits", **told)


def test_students_keep_the_record_of_all_data_and_of_their_teacher(teacher, data, tmp_path):
    claims = build_task("sample-facts", data=sample_files()["facts-train.jsonl"], out=tmp_path / "claims", limit=30)
    few = ["training.max_steps=1", "training.max_length=512"]
    tuned = finetune(model=str(teacher), data=[str(claims.folder)], style="sail-fixed", out=tmp_path / "tuned",
                     set=["training.bf16=false", *few])  # fmt: skip
    both = {"student_layers": 2, "style": "sail-fixed", "set": [*SET, *few]}
    one = distill(teacher=str(teacher), data=[str(claims.folder), str(data)], out=tmp_path / "one", **both)
    other = distill(teacher=str(tuned.model), data=[str(data)], out=tmp_path / "other", **both)
    for run in (one, other):
        assert [task["task"] for task in resolve(str(run.model)).trained()["trained_tasks"]] == ["sample-facts"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["teacher_tokenizer=5"], "should be a path"),
        (["student_layers=true"], "number of layers"),
        (["model=m", "distillation.ce_weight=.inf"], "ce_weight"),
        (["model=m", "distillation.top_p=0"], "top_p"),
    ],
)
def test_a_recipe_of_other_types_is_told(teacher, data, more, why):
    with pytest.raises(UserError, match=why):
        distill(teacher=str(teacher), data=[str(data)], set=more, dry_run=True)


@pytest.mark.parametrize(
    ("more", "weight"),
    [
        ({"method": "both"}, 1.0),
        ({"method": "logits"}, 0.1),
        ({}, 0.1),
        ({"method": "both", "distillation": {"ce_weight": 0.3}}, 0.3),
        ({"method": "logits", "distillation": {"ce_weight": 0}}, 0),
    ],
)
def test_the_weight_of_cross_entropy_is_that_of_the_method(more, weight):
    recipe = read_distillation_recipe(None, {"teacher": "t", "model": "m", "data": ["d"], **more})
    assert recipe.ce_weight == weight


def test_white_space_around_an_answer_and_equal_ids_are_no_matter(teacher, data, tmp_path):
    rows = [replace(example(i), id=f"row{'#2' * (i % 2)}", response=f" {i} red balls.\n") for i in range(4)]
    for name, part in (("one", rows[:2]), ("two", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in part))
    found = distill(teacher=str(teacher), data=[str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")], set=SET,
                    teacher_style="sail", student_layers=2, out=tmp_path / "run")  # fmt: skip
    assert found.to_json()["training"]["rows"] == 4
    assert found.to_json()["training_targets"]["without_target"] == 0


@pytest.mark.long
def test_rows_that_the_teacher_has_no_room_for_are_learnt_by_their_words(teacher, data, tmp_path):
    long = replace(example(1), id="long", instruction="What do seals like? " * 20)
    (tmp_path / "long.jsonl").write_text(json.dumps(example_row(long)) + "\n")
    found = teach(teacher, data, tmp_path / "run", "distillation.max_length=300", student_layers=2,
                  held_out=[str(tmp_path / "long.jsonl")])  # fmt: skip
    assert found.to_json()["held_out_targets"]["rows_without_teacher"] == 1
    assert found.to_json()["held_out_targets"]["without_target"] == 1
    assert found.to_json()["tuned"]["kl"] is None
    assert found.to_json()["tuned"]["cross_entropy"] < found.to_json()["base"]["cross_entropy"]


def test_a_training_row_without_room_is_learnt_by_its_words_beside_the_others(teacher, data, tmp_path):
    long = replace(example(1), id="long", instruction="What do seals like? " * 20)
    write(tmp_path / "data", [example(0), long, example(2)], map(example, range(24, 26)))
    found = teach(teacher, tmp_path / "data", tmp_path / "run", "distillation.max_length=300", student_layers=2)
    targets = found.to_json()["training_targets"]
    assert targets["rows_without_teacher"] == 1
    compiled = load_file(tmp_path / "run" / "targets-train.safetensors")
    kinds = np.split(compiled["kind"], compiled["rows"][1:-1])
    assert [set(kind.tolist()) for kind in kinds] == [{ALIGNED}, {NONE}, {ALIGNED}]
    assert found.to_json()["training"]["rows"] == 3


def test_a_student_may_have_gaps_in_its_ids(teacher, data, tmp_path):
    model = student(tmp_path / "student", tokenizer=with_gaps(trained("byte-level")))
    write(tmp_path / "data", map(example, range(4)), map(example, range(24, 26)))
    found = teach(teacher, tmp_path / "data", tmp_path / "run", "training.max_length=1024", model=str(model))
    for who in ("base", "tuned"):  # its end of text is a token, not padding that cannot be said
        assert found.to_json()[who]["kl"] < 100
        assert found.to_json()[who]["cross_entropy"] < 100


def test_an_adapter_is_a_student(teacher, data, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(teacher)
    base.name_or_path = str(teacher)
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")  # without a tokenizer: that of its base is taken
    write(tmp_path / "data", map(example, range(4)), map(example, range(24, 26)))
    found = teach(teacher, tmp_path / "data", tmp_path / "run", model=str(tmp_path / "adapter"))
    assert found.to_json()["base"]["kl"] == pytest.approx(0, abs=1e-2)  # still its teacher, in bfloat16 on some CPUs
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict()
                     for folder in (teacher, tmp_path / "run" / "student" / "model"))  # fmt: skip
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)


@pytest.mark.long
def test_a_base_that_changed_under_its_adapter_is_told(teacher, data, tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(teacher, base, copy_function=shutil.copyfile)
    base.chmod(0o755)
    lora = ["lora={r: 2}", "training.max_steps=1", "dtype=float32"]
    finetune(out=tuned, model=str(base), data=[str(data)], set=[*SET, *lora])
    adapter, options = tuned / "model", ModelOptions(dtype="float32")
    assert LocalModel.from_name(str(adapter), options)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.neg_()
    model.save_pretrained(base)
    for use in (
        lambda: LocalModel.from_name(str(adapter), options),
        lambda: merge(adapter, out=tmp_path / "merged"),
        lambda: teach(teacher, data, tmp_path / "student", model=str(adapter)),
        lambda: teach(adapter, data, tmp_path / "taught", model=str(teacher)),
    ):
        with pytest.raises(UserError, match=f"model: its base {base} has other weights") as told:
            use()
        assert "\n" not in str(told.value)
    said = json.loads((adapter / "sailkit.json").read_text())
    del said["base_weights_sha256"]  # as adapters from elsewhere
    (adapter / "sailkit.json").write_text(json.dumps(said))
    assert LocalModel.from_name(str(adapter), options)


@pytest.mark.long
def test_prompts_are_enough_for_a_teacher_that_answers(teacher, data, tmp_path):
    asked = [replace(example(i), response="") for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in asked))
    answers = [{"prompt": as_text(prompt_parts(one)), "response": f" The answer is {one.id}."} for one in asked]
    (tmp_path / "said.json").write_text(json.dumps(answers))
    found = teach(teacher, tmp_path / "asked.jsonl", tmp_path / "run", method="both", student_layers=2,
                  teacher_outputs=tmp_path / "said.json", held_out=[str(data / "held_out.jsonl")])  # fmt: skip
    assert found.to_json()["training"]["rows"] == 6
    assert found.to_json()["tuned"]["kl"] is not None
    # As the loss of each line of the log says: of `both`, cross-entropy weighs as much as the teacher.
    history = [json.loads(line) for line in (tmp_path / "run" / "student" / "history.jsonl").read_text().splitlines()]
    line = next(row for row in history if "kl" in row)
    assert found.to_json()["training_targets"]["without_target"] == 0
    assert line["loss"] == pytest.approx(line["kl"] + line["cross_entropy"], rel=1e-3)


def test_a_cache_of_another_served_model_is_refused(teacher, data, tmp_path):
    """A server's weights nobody sees: its model's name is all that tells one from another."""
    from distillation.test_teacher_cache import Served, ask

    with MisbehavingServer(echo=Served(teacher, "prompt_logprobs")) as server:
        ask(server, teacher, data, tmp_path / "cache")
    told = {"data": [str(data)], "set": SET, "cache": tmp_path / "cache", "teacher_tokenizer": teacher,
            "model": str(teacher), "style": "sail-fixed"}  # fmt: skip
    with pytest.raises(UserError, match="served_model: any there, other now"):
        distill(teacher=f"endpoint:other@{server.url}", out=tmp_path / "run", **told)


def test_answers_that_changed_are_noticed(teacher, data, tmp_path):
    said = tmp_path / "said.json"
    answers = [{"prompt": as_text(prompt_parts(example(i))), "response": f" The answer is {i}."} for i in range(24)]
    said.write_text(json.dumps(answers))
    given = {"teacher_outputs": said, "method": "sequence", "model": str(teacher), "data": [str(data)]}
    told = read_distillation_recipe(None, {**given, "teacher_outputs": str(said)}, SET)
    with _open_run(set_up(told, tmp_path / "run", None)):
        pass
    said.write_text(said.read_text().replace("answer is 3", "answer is 4"))
    with pytest.raises(UserError, match="teacher_outputs_sha256"):
        distill(out=tmp_path / "run", set=SET, **given)


def test_a_generation_config_that_cannot_be_saved_is_told_and_reset(teacher, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(teacher, own, copy_function=shutil.copyfile)
    own.chmod(0o755)
    config = json.loads((own / "generation_config.json").read_text())
    (own / "generation_config.json").write_text(json.dumps({**config, "do_sample": False, "temperature": 0.6}))
    with pytest.warns(RuntimeWarning, match="generation config cannot be saved .temperature.; only") as told:
        model = load_for_training(resolve(str(own)), Recipe(str(own), ("d",)))
    assert "\n" not in str(told[0].message)
    model.generation_config.pad_token_id = 0  # as trainers do
    model.save_pretrained(tmp_path / "saved")
    assert model.generation_config.eos_token_id == config["eos_token_id"]


def test_a_teacher_is_needed(data, tmp_path):
    with pytest.raises(UserError, match="no teacher"):
        distill(data=[str(data)], model="m", out=tmp_path / "run")


def test_layers_are_kept_at_even_distances():
    assert evenly_spaced_layers(30, 15)[:3] == [0, 2, 4]
    assert evenly_spaced_layers(30, 15)[-1] == 29
    assert evenly_spaced_layers(5, 1) == [0]
    assert evenly_spaced_layers(5, 5) == [0, 1, 2, 3, 4]


def test_settings_of_single_layers_go_with_their_layers(tmp_path):
    tokenizer = trained("byte-level")
    config = SmolLM3Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=4,
                           num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
                           eos_token_id=tokenizer.eos_token_id, no_rope_layers=[1, 0, 1, 0])  # fmt: skip
    for part in (SmolLM3ForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    assert with_fewer_layers(resolve(str(tmp_path / "teacher")), 3, tmp_path / "cut") == [0, 2, 3]
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert [layer.self_attn.use_rope for layer in cut.model.layers] == [1, 1, 0]


@pytest.mark.parametrize("room", [100, 200_000])  # for its config, and not for its weights
def test_a_full_disk_is_one_line_and_leaves_no_student(teacher, tmp_path, room):
    """A limit on the size of files stands for the full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*cut: File too large; free some space"):
            with_fewer_layers(resolve(str(teacher)), 3, tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
    assert with_fewer_layers(resolve(str(teacher)), 3, tmp_path / "cut") == [0, 2, 4]


@pytest.mark.long
@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
@pytest.mark.parametrize("method", ["", "-sequence"])
def test_the_recipes_for_qwen_pass_a_dry_run_with_the_real_tokenizers(shared, data, tmp_path, size, method):
    hidden, layers, wide, heads, keys = {"0.5b": (896, 24, 4864, 14, 2), "1.5b": (1536, 28, 8960, 12, 2)}[size]
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(student)
    Qwen2Config(vocab_size=151_936, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=wide,
                num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=True,
                max_position_embeddings=32_768).save_pretrained(student)  # fmt: skip
    LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama").save_pretrained(teacher)
    AutoConfig.for_model("llama").save_pretrained(teacher)
    recipe = RECIPES / f"distill-qwen2.5-{size}{method}.yaml"
    found = distill(recipe, teacher=str(teacher), model=str(student), data=[str(data)], dry_run=True)
    assert found.to_json()["missing"] == []
    assert found.to_json()["same_tokenizer"] is False
    assert found.to_json()["parameters"] == pytest.approx({"0.5b": 494e6, "1.5b": 1544e6}[size], rel=0.01)
    assert found.to_json()["teacher_answers"] == (24 if method else 0)
    assert found.to_json()["cache_bytes"] > 0
    assert found.to_json()["memory"]["total"] == sum(
        size for part, size in found.to_json()["memory"].items() if part != "total"
    )


# Never writes the file that ends a part, so that every kill falls within that part, however late it comes.
COMMAND = """
import time
import torch
from sailkit.distillation import distill as stage, teacher_cache
from sailkit.files import jsonl
write_atomic = jsonl.write_atomic
def write_until(path, data):
    if path == last:
        time.sleep(3600)
    write_atomic(path, data)
jsonl.write_atomic = write_until
teacher_cache.teacher_cache = small_files(teacher_cache.teacher_cache)
torch.set_num_threads(threads)
stage.distill(**told)
"""
# Makes the files of the cache small, so that a kill leaves some of them written.
SMALL = """
def small_files(original):
    from dataclasses import replace
    def cache(*, options, **more):
        return original(**more, options=replace(options, batch_tokens=1000), shard_tokens=200)
    return cache
"""


def _progress(out: Path) -> dict[str, int]:
    """Files of the cache, files of targets and steps of the training that are written."""
    history = out / "student" / "history.jsonl"
    lines = history.read_text().splitlines() if history.exists() else []
    files = (len(list(out.glob(f"{name}-*.safetensors"))) for name in ("teacher/teacher", "targets"))
    return dict(zip(("cache", "targets"), files, strict=True)) | {
        "training": max((json.loads(line)["step"] for line in lines), default=0)
    }


@pytest.mark.long
def test_ten_kills_change_nothing(teacher, data, tmp_path, monkeypatch):
    """The kills come while it makes its cache, its targets and its steps."""
    forked.start_server()  # it imports while the run below goes on
    often = [f"training.{name}" for name in ("save_strategy=steps", "save_steps=2", "eval_strategy=steps",
                                             "eval_steps=2", "num_train_epochs=10")]  # fmt: skip
    told = {"teacher": str(teacher), "student_layers": 3, "data": [str(data)], "set": [*SET, *often]}
    names: dict = {}
    exec(SMALL, names)
    monkeypatch.setattr(maker, "teacher_cache", names["small_files"](maker.teacher_cache))
    whole, out = tmp_path / "whole", tmp_path / "killed"
    distill(**told, out=whole)
    count = _progress(whole)
    inside = {"threads": torch.get_num_threads(), "told": {**told, "out": out}}
    for part, times in {"cache": 4, "targets": 1, "training": 5}.items():
        last = out / ("teacher/index.jsonl" if part == "cache" else "student/metrics.json")
        for number in range(times):
            # Up to some point of this share of the part, and further than it came before; then a moment longer.
            share = (number + random.uniform(0.1, 0.8)) / times
            wanted = min(max(share * count[part], _progress(out)[part] + 1), count[part])
            child = forked.start(exec, SMALL + COMMAND, {**inside, "last": last})
            while child.is_alive() and _progress(out)[part] < wanted:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.01))
            child.kill()
            child.join()
            assert child.exitcode == -signal.SIGKILL
            assert not last.exists()
    distill(**told, out=out)
    names = [path.relative_to(whole) for path in whole.glob("teacher/*.safetensors")]
    assert len(names) == count["cache"] == _progress(out)["cache"] > 5
    for name in (*names, "fidelity.jsonl", "student/model/model.safetensors", "targets-train.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
