"""A teacher's cache in a student's tokens: compiled once for a pair of models, then read by every training step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.distillation.align import ByteStream, end_tokens
from sailkit.distillation.cache import CacheReader
from sailkit.distillation.completions import AlignedCompletion, TokenizerPair, WithoutTeacher
from sailkit.distillation.project import Projection, Target, collect
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, Targets, TeacherExample, TeacherRow
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.training.tokenise import IGNORED, Prepared

RULES = 1  # of alignment and projection; raise it when targets change


@dataclass(frozen=True)
class CompiledTargets:
    """The targets of a data set.

    Attributes:
        targets: A row for each example of the student's.
        figures: How much of the teacher's word arrived: see `coverage`.
    """

    targets: Targets
    figures: dict[str, Any]


class TargetCompiler:
    """From a cache to targets, for one pair of tokenizers."""

    def __init__(self, cache: CacheReader, teacher_tokenizer: Any, student_tokenizer: Any, min_mass: float) -> None:
        """Prepare.

        Args:
            cache: The teacher's.
            teacher_tokenizer: The tokenizer that it was made with.
            student_tokenizer: The student's.
            min_mass: See `Projection`.
        """
        self.cache = cache
        settings = cache.settings
        # The teacher has its own style; the words of the completion are the same in both.
        self.sides = TokenizerPair(
            teacher_tokenizer, student_tokenizer, settings["max_length"], settings["style"], settings.get("date")
        )
        self.min_mass = min_mass

    @property
    def same(self) -> bool:
        """Whether both have the same tokens, so that nothing needs to be aligned."""
        return self.sides.same

    def settings(self) -> dict[str, Any]:
        """What decides the targets besides the data."""
        made = runs.read_manifest(self.cache.folder)["fingerprint"]
        teacher, student = self.sides.teacher.fingerprint, self.sides.student.fingerprint
        sides = {"teacher_tokens": teacher, "student_tokens": student}
        return {"cache": made, **sides, "min_mass": self.min_mass, "rules": RULES}

    def compile(self, prepared: Prepared, file: Path, learn_from: Prepared | None = None) -> CompiledTargets:
        """The targets of a data set, read from a file that holds the same ones already, else written to it.

        Args:
            prepared: As the student reads it.
            file: Where they are kept.
            learn_from: The data from which the habits of the student's tokenizer are learnt; the same by default.

        Raises:
            UserError: A completion of the data set is not in the cache, which is left as it is.
        """
        learned = learn_from.fingerprint() if learn_from else None
        key = jsonl.fingerprint([self.settings(), prepared.fingerprint(), learned])
        if (found := _read(file, key)) is not None:
            return found
        rows = self._read(prepared)
        taught = [one for one in rows if isinstance(one, AlignedCompletion)]
        ends = end_tokens(self.sides.teacher_tokenizer, (one.teacher for one in taught))
        projection = Projection(self.sides.teacher, self.sides.student, ends, self.min_mass)
        if not projection.same:
            # What habits are learnt from need not be in the cache: the teacher's own answers may be there instead.
            known = rows if learn_from is None else self.sides.tokenise(learn_from)
            projection.learn((one.teacher, one.student) for one in known if isinstance(one, AlignedCompletion))
        aimed = array("d")  # probability that each target lists
        targets = collect(self._rows(projection, prepared, rows, aimed))
        without = len(rows) - len(taught)
        made = CompiledTargets(targets, {**_coverage(targets, aimed, taught), "rows_without_teacher": without})
        _write(file, key, made)
        return made

    def _rows(
        self,
        projection: Projection,
        prepared: Prepared,
        sides: Sequence[AlignedCompletion | WithoutTeacher],
        aimed: array[float],
    ) -> Iterator[list[Target]]:
        """The targets of each row; of the teacher's word no more than one row is held."""
        with runs.progress("aligning teacher and student", len(sides)) as tick:
            for one, example, labels in zip(sides, prepared.examples, prepared.labels, strict=True):
                if isinstance(one, WithoutTeacher):
                    row = [Target({}, 1.0, NONE)] * sum(label != IGNORED for label in labels)
                else:
                    row = projection.row(self._said(one.pair, example.id), one.teacher, one.student)
                aimed.extend(1 - target.tail for target in row if target.kind != NONE)
                yield row
                tick()

    def _read(self, prepared: Prepared) -> list[AlignedCompletion | WithoutTeacher]:
        """Both sides of each example."""
        rows = self.sides.tokenise(prepared)
        for one in rows:
            if isinstance(one, AlignedCompletion):
                self.cache.find(one.pair.prompt, one.pair.completion)  # now, and not after hours of aligning
        return rows

    def _said(self, pair: TeacherExample, name: str) -> TeacherRow:
        said = self.cache.get(pair.prompt, pair.completion)
        if tuple(said.tokens.tolist()) != pair.tokens:
            raise UserError(f"{self.cache.folder}: example {name!r} was tokenised in another way there")
        return said


def _coverage(targets: Targets, aimed: array[float], taught: Sequence[AlignedCompletion]) -> dict[str, Any]:
    """How much of the teacher's word arrived in the student's tokens.

    Returns:
        `positions`; the shares of them that are `aligned`, `conditioned` and without a target; `captured_mass`, the
        mean probability of what the targets list; `identical_tokens`, the share of the student's tokens that are the
        teacher's in bytes and place; and bytes of text in a token of each side.
    """
    kinds = np.bincount(targets.kind, minlength=3).tolist()
    bytes_ = sum(one.student.length for one in taught)
    theirs = sum(len(one.teacher.tokens) - 1 for one in taught)
    ours = sum(len(one.student.tokens) - 1 for one in taught)
    same = sum(len(_spans(one.teacher) & _spans(one.student)) for one in taught)
    positions = len(targets.kind)
    return {
        "positions": positions,
        "aligned": kinds[ALIGNED] / max(positions, 1),
        "conditioned": kinds[CONDITIONED] / max(positions, 1),
        "without_target": kinds[NONE] / max(positions, 1),
        "captured_mass": float(np.mean(np.asarray(aimed))) if aimed else None,
        "identical_tokens": same / max(ours, 1),
        "student_bytes_per_token": bytes_ / max(ours, 1),
        "teacher_bytes_per_token": bytes_ / max(theirs, 1),
    }


def _spans(one: ByteStream) -> set[tuple[int, int]]:
    """From where to where each token but the last reaches."""
    return set(zip(one.starts[:-1].tolist(), one.starts[1:].tolist(), strict=True))


def _write(file: Path, key: str, made: CompiledTargets) -> None:
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in vars(made.targets).items()}
    jsonl.write_atomic(file, save(tensors, metadata={"made": jsonl.dumps({"key": key, "figures": made.figures})}))


def _read(file: Path, key: str) -> CompiledTargets | None:
    from json import loads

    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "numpy") as opened:
            told = loads((opened.metadata() or {})["made"])
            if told["key"] != key:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return CompiledTargets(Targets(**tensors), told["figures"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # it is made again
