"""The manifest of a training has every setting in effect and the libraries' versions, and a resumption may differ."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sailkit import runs
from sailkit.errors import UserError
from sailkit.reporting import report
from sailkit.training.effective import with_format_as_begun
from sailkit.training.finetune import finetune
from sailkit.training.library_settings import check_training
from sailkit.training.recipe import Recipe
from small_rows import example, write

pytest.importorskip("trl")
SET = ["training.bf16=false", "training.max_length=512", "training.max_steps=2", "training.warmup_steps=0.5",
       "dtype=float32", "lora={r: 4}"]  # fmt: skip


@pytest.fixture(scope="module")
def command(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("tuned")
    data = write(folder / "data", map(example, range(4)), map(example, range(4, 6)))
    return {"model": str(shared / "models" / "stories260k"), "data": [str(data)], "out": folder / "run", "set": SET}


@pytest.fixture(scope="module")
def manifest(command: dict) -> dict:
    finetune(**command)
    return json.loads((command["out"] / "manifest.json").read_text())


def test_every_setting_is_there_as_the_libraries_built_it(manifest):
    effective = manifest["effective"]
    # None of these is in the recipe, but for the last two.
    for name, value in {"learning_rate": 2e-5, "lr_scheduler_type": "linear", "optim": "adamw_torch_fused",
                        "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0, "num_train_epochs": 3.0,
                        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "seed": 42,
                        "packing": False, "train_sampling_strategy": "random", "loss_type": "nll",
                        "max_length": 512, "max_steps": 2}.items():  # fmt: skip
        assert effective["training"][name] == value, name
    assert not [name for name in effective["training"] if name.startswith(("hub_", "output_dir"))]
    assert (effective["lora"]["r"], effective["lora"]["lora_alpha"]) == (4, 8)
    assert effective["lora"]["target_modules"] == ["q_proj", "v_proj"]  # as peft chose them for this model
    assert (effective["base_dtype"], effective["trained_dtype"]) == ("float32", "float32")
    assert (effective["quantization"], effective["processes"], effective["rows_per_step"]) == (None, 1, 16)
    assert (effective["steps"], effective["warmup_steps"]) == (2, 1)
    versions = manifest["environment"]["versions"]
    assert {name: versions[name] for name in ("trl", "peft", "accelerate", "datasets", "transformers", "torch")} == {
        name: version(name) for name in ("trl", "peft", "accelerate", "datasets", "transformers", "torch")
    }


def test_page_and_card_show_them(command, manifest, tmp_path):
    told = report(command["out"], out=tmp_path / "page.html")
    card = (command["out"] / "model" / "README.md").read_text("utf-8")
    for markdown in (told.markdown.read_text("utf-8"), card):
        text = html.unescape(markdown).replace("\\", "")
        assert "| training.lr_scheduler_type | linear |" in text
        assert re.search(r'\| lora.target_modules \| \["q_proj", ?"v_proj"\] \|', text)
        assert "| warmup_steps | 1 |" in text
        assert f"trl {version('trl')}" in text
    assert "lr_scheduler_type" in told.html.read_text("utf-8")


@pytest.mark.long
def test_a_run_begun_without_them_or_on_another_machine_goes_on(command, manifest):
    file, metrics = command["out"] / "manifest.json", command["out"] / "metrics.json"
    figures = json.loads(metrics.read_text())
    older = {key: value for key, value in manifest.items() if key != "effective"}
    elsewhere = json.loads(json.dumps(manifest))
    elsewhere["effective"]["training"]["bf16"] = True
    for before in (older, elsewhere):
        file.write_text(json.dumps(before))
        metrics.unlink()
        assert finetune(**command).after["loss"] == pytest.approx(figures["tuned_loss"])
        after = json.loads(file.read_text())
        assert {key: after[key] for key in older} == older
        assert runs.Run(file.parent, before).identity == runs.Run(file.parent, after).identity
        if before is older:
            assert after["effective"] == manifest["effective"]
        else:
            assert after["effective"]["training"]["bf16"] is True  # as it began
            assert after["effective_when_resumed"] == ["training.bf16: true there, false now"]


@pytest.mark.long
def test_a_quantised_base_is_told_as_it_was_loaded(command, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantised = [*SET, "quantization={load_in_4bit: true, bnb_4bit_compute_dtype: float32}"]
    finetune(**{**command, "out": tmp_path / "run", "set": quantised})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    found = manifest["effective"]["quantization"]
    assert (found["load_in_4bit"], found["bnb_4bit_quant_type"]) == (True, "fp4")  # the library's default
    assert manifest["effective"]["trained_dtype"] == "float32"
    assert manifest["environment"]["versions"]["bitsandbytes"] == version("bitsandbytes")


@pytest.mark.parametrize(("amx", "avx512_bf16", "expected"), [(True, True, True), (False, True, True),
                                                              (False, False, False)])  # fmt: skip
def test_training_on_a_cpu_is_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch, tmp_path, amx, avx512_bf16, expected
):
    from sailkit.training.arguments import sft_config

    monkeypatch.setattr("sailkit.training.arguments.pick_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)

    def in_bfloat16(**training: object) -> bool:
        return sft_config(Recipe("m", ("d",), training=training), tmp_path, held_out=False).bf16

    assert in_bfloat16(bf16="auto") is in_bfloat16() is expected
    assert in_bfloat16(bf16=False) is False
    assert in_bfloat16(bf16=True) is True
    with pytest.raises(UserError, match=r"training.bf16 should be auto or true or false, not the text 'yes'"):
        check_training({"bf16": "yes"}, "training")


@pytest.mark.parametrize(
    ("device", "supported", "lora", "dtype", "expected"),
    [
        ("cuda", False, {"r": 4}, "auto", True),
        ("cuda", True, {"r": 4}, "auto", False),
        ("cuda", True, {"r": 4}, "float16", True),
        ("cuda", False, {"r": 4}, "float32", False),
        ("cuda", False, None, "auto", False),  # all weights are float32
        ("cpu", False, {"r": 4}, "float16", False),
    ],
)
def test_adapters_on_a_float16_base_are_trained_with_loss_scaling(
    monkeypatch, device, supported, lora, dtype, expected
):
    from sailkit.training.arguments import needs_loss_scaling

    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: supported)
    recipe = Recipe("m", ("d",), lora=lora, dtype=dtype)
    assert needs_loss_scaling(recipe, torch.device(device)) is expected


@pytest.mark.parametrize(("training", "expected"), [({}, (False, True)), ({"bf16": False}, (False, True)),
                                                    ({"fp16": False}, (False, False)),
                                                    ({"bf16": True}, (True, False))])  # fmt: skip
def test_loss_scaling_is_the_default_only_without_bfloat16(monkeypatch, tmp_path, training, expected):
    from sailkit.training import arguments

    monkeypatch.setattr(arguments, "fast_in_bfloat16", lambda device: False)
    monkeypatch.setattr(arguments, "needs_loss_scaling", lambda recipe, device: True)
    args = arguments.sft_config(Recipe("m", ("d",), training=training), tmp_path, held_out=False)
    assert (args.bf16, args.fp16) == expected


def test_a_continued_run_keeps_its_number_format(tmp_path):
    with runs.open_run(tmp_path / "run", "finetune", {}) as run:
        run.describe("effective", {"training": {"bf16": False}})
    recipe = Recipe(model="m", data=("rows",), training={"learning_rate": 1e-4})
    assert with_format_as_begun(recipe, tmp_path / "run").training["bf16"] is False
    assert with_format_as_begun(recipe, tmp_path / "new") is recipe
    chosen = replace(recipe, training={"bf16": True})
    assert with_format_as_begun(chosen, tmp_path / "run") is chosen
