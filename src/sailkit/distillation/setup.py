"""Prepares a distillation: reads recipe, data and the teacher's files, and checks them before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.distillation import completions
from sailkit.distillation.completions import TokenizerPair, WithoutTeacher
from sailkit.distillation.estimate import check_order, check_student
from sailkit.distillation.load import check_tokenizer
from sailkit.distillation.recipe import DistillationRecipe
from sailkit.distillation.results import CACHE, STUDENT
from sailkit.errors import UserError
from sailkit.models.base import is_endpoint
from sailkit.models.endpoint import read_name
from sailkit.models.sources import Source, resolve
from sailkit.prompts.sail import trained_style
from sailkit.records import TrainingExample
from sailkit.training.checks import check_rows, require_gpu, resolve_adapters
from sailkit.training.estimate import check_schedule
from sailkit.training.tokenise import Prepared, held_out_paths, prepare, read_data


@dataclass(frozen=True)
class Setup:
    """The inputs that all steps of a distillation share.

    Attributes:
        recipe: The recipe, with the date for chat templates that read the clock.
        out: The run folder.
        given_cache: A finished cache of the teacher; None if the run computes it.
        train: Training rows, unchanged from the data.
        held_out: Held-out rows, unchanged from the data.
        teacher_files: The teacher's files; for an endpoint, those of its tokenizer; None if only recorded answers are
            given.
        teacher_style: Style of the teacher's prompts; None for each row's style.
    """

    recipe: DistillationRecipe
    out: Path
    given_cache: Path | None
    train: tuple[TrainingExample, ...]
    held_out: tuple[TrainingExample, ...]
    teacher_files: Source | None
    teacher_style: str | None

    @property
    def logits(self) -> bool:
        """Whether the student is trained on the teacher's distributions, not only on its answers."""
        return self.recipe.method != "sequence"

    @property
    def date(self) -> str | None:
        """The date for chat templates that read the clock."""
        return self.recipe.student.date

    @property
    def cache(self) -> Path:
        """The folder of the teacher's cache."""
        return self.given_cache or self.out / CACHE

    @functools.cached_property
    def measured(self) -> tuple[TrainingExample, ...]:
        """The held-out rows with a response; without one there is nothing to compare."""
        return tuple(example for example in self.held_out if example.response.strip())

    @functools.cached_property
    def teacher_tokenizer(self) -> Any:
        """The tokenizer of the teacher."""
        from transformers import AutoTokenizer

        from sailkit.models.weights import pretrained

        recipe = self.recipe
        return pretrained(AutoTokenizer, recipe.teacher_tokenizer or resolve(recipe.teacher).tokenizer_folder)

    def in_student_style(self, examples: Sequence[TrainingExample]) -> list[TrainingExample]:
        """Rows in the student's style, with the exact completion texts of the teacher's style."""
        styles = self.recipe.student.style, self.teacher_style
        return [completions.with_teacher_wording(example, *styles) for example in examples]


@dataclass(frozen=True)
class TeacherReach:
    """The rows that have teacher distributions, as far as both tokenizers show it.

    Attributes:
        tokenizers: The tokenizers of teacher and student; None if no distributions are compared.
        without_teacher: Data file -> its rows that are trained with cross-entropy alone.
        measurable: Whether there are held-out rows on which student and teacher can be compared.
    """

    tokenizers: TokenizerPair | None
    without_teacher: dict[str, list[WithoutTeacher]]
    measurable: bool


def set_up(recipe: DistillationRecipe, out: Path, cache: Path | None) -> Setup:
    """Read the data and find the teacher's files; nothing is written.

    Args:
        recipe: The recipe.
        out: The run folder.
        cache: A finished cache of the teacher; None to compute it.

    Raises:
        UserError: The recipe cannot be run here, or the data or the teacher cannot be read.
    """
    from sailkit.training.arguments import sft_config

    student = recipe.student
    require_gpu(student)
    train = read_data(student.data, style=student.style)
    paths = held_out_paths(student)
    held_out = read_data(paths, HELD_OUT, student.style) if paths else []
    args = sft_config(student, out / STUDENT, held_out=any(example.response.strip() for example in held_out))
    if args.dataloader_drop_last and len(train) < args.train_batch_size:
        raise UserError(f"training.dataloader_drop_last: {len(train)} rows are no whole batch")
    check_schedule(args, sum(recipe.method != "logits" or bool(example.response.strip()) for example in train))
    if student.adapters is not None:
        resolve_adapters(student, resolve(student.model), args.seed)
    files = _teacher_files(recipe)
    trained = files.trained() if files else {}
    check_order(recipe.teacher, trained)
    style = recipe.teacher_style or trained_style(trained)
    return Setup(recipe, out, cache, tuple(train), tuple(held_out), files, style)


def _teacher_files(recipe: DistillationRecipe) -> Source | None:
    if recipe.teacher_tokenizer is not None:
        if not recipe.teacher_tokenizer.is_dir():
            raise UserError(
                f"no folder {recipe.teacher_tokenizer}: teacher_tokenizer should hold the teacher's tokenizer"
            )
        return Source(recipe.teacher_tokenizer)
    is_local = recipe.teacher and not is_endpoint(recipe.teacher)
    return resolve(recipe.teacher) if is_local else None


def check_run(setup: Setup) -> TeacherReach:
    """Check everything that training would refuse before the teacher runs for hours; nothing is written.

    Raises:
        UserError: Student, cache or rows do not fit the recipe, or no row has teacher distributions.
    """
    recipe, measured = setup.recipe, setup.measured
    compares = setup.logits or bool(measured and recipe.teacher)
    cache_settings = open_cache(setup).settings if setup.given_cache and compares else None
    source = resolve(recipe.student.model)
    tokenizer = check_student(recipe, source.folder)
    rows: Sequence[TrainingExample] = setup.train
    if recipe.method != "logits":  # the teacher's answers are not known yet; use a very short one instead
        rows = [replace(example, judgements=(), response="Yes.") for example in rows]
    longest = recipe.student.max_length
    prepared = {
        name: prepare(setup.in_student_style(part), tokenizer, longest, setup.date, held_out=name == HELD_OUT)
        for name, part in ((TRAIN, rows), (HELD_OUT, measured))
        if part
    }
    check_rows(recipe.student, source, list(prepared.values()))
    compared = {name: part for name, part in prepared.items() if setup.logits or name == HELD_OUT}
    if not recipe.teacher or not compared:
        return TeacherReach(None, {}, measurable=False)
    return _teacher_reach(setup, compared, tokenizer, cache_settings)


def _teacher_reach(
    setup: Setup, prepared: dict[str, Prepared], tokenizer: Any, cache_settings: dict[str, Any] | None
) -> TeacherReach:
    recipe = setup.recipe
    if cache_settings is None or is_endpoint(recipe.teacher):
        check_tokenizer(recipe.teacher, recipe.teacher_tokenizer)
    if cache_settings is None:
        cache_settings = {"max_length": teacher_max_length(setup), "style": setup.teacher_style, "date": setup.date}
    max_length, style = cache_settings["max_length"], cache_settings["style"]
    pair = TokenizerPair(setup.teacher_tokenizer, tokenizer, max_length, style, cache_settings.get("date", setup.date))
    rows = {name: pair.tokenise(part) for name, part in prepared.items()}
    completions.check_any_taught(rows.get(TRAIN, ()))
    if recipe.method == "both":
        rows.pop(TRAIN)  # their completions are placeholders for answers that are not known yet
    without = {name: completions.without_teacher(part) for name, part in rows.items()}
    readable = len(without.get(HELD_OUT, ())) < len(rows.get(HELD_OUT, ()))
    return TeacherReach(pair, without, bool(setup.measured) and (setup.logits or readable))


def teacher_max_length(setup: Setup) -> int:
    """Most tokens of a row in the teacher's rendering."""
    from transformers import AutoConfig

    from sailkit.distillation.teacher import max_row_tokens
    from sailkit.models.weights import pretrained

    config = None
    if not is_endpoint(setup.recipe.teacher):
        assert setup.teacher_files is not None
        config = pretrained(AutoConfig, setup.teacher_files.model.folder)
    return min(setup.recipe.settings.max_length, max_row_tokens(config, setup.teacher_tokenizer))


def open_cache(setup: Setup) -> Any:
    """Open the teacher's cache.

    Raises:
        UserError: The cache cannot be opened, or does not fit the recipe.
    """
    from sailkit.distillation.cache import CacheReader

    recipe, cache = setup.recipe, CacheReader.open(setup.cache)
    expected = {name: getattr(recipe.settings, name) for name in ("k", "top_p", "precision")}
    if cache.settings.get("date"):
        expected["date"] = setup.date
    if is_endpoint(recipe.teacher):
        expected["served_model"] = read_name(recipe.teacher)[0]  # a server does not show its weights
    elif setup.teacher_files is not None:
        expected["weights_sha256"] = setup.teacher_files.digests()["weights_sha256"]
    cache.check(setup.teacher_files, style=setup.teacher_style, **expected)
    return cache
