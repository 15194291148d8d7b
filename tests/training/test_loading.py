"""Adapters in mixed precision: what they add to a layer's output is kept, however small."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import prepare
from small_rows import example

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
