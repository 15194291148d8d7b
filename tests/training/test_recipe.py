"""Recipes: what they hold, what flags change, and that no key goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailkit.distillation.recipe import read_distillation_recipe
from sailkit.errors import UserError
from sailkit.training.publish import check_target
from sailkit.training.recipe import read_recipe

pytest.importorskip("trl")
BASE = "model: m\ndata: runs/build\ntraining:\n  learning_rate: 2e-5\n  num_train_epochs: 3\n"


def recipe(tmp_path: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_numbers_are_numbers_in_every_spelling(tmp_path):
    told = read_recipe(recipe(tmp_path, BASE), {}, ["training.warmup_steps=3e-2"])
    assert told.training == {"learning_rate": 2e-5, "num_train_epochs": 3, "warmup_steps": 0.03}
    assert told.data == ("runs/build",)


def test_no_is_a_word(tmp_path):
    told = read_recipe(recipe(tmp_path, BASE + "  eval_strategy: no\n"), {}, ["training.save_strategy=no"])
    assert (told.training["eval_strategy"], told.training["save_strategy"]) == ("no", "no")
    assert read_recipe(recipe(tmp_path, BASE + "  bf16: False\n"), {}).training["bf16"] is False


def test_flags_win_over_the_file_and_the_file_over_what_it_extends(tmp_path):
    recipe(tmp_path, BASE + "lora: {r: 16, lora_alpha: 32}\n", "base.yaml")
    above = recipe(tmp_path, "extends: base.yaml\nlora: {r: 8}\ntraining: {num_train_epochs: 1}\n")
    told = read_recipe(above, {"model": "other", "data": [], "style": None}, ["training.learning_rate=1e-4"])
    assert told.model == "other"
    assert told.lora == {"r": 8, "lora_alpha": 32}
    assert told.training == {"learning_rate": 1e-4, "num_train_epochs": 1}
    assert read_recipe(above, {}, ["lora=null"]).lora is None


def test_null_is_as_if_not_given(tmp_path):
    empty = "".join(f"{name}: null\n" for name in ("about", "needs", "dtype", "order", "attn_implementation"))
    assert read_recipe(recipe(tmp_path, BASE + empty), {}) == read_recipe(recipe(tmp_path, BASE, "bare.yaml"), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: m\n", "no key 'modle': did you mean 'model'"),
        ("training: {learning_rat: 1}\n", "training has no key 'learning_rat': did you mean 'learning_rate'"),
        ("lora: {rr: 1}\n", "lora has no key 'rr'"),
        ("adapters: runs/tuned/model\n", "adapters names trained adapters, and lora gives their form; both are needed"),
        ("lora: {r: 8}\nadapters: {r: 8}\n", "both are needed"),
        ("lora: {}\nquantization: {load_in_4bits: true}\n", "did you mean 'load_in_4bit'"),
        ("quantization: {load_in_4bit: true}\n", "add lora"),
        ("training: {completion_only_loss: false}\n", "completion_only_loss cannot be set: the completion alone"),
        ("training: {output_dir: x}\n", "output_dir cannot be set: `out`"),
        ("training: {learning_rate: 'fast'}\n", "should be a number, not the text 'fast'"),
        ("training: {learning_rate: .inf}\n", "learning_rate should be a finite number, not inf"),
        ("training: {learning_rate: null}\n", "learning_rate should be a number, not empty"),
        ("training: {max_length: null}\n", "max_length should be a whole number, not empty"),
        ("attn_implementation: flash\n", "attn_implementation: no implementation 'flash'"),
        ("training: {max_length: 0}\n", "max_length should be at least 1"),
        ("training: {per_device_train_batch_size: 0}\n", "should be at least 1"),
        ("training: {num_train_epochs: -1}\n", "num_train_epochs should be above 0"),
        ("training: {gradient_checkpointing: yes}\n", "should be true or false, not the text 'yes'"),
        ("training: {save_only_model: true}\n", "save_only_model cannot be set: a stopped run could not continue"),
        ("training: {packing_strategy: wrapped}\n", "packing_strategy should be bfd"),
        ("training: {train_sampling_strategy: rendom}\n", "did you mean 'random'"),
        ("data: [d]\ncurriculum: [a]\n", "curriculum is trained on once; set training.num_train_epochs: 1"),
        (
            "data: [d]\ncurriculum: [a]\ntraining: {num_train_epochs: 1, train_sampling_strategy: random}\n",
            "decides the order",
        ),
        ("data: [d]\ncurriculum: [a]\ntraining: {num_train_epochs: 1, packing: true}\n", "packing mixes the rows"),
        ("lora: {r: '16'}\n", "r should be a whole number, not the text '16'"),
        ("lora: {inference_mode: true}\n", "inference_mode cannot be set: adapters are trained"),
        ("lora: {lora_bias: true}\n", "lora_bias cannot be set: a base without biases"),
        ("dtype: bflot16\n", "no number format 'bflot16': did you mean 'bfloat16'"),
        ("lora: {target_modules: 5}\n", "target_modules should be a list or a text, not 5"),
        ("lora: {}\nquantization: {load_in_4bit: 'yes'}\n", "should be true or false, not the text 'yes'"),
        ("training: [1]\n", "training should be a mapping"),
        ("data: {a: 1}\n", "should be a path or a list of paths"),
        ("style: sale\n", "no style 'sale'"),
        ("order: answer_first\n", "no order 'answer_first': did you mean 'answer-first'"),
        ("patience: 0\n", "patience should be"),
        ("patience: true\n", "patience should be"),
        ("[1, 2]\n", "a recipe is a mapping"),
        ("a: [\n", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("extends: recipe.yaml\n", "extends itself"),
        ("extends: nowhere.yaml\n", "cannot read"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    path = recipe(tmp_path, text)
    with pytest.raises(UserError, match=said):
        read_recipe(path, {"model": "m", "data": ["d"]} if "data" not in text else {"model": "m"})


def test_other_data_leave_the_curriculum_of_a_recipe_out(tmp_path):
    path = recipe(tmp_path, "model: m\ndata: [a]\ncurriculum: [easy]\ntraining: {num_train_epochs: 1}")
    assert read_recipe(path, {}).curriculum == ("easy",)
    assert read_recipe(path, {"data": ["b"]}).curriculum == ()
    assert read_recipe(path, {"data": ["b"]}, ["curriculum=c"]).curriculum == ("c",)


def test_paths_may_be_given_as_text_or_as_paths(tmp_path):
    path = recipe(tmp_path, "model: m\ndata: [a, b]")
    assert read_recipe(str(path), {}) == read_recipe(path, {})
    assert read_recipe(None, {"model": "m", "data": [Path("a"), "b"]}).data == ("a", "b")
    assert read_recipe(None, {"model": "m", "data": Path("a")}).data == ("a",)
    assert check_target("finetune", str(tmp_path), None) == tmp_path


def test_a_recipe_needs_a_model_and_data(tmp_path):
    with pytest.raises(UserError, match="no model"):
        read_recipe(None, {})
    with pytest.raises(UserError, match="no data"):
        read_recipe(None, {"model": "m"})
    with pytest.raises(UserError, match="write KEY=VALUE"):
        read_recipe(None, {"model": "m", "data": ["d"]}, ["learning_rate"])


RECIPES = Path(__file__).parents[2] / "recipes"
# Those of a training run; the others have the steps of a whole pipeline.
TRAINING = [path for path in sorted(RECIPES.glob("*.yaml")) if "\nsteps:\n" not in path.read_text()]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_what_we_ship_is_understood_by_trl(path, tmp_path):
    from sailkit.training.arguments import sft_config

    told = read_distillation_recipe(path, {}).student if path.stem.startswith("distill") else read_recipe(path, {})
    assert told.about.endswith(".")
    assert sft_config(told, tmp_path, held_out=True).learning_rate == told.training["learning_rate"]


def test_the_runs_of_others_are_stated_as_they_were():
    deberta, mistral, paper = (
        read_recipe(RECIPES / f"sail-7b{name}.yaml", {}) for name in ("-deberta", "-mistral", "")
    )
    assert (deberta.model, deberta.lora) == ("luohy/SAIL-7b", {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1})
    assert deberta.training["per_device_train_batch_size"] * deberta.training["gradient_accumulation_steps"] == 32
    assert (mistral.lora, mistral.quantization, mistral.training) == (
        deberta.lora,
        deberta.quantization,
        deberta.training,
    )
    assert mistral.data != deberta.data
    assert (paper.lora, paper.max_length, paper.training["num_train_epochs"]) == (None, 1600, 3)


def test_the_recommended_recipes_have_room_and_a_rate_for_adapters():
    for labeler in ("deberta", "mistral"):
        before = read_recipe(RECIPES / f"sail-7b-{labeler}.yaml", {})
        after = read_recipe(RECIPES / f"sail-7b-{labeler}-recommended.yaml", {})
        assert "learning rate 2e-5, 512 tokens" in before.about
        assert (before.training["learning_rate"], before.max_length) == (2e-5, 512)
        assert 1e-4 <= after.training["learning_rate"] <= 2e-4
        assert after.max_length >= 1024
        assert (after.model, after.data, after.lora, after.quantization) == (
            before.model, before.data, before.lora, before.quantization,
        )  # fmt: skip


def test_small_batches_are_drawn_at_random_in_what_we_ship():
    for path in TRAINING:
        told = read_distillation_recipe(path, {}).student if path.stem.startswith("distill") else read_recipe(path, {})
        assert told.training.get("train_sampling_strategy", "random") == "random", path.stem


def test_students_verify_first():
    with pytest.raises(UserError, match="order: answer-first is for finetune"):
        read_distillation_recipe(None, {"teacher": "t", "model": "m", "data": ["d"]}, ["order=answer-first"])


def test_students_have_no_curriculum():
    more = ["curriculum=easy", "training.num_train_epochs=1"]
    with pytest.raises(UserError, match="curriculum is for finetune"):
        read_distillation_recipe(None, {"teacher": "t", "model": "m", "data": ["d"]}, more)
