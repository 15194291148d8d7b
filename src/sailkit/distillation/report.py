"""Reports on distillations: the distance of students to their teacher, targets, settings and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sailkit import runs
from sailkit.distillation.printed import FIGURES, cache_report, distillation_report, plan_report
from sailkit.distillation.results import (
    STUDENT,
    WHO,
    Distillation,
    DistillationPlan,
    StudentComparison,
    compare_students,
    estimates,
)
from sailkit.distillation.teacher_cache import TeacherCache
from sailkit.distillation.verdict import fidelity_headline, limits, ranking_headline
from sailkit.errors import UserError
from sailkit.rendering import model
from sailkit.rendering.commands import command_blocks
from sailkit.rendering.model import (
    Cell,
    Facts,
    Figures,
    Group,
    Heading,
    Headline,
    Interval,
    Intervals,
    Report,
    Row,
    Section,
    Table,
    Text,
)  # fmt: skip
from sailkit.rendering.numbers import capitalised, change, fact, listed, machine
from sailkit.stats.intervals import Estimate
from sailkit.training import facts
from sailkit.training.data_cards import read_cards
from sailkit.training.report import ALL_SETTINGS, curves, steps_of
from sailkit.training.samples_file import sample_blocks

_TARGETS = {
    "positions": "Student's tokens",
    "aligned": "Begin where a teacher's token does",
    "conditioned": "Begin within a teacher's token",
    "without_target": "Have no target, cross-entropy alone",
    "captured_mass": "Teacher's probability that targets list",
    "identical_tokens": "Tokens that are the teacher's, in bytes and place",
    "student_bytes_per_token": "Bytes in a token of the student",
    "teacher_bytes_per_token": "Bytes in a token of the teacher",
    "rows_without_teacher": "Rows without the teacher, cross-entropy alone",
}
_METHODS = {
    "logits": "By the teacher's distributions over the data's own words (logits)",
    "sequence": "By the teacher's own answers (sequence)",
    "both": "By the teacher's distributions over its own answers (both)",
}
_SIDES = {"teacher_": "teacher", "student_": "student as it was"}
_FACTS = {
    **{f"{who}{what}_sha256": f"{capitalised(what)} of the {name} (sha256)" for who, name in _SIDES.items()
       for what in ("weights", "tokenizer", "config")},
    "cache": "Cache that was given", "data_sha256": "Data (sha256)", "git_revision": "Git revision",
    "versions": "Versions", "platform": "Platform", "started_at": "Started",
}  # fmt: skip


@dataclass(frozen=True)
class _Student:
    """A run, its name in the report, and its figures before and after training with their change."""

    name: str
    run: Distillation
    figures: dict[str, dict[str, Estimate | None]]

    @property
    def folder(self) -> Path:
        return self.run.folder / STUDENT


def report_on(folders: Sequence[Path], title: str | None = None, seed: int = 0) -> Report:
    """A report on one or more distillations.

    Args:
        folders: Folders of the runs; the first is compared with each of the others.
        title: The title; by default derived from teacher and student, or from the runs' names.
        seed: Seed of the bootstrap.

    Raises:
        UserError: A run is not finished, or its files are damaged.
    """
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else list(map(str, folders))
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)} was given twice")
    names = names if len(names) > 1 else ["the run"]
    distillations = [Distillation.load(folder) for folder in folders]
    students = [_Student(name, run, estimates(run, seed)) for name, run in zip(names, distillations, strict=True)]
    try:
        first, *others = students
        pairs = [
            (other, compare_students(first.run, other.run, seed)) for other in others if first.run.ids and other.run.ids
        ]
        headlines = [fidelity_headline(student.run, student.figures) for student in students]
        verdicts = [ranking_headline(first.name, other.name, pair) for other, pair in pairs]
        heading = title or (_about(first.run) if not others else f"Distillation: {', '.join(names)}")
        sections = [
            Section("Verdict", _verdict_blocks(students, verdicts, headlines)),
            *_sections(students, pairs, seed),
        ]
        return Report(heading, _meta(students), sections, "; ".join([*verdicts, *headlines]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{' or '.join(map(str, folders))} does not hold what distill writes ({what})") from None


def _about(run: Distillation) -> str:
    layers = f", {run.metrics['student_layers']} of its layers" if run.metrics["student_layers"] else ""
    return f"Distillation of {run.metrics['teacher'] or 'recorded answers'} into {run.metrics['student']}{layers}"


def _meta(students: Sequence[_Student]) -> str:
    machines = dict.fromkeys(filter(None, (machine(student.run.metrics["training"]) for student in students)))
    method = str(students[0].run.metrics["method"])
    about = _METHODS.get(method, method)
    if len(students) > 1:
        about = "; ".join(f"{student.name}: {_about(student.run)}" for student in students)
    return about + (f"; trained in {listed(list(machines))}" if machines else "")


def _verdict_blocks(
    students: Sequence[_Student], verdicts: Sequence[str], headlines: Sequence[str]
) -> list[Headline | Heading | Text | Figures]:
    if len(students) == 1:
        return [Headline(headlines[0]), Figures(_headline_figures(students[0].run))]
    blocks: list[Headline | Heading | Text | Figures] = [Headline(text) for text in verdicts]
    for student, text in zip(students, headlines, strict=True):
        blocks += [Heading(student.name), Text(f"{text}.") if verdicts else Headline(text)]
    return blocks


def _sections(
    students: Sequence[_Student], pairs: Sequence[tuple[_Student, StudentComparison]], seed: int
) -> list[Section]:
    names = [student.name for student in students]
    cards = [card for student in students for card in read_cards(student.folder)]
    sections: dict[str, list[model.Block]] = {
        "Limits of these figures": [facts.sentences(limits([student.run for student in students], seed))],
        "Reasons to doubt the data": [*facts.doubts(cards)],
        "Distance to the teacher": _fidelity(students),
        "Pairwise comparison": _pairwise(students[0].name, pairs),
        "Targets from the teacher": _targets(students),
    }
    known = [Section(heading, blocks) for heading, blocks in sections.items() if blocks]
    if plots := curves([student.folder for student in students], names):
        known.append(Section("Curves of the student's training", plots))
    known += [
        Section("Samples before and after", blocks, student.name if len(students) > 1 else "")
        for student in students
        if (blocks := sample_blocks(student.folder))
    ]
    trained = [
        [("method", student.run.metrics["method"]), *facts.trained_on(student.run.metrics["training"])]
        for student in students
    ]
    recipes = [facts.recipe_rows(student.run.manifest["settings"]["recipe"]) for student in students]
    training = [folder if (folder / runs.MANIFEST).exists() else None for folder in (s.folder for s in students)]
    effective = [facts.effective_rows(runs.read_manifest(folder)) if folder else [] for folder in training]
    commands = command_blocks({student.name: student.run.manifest for student in students})
    data = {str(card["data"]): card["card"] for card in cards if card["card"] is not None}
    return [
        *known,
        Section("Training data", [facts.side_by_side(names, trained, capitalised),
                                  *facts.card_facts(data.items())]),
        Section("Recipe", [facts.side_by_side(names, recipes)]),
        *([Section("Settings in effect", [Text(ALL_SETTINGS), facts.side_by_side(names, effective)])]
          if any(effective) else []),
        *([Section("Command", commands)] if commands else []),
        Section("Provenance", [_provenance(students)]),
    ]  # fmt: skip


def _headline_figures(run: Distillation) -> list[tuple[str, Cell]]:
    pairs = [(title, [run.mean(who, name) for who in WHO]) for name, title in FIGURES.items()
             if name != "verification_kappa"]  # fmt: skip
    known = [(title, Cell(change(*values))) for title, values in pairs if any(value is not None for value in values)]
    return [*known, ("Trained", Cell(steps_of(run.metrics["training"])))]


def _row(name: str, student: _Student, title: str) -> Row:
    cells = [Cell(student.figures[who][name] or student.run.mean(who, name)) for who in WHO]
    return Row(title, [*cells, Cell(student.figures["change"][name], signed=True)])


def _fidelity(students: Sequence[_Student]) -> list[model.Block]:
    """The table of figures: one row for each figure of a single run, else one row for each run and figure."""
    if len(students) == 1:
        rows = [row for name, title in FIGURES.items() if (row := _row(name, students[0], title)).known]
        groups = [Group(f"Of {len(students[0].run.ids):,} held-out rows", rows)] if rows else []
    else:
        table = {title: [_row(name, student, student.name) for student in students]
                 for name, title in FIGURES.items()}  # fmt: skip
        groups = [Group(title, rows) for title, rows in table.items() if any(row.known for row in rows)]
    plotted = [
        Interval(student.name, after, "before training", before.value)
        for student in students
        if (after := student.figures["tuned"]["agreement"]) and (before := student.figures["base"]["agreement"])
    ]
    how = "A dot and its whisker are the student after training, the dashed line is the same student before."
    return [
        Text("Before training and after, on the same held-out rows, with 95 % intervals over rows. A difference is "
             "bold where its interval excludes 0."),
        *([Intervals({FIGURES["agreement"]: plotted}, how)] if plotted else []),
        Table(["before", "after", "difference"], groups),
    ] if groups else []  # fmt: skip


def _pairwise(first: str, pairs: Sequence[tuple[_Student, StudentComparison]]) -> list[model.Block]:
    groups = [
        Group(
            f"{first} minus {other.name}, {pair.rows:,} rows of both",
            [Row(FIGURES[name], [Cell(gap, signed=True)]) for name, gap in pair.differences.items() if gap],
        )
        for other, pair in pairs
        if not pair.unlike
    ]
    note = (
        "After training, on the same held-out rows. A difference is bold where its 95 % interval excludes 0; elsewhere "
        "it cannot be told which of the two is nearer."
    )
    remarks = [f" {other.name}: {pair.other_targets}." for other, pair in pairs if pair.other_targets]
    return [Text(note + "".join(remarks)), Table(["difference"], groups)] if groups else []


def _targets(students: Sequence[_Student]) -> list[model.Block]:
    """The coverage of the teacher's distributions by the targets."""

    def cell(name: str, value: float | None) -> Cell:
        return Cell(f"{value:.2f}" if value is not None and name.endswith("per_token") else value)

    groups = []
    for student in students:
        parts = [student.run.metrics.get(part) or {} for part in ("training_targets", "held_out_targets")]
        rows = [Row(title, [cell(name, part.get(name)) for part in parts]) for name, title in _TARGETS.items()]
        if any(parts):
            groups.append(Group(student.name, [row for row in rows if row.known]))
    return [Table(["training rows", "held-out rows"], groups)] if groups else []


def _provenance(students: Sequence[_Student]) -> Facts:
    known = [{**student.run.manifest["settings"], **student.run.manifest["environment"]} for student in students]
    rows = [(title, [fact(name, own) for own in known]) for name, title in _FACTS.items()]
    kept = [(title, values) for title, values in rows if any(values) or title == _FACTS["git_revision"]]
    return Facts([student.name for student in students], kept, [title for title, _ in kept if title != "Started"])


def short_report(result: Distillation | DistillationPlan | TeacherCache) -> Report:
    """The short report that `distill` or `teacher-cache` prints."""
    if isinstance(result, TeacherCache):
        return cache_report(result)
    return plan_report(result) if isinstance(result, DistillationPlan) else distillation_report(result)
