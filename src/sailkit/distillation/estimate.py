"""Estimates the cost of a distillation from recipe, data, configs and tokenizers, without loading weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.distillation.layers import evenly_spaced_layers
from sailkit.distillation.recipe import DistillationRecipe
from sailkit.distillation.results import DistillationPlan
from sailkit.errors import UserError
from sailkit.models.sources import Source, outline
from sailkit.prompts.sail import trained_style
from sailkit.records import TrainingExample
from sailkit.training import estimate as finetune_plan
from sailkit.training.memory import count_parameters
from sailkit.training.tokenise import held_out_paths, prepare, read_data

# Of an entry in the cache: a token's id and its log-probability. Of a position: token, count, tail, observed.
_ENTRY = {"float16": 4, "float32": 6}
_POSITION = 13


def plan_distillation(recipe: DistillationRecipe, tokens_per_second: float | None = None) -> DistillationPlan:
    """Check a recipe and estimate the cost of its run.

    Args:
        recipe: The recipe.
        tokens_per_second: The student's throughput, to estimate the time of its training.

    Raises:
        UserError: The recipe or its data have an error with which the run would fail.
    """
    from sailkit.distillation.loss import CHUNK

    unavailable: list[str] = []
    student, student_tokenizer = finetune_plan.config_and_tokenizer(recipe.student.model, unavailable)
    if student is not None:
        _cut(student, recipe.student_layers)
    training = finetune_plan.plan_training(recipe.student, tokens_per_second, layers=recipe.student_layers)
    if recipe.method != "sequence" and training.memory:
        memory = {**training.memory, "logits": 8 * CHUNK * (training.columns or 0)}
        memory["total"] = sum(size for name, size in memory.items() if name != "total")
        training = replace(training, memory=memory)
    missing: list[str] = []
    source = recipe.teacher if recipe.teacher_tokenizer is None else str(recipe.teacher_tokenizer)
    config, teacher_tokenizer = None, None
    if source == recipe.student.model:  # as with student_layers, which change neither context nor vocabulary
        config, teacher_tokenizer, missing = student, student_tokenizer, unavailable
    elif source:
        config, teacher_tokenizer = finetune_plan.config_and_tokenizer(source, missing)
    training = replace(training, missing=[*training.missing, *(f"teacher: {text}" for text in missing)])
    style = recipe.teacher_style or (_trained_style(source) if teacher_tokenizer is not None else None)
    paths = held_out_paths(recipe.student)
    rows, held_out = read_data(recipe.student.data), read_data(paths, HELD_OUT) if paths else []
    without = _without_teacher(
        recipe, student_tokenizer, teacher_tokenizer, config, style, {TRAIN: rows, HELD_OUT: held_out}
    )
    read = [*([] if recipe.method == "sequence" else rows), *held_out]
    read = [replace(row, style=style or row.style) for row in read]
    max_length = recipe.settings.max_length
    lengths = finetune_plan.lengths(read, teacher_tokenizer, max_length, may_be_empty=True) if read else None
    supervised = sum(lengths.supervised) if lengths else 0
    large_ids = config is not None and config.get_text_config().vocab_size > 2**16
    entry = _ENTRY[recipe.settings.precision] + 2 * large_ids  # ids of two bytes, or of four
    return DistillationPlan(
        training,
        recipe.method,
        recipe.teacher,
        recipe.student_layers,
        teacher_tokens=sum(lengths.tokens) if lengths else 0,
        teacher_answers=0 if recipe.method == "logits" else len(rows),
        cache_bytes=supervised * (_POSITION + recipe.settings.k * entry),
        same_tokenizer=_same(student_tokenizer, teacher_tokenizer),
        **without,
    )


def check_student(recipe: DistillationRecipe, folder: Path) -> Any:
    """Check that a recipe fits its student, on the meta device.

    Args:
        recipe: The recipe.
        folder: The student's folder, or with `student_layers` the teacher's.

    Returns:
        The student's tokenizer.

    Raises:
        UserError: The model has fewer layers, none that matches the adapters, or cannot be trained.
    """
    missing: list[str] = []
    config, tokenizer = finetune_plan.config_and_tokenizer(str(folder), missing)
    if missing:
        raise UserError(f"{recipe.student.model}: {missing[0]}")
    _cut(config, recipe.student_layers)
    try:
        count_parameters(config, recipe.student)
    except ValueError as error:  # not a causal language model
        raise UserError(f"{recipe.student.model}: {' '.join(str(error).split())[:200]}") from None
    return tokenizer


def _cut(config: Any, layers: int | None) -> None:
    """Change the number of layers of a config."""
    if layers is not None:
        evenly_spaced_layers(config.get_text_config().num_hidden_layers, layers)
        config.get_text_config().num_hidden_layers = layers


def _trained_style(teacher: str) -> str | None:
    """The prompt style in which sailkit trained a teacher; None for other models."""
    folder = outline(teacher)["tokenizer"]["pretrained_model_name_or_path"]
    return trained_style(Source(Path(folder)).trained())


def _without_teacher(
    recipe: DistillationRecipe,
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    config: Any,
    style: str | None,
    data: Mapping[str, Sequence[TrainingExample]],
) -> dict[str, Any]:
    """Rows without teacher distributions, as far as tokenizers show it: the teacher's answers are not known yet."""
    from sailkit.distillation.completions import (
        TokenizerPair,
        check_any_taught,
        reasons,
        with_teacher_wording,
        without_teacher,
    )
    from sailkit.distillation.teacher import max_row_tokens

    names = "rows_without_teacher", "held_out_rows_without_teacher", "without_teacher"
    if student_tokenizer is None or teacher_tokenizer is None:
        return dict.fromkeys(names)
    pair = TokenizerPair(
        teacher_tokenizer,
        student_tokenizer,
        min(recipe.settings.max_length, max_row_tokens(config, teacher_tokenizer)),
        style,
    )
    counts: dict[str, dict[str, int]] = {TRAIN: {}, HELD_OUT: {}}
    for name, examples in data.items():
        if name == HELD_OUT or recipe.method == "logits":
            styled = [with_teacher_wording(row, recipe.student.style, style) for row in examples]
            rows = pair.tokenise(prepare(styled, student_tokenizer, recipe.student.max_length, may_be_empty=True))
            if name == TRAIN:
                check_any_taught(rows)
            counts[name] = reasons(without_teacher(rows))
    both = sum((Counter(by_reason) for by_reason in counts.values()), Counter[str]())
    return dict(zip(names, (*(sum(by_reason.values()) for by_reason in counts.values()), dict(both)), strict=True))


def _same(student_tokenizer: Any, teacher_tokenizer: Any) -> bool | None:
    from sailkit.distillation.align import Vocabulary

    if student_tokenizer is None or teacher_tokenizer is None:
        return None
    if student_tokenizer is teacher_tokenizer:
        return True
    return Vocabulary(student_tokenizer).fingerprint == Vocabulary(teacher_tokenizer).fingerprint
