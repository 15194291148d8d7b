"""Generate answers to a few held-out prompts before and after training, for people to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sailkit.files import jsonl
from sailkit.models.base import ModelOptions
from sailkit.models.generation import generate_batch
from sailkit.models.local import LocalModel
from sailkit.prompts.render import Rendered
from sailkit.training.inference import inference
from sailkit.training.recipe import Recipe
from sailkit.training.samples_file import SAMPLES
from sailkit.training.tokenise import IGNORED, Prepared

_COUNT = 3
_LONGEST = 64  # tokens


def generate_samples(model: LocalModel, held_out: Prepared) -> list[dict[str, str]]:
    """Greedy completions of prompts spread evenly over the held-out rows.

    Args:
        model: The model.
        held_out: The held-out rows.

    Returns:
        For each prompt: `id`, `instruction`, `input`, `label` (the completion in the data) and `text`.
    """
    count = len(held_out.ids)
    rows = []
    for i in sorted({n * count // _COUNT for n in range(_COUNT)}):
        ids, labels, example = held_out.ids[i], held_out.labels[i], held_out.examples[i]
        start = next(position for position, label in enumerate(labels) if label != IGNORED)
        (generated,) = generate_batch(model, [Rendered(tuple(ids[:start]), (), 0, 0)], _LONGEST, lambda _: False)
        rows.append({
            "id": example.id, "instruction": example.instruction, "input": example.input,
            "label": model.decode(ids[start:]), "text": model.decode(generated),
        })  # fmt: skip
    return rows


def sampler(trainer: Any, folder: Path, recipe: Recipe, tokenizer: Any) -> Callable[[str], None] | None:
    """A function that writes samples of the model in training, for the prefix `base` or `tuned`.

    Args:
        trainer: A `sailkit.training.trainer.Trainer`.
        folder: The run folder.
        recipe: The recipe.
        tokenizer: The tokenizer.

    Returns:
        The function; None without held-out rows, and where the weights are divided among processes or devices.
    """
    if trainer.held_out is None or trainer.processes.count > 1 or trainer.is_sharded:
        return None
    options = ModelOptions(chat="off", date=recipe.date)

    def sample(prefix: str) -> None:
        with inference(trainer) as model:
            rows = generate_samples(LocalModel(recipe.model, model, tokenizer, options, {}), trainer.held_out)
        jsonl.write_rows(folder / SAMPLES.format(prefix), rows)

    return sample
