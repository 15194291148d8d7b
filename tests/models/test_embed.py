"""The script that puts the adapter of a training run into the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.sources import ADAPTER, TRAINED
from sailkit.models.weights import BASE_WEIGHTS

SCRIPT = Path(__file__).parents[2] / "recipes" / "embed.py"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("embed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trained(tmp_path) -> Path:
    """A run folder of finetune, with adapters on one layer."""
    run = tmp_path / "run"
    recipe = {"model": "smollm2-135m", "data": ["/home/somebody/rows"], "lora": {"r": 2, "lora_alpha": 4}}
    environment = {"versions": {"sailkit": "1"}, "git_revision": "abc", "platform": "a machine of somebody"}
    manifest = {"stage": "finetune", "fingerprint": "", "environment": environment, "settings": {"recipe": recipe}}
    jsonl.write_json(run / "manifest.json", manifest)
    jsonl.write_json(run / "metrics.json", {"tuned_loss": 0.5, "saved": "/home/somebody/run/model"})
    jsonl.write_json(run / "model" / ADAPTER, {"r": 2, "base_model_name_or_path": "smollm2-135m"})
    jsonl.write_json(run / "model" / TRAINED, {"styles": ["chat"], "base": "smollm2-135m", BASE_WEIGHTS: "0" * 64})
    front = "license: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct"
    sections = (
        "## Held-out figures, before and after\n\n0.5\n\n## Training data\n\nRows.\n\n## Intended use\n\nAnswering.\n"
    )
    card = f"---\n{front}\n---\n\n# The base, tuned to use search results\n\n{sections}"
    (run / "model" / "README.md").write_text(card)
    generator = torch.Generator().manual_seed(0)
    save_file({f"lora_{side}": torch.randn(2, 8, generator=generator) for side in "AB"}, run / "model" / WEIGHTS)
    return run


def test_a_run_becomes_a_folder_of_the_package(script, trained, tmp_path):
    folder = script.embed(trained, "again", tmp_path / "package")
    weights, before = load_file(folder / WEIGHTS), load_file(trained / "model" / WEIGHTS)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], value.bfloat16()) for name, value in before.items())
    assert jsonl.read_json(folder / TRAINED) == {"styles": ["chat"], "base": "smollm2-135m"}
    manifest = jsonl.read_json(folder / "manifest.json")
    assert manifest["settings"]["recipe"]["data"] == ["rows"]
    assert manifest["parameters"] == 32
    assert manifest["files"] == {
        file.name: jsonl.file_fingerprint([file]) for file in folder.iterdir() if file.name != "manifest.json"
    }
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert "# again\n" in card.text
    assert "CC BY-SA 3.0" in card.text
    assert "Held-out figures" not in card.text
    assert "## Measured" in card.text
    assert "somebody" not in "".join(file.read_text() for file in folder.iterdir() if file.name != WEIGHTS)
    assert {oct(file.stat().st_mode & 0o444) for file in folder.iterdir()} == {oct(0o444)}


def test_what_does_not_fit_into_the_package_is_refused(script, trained, tmp_path, monkeypatch):
    manifest = jsonl.read_json(trained / "manifest.json")
    other = {**manifest, "settings": {"recipe": {**manifest["settings"]["recipe"], "model": "owner/other"}}}
    jsonl.write_json(trained / "manifest.json", other)
    with pytest.raises(UserError, match="only adapters on smollm2-135m"):
        script.embed(trained, "again", tmp_path / "package")
    jsonl.write_json(trained / "manifest.json", manifest)
    monkeypatch.setattr(script, "MOST_BYTES", 63)
    with pytest.raises(UserError, match="64 bytes in bfloat16, and 63 are the most"):
        script.embed(trained, "again", tmp_path / "package")
    assert not (tmp_path / "package").exists()
