"""The implementation of attention: what is chosen, what is refused, and that the answers are the same."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sailkit.errors import UserError
from sailkit.models.attention import check_attention, packed_attention, set_attention, with_masks
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.messages import step_prompt

BF16 = torch.bfloat16


@pytest.fixture
def card(monkeypatch):
    """A GPU with a compute capability, and the packages of some versions of FlashAttention."""

    def have(capability, *versions):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
        for version in (2, 3, 4):
            name = f"transformers.utils.is_flash_attn_{version}_available"
            monkeypatch.setattr(name, lambda version=version: version in versions)

    return have


@pytest.mark.parametrize(
    ("capability", "versions", "expected"),
    [
        ((9, 0), (2, 3, 4), ["flash_attention_4", "flash_attention_3", "flash_attention_2"]),
        ((8, 6), (2, 3, 4), ["flash_attention_3", "flash_attention_2"]),
        ((8, 0), (2,), ["flash_attention_2"]),
        ((7, 5), (2,), []),
        ((9, 0), (), []),
    ],
)
def test_packed_rows_get_flash_attention_where_card_and_package_are_there(card, capability, versions, expected):
    card(capability, *versions)
    assert packed_attention(BF16) == expected
    assert packed_attention(torch.float16) == expected
    assert packed_attention(torch.float32) == []  # it computes in 16 bits alone


def test_without_a_gpu_nothing_is_chosen():
    assert torch.cuda.is_available() or packed_attention(BF16) == []


def test_what_is_missing_is_one_line_before_weights_are_loaded(shared, card):
    card((7, 5), 2)
    folder = str(shared / "models" / "stories260k")
    why = r"flash_attention_2 needs a CUDA GPU of compute capability 8.0 or higher and the package flash-attn;"
    with pytest.raises(UserError, match=why):
        load_model(folder, ModelOptions(attn_implementation="flash_attention_2", device="cpu"))
    with pytest.raises(UserError, match="did you mean 'sdpa'"):
        check_attention("spda")


def test_an_evaluation_uses_the_implementation_that_is_named(shared):
    folder, values = str(shared / "models" / "stories260k"), []
    prompt = step_prompt("What do seals like? Answer {answers}.\n\n{text}\n", "Seals like red", ["balls", "rain"])
    for name in ("auto", "eager"):
        model = load_model(folder, ModelOptions(attn_implementation=name, dtype="float32"))
        assert isinstance(model, LocalModel)
        assert model.describe()["attention"] == {"auto": "sdpa", "eager": "eager"}[name]
        (reply,) = model.score([prompt], {"A": "balls", "B": "rain"})
        values.append([score.logprob for score in reply.answers.values()])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_masks_of_trees_are_given_to_sdpa_and_the_implementation_comes_back(shared):
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260k")
    set_attention(model, "flex_attention")
    with with_masks(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flex_attention"
    set_attention(model, "eager")
    with with_masks(model):
        assert model.config._attn_implementation == "eager"


def test_an_architecture_that_takes_no_other_is_told_so(shared):
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260k")
    model._supports_flex_attn = False
    with pytest.raises(UserError, match=r"^attn_implementation: flex_attention: .*does not support"):
        set_attention(model, "flex_attention")
