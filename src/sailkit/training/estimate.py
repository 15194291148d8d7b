"""Dry runs: estimate steps, tokens and memory of training from recipe, data and config, without any weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailkit.data.exports import HELD_OUT
from sailkit.errors import UserError
from sailkit.models.sources import outline
from sailkit.prompts.render import as_text
from sailkit.prompts.sail import completion, prompt_parts, user_turn
from sailkit.records import TrainingExample
from sailkit.training.activations import Numerics
from sailkit.training.common_settings import step_settings
from sailkit.training.memory import LargestBatch, LossMemory, count_parameters, numerics, step_memory
from sailkit.training.recipe import Recipe
from sailkit.training.results import TrainingPlan
from sailkit.training.tokenise import IGNORED, held_out_paths, no_held_out_warning, prepare, read_data, training_rows

TOKENS_PER_WORD = 1.4  # English text with search results, LLaMA's and SmolLM's tokenizers


@dataclass(frozen=True)
class Lengths:
    """Token counts of the training rows.

    Attributes:
        tokens: Tokens of each row.
        supervised: Supervised tokens of each row.
        dropped: Rows that are left out, with the reason.
        cut_tokens: Total tokens cut from search results; None if unknown.
    """

    tokens: tuple[int, ...]
    supervised: tuple[int, ...]
    dropped: tuple[dict[str, str], ...] = ()
    cut_tokens: int | None = None


def plan_training(
    recipe: Recipe, tokens_per_second: float | None = None, layers: int | None = None, *, for_gpu: bool = False,
    loss: LossMemory | None = None, examples: Sequence[Sequence[TrainingExample]] | None = None,
) -> TrainingPlan:  # fmt: skip
    """Check a recipe, and estimate steps, tokens, memory and time of its run.

    Args:
        recipe: The recipe.
        tokens_per_second: Throughput to estimate the duration with.
        layers: Number of layers of the model; by default that of its config.
        for_gpu: See `plans_for_gpu`.
        loss: The memory of another loss than cross-entropy.
        examples: Training and held-out rows, if they are not those of the recipe's data.

    Raises:
        UserError: The recipe or its data are wrong so that the run would fail.
    """
    if tokens_per_second is not None and tokens_per_second <= 0:
        raise UserError(f"`tokens_per_second` should be above 0, not {tokens_per_second}")
    missing: list[str] = []
    config, tokenizer = config_and_tokenizer(recipe.model, missing)
    if examples is None:
        paths = held_out_paths(recipe)
        examples = training_rows(recipe), read_data(paths, HELD_OUT, recipe.style) if paths else ()
    train = lengths(examples[0], tokenizer, recipe.max_length)
    held_out = None
    if examples[1]:
        held_out = lengths(examples[1], tokenizer, recipe.max_length, held_out=True)
    else:
        missing.append(no_held_out_warning(recipe))
    if config is not None and tokenizer is not None:
        check_context(config, max((*train.tokens, *(held_out.tokens if held_out else ()))), recipe.model)
    args = _arguments(recipe, held_out=held_out is not None)
    rows = _packed_rows(train.tokens, recipe.max_length, args) if args.packing else len(train.tokens)
    steps = _steps(rows, args)
    if "lr_scheduler_kwargs" in recipe.training:  # else `args` may be a part of the SFTConfig
        _check_schedule(args, steps["steps"])
    epochs = steps["steps"] / steps["steps_per_epoch"]
    tokens_in_all = round(epochs * sum(train.tokens))
    plan = TrainingPlan(
        model=recipe.model,
        rows=len(train.tokens),
        dropped=len(train.dropped),
        dropped_rows=list(train.dropped),
        tokens=sum(train.tokens),
        supervised_tokens=sum(train.supervised),
        longest=max(train.tokens),
        cut_tokens=train.cut_tokens,
        tokens_estimated=tokenizer is None,
        held_out_rows=len(held_out.tokens) if held_out else 0,
        **steps,
        epochs=epochs,
        tokens_in_all=tokens_in_all,
        supervised_in_all=round(epochs * sum(train.supervised)),
        seconds=tokens_in_all / tokens_per_second if tokens_per_second else None,
        missing=missing,
    )
    gpu = plans_for_gpu(recipe, for_gpu)
    if config is None:
        return plan
    if layers is not None:
        config.get_text_config().num_hidden_layers = layers
    return replace(plan, **_sizes(recipe, config, train, args, gpu, loss))


def check_context(config: Any, longest: int, model: str) -> None:
    """Refuse rows that are longer than a model's context.

    Args:
        config: The model's config.
        longest: Tokens of the longest row.
        model: The model's name, for the error.

    Raises:
        UserError: The longest row does not fit.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and longest > most:
        raise UserError(
            f"a row has {longest} tokens, and {model} takes {most}; set training.max_length to {most} or less, and "
            "search results will be shortened to fit"
        )


def plans_for_gpu(recipe: Recipe, for_gpu: bool) -> bool:
    """Whether memory is estimated for a GPU: if there is one, if the base is quantised, or if that is asked for.

    A GPU that is not there is taken to compute in bfloat16.
    """
    import torch

    return for_gpu or recipe.quantization is not None or torch.cuda.is_available()


def _arguments(recipe: Recipe, *, held_out: bool) -> Any:
    """The SFTConfig of a recipe, or the part of it that a dry run reads, if that is known without importing TRL."""
    if not recipe.patience and (settings := step_settings(recipe.training, recipe.step)):
        return settings
    from sailkit.training.arguments import sft_config

    return sft_config(recipe, Path(), held_out=held_out)


def check_schedule(args: Any, rows: int) -> None:
    """Check the schedule of the learning rate before any weights; with packing, only the trainer knows the steps.

    Args:
        args: The SFTConfig.
        rows: Number of training rows.

    Raises:
        UserError: The schedule does not fit into the run.
    """
    if not args.packing:
        _check_schedule(args, _steps(rows, args)["steps"])


def _check_schedule(args: Any, steps: int) -> None:
    from sailkit.training.arguments import scheduler_kwargs

    scheduler_kwargs(args, steps)


def _sizes(
    recipe: Recipe, config: Any, train: Lengths, args: Any, gpu: bool, loss: LossMemory | None
) -> dict[str, Any]:
    """Parameters of the model, and the memory of the largest batch."""
    counts = count_parameters(config, recipe)
    batch = _largest_batch(recipe, train, args)
    memory = step_memory(
        config, recipe, counts, batch, _numerics(recipe, batch, args, gpu), optimizer=str(args.optim),
        checkpointing=bool(args.activation_checkpointing or args.gradient_checkpointing), loss=loss,
    )  # fmt: skip
    return {
        "parameters": counts.total,
        "trainable_parameters": counts.trainable,
        "memory": memory,
        "columns": int(config.get_text_config().vocab_size),
        "device": "cuda" if gpu else "cpu",
        "processes": args.world_size,
    }


def _largest_batch(recipe: Recipe, train: Lengths, args: Any) -> LargestBatch:
    """The batch of the longest rows; packed rows are a single row, of which any token may be supervised."""
    rows = args.per_device_train_batch_size
    if args.packing:
        return LargestBatch(1, rows * recipe.max_length, rows * recipe.max_length)
    return LargestBatch(rows, max(train.tokens), sum(sorted(train.supervised)[-rows:]))


def _numerics(recipe: Recipe, batch: LargestBatch, args: Any, gpu: bool) -> Numerics:
    import torch

    left_open = recipe.training.get("bf16", "auto") == "auto" and not recipe.training.get("fp16")
    mixed = bool(args.bf16 or args.fp16 or (gpu and left_open and not torch.cuda.is_available()))
    return numerics(recipe, batch, gpu=gpu, mixed=mixed, packing=args.packing)


def config_and_tokenizer(name: str, missing: list[str], *, tokenizer: bool = True) -> tuple[Any, Any]:
    """Load config and tokenizer of a model, without its weights.

    Args:
        name: The model's name.
        missing: List to which a sentence is appended for each of the two that cannot be loaded, and is None.
        tokenizer: Whether to load the tokenizer; None otherwise.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        sources = outline(name)
    except UserError as error:
        missing.append(f"no config and no tokenizer: {error}")
        return None, None

    def load(part: str, loader: Any) -> Any:
        try:
            return loader.from_pretrained(**sources[part])
        except Exception as error:  # exceptions of damaged or absent files have no common base class
            missing.append(f"no {part}: {' '.join(str(error).split())[:200]} ({type(error).__name__})")
            return None

    return load("config", AutoConfig), load("tokenizer", AutoTokenizer) if tokenizer else None


def lengths(examples: Sequence[TrainingExample], tokenizer: Any, max_length: int, **options: Any) -> Lengths:
    """Count tokens of each example, or estimate them from words without a tokenizer; options as in `prepare`."""
    if tokenizer is not None:
        prepared = prepare(examples, tokenizer, max_length, **options)
        supervised = tuple(sum(label != IGNORED for label in row) for row in prepared.labels)
        return Lengths(tuple(map(len, prepared.ids)), supervised, prepared.dropped, prepared.cut_tokens)
    kept = [example for example in examples if example.response.strip()]
    if not kept:
        raise UserError("no example is left to train on: no response")
    silent = [example for example in examples if not example.response.strip()]
    dropped = tuple({"id": example.id, "reason": "no response"} for example in silent)
    completions = tuple(_estimated_tokens(completion(example)) + 1 for example in kept)
    prompts = [user_turn(example) if example.style == "chat" else prompt_parts(example) for example in kept]
    totals = (_estimated_tokens(as_text(p)) + n for p, n in zip(prompts, completions, strict=True))
    return Lengths(tuple(min(total, max_length) for total in totals), completions, dropped)


def _estimated_tokens(text: str) -> int:
    return math.ceil(TOKENS_PER_WORD * len(text.split()))


def _packed_rows(tokens: Sequence[int], max_length: int, args: Any) -> int:
    """Number of rows after TRL's packing."""
    from datasets import Dataset
    from trl import pack_dataset

    rows = Dataset.from_dict({"input_ids": [[0] * n for n in tokens]})
    return len(pack_dataset(rows, max_length, args.packing_strategy))


def _steps(rows: int, args: Any) -> dict[str, Any]:
    """Optimizer steps, counted as in transformers' Trainer."""
    size = args.train_batch_size * args.world_size
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return {"rows_per_step": size * args.gradient_accumulation_steps, "steps_per_epoch": per_epoch, "steps": steps}
