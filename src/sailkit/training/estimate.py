"""What a training run would be, told from recipe, data and config alone: no weights are loaded or fetched."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit.data.exports import HELD_OUT
from sailkit.errors import UserError
from sailkit.models.sources import outline
from sailkit.prompts.sail import as_text, completion, prompt_parts, user_turn
from sailkit.records import TrainingExample
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import IGNORED, held_out_paths, no_held_out_warning, prepare, read_data

TOKENS_A_WORD = 1.4  # English text with search results, LLaMA's and SmolLM's tokenizers
_LARGE = 2_000_000_000  # parameters; a quantised base above this is hopeless on a CPU
# Optimizer of transformers -> bytes of its state for each trained parameter; all others are as AdamW.
_STATE = {"8bit": 2, "4bit": 1, "sgd": 0, "adafactor": 0, "lion": 4}


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that would be trained on.

    Attributes:
        tokens: Of each row.
        supervised: Of each row, those that carry loss.
        dropped: Rows that are left out, with the reason.
        cut_tokens: Tokens of search results that do not fit, in all; None where that is not known.
    """

    tokens: tuple[int, ...]
    supervised: tuple[int, ...]
    dropped: tuple[dict[str, str], ...] = ()
    cut_tokens: int | None = None


def plan_training(told: Recipe, tokens_per_second: float | None = None, layers: int | None = None) -> dict[str, Any]:
    """Check a recipe and say what its run would take.

    Args:
        told: The recipe.
        tokens_per_second: Throughput to reckon the time with.
        layers: How many layers the model will have; those of its config by default.

    Returns:
        Counts of rows, tokens and steps; `parameters`, `trainable_parameters`, `columns` (of the output layer) and
        `memory` (bytes by part), None where the model's config cannot be had; `seconds`; `tokens_estimated`; and
        `missing`, in sentences.

    Raises:
        UserError: The recipe or its data are wrong in a way that the run itself would not survive.
    """
    from sailkit.training import trainer as trl

    missing: list[str] = []
    config, tokenizer = config_and_tokenizer(told.model, missing)
    train = lengths(read_data(told.data, style=told.style), tokenizer, told.max_length)
    apart = held_out_paths(told)
    aside = None
    if apart:
        aside = lengths(read_data(apart, HELD_OUT, told.style), tokenizer, told.max_length, held_out=True)
    else:
        missing.append(no_held_out_warning(told))
    args = trl.arguments(told, Path(), held_out=aside is not None)
    units = _packed(train.tokens, told.max_length, args) if args.packing else len(train.tokens)
    steps = _steps(units, args)
    passes = steps["steps"] / steps["steps_per_epoch"]
    found: dict[str, Any] = {
        "dry_run": True,
        "model": told.model,
        "rows": len(train.tokens),
        "dropped": len(train.dropped),
        "dropped_rows": list(train.dropped),
        "tokens": sum(train.tokens),
        "supervised_tokens": sum(train.supervised),
        "longest": max(train.tokens),
        "cut_tokens": train.cut_tokens,
        "tokens_estimated": tokenizer is None,
        "held_out_rows": len(aside.tokens) if aside else 0,
        **steps,
        "epochs": passes,
        "tokens_in_all": round(passes * sum(train.tokens)),
        "supervised_in_all": round(passes * sum(train.supervised)),
        "parameters": None,
        "trainable_parameters": None,
        "memory": None,
        "columns": None,
    }
    if config is not None:
        if layers is not None:
            config.get_text_config().num_hidden_layers = layers
        counts = count_parameters(config, told)
        size = args.per_device_train_batch_size
        longest = told.max_length if args.packing else max(train.tokens)
        scored = sum(sorted(train.supervised)[-size:]) if not args.packing else size * longest
        mixed = args.bf16 or args.fp16
        found |= {
            "parameters": counts["parameters"],
            "trainable_parameters": counts["trainable_parameters"],
            "columns": int(config.get_text_config().vocab_size),
            "memory": step_memory(
                config, told, counts, size * longest, scored, mixed=mixed, optimizer=str(args.optim),
                checkpointing=bool(args.activation_checkpointing or args.gradient_checkpointing),
            ),
        }  # fmt: skip
    speed = tokens_per_second
    return {**found, "seconds": found["tokens_in_all"] / speed if speed else None, "missing": missing}


def require_gpu(told: Recipe) -> None:
    """Refuse what this machine could not do without a GPU, before any weights are fetched.

    Raises:
        UserError: There is none, and activations are to leave it, or the quantised base is large; says what it would
            need.
    """
    import torch

    if torch.cuda.is_available():
        return
    if told.training.get("activation_offloading"):
        raise UserError("training.activation_offloading needs a GPU to take activations from; leave it out")
    if told.quantization is None:
        return
    config, _ = config_and_tokenizer(told.model, [], tokenizer=False)
    if config is None:
        return  # what is wrong shows when the model is looked for
    counts = count_parameters(config, told)
    if counts["parameters"] < _LARGE:
        return
    tokens = told.max_length * int(told.step["per_device_train_batch_size"])
    checkpointing = bool(told.training.get("activation_checkpointing") or told.training.get("gradient_checkpointing"))
    needs = step_memory(
        config, told, counts, tokens, tokens, mixed=True, checkpointing=checkpointing,
        optimizer=str(told.training.get("optim", "adamw")),
    )  # fmt: skip
    raise UserError(
        f"{told.model} ({counts['parameters'] / 1e9:.2f} billion parameters) as a quantised base needs a CUDA GPU with "
        f"about {needs['total'] / 1e9:.0f} GB, and there is none here; `dry_run` shows the estimate by part, and "
        "smollm2-135m trains on a CPU"
    )


def config_and_tokenizer(name: str, missing: list[str], *, tokenizer: bool = True) -> tuple[Any, Any]:
    """Config and tokenizer of a model, each None where it cannot be had; `missing` is told why."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        places = outline(name)
    except UserError as error:
        missing.append(f"no config and no tokenizer: {error}")
        return None, None
    found: list[Any] = []
    kinds = [("config", AutoConfig), ("tokenizer", AutoTokenizer)]
    for what, kind in kinds if tokenizer else kinds[:1]:
        try:
            found.append(kind.from_pretrained(**places[what]))
        except Exception as error:  # the kinds that damaged or absent files raise have no common ancestor
            missing.append(f"no {what}: {' '.join(str(error).split())[:200]} ({type(error).__name__})")
            found.append(None)
    return (found[0], found[1]) if tokenizer else (found[0], None)


def lengths(examples: Sequence[TrainingExample], tokenizer: Any, max_length: int, **options: Any) -> Lengths:
    """Tokens of each example, estimated from words where there is no tokenizer; options are those of `prepare`."""
    if tokenizer is not None:
        made = prepare(examples, tokenizer, max_length, **options)
        supervised = tuple(sum(label != IGNORED for label in row) for row in made.labels)
        return Lengths(tuple(map(len, made.ids)), supervised, made.dropped, made.cut_tokens)
    kept = [one for one in examples if one.response.strip()]
    if not kept:
        raise UserError("no example is left to train on: no response")
    dropped = tuple({"id": one.id, "reason": "no response"} for one in examples if not one.response.strip())
    said = [_tokens_of(completion(one)) + 1 for one in kept]
    asked = [_tokens_of(as_text(user_turn(one) if one.style == "chat" else prompt_parts(one))) for one in kept]
    whole = (min(a + b, max_length) for a, b in zip(asked, said, strict=True))
    return Lengths(tuple(whole), tuple(said), dropped)


def _tokens_of(text: str) -> int:
    return math.ceil(TOKENS_A_WORD * len(text.split()))


def _packed(tokens: Sequence[int], max_length: int, args: Any) -> int:
    """Rows behind TRL's packing."""
    from datasets import Dataset
    from trl import pack_dataset

    rows = Dataset.from_dict({"input_ids": [[0] * n for n in tokens]})
    return len(pack_dataset(rows, max_length, args.packing_strategy))


def _steps(rows: int, args: Any) -> dict[str, int]:
    """Optimizer steps as transformers' Trainer counts them."""
    size = args.train_batch_size * args.world_size
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    each = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * each)
    return {"rows_per_step": size * args.gradient_accumulation_steps, "steps_per_epoch": each, "steps": steps}


def count_parameters(config: Any, told: Recipe) -> dict[str, int]:
    """Parameters of a model and of the recipe's adapters on it, counted on torch's meta device: nothing is allocated.

    Args:
        config: The model's.
        told: The recipe.

    Returns:
        `parameters`, `trainable_parameters`, and `quantized_parameters`: those in linear layers that the recipe's
        quantization takes, which leaves the output layer as it is.

    Raises:
        UserError: Adapters that do not fit the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from sailkit.training.loading import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    every = model.num_parameters()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    taken = sum(part.weight.numel() for part in linear if part is not model.get_output_embeddings())
    trained = every
    if (lora := lora_config(told)) is not None:
        from peft import get_peft_model

        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                trained = get_peft_model(model, lora).get_nb_trainable_parameters()[0]
        except ValueError as error:
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
    return {
        "parameters": every,
        "trainable_parameters": trained,
        "quantized_parameters": taken if told.quantization else 0,
    }


def step_memory(
    config: Any, told: Recipe, counts: Mapping[str, int], tokens: int, scored: int, *, mixed: bool, optimizer: str,
    checkpointing: bool,
) -> dict[str, int]:  # fmt: skip
    """Bytes that one training step needs, by part; what CUDA and the allocator keep for themselves is not in it.

    * Weights: 4 bytes each in float32 and 2 in 16 bits; with autocast on float32 weights 2 more for the copy it
      computes with (Hugging Face, "Model training anatomy"). 8-bit: 1. 4-bit: 1/2 and a float32 scale for 64 weights,
      or with double quantisation an 8-bit scale for 64 and a float32 one for 64 x 256 (Dettmers et al. 2023, QLoRA,
      section 3). Adapters are in float32.
    * Gradients: 4 bytes for each trained parameter. Optimizer: 8 for AdamW, 4 for Lion, 2 for 8-bit states, 0 for SGD
      and Adafactor (ibid.).
    * Activations, for each token and layer: c (6h + q + 2k + 4f) + 8h bytes, where h, q, k, f are the widths of the
      hidden state, queries, keys and MLP, and c bytes a number of what is computed with. It is the count of Korthikanti
      et al. 2022 ("Reducing activation recomputation", section 4.1) for a layer with a gated MLP, fused attention
      and no dropout; the last term are the float32 copies of the two norms. With checkpointing each layer keeps its
      input, and one layer at a time all of it.
    * Logits: 12 bytes for each supervised token and piece of the vocabulary: the logits in float32, their
      probabilities and gradients. TRL's fused kernel needs less.

    Args:
        config: The model's.
        told: The recipe.
        counts: See `count_parameters`.
        tokens: Of the largest batch on one device, padding included.
        scored: Its supervised tokens.
        mixed: Whether autocast computes in 16 bits.
        optimizer: Its name in transformers.
        checkpointing: Whether activations are computed again in the backward pass.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits` and their `total`.
    """
    text = config.get_text_config()
    frozen = told.lora is not None
    taken, trained = counts["quantized_parameters"], counts["trainable_parameters"]
    plain = counts["parameters"] - taken
    short = frozen and _base_width(told) == 2
    weights = plain * (2.0 if short else 6.0 if mixed and not frozen else 4.0) + (4.0 * trained if frozen else 0.0)
    weights += taken * _bytes_quantised(told.quantization or {})
    state = next((size for name, size in _STATE.items() if name in optimizer), 8)
    width = 2 if mixed or short else 4
    h, layers = int(text.hidden_size), int(text.num_hidden_layers)
    heads = int(text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or h // heads)
    k = head * int(getattr(text, "num_key_value_heads", None) or heads)
    f = int(getattr(text, "intermediate_size", None) or 4 * h)
    layer = width * (6 * h + head * heads + 2 * k + 4 * f) + 8 * h
    stream = 2 if short else 4  # bytes a number of what goes from layer to layer
    kept = layers * stream * h + layer if checkpointing else layers * layer
    parts = {
        "weights": round(weights),
        "gradients": 4 * trained,
        "optimizer": state * trained,
        "activations": tokens * kept,
        "logits": 12 * scored * int(text.vocab_size),
    }
    return {**parts, "total": sum(parts.values())}


def _base_width(told: Recipe) -> int:
    """Bytes a number of a frozen base; one that is quantised is planned for a GPU, others for this machine."""
    from sailkit.models.weights import pick_device, pick_dtype

    if told.dtype == "auto" and told.quantization is not None:
        return 2
    return int(pick_dtype(told.dtype, pick_device("auto")).itemsize)


def _bytes_quantised(quantization: Mapping[str, Any]) -> float:
    if not quantization.get("load_in_4bit"):
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if quantization.get("bnb_4bit_use_double_quant") else 4 / 64)
