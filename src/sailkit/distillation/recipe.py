"""The recipe of a distillation: teacher, method, and the student's fine-tuning recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sailkit.errors import UserError, nearest
from sailkit.models.base import VLLM, is_endpoint, is_vllm
from sailkit.prompts.sail import check_style
from sailkit.records import Method, Precision
from sailkit.training.library_settings import check_keys
from sailkit.training.loss_weights import check_loss
from sailkit.training.recipe import Recipe, check_recipe, read_settings, recipe_name

_OWN = ("method", "teacher", "teacher_style", "teacher_tokenizer", "teacher_outputs", "student_layers", "distillation")

_WITH_VLLM = f"run teacher-cache there, and give its folder as `cache`, and `teacher` without {VLLM!r}"
_WITH_ANSWERS_OF_VLLM = (
    "write the teacher's answers there (sailkit.distillation.teacher_answers), and train on them with finetune"
)


@dataclass(frozen=True)
class DistillationSettings:
    """How the teacher's distributions are cached and trained on; the key `distillation` of a recipe.

    Attributes:
        k: Most tokens to keep of the teacher's distribution at each position.
        top_p: Keep the smallest set of likeliest tokens whose probabilities sum to this.
        precision: Number format of the cached log-probabilities.
        ce_weight: Weight of the cross-entropy on the completion's tokens in addition to the KL; by default 0.1 for
            `logits` and 1 for `both`. At positions without a target it is 1.
        min_mass: Least probability of the teacher's tokens that agree with the bytes already seen; below it a position
            has no target.
        max_length: Most tokens of a row in the teacher's rendering.
        max_new_tokens: Most tokens of a teacher's answer.
    """

    k: int = 64
    top_p: float = 0.999
    precision: Precision = "float16"
    ce_weight: float | None = None
    min_mass: float = 0.1
    max_length: int = 2048
    max_new_tokens: int = 512


@dataclass(frozen=True)
class DistillationRecipe:
    """A checked recipe: teacher, student and method.

    Attributes:
        method: `sequence` (the teacher's answers), `logits` (its distributions over the data's completions) or `both`
            (its distributions over its own answers).
        teacher: As `--model` of evaluate; may be empty if a file with its answers is enough.
        student: The student's recipe.
        teacher_style: Style of the teacher's prompts; None for that of its training, else each row's style.
        teacher_tokenizer: Folder of the tokenizer; required for an endpoint.
        teacher_outputs: A file with the teacher's answers, a list of {prompt, response}.
        student_layers: Create the student from this number of the teacher's layers, evenly spaced.
        settings: See `DistillationSettings`.
    """

    method: Method
    teacher: str
    student: Recipe
    teacher_style: str | None = None
    teacher_tokenizer: Path | None = None
    teacher_outputs: Path | None = None
    student_layers: int | None = None
    settings: DistillationSettings = field(default_factory=DistillationSettings)

    def settings_row(self) -> dict[str, Any]:
        """Everything that determines the result, for the manifest."""
        row = dataclasses.asdict(self)
        row["student"] = self.student.settings()
        return row | {name: str(row[name]) for name in ("teacher_tokenizer", "teacher_outputs") if row[name]}

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy at positions with a target."""
        if self.settings.ce_weight is not None:
            return self.settings.ce_weight
        return 1.0 if self.method == "both" else 0.1


def read_distillation_recipe(
    path: Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()
) -> DistillationRecipe:
    """Read a recipe and apply changes; see `sailkit.training.recipe.read_recipe`.

    Raises:
        UserError: The file is missing or not a recipe, a key is unknown, or a value is out of range.
    """
    values = read_settings(path, changes, assignments)
    where = recipe_name(path)
    own = {name: values.pop(name, None) for name in _OWN}
    method: Any = own["method"] or "logits"
    if method not in get_args(Method):
        raise UserError(f"{where}: no method {method!r}: {nearest(str(method), get_args(Method))}")
    given = own["teacher_outputs"]
    if given and method == "logits":
        raise UserError(f"{where}: teacher_outputs are for the methods sequence and both")
    if method == "sequence" and given:
        own["teacher"] = own["teacher"] or ""
    if not isinstance(own["teacher"], str):
        raise UserError(f"{where}: no teacher; write  teacher: MODEL  or give `teacher`")
    if is_vllm(own["teacher"]):
        way = _WITH_VLLM if method == "logits" else _WITH_ANSWERS_OF_VLLM
        raise UserError(f"{where}: vLLM runs in another environment than training: leave out {VLLM!r}, or {way}")
    if own["teacher_style"] is not None:
        check_style(str(own["teacher_style"]))
    layers = own["student_layers"]
    if layers is not None:
        if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
            raise UserError(f"{where}: student_layers should be a number of layers from 1, not {layers!r}")
        if values.get("model") is not None:
            raise UserError(f"{where}: student_layers makes the student from the teacher; leave out model")
        if is_endpoint(own["teacher"]):
            raise UserError(f"{where}: student_layers needs the teacher's weights, and an endpoint has none to give")
        values["model"] = own["teacher"]
    for name in ("teacher_tokenizer", "teacher_outputs"):
        if own[name] is not None and not isinstance(own[name], str):
            raise UserError(f"{where}: {name} should be a path, not {own[name]!r}")
    tokenizer = own["teacher_tokenizer"]
    return DistillationRecipe(
        method=method,
        teacher=own["teacher"],
        student=_student(values, method, where),
        teacher_style=own["teacher_style"],
        teacher_tokenizer=Path(tokenizer) if tokenizer else None,
        teacher_outputs=Path(given) if given else None,
        student_layers=layers,
        settings=_settings(own["distillation"] or {}, f"{where}: distillation"),
    )


def _student(values: Mapping[str, Any], method: Method, where: str) -> Recipe:
    student = check_recipe(values, where)
    if student.order != "verify-first":
        raise UserError(f"{where}: order: {student.order} is for finetune; leave it out")
    if student.curriculum:
        raise UserError(f"{where}: curriculum is for finetune; leave it out, or list its folders in data")
    if method != "sequence":
        if student.loss_weights is not None:
            raise UserError(f"{where}: loss_weights are not for the distillation of logits; leave them out")
        check_loss(student.training, "distillation")
    return student


def _settings(values: Any, where: str) -> DistillationSettings:
    if not isinstance(values, dict):
        raise UserError(f"{where} should be a mapping")
    names = [field.name for field in dataclasses.fields(DistillationSettings)]
    check_keys(values, names, where)
    settings = DistillationSettings(**values)
    for name in ("k", "max_length", "max_new_tokens"):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}.{name} should be a whole number from 1, not {value!r}")
    for name, most in (("top_p", 1.0), ("min_mass", 1.0), ("ce_weight", None)):
        value = getattr(settings, name)
        if value is None and name == "ce_weight":
            continue
        number = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or name != "top_p")
        if not number or not 0 <= value <= (most if most is not None else value):
            raise UserError(f"{where}.{name} should be a number from 0{' to 1' if most else ''}, not {value!r}")
    if settings.precision not in get_args(Precision):
        raise UserError(f"{where}.precision: {nearest(str(settings.precision), get_args(Precision))}")
    return settings
