"""Estimates the cost of a distillation from recipe, data, configs and tokenizers, without loading weights."""

from __future__ import annotations

import contextlib
import copy
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
from sailkit.models.base import answers_first, is_endpoint
from sailkit.models.sources import Source, outline
from sailkit.prompts.sail import trained_style
from sailkit.records import TrainingExample
from sailkit.training import estimate as finetune_plan
from sailkit.training.memory import count_parameters
from sailkit.training.recipe import Recipe
from sailkit.training.results import TrainingPlan
from sailkit.training.tokenise import held_out_paths, prepare, read_data

# Of an entry in the cache: a token's id and its log-probability. Of a position: token, count, tail, observed.
_ENTRY = {"float16": 4, "float32": 6}
_POSITION = 13
_UNKNOWN_SHAPE = (ValueError, TypeError, AttributeError)  # of a config that is not that of a plain decoder
_SECONDS_A_TOKEN = 1e-4  # to compile the targets of a supervised token, on one core; docs/distill.md


def plan_distillation(
    recipe: DistillationRecipe, tokens_per_second: float | None = None, *, for_gpu: bool = False
) -> DistillationPlan:
    """Check a recipe and estimate the cost of its run.

    Args:
        recipe: The recipe.
        tokens_per_second: The student's throughput, to estimate the time of its training.
        for_gpu: See `sailkit.training.estimate.plans_for_gpu`.

    Raises:
        UserError: The recipe or its data have an error with which the run would fail.
    """
    from sailkit.distillation.memory import loss_memory

    unavailable: list[str] = []
    student, student_tokenizer = finetune_plan.config_and_tokenizer(recipe.student.model, unavailable)
    uncut = copy.deepcopy(student)
    if student is not None:
        _cut(student, recipe.student_layers)
    rows, held_out = _rows(recipe)
    training = finetune_plan.plan_training(
        recipe.student, tokens_per_second, layers=recipe.student_layers, for_gpu=for_gpu,
        loss=None if recipe.method == "sequence" else loss_memory, examples=(rows, held_out),
    )  # fmt: skip
    missing: list[str] = []
    source = recipe.teacher if recipe.teacher_tokenizer is None else str(recipe.teacher_tokenizer)
    config, teacher_tokenizer = None, None
    if source == recipe.student.model:
        config, teacher_tokenizer, missing = uncut, student_tokenizer, unavailable
    elif source:
        config, teacher_tokenizer = finetune_plan.config_and_tokenizer(source, missing)
    training = replace(training, missing=[*training.missing, *(f"teacher: {text}" for text in missing)])
    style = recipe.teacher_style or (_trained_style(source) if teacher_tokenizer is not None else None)
    without = _without_teacher(
        recipe, student_tokenizer, teacher_tokenizer, config, style, {TRAIN: rows, HELD_OUT: held_out}
    )
    read = [*([] if recipe.method == "sequence" else rows), *held_out] if recipe.teacher else []
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
        teacher_memory=_teacher_memory(recipe, config, training, lengths, for_gpu),
        teacher_seconds=_teacher_seconds(recipe, config, training, lengths, tokens_per_second),
        compile_seconds=_SECONDS_A_TOKEN * supervised,
    )


def _rows(recipe: DistillationRecipe) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """The training rows, with a short response where the teacher's answer is not known, and the held-out rows."""
    student = recipe.student
    paths = held_out_paths(student)
    rows = read_data(student.data, style=student.style)
    held_out = read_data(paths, HELD_OUT, student.style) if paths else []
    if recipe.method != "logits":
        rows = [row if row.response.strip() else replace(row, response="Yes.") for row in rows]
    return rows, [row for row in held_out if row.response.strip()]


def _is_local(recipe: DistillationRecipe) -> bool:
    return bool(recipe.teacher) and not is_endpoint(recipe.teacher)


def _teacher_memory(
    recipe: DistillationRecipe,
    config: Any,
    training: TrainingPlan,
    lengths: finetune_plan.Lengths | None,
    for_gpu: bool,
) -> dict[str, int] | None:
    """Bytes of a local teacher, which reads the rows or also answers them; None if its config is not known."""
    from sailkit.distillation.memory import teacher_memory
    from sailkit.models.weights import pick_device, pick_dtype

    if config is None or not _is_local(recipe):
        return None
    gpu = finetune_plan.plans_for_gpu(recipe.student, for_gpu)
    device = pick_device("auto")
    stored = 2 if gpu and device.type != "cuda" else int(pick_dtype("auto", device).itemsize)
    writes = recipe.method != "logits" and not recipe.teacher_outputs
    rows = [*(lengths.tokens if lengths else ()), *([training.longest] * training.rows if writes else ())]
    if not rows:
        return None
    with contextlib.suppress(*_UNKNOWN_SHAPE):
        return teacher_memory(
            config, recipe.teacher, rows, sum(lengths.supervised) if lengths else len(rows), stored=stored, gpu=gpu,
            new_tokens=recipe.settings.max_new_tokens if writes else 0,
        )  # fmt: skip
    return None


def _teacher_seconds(
    recipe: DistillationRecipe, config: Any, training: TrainingPlan, lengths: finetune_plan.Lengths | None,
    tokens_per_second: float | None,
) -> float | None:  # fmt: skip
    """Time of the teacher's forward passes if it does as many operations a second as the student's training.

    A forward pass multiplies and adds once for each parameter and token, and so does each of the two halves of the
    backward pass, that of activations and that of trained parameters (Kaplan et al. 2020, "Scaling laws", section 2.1).
    Activation checkpointing adds a forward pass.
    """
    if config is None or training.parameters is None or training.trainable_parameters is None:
        return None
    if not (tokens_per_second and lengths and _is_local(recipe)):
        return None
    try:
        teacher = count_parameters(config, Recipe(recipe.teacher, ())).total
    except _UNKNOWN_SHAPE:
        return None
    settings = recipe.student.training
    passes = 3 if settings.get("activation_checkpointing") or settings.get("gradient_checkpointing") else 2
    of_step = passes * training.parameters + training.trainable_parameters
    return sum(lengths.tokens) * teacher / (of_step * tokens_per_second)


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
    trained = Source(Path(folder)).trained()
    check_order(teacher, trained)
    return trained_style(trained)


def check_order(teacher: str, trained: Mapping[str, Any]) -> None:
    """Refuse a teacher that was trained to answer first.

    Args:
        teacher: The teacher's name, for the error.
        trained: See `Source.trained`.

    Raises:
        UserError: It answers first.
    """
    if answers_first(trained):
        raise UserError(f"{teacher} answers first, and students learn to verify first; take another teacher")


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
