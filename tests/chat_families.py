"""Chat templates of several families, in few words, on small tokenizers trained on the fly; and a random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM

from small_models import trained

_CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_EACH = "{% for m in messages %}"
TEMPLATES = {
    "chatml": f"{_EACH}{_CHATML}{{% endfor %}}{_ASK}{{% endif %}}",
    "no-generation-prompt": f"{_EACH}{_CHATML}{{% endfor %}}",
    # An empty thought before the last answer, and a switch for it.
    "qwen3": (
        _EACH + "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _ASK
        + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # The same without a switch: the prompt opens a thought, an answer is written behind a closed one.
    "qwen3-thinking": (
        _EACH + "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _ASK + "<think>\n{% endif %}"
    ),
    "smollm3": (
        "<|im_start|>system\nToday: {{ strftime_now('%d %B %Y') }}\n"
        "{% set empty = '' if enable_thinking is not defined or enable_thinking else '<think>\n\n</think>\n' %}"
        "{{ '/think' if empty == '' else '/no_think' }}<|im_end|>\n"
        + _EACH + "<|im_start|>{{ m.role }}\n{{ empty if m.role == 'assistant' else '' }}{{ m.content }}<|im_end|>\n"
        "{% endfor %}" + _ASK + "{{ empty }}{% endif %}"
    ),
    "llama2": (
        _EACH + "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}"
        "{% endfor %}"
    ),
    # The same whose prompt ends in a space.
    "llama2-space": (
        _EACH + "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST] {% else %}{{ m.content }} </s>{% endif %}"
        "{% endfor %}"
    ),
    "plain-words": (
        _EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}"
        "<|eot_id|>" + _EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": "<s>" + _EACH + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}",
    "phi3": _EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "gemma3": "<bos>" + _EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "gpt-oss": "<|start|>system<|message|>{{ strftime_now('%Y-%m-%d') }}<|end|>" + _EACH
    + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # Drops the thoughts of earlier turns and opens one for the next.
    "r1": "<s>" + _EACH + "{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
}  # fmt: skip
# Those whose answers stand behind what they ask with.
TRAINABLE = [name for name in TEMPLATES if name != "r1"]
CLOSING = {
    "chatml": "<|im_end|>", "no-generation-prompt": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3-thinking": "<|im_end|>",
    "smollm3": "<|im_end|>", "llama2": "</s>", "llama2-space": "</s>", "plain-words": None, "llama3": "<|eot_id|>",
    "mistral": "</s>", "phi3": "<|end|>", "gemma3": "<end_of_turn>", "gpt-oss": "<|return|>", "r1": None,
}  # fmt: skip
_SPECIAL = [
    "<s>", "</s>", "<bos>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>", "<end_of_turn>",
    "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|User|>", "<|Assistant|>",
]  # fmt: skip


def tokenizer(family: str, kind: str = "byte-level") -> Any:
    """A small tokenizer of a kind (see `small_models.TRAINED`) with a family's chat template; `<end>` ends a text."""
    made = trained(kind)
    made.add_special_tokens({"additional_special_tokens": _SPECIAL})
    made.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])  # as Qwen's, not special
    made.chat_template = TEMPLATES[family]
    return made


def network(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    """A random model for a tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save(folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    """A model folder."""
    network(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
