"""What a distillation would take, told from recipe, data, configs and tokenizers alone: no weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.distillation.layers import evenly_spaced_layers
from sailkit.distillation.recipe import DistillationRecipe
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


def plan_distillation(told: DistillationRecipe, tokens_per_second: float | None = None) -> dict[str, Any]:
    """Check a recipe and say what its run would take.

    Args:
        told: The recipe.
        tokens_per_second: The student's throughput, to reckon the time of its training with.

    Returns:
        What `sailkit.training.estimate.plan_training` says of the student, with the memory of the distillation loss in
        place of whole logits; and of the teacher: `teacher_tokens` that it reads, `cache_bytes` at most, whether it has
        the `same_tokenizer`, `without_teacher`, the reasons why rows are learnt by cross-entropy alone with how many,
        `rows_without_teacher` in all, and `held_out_rows_without_teacher` (all None where one cannot be had).

    Raises:
        UserError: The recipe or its data are wrong in a way that the run itself would not survive.
    """
    from sailkit.distillation.loss import CHUNK

    student, ours = finetune_plan.config_and_tokenizer(told.student.model, [])
    if student is not None:
        _cut(student, told.student_layers)
    found = finetune_plan.plan_training(told.student, tokens_per_second, layers=told.student_layers).to_json()
    found |= {"method": told.method, "teacher": told.teacher, "student_layers": told.student_layers}
    missing: list[str] = []
    place = told.teacher if told.teacher_tokenizer is None else str(told.teacher_tokenizer)
    config, theirs = finetune_plan.config_and_tokenizer(place, missing) if place else (None, None)
    if told.method != "sequence" and found["memory"]:
        columns = found.pop("columns")
        memory = {**found["memory"], "logits": 8 * CHUNK * columns}
        memory["total"] = sum(size for name, size in memory.items() if name != "total")
        found["memory"] = memory
    found.pop("columns", None)
    style = told.teacher_style or (_trained_style(place) if theirs is not None else None)
    apart = held_out_paths(told.student)
    rows, aside = read_data(told.student.data), read_data(apart, HELD_OUT) if apart else []
    without = _without_teacher(told, ours, theirs, config, style, {TRAIN: rows, HELD_OUT: aside})
    read = [replace(one, style=style or one.style) for one in ([] if told.method == "sequence" else rows) + aside]
    room = told.settings.max_length
    lengths = finetune_plan.lengths(read, theirs, room, may_be_empty=True) if read else None
    supervised = sum(lengths.supervised) if lengths else 0
    wide = config is not None and config.get_text_config().vocab_size > 2**16
    entry = _ENTRY[told.settings.precision] + 2 * wide  # ids of two bytes, or of four
    return {
        **found,
        "teacher_tokens": sum(lengths.tokens) if lengths else 0,
        "teacher_answers": 0 if told.method == "logits" else len(rows),
        "cache_bytes": supervised * (_POSITION + told.settings.k * entry),
        "same_tokenizer": _same(ours, theirs),
        **without,
        "missing": [*found["missing"], *(f"teacher: {text}" for text in missing)],
    }


def check_student(told: DistillationRecipe, folder: Path) -> Any:
    """Check that a recipe fits its student, on the meta device.

    Args:
        told: The recipe.
        folder: The student's, or with `student_layers` the teacher's.

    Returns:
        The student's tokenizer.

    Raises:
        UserError: There are not so many layers, adapters find no place, or it is no model that can be trained.
    """
    missing: list[str] = []
    config, tokenizer = finetune_plan.config_and_tokenizer(str(folder), missing)
    if missing:
        raise UserError(f"{told.student.model}: {missing[0]}")
    _cut(config, told.student_layers)
    try:
        count_parameters(config, told.student)
    except ValueError as error:  # an architecture that predicts no next token
        raise UserError(f"{told.student.model}: {' '.join(str(error).split())[:200]}") from None
    return tokenizer


def _cut(config: Any, layers: int | None) -> None:
    """Give a config so many layers instead of those that it has."""
    if layers is not None:
        evenly_spaced_layers(config.get_text_config().num_hidden_layers, layers)
        config.get_text_config().num_hidden_layers = layers


def _trained_style(teacher: str) -> str | None:
    """What a teacher was trained to be asked in, where sailkit trained it."""
    folder = outline(teacher)["tokenizer"]["pretrained_model_name_or_path"]
    return trained_style(Source(Path(folder)).trained())


def _without_teacher(
    told: DistillationRecipe,
    ours: Any,
    theirs: Any,
    config: Any,
    style: str | None,
    data: Mapping[str, Sequence[TrainingExample]],
) -> dict[str, Any]:
    """Rows that the teacher cannot teach, as far as the tokenizers tell: nobody knows what it will answer."""
    from sailkit.distillation.completions import (
        TokenizerPair,
        check_any_taught,
        reasons,
        with_teacher_wording,
        without_teacher,
    )
    from sailkit.distillation.teacher import max_row_tokens

    names = "rows_without_teacher", "held_out_rows_without_teacher", "without_teacher"
    if ours is None or theirs is None:
        return dict.fromkeys(names)
    sides = TokenizerPair(theirs, ours, min(told.settings.max_length, max_row_tokens(config, theirs)), style)
    counts: dict[str, dict[str, int]] = {TRAIN: {}, HELD_OUT: {}}
    for name, examples in data.items():
        if name == HELD_OUT or told.method == "logits":
            mine = [with_teacher_wording(one, told.student.style, style) for one in examples]
            rows = sides.tokenise(prepare(mine, ours, told.student.max_length, may_be_empty=True))
            if name == TRAIN:
                check_any_taught(rows)
            counts[name] = reasons(without_teacher(rows))
    both = sum((Counter(one) for one in counts.values()), Counter[str]())
    return dict(zip(names, (*(sum(one.values()) for one in counts.values()), dict(both)), strict=True))


def _same(ours: Any, theirs: Any) -> bool | None:
    from sailkit.distillation.align import Vocabulary

    if ours is None or theirs is None:
        return None
    return Vocabulary(ours).fingerprint == Vocabulary(theirs).fingerprint
