"""Computes the files of a teacher's cache on a Ray cluster, one worker for each; they are written here."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sailkit.cluster import Job, Pool
from sailkit.distillation.load import Done, File, Maker, TeacherOptions, load_teacher, packed
from sailkit.distillation.records import TeacherExample
from sailkit.models.base import ModelOptions

if TYPE_CHECKING:
    from sailkit.distillation.teacher import Teacher


def maker(pool: Pool, name: str, options: TeacherOptions) -> Maker:
    """A function that yields the bytes of each file, in order, from a cluster, and reports progress.

    Args:
        pool: The workers.
        name: The teacher's name, which every node must be able to load.
        options: How to load and query it.
    """
    job = Job("teacher", _load, {"name": name, "options": asdict(options)}, _pack)

    def make(teacher: Teacher, files: Sequence[File], done: Done) -> Generator[bytes, None, None]:
        tasks = [[[asdict(pair) for pair in batch] for batch in file] for file in files]
        with contextlib.closing(pool.run(job, teacher, tasks)) as answers:
            for file, data in zip(files, answers, strict=True):
                yield data
                done([pair for batch in file for pair in batch])

    return make


def _load(setup: dict[str, Any]) -> Teacher:
    options = setup["options"]
    return load_teacher(setup["name"], TeacherOptions(**{**options, "model": ModelOptions(**options["model"])}))


def _pack(teacher: Teacher, file: list[list[dict[str, Any]]]) -> bytes:
    return packed(teacher, [[_pair(**row) for row in batch] for batch in file])


def _pair(name: str, prompt: list[int], tokens: list[int], completion: str) -> TeacherExample:
    return TeacherExample(name, tuple(prompt), tuple(tokens), completion)
