"""Adapters that come with the package: found by their name, and a base for further adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sailkit.files import jsonl
from sailkit.models import sources
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.sources import ADAPTER, outline, resolve, shipped

EMBEDDED = Path(sources.__file__).parent / "embedded"
LAYER = "model.layers.1.self_attn.q_proj"
deprecated = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def adapter(folder: Path, base: Path, name: str, seed: int) -> Path:
    """An adapter with random weights on one layer."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).save_pretrained(folder)
    values = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**values, "base_model_name_or_path": name}))
    return folder


def change(folder: Path) -> torch.Tensor:
    """What an adapter adds to the weights of the layer."""
    weights = load_file(folder / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{LAYER}.lora_{side}.weight"] for side in "AB")
    return 4 / 2 * b @ a


@deprecated
def test_an_adapter_on_an_adapter_of_the_package_has_the_changes_of_both(shared, tmp_path, monkeypatch):
    base = shared / "models" / "stories260k"
    monkeypatch.setattr(sources, "_SHIPPED", tmp_path / "embedded")
    first = adapter(tmp_path / "embedded" / "first", base, str(base), 1)
    second = adapter(tmp_path / "second", base, "first", 2)
    assert shipped() == ["first"]
    source = resolve(str(second))
    assert source.model == resolve(str(base))
    assert [part.folder for part in source.adapters] == [first, second]
    assert source.tokenizer_folder == base
    assert outline(str(second)) == outline(str(base))

    plain, one, both = (
        load_model(str(name), ModelOptions(dtype="float32", device="cpu")) for name in (base, "first", second)
    )
    before, middle, after = (model.model.get_submodule(LAYER).weight for model in (plain, one, both))
    torch.testing.assert_close(middle, before + change(first))
    torch.testing.assert_close(after, before + change(first) + change(second))
    digests = {model.describe()["weights_sha256"] for model in (plain, one, both)}
    assert len(digests) == 3


def test_the_tuned_model_comes_with_the_package():
    assert "smollm2-135m-sail" in shipped()


@pytest.mark.parametrize("name", shipped())
def test_what_ships_is_what_the_manifest_and_its_recipe_say(name):
    folder = EMBEDDED / name
    manifest = jsonl.read_json(folder / "manifest.json")
    files = {file.name: jsonl.file_fingerprint([file]) for file in folder.iterdir() if file.name != "manifest.json"}
    assert manifest["files"] == files
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe == manifest["settings"]["recipe"]

    weights = load_file(folder / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert sum(value.numel() for value in weights.values()) == manifest["parameters"]
    assert (folder / "adapter_model.safetensors").stat().st_size == manifest["bytes"] <= 8_000_000

    config = jsonl.read_json(folder / ADAPTER)
    assert (name, config["base_model_name_or_path"]) == (manifest["name"], recipe["model"])
    assert {key: config[key] for key in ("r", "lora_alpha")} == {
        key: recipe["lora"][key] for key in ("r", "lora_alpha")
    }
    adapted = {key.split(".lora_")[0].removeprefix("base_model.model.model.") for key in weights}
    assert {module.rpartition(".")[2] for module in adapted} == {*recipe["lora"]["target_modules"]}
    layers = recipe["lora"].get("layers_to_transform", range(30))
    assert {int(module.split(".")[1]) for module in adapted} == {*layers}


@pytest.mark.parametrize("name", shipped())
def test_the_card_names_the_licences_and_nobody_s_folders(name):
    folder = EMBEDDED / name
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "FEVER" in card.text
    assert "CC BY-SA 3.0" in card.text
    texts = "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors")
    assert not any(f"{root}/" in texts for root in ("/tmp", "/home", "/root", "/work", "/mnt"))
