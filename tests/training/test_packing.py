"""Rows that are packed mean what they mean alone, or packing is refused before the first step."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sailkit.errors import UserError
from sailkit.training import packing
from sailkit.training.packing import check_packing
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import prepare
from small_rows import example

trl = pytest.importorskip("sailkit.training.trainer")
sft_config = pytest.importorskip("sailkit.training.arguments").sft_config
collators = pytest.importorskip("trl.trainer.sft_trainer")

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MORE = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8}
OPT = SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}


def network(kind: str, config):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ENDS, **config)).float()
    for weights in made.parameters():
        if weights.dim() > 1:
            weights.data.normal_(0, 0.2)
    return made


def rows() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, 500) for _ in range(20)] for _ in range(3)]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", MORE),
        ("qwen3", MORE),
        ("gemma2", MORE),
        ("mistral", MORE | {"sliding_window": 8}),
        ("gpt2", {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    ],
)
def test_what_keeps_rows_apart_is_taken(kind, config):
    collate = collators.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=16)
    model = network(kind, config)
    check_packing(model, collate, rows())
    assert model.training


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("opt", OPT, "they see each other"),
        ("bloom", {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "they see each other"),
        ("falcon", SIZES | {"alibi": True, "new_decoder_architecture": False}, "they see each other"),
        ("mpt", {"vocab_size": 512, "d_model": 32, "n_layers": 2, "n_heads": 4}, "packed rows"),
        ("lfm2", MORE | {"block_ff_dim": 64, "layer_types": ["conv", "full_attention"]}, "packed rows"),
        (
            "qwen3_next",
            MORE | LINEAR | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
            "packed rows",
        ),
    ],
)
def test_what_does_not_is_refused_in_one_line(kind, config, why):
    collate = collators.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    with pytest.raises(UserError, match=rf"^training.packing: .*{why}.*; set training.packing: false$") as caught:
        check_packing(network(kind, config), collate, rows())
    assert "\n" not in str(caught.value)


def test_it_is_refused_before_the_first_step(shared, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    train = prepare([example(i) for i in range(6)], tokenizer, 512)
    for packed in (False, True):
        training = {"bf16": False, "packing": packed, "max_length": 512, "max_steps": 1, "save_strategy": "no"}
        args = sft_config(Recipe("opt", ("d",), training=training), tmp_path, held_out=False)
        given = {"model": network("opt", OPT), "tokenizer": tokenizer, "args": args, "train": train, "held_out": None}
        if packed:
            with pytest.raises(UserError, match=r"they see each other; set training.packing: false"):
                trl.Trainer(**given)
        else:
            trl.Trainer(**given).train_from(None)


def test_packing_takes_the_first_attention_that_separates_rows(monkeypatch):
    """And goes back to the model's own where none does; the recipe's choice is never changed."""
    collate = collators.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    model = network("llama", MORE)
    monkeypatch.setattr(packing, "packed_attention", lambda dtype: ["flash_attention_2", "eager"])
    packing.prepare_packing(model, collate, rows(), torch.float32, check=True)
    assert model.config._attn_implementation == "eager"
    monkeypatch.setattr(packing, "packed_attention", lambda dtype: ["flash_attention_2"])
    model.set_attn_implementation("sdpa")
    packing.prepare_packing(model, collate, rows(), torch.float32, check=True)
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(packing, "packed_attention", lambda dtype: ["eager"])
    packing.prepare_packing(model, collate, rows(), None, check=True)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="they see each other"):
        packing.prepare_packing(network("opt", OPT), collate, rows(), torch.float32, check=True)
