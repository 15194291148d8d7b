"""What a pass with a shared prefix keeps in memory, and that its scores do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.cache_utils import DynamicCache

from sailkit.models import shared_prefix
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.render import step_prompt

ANSWERS = {"A": "a", "B": "a dog", "C": "a dog and a cat", "D": "happy"}
PROMPTS = [step_prompt("Once upon a time: {text}\nAnd then?", "dog " * n, []) for n in range(1, 30)]


@pytest.fixture
def model(shared) -> LocalModel:
    return load_model(str(shared / "models" / "stories260k"), ModelOptions(dtype="float32"))


def caches_of(model: LocalModel, act: Any) -> list[DynamicCache]:
    """The caches that the passes of a call leave behind."""
    outputs: list[Any] = []
    handle = model.model.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        act()
    finally:
        handle.remove()
    return [output.past_key_values for output in outputs]


def stored(cache: DynamicCache) -> int:
    """Bytes of the keys and values, each storage once."""
    storages = [tensor.untyped_storage() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_scoring_pass_keeps_only_the_prefix(model):
    first, scored = caches_of(model, lambda: model.score(PROMPTS, ANSWERS))
    head = model.renderer.render(PROMPTS[0], 8).head
    config = model.model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert head > 4
    assert stored(first) == stored(scored) == head * token
    assert scored.get_seq_length() == head
    (again,) = caches_of(model, lambda: model.score(PROMPTS[:2], ANSWERS))
    assert stored(again) == head * token


def test_scores_are_the_same_bits_whether_the_pass_is_kept_or_not(model, monkeypatch):
    scores = model.score(PROMPTS, ANSWERS)
    monkeypatch.setattr(shared_prefix, "_PrefixLayer", shared_prefix.DynamicLayer)
    (cache,) = caches_of(model, lambda: scores.append(model.score(PROMPTS, ANSWERS)))
    assert cache.get_seq_length() > 2 * model.renderer.render(PROMPTS[0], 8).head
    assert scores.pop() == scores


def test_generation_keeps_every_token(model):
    caches = caches_of(model, lambda: model.generate(PROMPTS[:3], 5, lambda _: False))
    assert caches[-1].get_seq_length() > max(len(model.renderer.render(prompt, 8).ids) for prompt in PROMPTS[:3])
