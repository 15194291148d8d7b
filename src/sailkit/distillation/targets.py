"""Compiles a teacher's cache into a file of targets: its distributions projected onto a student's tokens."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.distillation.align import ByteStream, end_tokens
from sailkit.distillation.cache import CacheReader
from sailkit.distillation.completions import AlignedCompletion, TokenizerPair, WithoutTeacher
from sailkit.distillation.project import Projection, RowTargets, collect, no_targets
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, Targets, TeacherExample, TeacherRow
from sailkit.distillation.workers import in_order, worker_count
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.training.tokenise import IGNORED, Prepared

ALIGNMENT_VERSION = 1  # version of alignment and projection; raise it when targets change


@dataclass(frozen=True)
class CompiledTargets:
    """The targets of a data set.

    Attributes:
        targets: One row for each example.
        figures: Coverage of the teacher's distributions; see `_coverage`.
    """

    targets: Targets
    figures: dict[str, Any]


class TargetCompiler:
    """Compiles targets from a cache, for one pair of tokenizers."""

    def __init__(
        self,
        cache: CacheReader,
        teacher_tokenizer: Any,
        student_tokenizer: Any,
        min_mass: float,
        workers: int | None = None,
    ) -> None:
        """Prepare both tokenizers.

        Args:
            cache: The teacher's cache.
            teacher_tokenizer: The tokenizer with which it was made.
            student_tokenizer: The student's.
            min_mass: See `Projection`.
            workers: Number of processes beside this one, which tokenise and project; by default none for few targets,
                else one for each core. The targets do not depend on it.
        """
        self.cache = cache
        self.workers = workers
        settings = cache.settings
        # Each model has its prompt style; the text of the completion is the same in both.
        self.tokenizers = TokenizerPair(
            teacher_tokenizer, student_tokenizer, settings["max_length"], settings["style"], settings.get("date")
        )
        self.min_mass = min_mass

    @property
    def same(self) -> bool:
        """Whether both have the same tokens, so that nothing needs to be aligned."""
        return self.tokenizers.same

    def settings(self) -> dict[str, Any]:
        """Everything besides the data that determines the targets."""
        cache = runs.read_manifest(self.cache.folder)["fingerprint"]
        teacher, student = self.tokenizers.teacher.fingerprint, self.tokenizers.student.fingerprint
        vocabularies = {"teacher_tokens": teacher, "student_tokens": student}
        return {"cache": cache, **vocabularies, "min_mass": self.min_mass, "rules": ALIGNMENT_VERSION}

    def compile(self, prepared: Prepared, file: Path, learn_from: Prepared | None = None) -> CompiledTargets:
        """Read the targets of a data set from the file if it holds them already, else compute and write them.

        Args:
            prepared: The rows in the student's rendering.
            file: File of the targets.
            learn_from: The data from which the habits of the student's tokenizer are learnt; by default the rows.

        Raises:
            UserError: A completion of the data set is not in the cache.
        """
        habits = learn_from.fingerprint() if learn_from else None
        key = jsonl.fingerprint([self.settings(), prepared.fingerprint(), habits])
        if (earlier := _read(file, key)) is not None:
            return earlier
        rows = self._tokenise(prepared)
        taught = [row for row in rows if isinstance(row, AlignedCompletion)]
        ends = end_tokens(self.tokenizers.teacher_tokenizer, (row.teacher for row in taught))
        projection = Projection(self.tokenizers.teacher, self.tokenizers.student, ends, self.min_mass)
        if not projection.same:
            # Rows for habits need not be cached, because the cache may hold the teacher's answers instead.
            pairs = rows if learn_from is None else self.tokenizers.tokenise(learn_from, self.workers)
            projection.learn_habits((row.teacher, row.student) for row in pairs if isinstance(row, AlignedCompletion))
        listed = array("d")  # probability of the tokens that each target lists
        targets = collect(self._rows(projection, prepared, rows, listed))
        without = len(rows) - len(taught)
        compiled = CompiledTargets(targets, {**_coverage(targets, listed, taught), "rows_without_teacher": without})
        _write(file, key, compiled)
        return _read(file, key) or compiled

    def _rows(
        self,
        projection: Projection,
        prepared: Prepared,
        rows: Sequence[AlignedCompletion | WithoutTeacher],
        listed: array[float],
    ) -> Iterator[RowTargets]:
        """The targets of each row; a few rows of the cache are in memory at a time."""
        taught = [
            (row, example.id)
            for row, example in zip(rows, prepared.examples, strict=True)
            if isinstance(row, AlignedCompletion)
        ]
        with (
            contextlib.closing(self._computed(projection, taught)) as computed,
            runs.progress("aligning teacher and student", len(rows)) as tick,
        ):
            for row, labels in zip(rows, prepared.labels, strict=True):
                if isinstance(row, WithoutTeacher):
                    targets = no_targets(sum(label != IGNORED for label in labels))
                else:
                    targets = next(computed)
                listed.frombytes((1 - targets.tail[targets.kind != NONE]).tobytes())
                yield targets
                tick()

    def _computed(self, projection: Projection, rows: list[tuple[AlignedCompletion, str]]) -> Generator[RowTargets]:
        """The targets of rows with their names, in order; each is computed from its own distributions alone."""

        def project(named: tuple[AlignedCompletion, str]) -> RowTargets:
            row, name = named
            return projection.targets(self._teacher_row(row.example, name), row.teacher, row.student)

        workers = self.workers
        if workers is None:
            workers = 0 if projection.same else worker_count(sum(len(row.student.tokens) for row, _ in rows))
        return in_order(project, rows, workers)

    def _tokenise(self, prepared: Prepared) -> list[AlignedCompletion | WithoutTeacher]:
        """Tokenise each example with both tokenizers, and check that it is cached before hours of alignment."""
        rows = self.tokenizers.tokenise(prepared, self.workers)
        for row in rows:
            if isinstance(row, AlignedCompletion):
                self.cache.find(row.example.prompt, row.example.completion)
        return rows

    def _teacher_row(self, example: TeacherExample, name: str) -> TeacherRow:
        row = self.cache.get(example.prompt, example.completion)
        if tuple(row.tokens.tolist()) != example.tokens:
            raise UserError(f"{self.cache.folder}: example {name!r} was tokenised in another way there")
        return row


def _coverage(targets: Targets, listed: array[float], taught: Sequence[AlignedCompletion]) -> dict[str, Any]:
    """The coverage of the teacher's distributions by the targets.

    Returns:
        `positions`; the shares of them that are `aligned`, `conditioned` and without a target; `captured_mass`, the
        mean probability of what the targets list; `identical_tokens`, the share of the student's tokens that are the
        teacher's in bytes and position; and the mean bytes per token of each model.
    """
    kinds = np.bincount(targets.kind, minlength=3).tolist()
    n_bytes = sum(row.student.length for row in taught)
    teacher_tokens = sum(len(row.teacher.tokens) - 1 for row in taught)
    student_tokens = sum(len(row.student.tokens) - 1 for row in taught)
    same = sum(len(_spans(row.teacher) & _spans(row.student)) for row in taught)
    positions = len(targets.kind)
    return {
        "positions": positions,
        "aligned": kinds[ALIGNED] / max(positions, 1),
        "conditioned": kinds[CONDITIONED] / max(positions, 1),
        "without_target": kinds[NONE] / max(positions, 1),
        "captured_mass": float(np.mean(np.asarray(listed))) if listed else None,
        "identical_tokens": same / max(student_tokens, 1),
        "student_bytes_per_token": n_bytes / max(student_tokens, 1),
        "teacher_bytes_per_token": n_bytes / max(teacher_tokens, 1),
    }


def _spans(stream: ByteStream) -> set[tuple[int, int]]:
    """Beginning and end in bytes of each token but the last."""
    return set(zip(stream.starts[:-1].tolist(), stream.starts[1:].tolist(), strict=True))


def _write(file: Path, key: str, compiled: CompiledTargets) -> None:
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in vars(compiled.targets).items()}
    jsonl.write_atomic(file, save(tensors, metadata={"made": jsonl.dumps({"key": key, "figures": compiled.figures})}))


def _read(file: Path, key: str) -> CompiledTargets | None:
    """Map a file of targets into memory, which the processes of a machine share; None if it does not hold them."""
    from json import loads

    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:  # tensors of torch are mapped, arrays of numpy would be copies
            header = loads((opened.metadata() or {})["made"])
            if header["key"] != key:
                return None
            tensors = {name: opened.get_tensor(name).numpy() for name in opened.keys()}  # noqa: SIM118
        return CompiledTargets(Targets(**tensors), header["figures"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # damaged, so compute it again
