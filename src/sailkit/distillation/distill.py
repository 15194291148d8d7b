"""The stage `distill`: a small model learns from a larger one, whose tokenizer may be another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.data.exports import example_row
from sailkit.distillation import steps
from sailkit.distillation.estimate import plan_distillation
from sailkit.distillation.recipe import DistillationRecipe, read_distillation_recipe
from sailkit.distillation.results import STUDENT, Distillation, DistillationPlan
from sailkit.distillation.setup import Setup, check_run, set_up
from sailkit.files import jsonl
from sailkit.models.base import is_endpoint
from sailkit.models.sources import resolve
from sailkit.prompts.chat_template import reads_clock, today
from sailkit.records import Method
from sailkit.training.distributed import Processes, process_group
from sailkit.training.estimate import config_and_tokenizer
from sailkit.training.finetune import train
from sailkit.training.publish import check_target
from sailkit.training.publish import push as push_to_hub


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
    push: str | None = None,
) -> Distillation | DistillationPlan:
    """Teach a small model what a larger one would say, also where their tokenizers differ.

    Writes a run folder: the teacher's cache, its answers, the student's training run, and how near the student comes to
    the teacher on held-out rows. A run that was stopped goes on when the same command is given again.

    Args:
        recipe: A YAML file; flags win over it.
        out: The run folder.
        method: sequence (train on the teacher's answers), logits (on its distributions over the data's own words, the
            default) or both (on its distributions over its own answers).
        teacher: A model as in evaluate, or endpoint:MODEL@BASE_URL.
        model: The student: smollm2-135m, a hub id, a local folder or a GGUF file.
        student_layers: Make the student from the teacher by keeping so many layers, evenly spaced.
        data: Run folders of build, or files of training examples; repeated.
        held_out: The same, to measure on; by default what build held out of the data.
        style: How the student is asked, instead of each row's own style.
        teacher_style: How the teacher is asked; by default what it was trained in, else each row's own style.
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; that of --cache by default, else today. A
            run that goes on keeps its day.
        teacher_tokenizer: For an endpoint: a folder with the teacher's tokenizer.
        teacher_outputs: For sequence and both: a file with the teacher's answers, a list of {prompt, response}.
        cache: A finished run folder of teacher-cache, instead of making one.
        set: KEY=VALUE for any key of the recipe, such as distillation.k=32; repeated.
        dry_run: Check recipe and data and say what the run would take, without loading or fetching weights.
        tokens_per_second: With --dry-run: the student's throughput to reckon the time with.
        push: OWNER/NAME on the Hugging Face hub: upload the student there when all is saved.

    Returns:
        The distillation; of a dry run, its plan.

    Raises:
        UserError: Anything that the user can mend; nothing is overwritten.
    """
    changes = {
        "method": method, "teacher": teacher, "model": model, "student_layers": student_layers, "data": data,
        "held_out": held_out, "style": style, "teacher_style": teacher_style, "date": date,
        "teacher_tokenizer": str(teacher_tokenizer) if teacher_tokenizer else None,
        "teacher_outputs": str(teacher_outputs) if teacher_outputs else None,
    }  # fmt: skip
    settings = read_distillation_recipe(recipe, changes, set or ())
    if dry_run:
        return plan_distillation(settings, tokens_per_second)
    out = check_target("distill", out, push)
    with process_group() as processes:
        distillation = _distill(settings, out, cache, processes)
    return replace(distillation, pushed=push_to_hub(distillation.model, push))


def _distill(recipe: DistillationRecipe, out: Path, cache: Path | None, processes: Processes) -> Distillation:
    """All steps in order; the main process writes, and each later step reads what earlier ones wrote."""
    metrics, targets, in_order = out / runs.METRICS, None, False
    with contextlib.ExitStack() as stack:
        # One day for all processes, also where midnight passes between two of them.
        recipe = replace(recipe, student=replace(recipe.student, date=processes.broadcast(_date(recipe, out, cache))))
        with processes.raise_together():
            setup = set_up(recipe, out, cache)
            reach = check_run(setup)
            if processes.is_main:
                stack.enter_context(_open_run(setup))
                if not metrics.exists():
                    steps.warn(setup, reach)
                    steps.cut_student(setup)
                    in_order = steps.write_data(setup)
                    steps.list_rows_without_teacher(setup, reach)
                    steps.cache_teacher(setup, reach)
                    targets = steps.align(setup, reach)
        if processes.broadcast(metrics.exists()):
            return Distillation(out, processes.broadcast(jsonl.read_json(metrics) if processes.is_main else {}))
        with processes.raise_together():
            if targets is None and setup.logits:  # the main process has written them by now
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
    figures = {
        "method": recipe.method,
        "teacher": recipe.teacher,
        "student": recipe.student.model,
        "student_layers": recipe.student_layers,
    }
    if recipe.teacher_outputs:
        figures["answers_in_order"] = in_order
    if targets.train is not None:
        figures["training_targets"] = targets.train.figures
    if targets.held_out is not None:
        figures |= {"held_out_targets": targets.held_out.figures, **steps.measure(setup, targets)}
    return {**figures, "training": trained}


def _date(recipe: DistillationRecipe, out: Path, cache: Path | None) -> str:
    """The day for chat templates that read the clock, the same for teacher and student."""
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
