"""The verb `teacher-cache`: caches a teacher's distributions, for students with any tokenizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.cluster import RayOptions
from sailkit.data.exports import DROPPED, HELD_OUT
from sailkit.distillation.cache import (
    INDEX,
    SHARD_FORMAT,
    TEACHER_CACHE_STAGE,
    CacheReader,
    Shard,
    read_index,
    shard_name,
)
from sailkit.distillation.load import Maker, TeacherModelOptions, TeacherOptions, load_teacher, maker
from sailkit.distillation.records import TeacherExample, teacher_examples, unique_completions
from sailkit.distributed import Processes, process_group
from sailkit.errors import UserError, at_least_one
from sailkit.files import jsonl
from sailkit.labeling.label import SHARD_WAIT, read_shard
from sailkit.models.base import is_endpoint, is_vllm
from sailkit.prompts.sail import trained_style
from sailkit.prompts.styles import wording
from sailkit.records import TrainingExample
from sailkit.rendering.result import Result
from sailkit.training.tokenise import Prepared, held_out_of, prepare, read_data

if TYPE_CHECKING:
    from sailkit.distillation.teacher import Teacher


@dataclass(frozen=True)
class TeacherCache(Result):
    """A written teacher's cache; the figures are None while files of other machines are missing.

    Attributes:
        folder: The run folder.
        teacher: The teacher's name.
        n: Number of examples.
        pairs: Number of distinct pairs of prompt and completion.
        device: Device of the teacher; None for a server.
        dtype: Number format of the teacher; None for a server.
        missing_files: Files that other machines have not written yet.
        dropped: Number of examples that are left out, such as those that do not fit into the teacher's context.
        cut_tokens: Tokens of search results that were cut to fit.
        tokens: Number of positions with a distribution.
        entries_per_token: Mean number of tokens that a distribution lists.
        bytes_per_token: Bytes of the files for each position.
        tail: Mean probability that is not listed.
        loss: The teacher's cross-entropy per token.
        bytes: Total size of the files.
        files: Number of files.
    """

    folder: Path
    teacher: str
    n: int
    pairs: int
    device: str | None
    dtype: str | None
    missing_files: tuple[str, ...] = ()
    dropped: int | None = None
    cut_tokens: int | None = None
    tokens: int | None = None
    entries_per_token: float | None = None
    bytes_per_token: float | None = None
    tail: float | None = None
    loss: float | None = None
    bytes: int | None = None
    files: int | None = None

    @property
    def finished(self) -> bool:
        """Whether all files are written."""
        return not self.missing_files

    def open(self) -> CacheReader:
        """Open the cache to read its distributions."""
        return CacheReader.open(self.folder)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, as with `--json`."""
        names = ("teacher", "n", "pairs", "device", "dtype", "finished")
        about = {name: getattr(self, name) for name in names}
        if not self.finished:
            return {**about, "missing_files": list(self.missing_files)}
        figures = {name: value for name, value in vars(self).items() if name not in (*names, "folder", "missing_files")}
        return {**about, **figures, "cache": str(self.folder)}


@checked
def teacher_cache(
    *,
    teacher: str,
    data: list[str],
    out: Path,
    style: Literal["sail", "sail-fixed", "chat"] | None = None,
    max_length: int | None = None,
    top_k: Annotated[int, renamed("k")] = 64,
    top_p: float = 0.999,
    precision: Literal["float16", "float32"] = "float16",
    shard: str | None = None,
    shard_tokens: int = 65536,
    ray: Annotated[RayOptions, Parameter(name="*")] = RayOptions(),
    teacher_tokenizer: Path | None = None,
    options: Annotated[TeacherModelOptions, Parameter(name="*")] = TeacherModelOptions(),
) -> TeacherCache:
    """Cache a teacher's distributions over training data.

    Writes shards of log-probabilities, at each token of the data's completions, and their index to a run folder. The
    same command continues a stopped run. Under a launcher, each process computes a part.

    Args:
        teacher: A local model, vllm:MODEL, or a server that gives prompts' log-probabilities, endpoint:MODEL@BASE_URL.
        data: Run folders of build, whose held-out rows are read too, or files of training examples; repeated.
        out: The run folder.
        style: Style of the prompts; by default that of the teacher's training, else each row's style.
        max_length: Most tokens of a row; search results are shortened to fit. By default the teacher's context length.
        top_k: Most tokens to keep at each position.
        top_p: Keep the smallest set of tokens whose probabilities sum to this.
        precision: Number format of the log-probabilities.
        shard: Write only part I of N of the files, as I/N from 1/N to N/N; the last to finish writes the index.
        shard_tokens: Tokens of completions in a file; a resumed run repeats unfinished files.
        ray: Distribute the files over a Ray cluster.
        teacher_tokenizer: For an endpoint: a folder with the teacher's tokenizer.
        options: How to load and run the teacher.

    Returns:
        Counts, figures and the folder of the cache.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    part = read_shard(shard)
    at_least_one(top_k=top_k, shard_tokens=shard_tokens, max_length=max_length)
    if not 0 < top_p <= 1:
        raise UserError(f"`top_p` should be above 0 and at most 1, not {top_p}")
    if ray.enabled and is_vllm(teacher):
        raise UserError("`ray` is not for vLLM, whose engines would share GPUs; divide the files with `shard`")
    pool = ray.pool(shard=shard, max_requests=options.max_requests)
    with process_group() as processes:
        with_ray = pool is not None and processes.count > 1
        processes.raise_if_any("`ray` starts its own processes; leave out the launcher" if with_ray else None)
        with processes.raise_together():
            examples = read_data(data) + read_data(held_out_of(data), HELD_OUT)
            kept = (runs.setting_of(folder, "date") for folder in (out, *sorted(out.glob("shard-*-of-*"))))
            model = replace(options, date=options.date or next(filter(None, kept), None))
            tokenizer = str(teacher_tokenizer) if teacher_tokenizer else None
            loading = TeacherOptions(model, tokenizer, top_k, top_p, precision)
            reader = load_teacher(teacher, loading)
            described = reader.describe()
            shown = style or trained_style(described)
            date = described.get("date")
            loading = replace(loading, model=replace(model, date=date))  # the same on all machines
            if max_length is not None and max_length > reader.context:
                raise UserError(f"`max_length` {max_length}: {reader.name} takes {reader.context} tokens")
            prepared = render_for_teacher(examples, reader.tokenizer, max_length or reader.context, shown, date)
            every = teacher_examples(prepared)
            pairs = unique_completions(every)
            # All batches are planned before they are distributed or skipped, because the low bits of a value depend on
            # its batch: a run that is resumed, or divided among processes or machines, writes the same bytes.
            files = _files(pairs, reader.plan(pairs), shard_tokens)
            settings = {
                **described,
                "style": shown,
                "styles_sha256": jsonl.fingerprint(wording()),
                "max_length": max_length or reader.context,
                "k": top_k,
                "top_p": top_p,
                "precision": precision,
                "format": SHARD_FORMAT,
                "shard_tokens": shard_tokens,
                "data_sha256": jsonl.fingerprint([pair.key.hex() for pair in every]),
                "n": len(every),
                "pairs": len(pairs),
            }
        # A server gets `concurrency` requests at a time, so one process asks it.
        make = maker(processes, 1 if is_endpoint(teacher) else processes.count)
        if pool is not None:
            from sailkit.distillation import cluster

            make = cluster.maker(pool, teacher, loading)
        wait = SHARD_WAIT if part else 0
        with runs.open_shared_run(processes, out, TEACHER_CACHE_STAGE, settings, wait):
            if part is None:
                written = _write_files(processes, out, reader, pairs, files, range(len(files)), make)
                return _finish(processes, out, settings, prepared, files, written)
        # Each machine locks the folder of its part, so that no two do the same part; all files are in a common folder.
        index, count = part
        locked = out / f"shard-{index + 1}-of-{count}"
        with runs.open_shared_run(processes, locked, f"{TEACHER_CACHE_STAGE} shard", {**settings, "shard": shard}):
            written = _write_files(processes, out, reader, pairs, files, range(index, len(files), count), make)
        with runs.open_shared_run(processes, out, TEACHER_CACHE_STAGE, settings, wait):
            return _finish(processes, out, settings, prepared, files, written)


def render_for_teacher(
    examples: Sequence[TrainingExample],
    tokenizer: Any,
    max_length: int,
    style: str | None,
    date: str | None = None,
    *,
    may_be_empty: bool = False,
) -> Prepared:
    """Render examples for a teacher.

    Args:
        examples: The examples in the data.
        tokenizer: The teacher's tokenizer.
        max_length: Most tokens of a row, as in the cache's settings.
        style: Style of the prompts, as in the cache's settings; None for each example's style.
        date: The date, as in the cache's settings.
        may_be_empty: Whether to accept that no example fits.
    """
    styled = [replace(example, style=style) for example in examples] if style else examples
    return prepare(styled, tokenizer, max_length, date, may_be_empty=may_be_empty)


def _files(pairs: Sequence[TeacherExample], batches: Sequence[Sequence[int]], tokens: int) -> list[list[list[int]]]:
    """Divide batches among files of at most `tokens` tokens, with at least one batch each."""
    files: list[list[list[int]]] = []
    size = 0
    for batch in batches:
        own = sum(len(pairs[i].tokens) for i in batch)
        if not files or size + own > tokens:
            files.append([])
            size = 0
        files[-1].append(list(batch))
        size += own
    return files


def _write_files(
    processes: Processes,
    folder: Path,
    teacher: Teacher,
    pairs: Sequence[TeacherExample],
    files: Sequence[Sequence[Sequence[int]]],
    mine: Sequence[int],
    make: Maker,
) -> set[str]:
    """Write the files that do not exist yet, and return their names."""
    paths = {number: folder / shard_name(number) for number in mine}
    left: list[int] = []
    with processes.raise_together():
        if processes.is_main:
            for path in paths.values():
                for torn in folder.glob(f".{path.name}.*"):  # left by a run that was killed while writing
                    torn.unlink(missing_ok=True)
            left += (n for n in mine if not _is_written(paths[n], [pairs[i] for b in files[n] for i in b]))
    left = processes.broadcast(left)
    total, todo = (sum(len(batch) for n in numbers for batch in files[n]) for numbers in (mine, left))
    started, read = time.monotonic(), 0
    with runs.progress(f"asking {teacher.name}", total, total - todo) as tick:

        def done(batch: Sequence[TeacherExample]) -> None:
            nonlocal read
            read += sum(len(pair.inputs) for pair in batch)
            tick(len(batch), f"{read / (time.monotonic() - started):.0f} tokens/s")

        remaining = [[[pairs[i] for i in batch] for batch in files[number]] for number in left]
        with contextlib.closing(make(teacher, remaining, done)) as contents:
            for number, data in zip(left, contents, strict=True):
                with processes.raise_together():
                    if processes.is_main:
                        jsonl.write_atomic(paths[number], data)
    return {paths[number].name for number in left}


def _is_written(path: Path, pairs: Sequence[TeacherExample]) -> bool:
    if not path.exists():
        return False
    if Shard(path).keys != [pair.key for pair in pairs]:
        raise UserError(f"{path} holds other completions than planned; choose another `out`")
    return True


def _finish(
    processes: Processes,
    folder: Path,
    settings: dict[str, Any],
    prepared: Prepared,
    files: Sequence[Sequence[Sequence[int]]],
    written: set[str],
) -> TeacherCache:
    """Write the index, once all files exist; the result is that of the main process."""
    about: dict[str, Any] = {name: settings.get(name) for name in ("n", "pairs", "device", "dtype")}
    about["teacher"] = settings["model"]
    names = [shard_name(number) for number in range(len(files))]
    result = TeacherCache(folder, **about)
    with processes.raise_together():
        if processes.is_main:
            missing = tuple(name for name in names if not (folder / name).exists())
            figures: dict[str, Any] = {"missing_files": missing}
            result = replace(result, **(figures if missing else _write_index(folder, names, prepared, written)))
    return processes.broadcast(result)


def _write_index(folder: Path, names: Sequence[str], prepared: Prepared, written: set[str]) -> dict[str, Any]:
    """Write the index, and return the figures of the result."""
    index = [Shard(folder / name).index_row() for name in names]
    known = {row["file"]: row["sha256"] for row in (read_index(folder) if (folder / INDEX).exists() else ())}
    for row in index:
        if row["file"] not in written and known.get(row["file"], row["sha256"]) != row["sha256"]:
            raise UserError(f"{folder / row['file']}: damaged; remove that file and run the same command again")
    jsonl.write_rows(folder / DROPPED, prepared.dropped)
    jsonl.write_rows(folder / INDEX, index)
    sums = {name: sum(row[name] for row in index) for name in ("positions", "entries", "surprise", "tail", "bytes")}
    return {
        "dropped": len(prepared.dropped),
        "cut_tokens": prepared.cut_tokens,
        "tokens": sums["positions"],
        "entries_per_token": sums["entries"] / sums["positions"],
        "bytes_per_token": sums["bytes"] / sums["positions"],
        "tail": sums["tail"] / sums["positions"],
        "loss": sums["surprise"] / sums["positions"],
        "bytes": sums["bytes"],
        "files": len(index),
    }
