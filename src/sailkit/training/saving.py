"""Save a trained model: weights or adapters, tokenizer, model card, and the record of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.models.sources import ADAPTER, TRAINED
from sailkit.prompts.border import Border
from sailkit.training.publish import MODEL_CARD
from sailkit.training.recipe import Recipe


def save_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    *,
    weights: Mapping[str, Any] | None,
    styles: list[str],
    tasks: list[dict[str, Any]],
    base_sha256: str,
    card: str,
) -> None:
    """Write a model folder atomically.

    Args:
        folder: The folder.
        model: The trained model, unwrapped.
        tokenizer: Its tokenizer.
        recipe: The recipe.
        weights: The full weights if they are sharded over processes, else None.
        styles: Styles of the training data, sorted.
        tasks: The parts of tasks from which the training data were drawn; see `data_cards.trained_tasks`.
        base_sha256: Fingerprint of the base's weights, kept beside adapters.
        card: The model card.
    """
    from sailkit.models.weights import BASE_WEIGHTS, stop_at

    trained: dict[str, Any] = {"styles": styles, "max_length": recipe.max_length, "base": recipe.model}
    if tasks:
        trained["tasks"] = tasks
    if recipe.order == "answer-first":
        trained["order"] = recipe.order
    if recipe.date is not None:
        trained["date"] = recipe.date
    with atomic_folder(folder) as unfinished:
        if "chat" in styles:  # other programs should stop generation at the end of the turn too
            stop_at(model, Border(tokenizer, chat=True, date=recipe.date).closing_id)
        model.save_pretrained(unfinished, state_dict=weights)
        tokenizer.save_pretrained(unfinished)
        if recipe.lora is not None:
            trained[BASE_WEIGHTS] = base_sha256
            # Store the base's name as given by the user: its local folder is useless on other machines. Written
            # after saving, because peft looks the name up on the hub when it saves.
            adapter = jsonl.read_json(unfinished / ADAPTER)
            jsonl.write_json(unfinished / ADAPTER, {**adapter, "base_model_name_or_path": recipe.model})
        jsonl.write_json(unfinished / TRAINED, trained)
        jsonl.write_atomic(unfinished / MODEL_CARD, card)  # replaces peft's card
