"""Dry runs of common recipes import no trainer, and what they know without it equals what TRL, peft and torch say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from sailkit.errors import UserError
from sailkit.training import decoders
from sailkit.training.common_settings import LORA, TRAINING, common_settings, step_settings
from sailkit.training.finetune import finetune
from sailkit.training.memory import _count_on_meta
from sailkit.training.recipe import Recipe, check_recipe
from small_rows import example, write

pytest.importorskip("trl")
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 90}  # fmt: skip
LINEAR = ["q_proj", "down_proj"]
SLOW = ("trl", "peft", "bitsandbytes", "datasets", "sklearn", "transformers.training_args",
        "transformers.modeling_utils", "torch._inductor.compile_fx")  # fmt: skip


def test_types_and_defaults_are_those_of_trl_and_peft():
    from peft import LoraConfig
    from trl import SFTConfig

    types = typing.get_type_hints(SFTConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(SFTConfig)}
    for name in TRAINING.keys() - {"max_length", "bf16", "eval_strategy", "save_strategy", "lr_scheduler_type"}:
        kind, default = TRAINING[name]
        assert kind in (types[name], *typing.get_args(types[name])), name
        if default is not None and name not in ("activation_checkpointing", "per_device_train_batch_size"):
            assert default == defaults[name], name
    of_peft = typing.get_type_hints(LoraConfig)
    for name, kind in LORA.items():
        assert {*(typing.get_args(kind) or [kind])} == {*(typing.get_args(of_peft[name]) or [of_peft[name]])}, name


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"per_device_train_batch_size": 3, "num_train_epochs": 2.5, "learning_rate": 1e-4, "warmup_steps": 0.1},
        {"gradient_accumulation_steps": 2, "max_steps": 7, "lr_scheduler_type": "cosine", "bf16": False},
        {"activation_checkpointing": True, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 0.1},
        {"dataloader_drop_last": True, "bf16": "auto", "fp16": False, "seed": 3},
    ],
)
def test_settings_of_a_step_are_those_of_the_trainer(training, tmp_path):
    from sailkit.training.arguments import sft_config

    recipe = Recipe("m", ("d",), training=training)
    fast = step_settings(training, recipe.step)
    args = sft_config(recipe, tmp_path, held_out=True)
    for field in [*dataclasses.fields(fast), "train_batch_size"]:
        name = field if isinstance(field, str) else field.name
        if name != "gradient_checkpointing":  # an older name that only `args` resolves
            assert getattr(fast, name) == getattr(args, name), name


@pytest.mark.parametrize(
    "training", [{"packing": True}, {"learning_rate": -1.0}, {"lr_scheduler_type": "cosin"}, {"save_steps": 0}]
)
def test_what_trl_must_check_is_left_to_trl(training):
    assert not common_settings(training)
    assert step_settings(training, {}) is None


@pytest.mark.parametrize("training", [{"learning_rate": "fast"}, {"max_length": "long"}, {"max_steps": None}])
def test_a_wrong_type_is_refused(training):
    with pytest.raises(Exception, match=f"training.{next(iter(training))} should be a"):
        check_recipe({"model": "m", "data": "d", "training": training}, "r")


def test_a_strategy_that_is_a_list_is_refused(shared, tmp_path):
    data = write(tmp_path / "data", [example(0)], [example(1)])
    with pytest.raises(UserError, match="eval_strategy"):
        finetune(model=str(shared / "models" / "stories260k"), data=[str(data)], dry_run=True,
                 set=["training.eval_strategy=[epoch]"])  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
        MistralConfig(**SMALL),
        Qwen2Config(**SMALL),
        Qwen3Config(**SMALL, head_dim=20, attention_bias=True),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize(
    "lora",
    [
        None,
        {},
        {"r": 4, "target_modules": "all-linear"},
        {"r": 2, "target_modules": LINEAR, "layers_to_transform": [0, 2]},
    ],
)
def test_counts_are_those_of_the_model(config, lora):
    recipe = Recipe("m", ("d",), lora=lora, quantization={"load_in_4bit": True})
    counts = _count_on_meta(config, recipe)
    assert decoders.count(config, lora) == (counts.total, counts.trainable, counts.linear)


@pytest.mark.parametrize(
    "lora", [{"r": 0}, {"target_modules": "q.*"}, {"target_modules": ["nowhere"]}, {"use_dora": True},
             {"layers_to_transform": [7]}]
)  # fmt: skip
def test_what_peft_must_check_is_left_to_peft(lora):
    assert decoders.count(LlamaConfig(**SMALL), lora) is None


@pytest.mark.parametrize("verb", ["finetune", "distill"])
def test_a_dry_run_imports_no_trainer(verb, shared, tmp_path):
    from training.test_estimate import example, example_row

    for name, rows in (("train", range(9)), ("held_out", range(9, 14))):
        lines = (json.dumps(example_row(example(i))) for i in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    model = shared / "models" / "stories260k"
    teacher = Path(shutil.copytree(model, tmp_path / "teacher"))
    words = [verb, "--model", str(model), "--data", str(tmp_path), "--dry-run", "--set", "training.max_length=512"]
    if verb == "distill":
        words += ["--teacher", str(teacher)]
    program = (
        "import sys; from sailkit import cli; cli.main(sys.argv[2:]); "
        "print('imported:', *(name for name in sys.argv[1].split() if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, " ".join(SLOW), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert "9 rows, 0 dropped" in done.stdout
