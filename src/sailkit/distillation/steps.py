"""The steps of a distillation, as repeatable functions that read the files of earlier steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.data.card import CARD
from sailkit.data.exports import HELD_OUT, TRAIN, example_row
from sailkit.distillation import completions
from sailkit.distillation.fidelity import add_flags, fidelity, means
from sailkit.distillation.results import ANSWERS, CACHE, CUT_MODEL, DATA, FIDELITY, PROMPTS, STUDENT, TARGETS
from sailkit.distillation.setup import Setup, TeacherReach, open_cache, teacher_max_length
from sailkit.distillation.teacher_answers import TeacherAnswers, teacher_answers
from sailkit.distributed import Processes, is_main_process
from sailkit.files import jsonl
from sailkit.models.base import ModelOptions, is_endpoint
from sailkit.models.sources import resolve
from sailkit.records import TrainingExample
from sailkit.training.data_cards import copy_cards, data_cards
from sailkit.training.finetune import Objective
from sailkit.training.recipe import Recipe
from sailkit.training.results import MODEL
from sailkit.training.tokenise import Prepared, no_held_out_warning, prepare, read_data


@dataclass(frozen=True)
class StudentTargets:
    """The teacher's distributions in the student's tokens; attributes that the method does not need are None.

    Attributes:
        compiler: The compiler that computed them.
        columns: Size of the student's vocabulary; the rest of its output layer is padding.
        train: Targets of the training rows.
        held_out: Targets of the held-out rows.
        held_out_rows: The held-out rows in the student's rendering.
    """

    compiler: Any = None
    columns: int = 0
    train: Any = None
    held_out: Any = None
    held_out_rows: Prepared | None = None


def warn(setup: Setup, reach: TeacherReach) -> None:
    """Notify the user of rows without the teacher, and of figures that cannot be measured."""
    if not setup.measured:
        runs.notice(no_held_out_warning(setup.recipe.student))
    completions.notify(reach.without_teacher)


def cut_student(setup: Setup) -> None:
    """With `student_layers`, write the student, which consists of some of the teacher's layers."""
    if setup.recipe.student_layers is not None:
        from sailkit.distillation.layers import with_fewer_layers

        with_fewer_layers(resolve(setup.recipe.teacher), setup.recipe.student_layers, setup.out / CUT_MODEL)


def answer(setup: Setup, processes: Processes, finished: Path) -> bool:
    """With `sequence` and `both`, have the teacher answer the training rows; processes share those of a local teacher.

    Args:
        setup: The distillation; the main process has written its prompts.
        processes: The processes of the launcher.
        finished: A file that the main process creates where it works alone, and the others wait for.

    Returns:
        Whether recorded answers were matched to rows by order alone, in the main process.
    """
    recipe = setup.recipe
    if recipe.method == "logits":
        return False
    if recipe.teacher_outputs is None and not is_endpoint(recipe.teacher):
        return _answers(setup, processes).in_order
    in_order = False
    with processes.raise_together(finished):
        if processes.is_main:
            in_order = _answers(setup, Processes()).in_order
    return in_order


def _answers(setup: Setup, processes: Processes) -> TeacherAnswers:
    from sailkit.distillation.load import load_answering

    recipe = setup.recipe
    in_text_style = setup.teacher_style not in (None, "chat") and not is_endpoint(recipe.teacher)
    chat: Literal["auto", "off"] = "off" if in_text_style else "auto"
    with processes.raise_together():
        options = ModelOptions(date=setup.date, chat=chat, dtype=_teacher_dtype(setup))
        teacher = recipe.teacher_outputs or load_answering(recipe.teacher, options)
    return teacher_answers(
        teacher, [str(setup.out / PROMPTS)], setup.out / ANSWERS, style=setup.teacher_style,
        max_new_tokens=recipe.settings.max_new_tokens, processes=processes,
    )  # fmt: skip


def _teacher_dtype(setup: Setup) -> Any:
    """The teacher's number format: that in which it began to work, also on another machine; by default auto."""
    begun = (runs.setting_of(folder, "dtype") for folder in (setup.out / ANSWERS, setup.out / CACHE))
    return next(filter(None, begun), "auto")


def write_prompts(setup: Setup) -> None:
    """With `sequence` and `both`, write the training rows that the teacher answers."""
    if setup.recipe.method != "logits":
        folder = setup.out / PROMPTS
        folder.mkdir(exist_ok=True)
        jsonl.write_rows(folder / TRAIN, map(example_row, setup.in_student_style(setup.train)))


def write_data(setup: Setup) -> None:
    """Write the student's data; with `sequence` and `both`, the responses are the teacher's answers."""
    rows: Sequence[TrainingExample] = setup.train
    if setup.recipe.method != "logits":
        styles = {example.id: example.style for example in setup.train}
        rows = [replace(row, style=styles[row.id]) for row in read_data([str(setup.out / ANSWERS)])]
    folder = setup.out / DATA
    folder.mkdir(exist_ok=True)
    for name, part in ((TRAIN, rows), (HELD_OUT, setup.measured)):
        jsonl.write_rows(folder / name, map(example_row, setup.in_student_style(part)))
    cards = data_cards(setup.recipe.student.data)
    if len(cards) > 1:
        copy_cards(setup.recipe.student.data, folder)
    elif cards[0]["card"]:
        jsonl.write_json(folder / CARD, cards[0]["card"])


def list_rows_without_teacher(setup: Setup, reach: TeacherReach) -> None:
    """List the rows that are trained with cross-entropy alone; with `both`, the answers are known by now."""
    without = reach.without_teacher
    if setup.recipe.method == "both":
        assert reach.tokenizers is not None
        rows = reach.tokenizers.tokenise(_student_rows(setup, student_tokenizer(setup), DATA, TRAIN))
        without = {**without, TRAIN: completions.without_teacher(rows)}
        completions.notify({TRAIN: without[TRAIN]})
    completions.save(without, setup.out)


def cache_teacher(setup: Setup, reach: TeacherReach) -> None:
    """Cache the teacher's distributions over the student's data, as far as the method needs them."""
    if setup.given_cache or not setup.recipe.teacher or not (setup.logits or reach.measurable):
        return
    from sailkit.distillation.load import TeacherModelOptions
    from sailkit.distillation.teacher_cache import teacher_cache

    recipe, data = setup.recipe, setup.out / DATA
    teacher_cache(
        teacher=recipe.teacher, data=[str(data if setup.logits else data / HELD_OUT)], out=setup.cache,
        style=setup.teacher_style,  # type: ignore[arg-type]
        max_length=teacher_max_length(setup), top_k=recipe.settings.k, top_p=recipe.settings.top_p,
        precision=recipe.settings.precision, teacher_tokenizer=recipe.teacher_tokenizer,
        options=TeacherModelOptions(date=setup.date, dtype=_teacher_dtype(setup)),
    )  # fmt: skip


def align(setup: Setup, reach: TeacherReach) -> StudentTargets:
    """Project the cached distributions onto the student's tokens, or read existing targets."""
    from sailkit.distillation.targets import TargetCompiler

    if not (setup.logits or reach.measurable):
        return StudentTargets()
    tokenizer = student_tokenizer(setup)
    compiler = TargetCompiler(open_cache(setup), setup.teacher_tokenizer, tokenizer, setup.recipe.settings.min_mass)
    if is_main_process():
        kind = "the same tokenizer: nothing to align" if compiler.same else "another tokenizer: aligned by bytes"
        runs.notice(f"teacher and student have {kind}")
    rows = functools.cache(functools.partial(_student_rows, setup, tokenizer))
    train = held_out = held_out_rows = None
    if setup.logits:
        train = compiler.compile(rows(DATA, TRAIN), setup.out / TARGETS.format("train"))
    if reach.measurable:
        held_out_rows = rows(DATA, HELD_OUT)
        # All methods are measured against the same targets, so habits are learnt from the responses in the data.
        prompts = setup.in_student_style(setup.train) if setup.recipe.method != "logits" else []
        habits = rows(PROMPTS if any(row.response.strip() for row in prompts) else DATA, TRAIN)
        held_out = compiler.compile(held_out_rows, setup.out / TARGETS.format("held_out"), habits)
    columns = 1 + int(max(tokenizer.get_vocab().values()))  # not the length, because ids may have gaps
    return StudentTargets(compiler, columns, train, held_out, held_out_rows)


def student_tokenizer(setup: Setup) -> Any:
    """The student's tokenizer, once the student exists."""
    from transformers import AutoTokenizer

    from sailkit.models.weights import pretrained

    return pretrained(AutoTokenizer, resolve(student_recipe(setup).model).tokenizer_folder)


def _student_rows(setup: Setup, tokenizer: Any, folder: str, name: str) -> Prepared:
    """Read a file of rows in the student's rendering."""
    return prepare(read_data([str(setup.out / folder / name)]), tokenizer, setup.recipe.student.max_length, setup.date)


def student_recipe(setup: Setup) -> Recipe:
    """The recipe of the student's training on the data from `write_data`."""
    student, folder = setup.recipe.student, str(setup.out / DATA)
    model = str(setup.out / CUT_MODEL) if setup.recipe.student_layers is not None else student.model
    return replace(student, model=model, data=(folder,), held_out=(folder,) if setup.measured else (), style=None)


def objective(setup: Setup, targets: StudentTargets) -> Objective:
    """The objective of the student's training run."""
    if not setup.logits:
        return Objective()
    from sailkit.distillation.trainer import DistillTrainer

    recipe = setup.recipe
    trainer = functools.partial(
        DistillTrainer,
        targets=targets.train.targets,
        held_out_targets=targets.held_out.targets if targets.held_out else None,
        ce_weight=recipe.ce_weight,
        columns=targets.columns,
    )
    return Objective(trainer, {"method": recipe.method, "ce_weight": recipe.ce_weight, **targets.compiler.settings()})


def measure(setup: Setup, targets: StudentTargets) -> dict[str, Any]:
    """Compare the student with the teacher on held-out rows, before and after training, and write each row's sums.

    Returns:
        `base` and `tuned` -> figures; see `means`.
    """
    from sailkit.models.local import LocalModel
    from sailkit.models.weights import free_memory
    from sailkit.training.flagging import verdicts

    recipe = setup.recipe
    assert targets.held_out_rows is not None
    # Verification is compared on the same rows, taken from the data because these have judgements.
    ids = {example.id for example in targets.held_out_rows.examples}
    judged = [example for example in setup.held_out if example.id in ids]
    teacher_flags: dict[str, tuple[bool, ...]] | None = None
    if not is_endpoint(recipe.teacher):
        styled = [replace(example, style=setup.teacher_style or example.style) for example in judged]
        teacher = LocalModel.from_name(recipe.teacher, ModelOptions(chat="off", date=setup.date))
        teacher_flags = verdicts(teacher, styled, targets.compiler.cache.settings["max_length"])
        del teacher  # free the memory for the students
        free_memory()
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for who, name in (("base", student_recipe(setup).model), ("tuned", str(setup.out / STUDENT / MODEL))):
        model = LocalModel.from_name(name, ModelOptions(chat="off", dtype="float32", date=setup.date))
        sums = fidelity(model.model, targets.held_out_rows, targets.held_out.targets, targets.columns)
        if teacher_flags is not None:
            sums = add_flags(sums, teacher_flags, verdicts(model, judged, recipe.student.max_length))
        del model
        rows += [{"model": who, **row} for row in sums]
        figures[who] = means(sums)
    jsonl.write_rows(setup.out / FIDELITY, rows)
    return figures
