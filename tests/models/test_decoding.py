"""What a model wrote, as text: special tokens are left out, and those that mark a thought are kept."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from sailkit.models.base import ModelOptions  # noqa: E402
from sailkit.models.decoding import AnswerDecoder  # noqa: E402
from sailkit.models.local import LocalModel  # noqa: E402
from sailkit.prompts.parse import read_answer  # noqa: E402
from sailkit.prompts.render import step_prompt  # noqa: E402

WORDS = {"happy": "good", "sad": "bad"}


def tokenizer_with(shared: Path, *tokens: str):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def speaker(tokenizer, text: str) -> LocalModel:
    """A real model whose weights make it say one text behind any prompt that ends in `Answer:`."""
    start = tokenizer.encode("Answer:", add_special_tokens=False)[-1]
    chain = [start, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    size = len(tokenizer)
    config = LlamaConfig(vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, max_position_embeddings=512, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].mlp.down_proj.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, config.hidden_size))
        model.lm_head.weight.zero_()
        for now, then in pairwise(chain):
            model.lm_head.weight[then, now] = 1.0
    return LocalModel("speaker", model, tokenizer, ModelOptions(), {})


@pytest.mark.parametrize(
    ("marks", "said", "text", "label"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]happy[/THINK]sad", "[THINK] happy[/THINK] sad", "bad"),
        (("◁think▷", "◁/think▷"), "◁think▷happy◁/think▷sad", "◁think▷ happy◁/think▷ sad", "bad"),
        (("[THINK]", "[/THINK]"), "[THINK]happy", "[THINK] happy", None),
        (("<|pad|>",), "<|pad|>sad", "sad", "bad"),
    ],
)
def test_a_thought_between_special_tokens_is_no_answer(shared, marks, said, text, label):
    tokenizer = tokenizer_with(shared, *marks)
    model = speaker(tokenizer, said)
    (reply,) = model.generate([step_prompt("{text} {answers}?", "Tom", ["happy", "sad"])], 16, lambda _: False)
    assert reply.text.strip() == text
    assert read_answer(reply.text, WORDS)[0] == label


def test_without_marks_the_text_is_that_of_the_tokenizer(shared):
    tokenizer = tokenizer_with(shared, "[THINK]", "[/THINK]", "<|pad|>")
    decode = AnswerDecoder(tokenizer)
    for text in ("Lily sad.", " a  b\n", "<|pad|>x</s>", ""):
        ids = tokenizer.encode(text)
        assert decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    harmony = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
    tokenizer = tokenizer_with(shared, *harmony)
    text = "<|channel|>analysis<|message|>happy<|end|><|start|>assistant<|channel|>final<|message|>sad"
    decoded = AnswerDecoder(tokenizer)(tokenizer.encode(text, add_special_tokens=False))
    assert read_answer(decoded, WORDS) == ("bad", "answered")
