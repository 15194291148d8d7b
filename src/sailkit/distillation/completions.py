"""Tokenises completions for both teacher and student, and finds the rows that one of them cannot represent.

The tokenizers alone decide this, so it is known before the teacher is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.distillation.align import ByteStream, NotRepresentableError, Vocabulary, byte_stream
from sailkit.distillation.records import TeacherExample, teacher_examples
from sailkit.distillation.teacher_cache import render_for_teacher
from sailkit.distillation.workers import in_order, worker_count
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.prompts.sail import completion
from sailkit.records import TrainingExample
from sailkit.training.tokenise import IGNORED, MANY, Prepared

NO_ROOM = "the teacher has no room for it"
_ROWS = 64  # that a process tokenises at a time
WITHOUT_TEACHER = "without_teacher.jsonl"  # rows that are trained with cross-entropy alone, with the reason


@dataclass(frozen=True)
class AlignedCompletion:
    """A completion that both tokenizers represent.

    Attributes:
        example: The row in the teacher's rendering.
        teacher: The completion in the teacher's tokens.
        student: The completion in the student's tokens.
    """

    example: TeacherExample
    teacher: ByteStream
    student: ByteStream


@dataclass(frozen=True)
class WithoutTeacher:
    """A row that is trained with cross-entropy alone.

    Attributes:
        id: The example's id.
        reason: Why there are no teacher distributions for it.
    """

    id: str
    reason: str


class TokenizerPair:
    """The tokenizers of teacher and student, to tokenise the same rows with both."""

    def __init__(
        self,
        teacher_tokenizer: Any,
        student_tokenizer: Any,
        max_length: int,
        style: str | None,
        date: str | None = None,
    ) -> None:
        """Prepare both tokenizers.

        Args:
            teacher_tokenizer: The teacher's tokenizer.
            student_tokenizer: The student's tokenizer.
            max_length: Most tokens of a row in the teacher's rendering.
            style: Style of the teacher's prompts; None for each row's own style.
            date: For a teacher's chat template that reads the clock; today by default.

        Raises:
            UserError: The tokens of a tokenizer do not stand for bytes.
        """
        self.teacher_tokenizer = teacher_tokenizer
        self.max_length, self.style, self.date = max_length, style, date
        self.teacher, self.student = Vocabulary(teacher_tokenizer), Vocabulary(student_tokenizer)

    @cached_property
    def same(self) -> bool:
        """Whether both have the same tokens, so that nothing needs to be aligned."""
        return self.teacher.fingerprint == self.student.fingerprint

    def tokenise(self, prepared: Prepared, workers: int | None = None) -> list[AlignedCompletion | WithoutTeacher]:
        """Tokenise each row with both tokenizers, or give the reason to train it without the teacher.

        Args:
            prepared: The rows in the student's rendering.
            workers: Number of processes beside this one; by default none for few tokens, else one for each core. The
                rows do not depend on it.
        """
        count = len(prepared.examples)
        parts = [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]
        if workers is None:
            workers = worker_count(prepared.supervised)
        rows: list[AlignedCompletion | WithoutTeacher] = []
        with runs.progress("tokenising for the teacher", count if count >= MANY else 0) as tick:
            for part in in_order(lambda part: self._tokenise(prepared, part), parts, workers):
                rows += part
                tick(len(part))
        return rows

    def _tokenise(self, prepared: Prepared, part: slice) -> list[AlignedCompletion | WithoutTeacher]:
        examples, all_labels = prepared.examples[part], prepared.labels[part]
        max_length, style, date = self.max_length, self.style, self.date
        rendered = render_for_teacher(examples, self.teacher_tokenizer, max_length, style, date, may_be_empty=True)
        by_id = {example.name: example for example in teacher_examples(rendered)}
        dropped = {row["id"]: row["reason"] for row in rendered.dropped}
        rows: list[AlignedCompletion | WithoutTeacher] = []
        for row, labels in zip(examples, all_labels, strict=True):
            if (example := by_id.get(row.id)) is None:
                reason = dropped[row.id].removeprefix(f"example {row.id!r}: ")
                rows.append(WithoutTeacher(row.id, NO_ROOM if row.id in rendered.too_long else f"teacher: {reason}"))
                continue
            tokens = tuple(label for label in labels if label != IGNORED)
            # With identical tokens nothing is aligned, so the text that they spell does not matter.
            text = None if self.same and tokens == example.tokens else example.completion
            try:
                who = "teacher"
                teacher_stream = byte_stream(self.teacher, example.tokens, text)
                who = "student"
                rows.append(AlignedCompletion(example, teacher_stream, byte_stream(self.student, tokens, text)))
            except NotRepresentableError as error:
                rows.append(WithoutTeacher(row.id, f"{who}: {error}"))
        return rows


def without_teacher(rows: Sequence[AlignedCompletion | WithoutTeacher]) -> list[WithoutTeacher]:
    """The rows that are trained without the teacher."""
    return [row for row in rows if isinstance(row, WithoutTeacher)]


def reasons(rows: Sequence[WithoutTeacher]) -> dict[str, int]:
    """Count the rows without the teacher by reason, the most frequent first."""
    return dict(Counter(row.reason for row in rows).most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """Reasons and their counts as text."""
    return "; ".join(f"{reason}: {count:,}" for reason, count in counts.items())


def notify(files: Mapping[str, Sequence[WithoutTeacher]]) -> None:
    """Report rows without the teacher at the terminal, file by file."""
    for name, rows in files.items():
        if rows:
            runs.notice(
                f"rows of {name} without the teacher, for cross-entropy alone: {len(rows):,} "
                f"({in_words(reasons(rows))}); {WITHOUT_TEACHER} lists them"
            )


def save(files: Mapping[str, Sequence[WithoutTeacher]], folder: Path) -> None:
    """Write `without_teacher.jsonl`."""
    rows = ({"file": name, **asdict(row)} for name, rows in files.items() for row in rows)
    jsonl.write_rows(folder / WITHOUT_TEACHER, rows)


def check_any_taught(rows: Sequence[AlignedCompletion | WithoutTeacher]) -> None:
    """Raise a UserError if there are training rows, but none with teacher distributions."""
    without = without_teacher(rows)
    if rows and len(without) == len(rows):
        raise UserError(
            f"the teacher can teach none of the {len(rows):,} rows ({in_words(reasons(without))}); `method='sequence'` "
            "learns its answers, whatever the tokenizers, and where there is no room, a longer distillation.max_length "
            "gives it"
        )


def with_teacher_wording(example: TrainingExample, style: str | None, teacher_style: str | None) -> TrainingExample:
    """An example in the student's style, with the exact completion text of the teacher's style.

    Both models have to complete the same bytes; styles differ in how they word the verification sentence.

    Args:
        example: The example in the data.
        style: The student's style; None for the example's style.
        teacher_style: The teacher's style; None for the example's style.
    """
    styled = replace(example, style=style or example.style)
    text = completion(replace(example, style=teacher_style or example.style))
    if styled.style != "sail":  # only this style keeps white space around an answer
        text = text.strip()
    return styled if completion(styled) == text else replace(styled, judgements=(), response=text)
