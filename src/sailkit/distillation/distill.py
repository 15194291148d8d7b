"""The verb `distill`: trains a small model on a larger one, whose tokenizer may differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.arguments import checked
from sailkit.data.exports import example_row
from sailkit.distillation import steps
from sailkit.distillation.estimate import plan_distillation
from sailkit.distillation.recipe import DistillationRecipe, read_distillation_recipe
from sailkit.distillation.results import STUDENT, Distillation, DistillationPlan
from sailkit.distillation.setup import Setup, check_run, set_up
from sailkit.distributed import Processes, process_group
from sailkit.files import jsonl
from sailkit.models.base import is_endpoint
from sailkit.models.sources import resolve
from sailkit.prompts.chat_template import reads_clock, today
from sailkit.records import Method
from sailkit.training.estimate import config_and_tokenizer
from sailkit.training.finetune import train
from sailkit.training.publish import check_target
from sailkit.training.publish import push as push_to_hub


@checked
def distill(
    recipe: Path | None = None,
    *,
    out: Path | None = None,
    method: Method | None = None,
    teacher: str | None = None,
    model: str | None = None,
    student_layers: int | None = None,
    data: list[str] | None = None,
    held_out: list[str] | None = None,
    style: Literal["sail", "sail-fixed", "chat"] | None = None,
    teacher_style: Literal["sail", "sail-fixed", "chat"] | None = None,
    date: str | None = None,
    teacher_tokenizer: Path | None = None,
    teacher_outputs: Path | None = None,
    cache: Path | None = None,
    set: list[str] | None = None,
    dry_run: bool = False,
    tokens_per_second: float | None = None,
    for_gpu: bool = False,
    push: str | None = None,
) -> Distillation | DistillationPlan:
    """Distill a model into a smaller one, also across tokenizers.

    Writes a run folder with the teacher's cache, its answers, the student's training run, and the student's distance to
    the teacher on held-out rows. A run that was stopped resumes when the same command is given again.

    Args:
        recipe: A YAML file, or the name of a recipe that comes with the package; flags override it.
        out: The run folder.
        method: sequence (train on the teacher's answers), logits (on its distributions over the data's own words, the
            default) or both (on its distributions over its own answers).
        teacher: A model as in evaluate, or endpoint:MODEL@BASE_URL.
        model: The student: smollm2-135m, a hub id, a local folder or a GGUF file.
        student_layers: Create the student from this number of the teacher's layers, evenly spaced.
        data: Run folders of build, or files of training examples; repeated.
        held_out: The same, to measure on; by default what build held out of the data.
        style: Style of the student's prompts, instead of each row's style.
        teacher_style: Style of the teacher's prompts; by default that of its training, else each row's style.
        date: The date, as YYYY-MM-DD, for chat templates that read the clock; by default that of --cache, else today. A
            resumed run keeps its date.
        teacher_tokenizer: For an endpoint: a folder with the teacher's tokenizer.
        teacher_outputs: For sequence and both: a file with the teacher's answers, a list of {prompt, response}.
        cache: A finished run folder of teacher-cache, to be used instead of a new cache.
        set: KEY=VALUE for any key of the recipe, such as distillation.k=32; repeated.
        dry_run: Check recipe and data and estimate the cost of the run, without loading or downloading weights.
        tokens_per_second: With --dry-run: the student's throughput, to estimate the time.
        for_gpu: With --dry-run: estimate the memory on a GPU, also where there is none.
        push: OWNER/NAME on the Hugging Face hub to which the student is uploaded at the end.

    Returns:
        The distillation; of a dry run, its plan.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    changes = {
        "method": method, "teacher": teacher, "model": model, "student_layers": student_layers, "data": data,
        "held_out": held_out, "style": style, "teacher_style": teacher_style, "date": date,
        "teacher_tokenizer": str(teacher_tokenizer) if teacher_tokenizer else None,
        "teacher_outputs": str(teacher_outputs) if teacher_outputs else None,
    }  # fmt: skip
    settings = read_distillation_recipe(recipe, changes, set or ())
    if dry_run:
        return plan_distillation(settings, tokens_per_second, for_gpu=for_gpu)
    out = check_target("distill", out, push)
    with process_group() as processes:
        distillation = _distill(settings, out, cache, processes)
    return replace(distillation, pushed=push_to_hub(distillation.model, push))


def _distill(recipe: DistillationRecipe, out: Path, cache: Path | None, processes: Processes) -> Distillation:
    """All steps in order; the main process writes, and each later step reads what earlier ones wrote.

    Where the main process works alone, the others wait for a file of their own.
    """
    metrics, targets = out / runs.METRICS, None
    flags = [out / f".{name}-written" for name in ("answers", "data", "targets")]
    answers_written, data_written, targets_written = flags
    with contextlib.ExitStack() as stack:
        # All processes use the same date, even if midnight passes between them.
        recipe = replace(recipe, student=replace(recipe.student, date=processes.broadcast(_date(recipe, out, cache))))
        with processes.raise_together():
            setup = set_up(recipe, out, cache)
            reach = check_run(setup)
            if processes.is_main:
                stack.enter_context(_open_run(setup))
                for flag in flags:  # left by a run that was killed
                    flag.unlink(missing_ok=True)
        if processes.broadcast(metrics.exists()):
            return Distillation(out, processes.broadcast(jsonl.read_json(metrics) if processes.is_main else {}))
        with processes.raise_together():
            if processes.is_main:
                steps.warn(setup, reach)
                steps.write_prompts(setup)
        in_order = steps.answer(setup, processes, answers_written)
        with processes.raise_together(data_written):
            if processes.is_main:
                steps.cut_student(setup)
                steps.write_data(setup)
                steps.list_rows_without_teacher(setup, reach)
        steps.cache_teacher(setup, reach)
        with processes.raise_together(targets_written):
            if processes.is_main:
                targets = steps.align(setup, reach)
        with processes.raise_together():
            if targets is None and setup.logits:  # the main process has written them already
                targets = steps.align(setup, reach)
            objective = steps.objective(setup, targets or steps.StudentTargets())
        trained = train(steps.student_recipe(setup), out / STUDENT, objective)
        figures: dict[str, Any] = {}
        with processes.raise_together():
            if processes.is_main:
                assert targets is not None
                figures = _figures(setup, targets, in_order, trained.to_json())
                jsonl.write_json(metrics, figures)
        return Distillation(out, processes.broadcast(figures))


def _figures(setup: Setup, targets: steps.StudentTargets, in_order: bool, trained: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the run: recipe, coverage of the targets, fidelity before and after training, and the training's."""
    recipe = setup.recipe
    figures: dict[str, Any] = {
        "method": recipe.method,
        "teacher": recipe.teacher,
        "student": recipe.student.model,
        "student_layers": recipe.student_layers,
    }
    if recipe.teacher_outputs:
        figures["answers_in_order"] = in_order
    if targets.train is not None or targets.held_out is not None:
        # Of a given cache these may differ from the recipe.
        of_cache = {"max_length": "max_length", "teacher_style": "style"}
        figures["cache_settings"] = {name: runs.setting_of(setup.cache, key) for name, key in of_cache.items()}
    if targets.train is not None:
        figures["training_targets"] = targets.train.figures
    if targets.held_out is not None:
        figures |= {"held_out_targets": targets.held_out.figures, **steps.measure(setup, targets)}
    return {**figures, "training": trained}


def _date(recipe: DistillationRecipe, out: Path, cache: Path | None) -> str:
    """The date for chat templates that read the clock, the same for teacher and student."""
    earlier = runs.setting_of(out, "recipe", "student", "date") or (cache and runs.setting_of(cache, "date"))
    return str(recipe.student.date or earlier or today())


@contextlib.contextmanager
def _open_run(setup: Setup) -> Iterator[None]:
    recipe, cache = setup.recipe, setup.given_cache
    tokenizers = [*filter(None, (recipe.teacher_tokenizer, recipe.teacher, recipe.student.model))]
    if not any(reads_clock(config_and_tokenizer(str(name), [])[1]) for name in tokenizers):
        recipe = replace(recipe, student=replace(recipe.student, date=None))
    settings: dict[str, Any] = {"recipe": recipe.settings_row(), "cache": str(cache) if cache else None}
    for role, name in (("teacher", recipe.teacher), ("student", recipe.student.model)):
        if name and not is_endpoint(name):
            settings |= {f"{role}_{part}": digest for part, digest in resolve(name).digests().items()}
    if recipe.teacher_outputs is not None:
        settings["teacher_outputs_sha256"] = jsonl.file_fingerprint([recipe.teacher_outputs])
    settings["data_sha256"] = jsonl.fingerprint([example_row(row) for row in (*setup.train, *setup.held_out)])
    with runs.open_run(setup.out, "distill", settings):
        yield
