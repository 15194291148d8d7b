"""Tokenizers of three families, trained on the fly, and a random student, for the tests of distillation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TRAINED = ["byte-level", "byte-fallback", "unigram"]
_CORPUS = ["the quick brown fox jumps over the lazy dog 123", "search results are informative or distracting"] * 20


def trained(name: str) -> Any:
    """A small tokenizer of one family."""
    if name == "byte-level":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(_CORPUS, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if name == "unigram":
        pieces = [("<unk>", 0.0), ("<end>", 0.0), *((b, -20.0) for b in bytes_)]
        words = ["▁the", "▁search", "▁result", "s", "▁", "▁are", "▁in", "form", "ative", "e", "a", "t", "."]
        made = tokenizers.Tokenizer(models.Unigram([*pieces, *((w, -5.0) for w in words)], 0, byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", "<end>", *bytes_], show_progress=False, max_token_length=12
        )
        made.train_from_iterator([text.replace(" ", "▁") for text in _CORPUS], trainer)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    spec = json.loads(made.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")


def changed(tokenizer: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """The same tokenizer with another specification."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec)
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token=tokenizer.unk_token)


def with_gaps(tokenizer: Any) -> Any:
    """The same tokenizer, whose end of text stands far behind all other tokens."""

    def change(spec: dict[str, Any]) -> None:
        last = max(spec["model"]["vocab"].values()) + 50
        spec["model"]["vocab"]["<end>"] = last
        next(one for one in spec["added_tokens"] if one["content"] == "<end>")["id"] = last

    return changed(tokenizer, change)


def student(folder: Path, padding: int = 24, tokenizer: Any = None) -> Path:
    """A random model with a byte-level tokenizer of its own, whose output layer has some rows more."""
    tokenizer = tokenizer or trained("byte-level")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1 + padding,
        hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gguf_file(path: Path, without: str = "") -> Path:
    """A random model of one layer as a GGUF file, or one without some weights."""
    tokenizer = trained("byte-level")
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 2), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, 16),
        (writer.add_vocab_size, len(pieces)), (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "default"), (writer.add_token_list, pieces),
        (writer.add_token_types, [3 if piece == "<end>" else 1 for piece in pieces]),
        (writer.add_token_merges, [" ".join(pair) for pair in merges]),
        (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 0),
    ):  # fmt: skip
        add(value)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(pieces), 32), "output_norm.weight": (32,)}
    shapes |= {f"blk.0.{name}.weight": (32, 32) for name in square}
    shapes |= {f"blk.0.{name}.weight": (32,) for name in ("attn_norm", "ffn_norm")}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name == without:
            continue
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
