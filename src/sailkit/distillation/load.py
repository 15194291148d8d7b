"""Loads a teacher by its name, and computes the files of its cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sailkit.distillation.cache import pack
from sailkit.distillation.records import TeacherExample
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions, is_endpoint

if TYPE_CHECKING:
    from sailkit.distillation.teacher import Teacher

File = Sequence[Sequence[TeacherExample]]  # its batches
Done = Callable[[Sequence[TeacherExample]], None]
# The bytes of each file, in order; here, or on a cluster.
Maker = Callable[["Teacher", Sequence[File], Done], Generator[bytes, None, None]]


@dataclass(frozen=True, kw_only=True)
class TeacherModelOptions(ModelOptions):
    """How to load and run a teacher, whose style decides whether its chat template is used.

    Attributes:
        dtype: Number format of the teacher; auto selects bfloat16 if the machine is faster in it.
        concurrency: Most requests at a time for each worker.
        api_key_env: Environment variable with the endpoint's key.
        trust_remote_code: Run code that the teacher's repository carries.
        date: The date, as YYYY-MM-DD, for chat templates that read the clock; today by default. A cache keeps its date.
    """

    chat: Annotated[Literal["auto", "on", "off"], Parameter(parse=False)] = "auto"


@dataclass(frozen=True)
class TeacherOptions:
    """How to load and query a teacher.

    Attributes:
        model: How to load and run it.
        tokenizer: The folder of an endpoint's tokenizer.
        k: See `sailkit.distillation.teacher.TopK`.
        top_p: See `TopK`.
        precision: See `TopK`.
    """

    model: ModelOptions
    tokenizer: str | None
    k: int
    top_p: float
    precision: str


def check_tokenizer(name: str, tokenizer: str | Path | None) -> None:
    """Raise a UserError for an endpoint without a tokenizer, or a local model with a separate one."""
    if is_endpoint(name) and tokenizer is None:
        raise UserError("an endpoint needs `teacher_tokenizer`, the folder of its model's tokenizer")
    if not is_endpoint(name) and tokenizer is not None:
        raise UserError("`teacher_tokenizer` goes with an endpoint; a model here has its own")


def load_teacher(name: str, options: TeacherOptions) -> Teacher:
    """Load a teacher, local or behind a server.

    Args:
        name: A model as in evaluate, or `endpoint:MODEL@BASE_URL`.
        options: How to load and query it.

    Raises:
        UserError: The teacher cannot be loaded, or does not support the options.
    """
    from sailkit.distillation.teacher import LocalTeacher, TopK

    check_tokenizer(name, options.tokenizer)
    kept = TopK(options.k, options.top_p, options.precision)
    if is_endpoint(name):
        from sailkit.distillation.server_teacher import ServerTeacher

        return ServerTeacher(name, options.model, Path(options.tokenizer or ""), kept)
    from sailkit.models.local import LocalModel

    return LocalTeacher(LocalModel.from_name(name, options.model), kept)


def packed(teacher: Teacher, batches: File, tick: Done = lambda _: None) -> bytes:
    """Compute the bytes of a file of the cache.

    Args:
        teacher: The teacher.
        batches: The planned batches of the file.
        tick: Called with each finished batch.
    """
    keys, rows = [], []
    for batch in batches:
        rows += teacher.rows(batch)
        keys += [pair.key for pair in batch]
        tick(batch)
    return pack(keys, rows)
