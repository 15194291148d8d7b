"""The files of a teacher's cache on a Ray cluster: each is made by one worker and written here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sailkit.cluster import Job, Pool
from sailkit.distill.load import TeacherOptions, load_teacher, packed
from sailkit.distill.pairs import Pair
from sailkit.models import ModelOptions

if TYPE_CHECKING:
    from sailkit.distill.teacher import Teacher


def packed_there(
    pool: Pool, name: str, options: TeacherOptions, teacher: Teacher, files: Sequence[Sequence[Sequence[Pair]]]
) -> Generator[bytes, None, None]:
    """The bytes of each file, in order.

    Args:
        pool: Where.
        name: The teacher's, as every node finds it.
        options: How to load and ask it.
        teacher: The same teacher as it is here; the nodes' must be its equal.
        files: What is left of the plan: the batches of each file.

    Raises:
        UserError: No cluster, no room on it, or what the teacher there raised.
    """
    job = Job("teacher", _load, {"name": name, "options": asdict(options)}, _pack)
    yield from pool.run(job, teacher, [[[asdict(pair) for pair in batch] for batch in file] for file in files])


def _load(setup: dict[str, Any]) -> Teacher:
    options = setup["options"]
    return load_teacher(setup["name"], TeacherOptions(**{**options, "model": ModelOptions(**options["model"])}))


def _pack(teacher: Teacher, file: list[list[dict[str, Any]]]) -> bytes:
    return packed(teacher, [[_pair(**row) for row in batch] for batch in file])


def _pair(name: str, prompt: list[int], tokens: list[int], completion: str) -> Pair:
    return Pair(name, tuple(prompt), tuple(tokens), completion)
