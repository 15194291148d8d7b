"""Loads a teacher by its name, and computes the files of its cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sailkit.distillation.cache import pack
from sailkit.distillation.records import TeacherExample, TeacherRow
from sailkit.distributed import Processes
from sailkit.errors import UserError
from sailkit.models.base import Model, ModelOptions, is_endpoint, is_vllm

if TYPE_CHECKING:
    from sailkit.distillation.teacher import Teacher

File = Sequence[Sequence[TeacherExample]]  # its batches
Done = Callable[[Sequence[TeacherExample]], None]
# Yields the bytes of each file, in order: of the processes here, or of a cluster.
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
        name: A model as in evaluate, `vllm:MODEL`, or `endpoint:MODEL@BASE_URL`.
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
    if is_vllm(name):
        from sailkit.distillation.vllm_teacher import VllmTeacher

        return VllmTeacher(name, options.model, kept)
    from sailkit.models.local import LocalModel

    with _whole_weights():
        return LocalTeacher(LocalModel.from_name(name, options.model), kept)


def load_answering(name: str, options: ModelOptions) -> Model:
    """Load a teacher that writes answers; see `sailkit.models.load.load_model`."""
    from sailkit.models.load import load_model

    with _whole_weights():
        return load_model(name, options)


def _whole_weights() -> AbstractContextManager[None]:
    """A context in which every process of a launcher reads all weights and buffers.

    With FSDP's efficient loading, only the first process of a machine would.
    """
    from accelerate.utils import patch_environment

    context: AbstractContextManager[None] = patch_environment(fsdp_cpu_ram_efficient_loading="false")
    return context


def packed(teacher: Teacher, batches: File) -> bytes:
    """Compute the bytes of a file of the cache, from its planned batches."""
    rows = [row for batch in batches for row in teacher.rows(batch)]
    return pack([pair.key for batch in batches for pair in batch], rows)


def maker(processes: Processes, workers: int) -> Maker:
    """A function that yields the bytes of each file, in order, in all processes, and reports progress.

    Batches are divided among the processes, not files, because small data fill a single file.

    Args:
        processes: The processes of the launcher.
        workers: How many of them ask the teacher.
    """

    def make(teacher: Teacher, files: Sequence[File], done: Done) -> Generator[bytes, None, None]:
        batches = [batch for file in files for batch in file]
        computed = processes.map(teacher.rows, batches, workers)
        for file in files:
            rows: list[TeacherRow] = []
            for batch in file:
                rows += next(computed)
                done(batch)
            yield pack([pair.key for batch in file for pair in batch], rows)

    return make
