"""The first student token of a prefix and a teacher token: that of the whole string, whatever is cached."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaTokenizer

from sailkit.distillation.align import Vocabulary
from sailkit.distillation.first_tokens import END, NO_TOKEN, FirstTokens
from small_models import trained

PREFIXES = [
    *(" the", "x", "ing", " Sh", "X", "7", " 12", ".", "'", " it'", "(", " ", "  ", "\n", "\n\n ", "\t", "é", "▁"),
    *("<0x4", "</", ",", " -", "www", "北", "don"),
]


@pytest.fixture(scope="module")
def vocabularies(shared):
    tokenizers = {
        "llama": LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama"),
        "qwen": AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen"),
        "stories260k": AutoTokenizer.from_pretrained(shared / "models" / "stories260k"),
        **{name: trained(name) for name in ("byte-level", "byte-fallback", "unigram")},
    }
    return {name: Vocabulary(tokenizer) for name, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("student", ["llama", "qwen", "stories260k", "byte-level", "byte-fallback", "unigram"])
@pytest.mark.parametrize("teacher", ["llama", "qwen"])
def test_it_is_that_of_the_whole_string(vocabularies, teacher, student):
    theirs, ours = vocabularies[teacher], vocabularies[student]
    end = next(i for i, piece in enumerate(theirs.pieces) if piece is None)
    tokens = [*random.Random(0).sample(range(len(theirs.pieces)), 120), end]
    tokens += [theirs.ids[text] for text in (b" a", b"1", b"s", b".", b"'", b"\n", b" The", b"1") if text in theirs.ids]
    prefixes = [text.encode() for text in PREFIXES] + ["é".encode()[:1]]
    cache = FirstTokens(theirs, ours, frozenset([end]))
    pairs = list(itertools.product(range(len(prefixes)), tokens))
    which, behind = (np.array(column) for column in zip(*pairs, strict=True))
    expected = [cache.of(prefixes[i] + (theirs.pieces[token] or b"")) for i, token in pairs]
    for _ in range(2):  # the second time from the cache
        assert cache.after(prefixes, which, behind).tolist() == expected
    for token, first in zip(tokens, cache.alone(np.array(tokens)).tolist(), strict=True):
        piece = theirs.pieces[token]
        assert first == (cache.of(piece) if piece else END if token == end else NO_TOKEN)
