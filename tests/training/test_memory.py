"""Estimates of memory against what torch keeps for the backward pass and takes in a step, on small models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from peak_memory import PeakMemory
from sailkit.training.activations import activations, block_bytes
from sailkit.training.loading import add_adapters_in_float32, lora_config
from sailkit.training.memory import LargestBatch, count_parameters, numerics, step_memory
from sailkit.training.recipe import Recipe
from sailkit.training.token_loss import token_losses

peft = pytest.importorskip("peft")
SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
LLAMA = LlamaConfig(**SMALL)
ALL = "all-linear"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {"r": 4, "target_modules": ALL}
DROPOUT = {**ADAPTERS, "lora_dropout": 0.1}
LONG = {"max_length": 2048}  # rows so long that attention is computed with torch's fused kernel


def model_of(recipe, config, how):
    """A model as `finetune` prepares it."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if how.stored == 2 else torch.float32
    attention = "eager" if how.plain_attention else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if (lora := lora_config(recipe)) is not None:
        model = peft.get_peft_model(model, lora)
        if how.autocast:
            add_adapters_in_float32(model)
    return model.train()


def inputs_of(rows, length, scored):
    ids = torch.randint(1, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, -length // 10 :] = 0  # rows of other lengths need a mask
    labels = ids.clone()
    labels[:, :-scored] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def kept(model, inputs, mixed):
    """Bytes of what the forward pass keeps: of 16-bit copies of weights, and of everything else."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {shape for weight in model.parameters() for shape in (weight.shape, weight.shape[::-1])}
    copies, others = {}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            is_copy = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
            (copies if is_copy else others)[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, logits_to_keep=1)
    return tuple(sum(size for size, _ in tensors.values()) for tensors in (copies, others))


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (LLAMA, {}),
        (LLAMA, {"training": LONG}),
        (LlamaConfig(**{**SMALL, "num_key_value_heads": 6}), {}),
        (Qwen2Config(**SMALL), {"training": LONG}),
        (Qwen3Config(**SMALL, head_dim=32), {}),
        (LLAMA, {"lora": ADAPTERS}),
        (LLAMA, {"lora": DROPOUT}),
        (LLAMA, {"lora": DROPOUT, "training": LONG}),
        (LLAMA, {"lora": {**DROPOUT, "target_modules": ["q_proj", "v_proj"]}}),
        (LLAMA, {"lora": {**ADAPTERS, "target_modules": LINEAR, "layers_to_transform": [2, 3]}, "training": LONG}),
        (LLAMA, {"lora": DROPOUT, "dtype": "bfloat16", "training": LONG}),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_activations_and_copies_are_the_tensors_that_torch_keeps(config, settings, mixed):
    recipe = Recipe("m", ("d",), **{"dtype": "float32", **settings})
    batch = LargestBatch(rows=2, length=200, scored=2)
    how = numerics(recipe, batch, gpu=False, mixed=mixed)
    model = model_of(recipe, config, how)
    copies, others = kept(model, inputs_of(2, 200, 1), mixed)
    estimate = activations(config, recipe.lora, how, batch.length, checkpointing=False)
    assert batch.tokens * estimate.kept == pytest.approx(others, rel=0.08)
    parts = step_memory(
        config, recipe, count_parameters(config, recipe), batch, how, optimizer="sgd", checkpointing=False
    )
    weights = sum(weight.nbytes for weight in model.parameters())
    assert parts["weights"] == pytest.approx(weights + copies, rel=0.03)


def test_dropout_on_a_gpu_keeps_a_byte_of_mask_and_the_input_of_each_adapter():
    """With dropout, seven adapters keep about as much as everything else in a block of LLaMA-7B."""
    config = LlamaConfig()
    lora = {"r": 16, "target_modules": ALL, "lora_dropout": 0.1}
    recipe = Recipe("m", ("d",), lora=lora, quantization={"load_in_4bit": True})
    how = numerics(recipe, LargestBatch(1, 512, 100), gpu=True, mixed=True)
    inputs, rank = 6 * 4096 + 11008, 7 * 16 * 2
    others = 8 * 4096 + 2 * 4 * 4096 + 4 * 32 + 6 * 11008  # two norms; queries, keys, values, output; the gated MLP
    assert block_bytes(config, lora, how, 512) == 3 * inputs + rank + others
    # Without it the input of several adapters is kept once, in the format in which it comes.
    assert block_bytes(config, {**lora, "lora_dropout": 0}, how, 512) == 2 * (2 * 4096 + 11008) + rank + others


def test_attention_without_a_kernel_is_that_of_short_rows_in_bfloat16_on_a_cpu():
    def plain(length, *, gpu=False, mixed=True, attention="auto", packing=False):
        recipe = Recipe("m", ("d",), attn_implementation=attention, training={"max_length": length})
        return numerics(recipe, LargestBatch(4, length, 1), gpu=gpu, mixed=mixed, packing=packing).plain_attention

    assert plain(1023)
    assert plain(4096, attention="eager")
    assert not any([plain(1024), plain(512, gpu=True), plain(512, mixed=False), plain(512, attention="sdpa"),
                    plain(512, packing=True)])  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("lora", [None, {"r": 8, "target_modules": ALL, "lora_dropout": 0.1}], ids=["all", "lora"])
@pytest.mark.parametrize("name", ["stories260k", "smollm2-135m, four layers"])
def test_a_step_takes_what_is_estimated(shared, name, lora, mixed, checkpointing):
    if name == "stories260k":
        config, rows, length = LlamaConfig.from_pretrained(shared / "models" / name), 4, 200
    else:
        config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
                             num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True)  # fmt: skip
        rows, length = 2, 150
    recipe = Recipe("m", ("d",), lora=lora, dtype="float32", training={"max_length": 512})
    batch = LargestBatch(rows, length, rows * length // 4)
    how = numerics(recipe, batch, gpu=False, mixed=mixed)
    model = model_of(recipe, config, how)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)  # of an earlier batch of the step
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = token_losses(model, inputs_of(rows, length, length // 4), None).losses
        loss.backward()
    parts = step_memory(
        config, recipe, count_parameters(config, recipe), batch, how, optimizer="sgd", checkpointing=checkpointing
    )
    real = memory.peak + sum(weight.nbytes for weight in (*model.parameters(), *trained))
    assert parts["total"] == pytest.approx(real, rel=0.15)
