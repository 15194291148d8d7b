"""Each completion in the tokens of teacher and student, and the rows for which one of the two has none.

All of it is known from the tokenizers alone, so it is known before a teacher is loaded or asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.distillation.align import ByteStream, NotRepresentableError, Vocabulary, stream
from sailkit.distillation.records import TeacherExample, teacher_examples
from sailkit.distillation.teacher_cache import read_with
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.prompts.sail import completion
from sailkit.records import TrainingExample
from sailkit.training.tokenise import IGNORED, NO_TOKENS, Prepared

NO_ROOM = "the teacher has no room for it"
WITHOUT_TEACHER = "without_teacher.jsonl"  # rows that are learnt by cross-entropy alone, with the reason


@dataclass(frozen=True)
class AlignedCompletion:
    """A completion that both tokenizers represent.

    Attributes:
        pair: What the teacher reads.
        teacher: The completion in the teacher's tokens.
        student: In the student's.
    """

    pair: TeacherExample
    teacher: ByteStream
    student: ByteStream


@dataclass(frozen=True)
class WithoutTeacher:
    """A row that is learnt by cross-entropy alone.

    Attributes:
        id: The example's.
        reason: Why the teacher has nothing to say about it.
    """

    id: str
    reason: str


class TokenizerPair:
    """The tokenizers of teacher and student."""

    def __init__(
        self,
        teacher_tokenizer: Any,
        student_tokenizer: Any,
        max_length: int,
        style: str | None,
        date: str | None = None,
    ) -> None:
        """Prepare.

        Args:
            teacher_tokenizer: The teacher's.
            student_tokenizer: The student's.
            max_length: Tokens of a row as the teacher reads it.
            style: How the teacher is asked; None for each row's own style.
            date: For a chat template of the teacher's that reads the clock; today by default.

        Raises:
            UserError: The tokens of one of them do not stand for bytes.
        """
        self.teacher_tokenizer = teacher_tokenizer
        self.max_length, self.style, self.date = max_length, style, date
        self.teacher, self.student = Vocabulary(teacher_tokenizer), Vocabulary(student_tokenizer)

    @cached_property
    def same(self) -> bool:
        """Whether both have the same tokens, so that nothing needs to be aligned."""
        return self.teacher.fingerprint == self.student.fingerprint

    def tokenise(self, prepared: Prepared) -> list[AlignedCompletion | WithoutTeacher]:
        """Both sides of each row.

        Args:
            prepared: As the student reads it.
        """
        room, style, date = self.max_length, self.style, self.date
        read = read_with(prepared.examples, self.teacher_tokenizer, room, style, date, may_be_empty=True)
        pairs = {pair.name: pair for pair in teacher_examples(read)}
        dropped = {row["id"]: row["reason"] for row in read.dropped}
        found: list[AlignedCompletion | WithoutTeacher] = []
        for one, labels in zip(prepared.examples, prepared.labels, strict=True):
            if (pair := pairs.get(one.id)) is None:
                reason = f"teacher: {NO_TOKENS}" if dropped.get(one.id) == NO_TOKENS else NO_ROOM
                found.append(WithoutTeacher(one.id, reason))
                continue
            tokens = tuple(label for label in labels if label != IGNORED)
            # With the same tokens on both sides nothing is aligned, so it does not matter how they spell the text.
            text = None if self.same and tokens == pair.tokens else pair.completion
            try:
                side = "teacher"
                theirs = stream(self.teacher, pair.tokens, text)
                side = "student"
                found.append(AlignedCompletion(pair, theirs, stream(self.student, tokens, text)))
            except NotRepresentableError as error:
                found.append(WithoutTeacher(one.id, f"{side}: {error}"))
        return found


def without_teacher(rows: Sequence[AlignedCompletion | WithoutTeacher]) -> list[WithoutTeacher]:
    """Those of the rows that are without the teacher."""
    return [one for one in rows if isinstance(one, WithoutTeacher)]


def reasons(rows: Sequence[WithoutTeacher]) -> dict[str, int]:
    """How many rows are without the teacher, by reason, the most frequent first."""
    return dict(Counter(one.reason for one in rows).most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """Reasons and their counts, for people."""
    return "; ".join(f"{reason}: {count:,}" for reason, count in counts.items())


def notify(files: Mapping[str, Sequence[WithoutTeacher]]) -> None:
    """Tell the person at the terminal of rows without the teacher, file by file."""
    for name, rows in files.items():
        if rows:
            runs.notice(
                f"rows of {name} without the teacher, for cross-entropy alone: {len(rows):,} "
                f"({in_words(reasons(rows))}); {WITHOUT_TEACHER} lists them"
            )


def save(files: Mapping[str, Sequence[WithoutTeacher]], folder: Path) -> None:
    """Write `without_teacher.jsonl`."""
    rows = ({"file": name, **asdict(one)} for name, rows in files.items() for one in rows)
    jsonl.write_rows(folder / WITHOUT_TEACHER, rows)


def check_any_taught(rows: Sequence[AlignedCompletion | WithoutTeacher]) -> None:
    """Raise a UserError where there are training rows, and the teacher can teach none of them."""
    without = without_teacher(rows)
    if rows and len(without) == len(rows):
        raise UserError(
            f"the teacher can teach none of the {len(rows):,} rows ({in_words(reasons(without))}); `method='sequence'` "
            "learns its answers, whatever the tokenizers, and a longer distillation.max_length gives room"
        )


def with_teacher_wording(one: TrainingExample, style: str | None, teacher_style: str | None) -> TrainingExample:
    """An example in the student's style, with the very words that the teacher's style gives it.

    Args:
        one: As the data have it.
        style: The student's; None for its own.
        teacher_style: Likewise.
    """
    mine = replace(one, style=style or one.style)
    words = completion(replace(one, style=teacher_style or one.style))
    if mine.style != "sail":  # which alone keeps the white space around an answer
        words = words.strip()
    return mine if completion(mine) == words else replace(mine, judgements=(), response=words)
