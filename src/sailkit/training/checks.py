"""Refuse, before any weights are loaded, rows that the model would misread, and recipes that need a missing GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.rope import rope_lengths
from sailkit.models.sources import Source, resolve
from sailkit.training.estimate import check_context, config_and_tokenizer
from sailkit.training.memory import LargestBatch, count_parameters, numerics, step_memory
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import Prepared

# Of a LoraConfig, besides the layers, whose names the adapters' weights have.
_FORM = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save",
         "trainable_token_indices")  # fmt: skip
_LARGE = 2_000_000_000  # parameters; a larger quantised base would not train on a CPU in reasonable time


def require_gpu(recipe: Recipe) -> None:
    """Refuse a recipe that needs a GPU on a machine without one, before any weights are fetched.

    Raises:
        UserError: There is no GPU, and the recipe offloads activations or has a large quantised base; the message
            estimates the memory that is needed.
    """
    import torch

    if torch.cuda.is_available():
        return
    if recipe.training.get("activation_offloading"):
        raise UserError("training.activation_offloading needs a GPU to take activations from; leave it out")
    if recipe.quantization is None:
        return
    config, _ = config_and_tokenizer(recipe.model, [], tokenizer=False)
    if config is None:
        return  # the error is raised when the model is resolved
    counts = count_parameters(config, recipe)
    if counts.total < _LARGE:
        return
    rows, training = int(recipe.step["per_device_train_batch_size"]), recipe.training
    batch = LargestBatch(rows, recipe.max_length, rows * recipe.max_length)
    how = numerics(recipe, batch, gpu=True, mixed=True, packing=bool(training.get("packing")))
    memory = step_memory(
        config, recipe, counts, batch, how, optimizer=str(training.get("optim", "adamw")),
        checkpointing=bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing")),
    )  # fmt: skip
    raise UserError(
        f"{recipe.model} ({counts.total / 1e9:.2f} billion parameters) as a quantised base needs a CUDA GPU "
        f"with about {memory['total'] / 1e9:.0f} GB, and there is none here; `dry_run` shows the estimate by part, and "
        "smollm2-135m trains on a CPU"
    )


def resolve_adapters(recipe: Recipe, source: Source, seed: int) -> Source | None:
    """Find the adapters whose training goes on, if the recipe names any.

    Args:
        recipe: The recipe.
        source: The model's files.
        seed: The seed of this training; of a folder with runs of several seeds, the run of this one is taken.

    Raises:
        UserError: They are no adapters, of another model, or scaled in another way than the recipe's `lora`.
    """
    if recipe.adapters is None:
        return None
    from peft import PeftConfig

    from sailkit.evaluation.seeds import models_of
    from sailkit.models.weights import check_base
    from sailkit.training.loading import lora_config

    name = recipe.adapters
    trained = models_of(Path(name)) if Path(name).is_dir() else None
    if isinstance(trained, dict):
        trained = trained.get(f"seed-{seed}")
        if trained is None:
            raise UserError(f"adapters {name} has no finished run of seed {seed}")
    adapters = resolve(str(trained or name))
    if adapters.base is None:
        raise UserError(f"adapters {name} is a full model; name it as the model instead")
    check_base(adapters)
    bases = {adapters.base, source}  # usually the same files, which are then read once
    if len({jsonl.file_fingerprint(base.files()["weights"]) for base in bases}) > 1:
        raise UserError(f"adapters {name} were trained on another model than {recipe.model}")
    old, new = PeftConfig.from_pretrained(str(adapters.folder)), lora_config(recipe)
    for key in _FORM:
        if (theirs := getattr(old, key)) != (ours := getattr(new, key)):
            raise UserError(f"adapters {name} have {key} {theirs}, and the recipe's lora {ours}")
    return adapters


def check_rows(recipe: Recipe, source: Source, splits: Sequence[Prepared | None]) -> None:
    """Refuse rows that the model cannot process correctly.

    Args:
        recipe: The recipe.
        source: The model's files.
        splits: The training rows; then the held-out rows, if there are any.

    Raises:
        UserError: Rows exceed the model's context, contain tokens without an embedding, or would change the position
            frequencies of the other rows in their batch.
    """
    from transformers import AutoConfig

    from sailkit.models.weights import pretrained

    config = pretrained(AutoConfig, source.model.folder).get_text_config()
    rows = [
        (example.id, ids) for split in splits if split for example, ids in zip(split.examples, split.ids, strict=True)
    ]
    if unknown := next((name for name, ids in rows if max(ids) >= config.vocab_size), None):
        raise UserError(
            f"example {unknown!r} has a token that {recipe.model} has no row for ({config.vocab_size}); resize its "
            "embeddings to its tokenizer, or use the tokenizer that it was trained with"
        )
    check_context(config, max(len(ids) for _, ids in rows), recipe.model)
    # RoPE variants that switch frequencies above a length do so for the whole batch, including its short rows.
    rope = rope_lengths(config)
    batched = recipe.step["per_device_train_batch_size"] > 1 or recipe.training.get("packing")
    if batched and splits[0] and len(rope.groups([len(ids) for ids in splits[0].ids])) > 1:
        raise UserError(
            f"{recipe.model} reads rows of more than {rope.threshold} tokens with other position frequencies, and in "
            f"one batch it would read the shorter rows so too; set training.max_length to {rope.threshold}, or "
            "training.per_device_train_batch_size to 1 without packing"
        )
