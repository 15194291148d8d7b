"""Loading for training: where weights are placed, and what mixed precision does to adapters."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.sources import resolve
from sailkit.models.weights import load_pretrained
from sailkit.training.checks import resolve_adapters
from sailkit.training.finetune import finetune
from sailkit.training.loading import device_to_load_on, keep_adapters_in_float32, load_adapters, load_for_training
from sailkit.training.recipe import Recipe
from sailkit.training.report import report_on
from sailkit.training.tokenise import prepare
from small_rows import example, write

trl = pytest.importorskip("sailkit.training.trainer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, TRL's own mixed precision is used")
def test_what_an_adapter_adds_is_kept_under_autocast(shared, tmp_path):
    from sailkit.training.arguments import sft_config
    from sailkit.training.loading import lora_config

    folder = shared / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe = Recipe(
        "m", ("d",), lora={"r": 4, "target_modules": ["q_proj"]}, training={"bf16": True, "max_length": 512}
    )
    trainer = trl.Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer=tokenizer,
        args=sft_config(recipe, tmp_path, held_out=False), train=prepare([example(0)], tokenizer, 512), held_out=None,
        lora=lora_config(recipe),
    )  # fmt: skip
    layer = next(module for name, module in trainer.model.named_modules() if name.endswith("0.self_attn.q_proj"))
    torch.nn.init.constant_(layer.lora_B["default"].weight, 1e-4)
    hidden = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer.lora_B["default"](layer.lora_A["default"](hidden)) * layer.scaling["default"]
        with torch.autocast("cpu", torch.bfloat16):
            added = layer(hidden).float() - layer.base_layer(hidden).float()
    assert expected.abs().max() > 0
    assert torch.allclose(added, expected, rtol=0.1, atol=2e-6)


def test_weights_are_placed_on_their_device_in_their_dtype_as_they_are_read(shared):
    """On the meta device, because a test machine has no GPU: it holds nothing, and neither does the CPU."""
    source = resolve(str(shared / "models" / "stories260k"))
    model, _ = load_pretrained(source, torch.bfloat16, False, device=torch.device("meta"))
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("meta", torch.bfloat16)}
    model, _ = load_pretrained(source, torch.bfloat16, False, device=torch.device("cpu"))
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("cpu", torch.bfloat16)}


class OnGPU:
    """What matters of an SFTConfig."""

    device = torch.device("cuda:1")
    fsdp = deepspeed = None


def test_a_whole_model_is_loaded_on_the_gpu_and_one_to_be_sharded_on_the_cpu(monkeypatch):
    args = OnGPU()
    assert device_to_load_on(args) == torch.device("cuda:1")
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "true")
            assert device_to_load_on(args) is None
    args.deepspeed = {"zero_stage": 2}
    assert device_to_load_on(args) is None
    args.device, args.deepspeed = torch.device("cpu"), None
    assert device_to_load_on(args) is None


@pytest.fixture
def second_process(monkeypatch, tmp_path):
    """The second process of a machine, as a launcher starts it for FSDP with efficient loading."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    yield
    torch.distributed.destroy_process_group()


def test_one_process_of_a_machine_reads_the_weights_that_fsdp_shards(shared, second_process, monkeypatch):
    source, recipe = resolve(str(shared / "models" / "stories260k")), Recipe("m", ("d",))
    shapes = load_for_training(source, recipe, device_to_load_on(OnGPU()))
    assert {(weight.device.type, weight.dtype) for weight in shapes.parameters()} == {("meta", torch.float32)}
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert device_to_load_on(OnGPU()) is None
    model = load_for_training(source, recipe, None)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in shapes.named_parameters()]
    # Buffers that no file holds are not sent by the first process.
    assert dict(model.named_buffers()).keys() == dict(shapes.named_buffers()).keys()
    for name, buffer in shapes.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name])


def test_what_is_trained_on_a_float16_base_is_float32(shared):
    """Gradient scaling refuses gradients in float16, also of the copies of whole layers."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260k", dtype=torch.float16)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True)
    )
    keep_adapters_in_float32(model)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.float16}


def test_memory_that_runs_out_while_loading_is_one_line(shared, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("transformers.PreTrainedModel._load_pretrained_model", full)
    with pytest.raises(UserError, match=r"^out of memory while loading .*stories260k; use a smaller model"):
        load_for_training(resolve(str(shared / "models" / "stories260k")), Recipe("m", ("d",)))


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
SET = ["training.bf16=false", "training.max_length=512", "training.max_steps=2", "training.learning_rate=1e-3"]


def adapted(folder, **lora):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{**LORA, **lora}))


@pytest.fixture(scope="module")
def trained(shared, tmp_path_factory):
    """Adapters of two steps of training, with the data and flags of that training."""
    folder = tmp_path_factory.mktemp("trained")
    data = write(folder / "data", map(example, range(4)), map(example, range(4, 6)))
    how = {"model": str(shared / "models" / "stories260k"), "data": [str(data)], "set": [*SET, f"lora={LORA}"]}
    return finetune(**how, out=folder / "first").model, how


def test_the_training_of_adapters_goes_on(trained, tmp_path):
    """A second training starts where the first one ended, and its adapters fit the same base."""
    adapters, how = trained
    run = finetune(
        **{**how, "set": [*how["set"], f"adapters={adapters}", "training.learning_rate=0"]}, out=tmp_path / "r"
    )
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in (adapters, run.model))
    assert first == second
    figures = run.to_json()
    assert figures["base_loss"] == figures["tuned_loss"]
    assert resolve(str(run.model)).base.folder == resolve(how["model"]).folder
    card = (run.model / "README.md").read_text()
    assert "Their training went on from model: 'before' means with these adapters" in card
    assert str(adapters.parent) not in card
    assert (
        f"Training continued from the adapters {adapters}: 'before' is the base model with them."
        in report_on(run.folder).about
    )


def test_each_seed_goes_on_with_its_own_adapters(trained, tmp_path):
    adapters, how = trained
    group, base = tmp_path / "group", resolve(how["model"])
    shutil.copytree(adapters.parent, group / "seed-1")
    for name, seed, folder in (
        (adapters, 1, adapters),
        (adapters.parent, 1, adapters),
        (group, 1, group / "seed-1/model"),
    ):
        found = resolve_adapters(Recipe(how["model"], ("d",), lora=LORA, adapters=str(name)), base, seed)
        assert found.folder == folder
    with pytest.raises(UserError, match=r"^adapters .*group has no finished run of seed 2$"):
        resolve_adapters(Recipe(how["model"], ("d",), lora=LORA, adapters=str(group)), base, seed=2)
    described = jsonl.read_json(group / "seed-1" / "model" / "sailkit.json")
    jsonl.write_json(group / "seed-1" / "model" / "sailkit.json", {**described, "base_weights_sha256": "0"})
    with pytest.raises(UserError, match=r"its base .* has other weights than when the adapter was trained"):
        resolve_adapters(Recipe(how["model"], ("d",), lora=LORA, adapters=str(group)), base, seed=1)


def test_adapters_of_another_form_or_model_are_refused(trained, shared, tmp_path):
    adapters, how = trained
    source, base = resolve(str(adapters)), shared / "models" / "stories260k"
    for lora, message in (
        ({"r": 2}, "r 4, and the recipe's lora 2"),
        ({"lora_alpha": 4}, "lora_alpha 8, and .* lora 4"),
    ):
        with pytest.raises(UserError, match=rf"^adapters .* have {message}$"):
            finetune(**{**how, "set": [*how["set"], f"adapters={adapters}", f"lora={LORA | lora}"]}, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    for modules in (["v_proj"], ["q_proj", "v_proj"]):
        with pytest.raises(UserError, match=r"^adapters a are of other layers than the recipe's lora \(.*\)$"):
            load_adapters(adapted(base, target_modules=modules), source, "a")
    for name, message in ((how["model"], "is a full model"), ("smollm2-135m-sail", "were trained on another model")):
        with pytest.raises(UserError, match=message):
            finetune(**{**how, "set": [*how["set"], f"adapters={name}"]}, out=tmp_path / "r")
