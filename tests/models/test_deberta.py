"""The leaner pass through DeBERTa gives the published one's logits, and stands back where it would not."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification

from sailkit.models.deberta import LeanDeberta, lean_forward


def make(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64, "relative_attention": True, "position_buckets": 8, "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "type_vocab_size": 0, "position_biased_input": False,
        "initializer_range": 0.3, "num_labels": 3, "pooler_hidden_size": 32, **changes,
    }  # fmt: skip
    return DebertaV2ForSequenceClassification(DebertaV2Config(**settings)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_buckets": -1},
        {"share_att_key": False},
        {"norm_rel_ebd": "none", "num_hidden_layers": 1},
        {"position_biased_input": True, "type_vocab_size": 2},
    ],
)
def test_the_leaner_pass_gives_the_same_logits(changes):
    model = make(**changes)
    assert isinstance(lean_forward(model), LeanDeberta)
    pass_ = LeanDeberta(model.double())  # what is left is the published scale, in float32
    with torch.inference_mode():
        for length in (1, 2, 9, 40, 64, 9):
            inputs = {"input_ids": torch.randint(1, 97, (5, length))}
            if model.config.type_vocab_size:
                inputs["token_type_ids"] = torch.randint(0, 2, (5, length))
            lengths = torch.randint(1, length + 1, (5, 1))
            for keep in (torch.arange(length) < lengths, torch.ones(5, length, dtype=torch.bool)):
                inputs["attention_mask"] = keep.long()
                torch.testing.assert_close(pass_(**inputs), model(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"pos_att_type": "c2p"}, {"conv_kernel_size": 3}, {"relative_attention": False}])
def test_another_kind_of_attention_runs_as_published(changes):
    model = make(**changes)
    assert not isinstance(lean_forward(model), LeanDeberta)


def test_a_pass_that_disagrees_is_not_taken(monkeypatch):
    monkeypatch.setattr(LeanDeberta, "__call__", lambda self, *inputs, **more: torch.full((2, 3), float("nan")))
    assert not isinstance(lean_forward(make()), LeanDeberta)


def test_other_architectures_run_as_published():
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[1, 1]])}
    assert torch.equal(lean_forward(model)(**inputs), model(**inputs).logits)
