"""What a distillation would take, told from recipe, data, configs and tokenizers alone: no weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sailkit.distill.recipe import Distillation
from sailkit.distill.students import evenly
from sailkit.errors import UserError
from sailkit.finetune import plan as finetune_plan
from sailkit.finetune.data import HELD_OUT, apart_of, read_data

# Of an entry in the cache: a token's id and its log-probability. Of a position: token, count, tail, observed.
_ENTRY = {"float16": 4, "float32": 6}
_POSITION = 13


def plan(told: Distillation, tokens_per_second: float | None = None) -> dict[str, Any]:
    """Check a recipe and say what its run would take.

    Args:
        told: The recipe.
        tokens_per_second: The student's throughput, to reckon the time of its training with.

    Returns:
        What `sailkit.finetune.plan.plan` says of the student, with the memory of the distillation loss in place of
        whole logits; and of the teacher: `teacher_tokens` that it reads, `cache_bytes` at most, and whether it has the
        `same_tokenizer` (None where one cannot be had).

    Raises:
        UserError: The recipe or its data are wrong in a way that the run itself would not survive.
    """
    from sailkit.distill.loss import CHUNK

    student, ours = finetune_plan.known_of(told.student.model, [])
    if student is not None:
        _cut(student, told.student_layers)
    found = finetune_plan.plan(told.student, tokens_per_second, layers=told.student_layers)
    found |= {"method": told.method, "teacher": told.teacher, "student_layers": told.student_layers}
    missing: list[str] = []
    place = told.teacher if told.teacher_tokenizer is None else str(told.teacher_tokenizer)
    config, theirs = finetune_plan.known_of(place, missing) if place else (None, None)
    if told.method != "sequence" and found["memory"]:
        columns = found.pop("columns")
        memory = {**found["memory"], "logits": 8 * CHUNK * columns}
        memory["total"] = sum(size for name, size in memory.items() if name != "total")
        found["memory"] = memory
    found.pop("columns", None)
    rows = read_data(told.student.data, style=told.teacher_style)
    apart = apart_of(told.student)
    aside = read_data(apart, HELD_OUT, told.teacher_style) if apart else []
    read = [*rows, *aside] if told.method != "sequence" else aside
    lengths = finetune_plan.lengths(read, theirs, told.settings.max_length) if read else None
    supervised = sum(lengths.supervised) if lengths else 0
    wide = config is not None and config.get_text_config().vocab_size > 2**16
    entry = _ENTRY[told.settings.precision] + 2 * wide  # ids of two bytes, or of four
    return {
        **found,
        "teacher_tokens": sum(lengths.tokens) if lengths else 0,
        "teacher_answers": 0 if told.method == "logits" else len(rows),
        "cache_bytes": supervised * (_POSITION + told.settings.k * entry),
        "same_tokenizer": _same(ours, theirs),
        "missing": [*found["missing"], *(f"teacher: {text}" for text in missing)],
    }


def fitting(told: Distillation, folder: Path) -> Any:
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
    config, tokenizer = finetune_plan.known_of(str(folder), missing)
    if missing:
        raise UserError(f"{told.student.model}: {missing[0]}")
    _cut(config, told.student_layers)
    try:
        finetune_plan.count(config, told.student)
    except ValueError as error:  # an architecture that predicts no next token
        raise UserError(f"{told.student.model}: {' '.join(str(error).split())[:200]}") from None
    return tokenizer


def _cut(config: Any, layers: int | None) -> None:
    """Give a config so many layers instead of those that it has."""
    if layers is not None:
        evenly(config.get_text_config().num_hidden_layers, layers)
        config.get_text_config().num_hidden_layers = layers


def _same(ours: Any, theirs: Any) -> bool | None:
    from sailkit.distill.align import Vocabulary

    if ours is None or theirs is None:
        return None
    return Vocabulary(ours).fingerprint == Vocabulary(theirs).fingerprint
