"""The inputs of a pipeline's step, as its arguments, its task and its training recipe name them."""

from __future__ import annotations

import contextlib
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from sailkit import runs
from sailkit.files import jsonl
from sailkit.files.hub import is_hub_name
from sailkit.files.yaml_files import read_yaml
from sailkit.packaged import recipe_path, sample_path
from sailkit.plugins import is_plugin, source_file, split_labelers
from sailkit.tasks.task import load_task
from sailkit.training.recipe import read_settings

_OUTPUTS = ("csv_out", "snapshot")  # arguments that name files the stage writes
_ON_THE_HUB = ("data", "instructions", "task")  # arguments that may name a data set of the hub
# Keys of a training recipe that name files, and those that may: the first are missing if they do not exist.
_TRAINING_DATA = ("data", "curriculum", "held_out", "teacher_outputs", "teacher_tokenizer")
_MODELS = ("model", "adapters", "teacher")
_SMALL = 2**20  # bytes


def inputs_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stage without the names of files that it writes; offline, a snapshot is read.

    Args:
        arguments: The arguments by name.
    """
    return {name: value for name, value in arguments.items() if name not in _OUTPUTS or arguments.get("offline")}


def texts_of(value: Any) -> Iterable[str]:
    """All texts in the value of an argument.

    Args:
        value: The value; its lists and mappings are searched too.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from texts_of(entry)


def words_of(value: Any) -> list[str]:
    """An argument as words of a command line; mappings are written as KEY=VALUE, and values other than texts as JSON.

    Args:
        value: The value of the argument.
    """
    if isinstance(value, Mapping):
        return [f"{key}={_word(entry)}" for key, entry in value.items()]
    return [_word(entry) for entry in (value if isinstance(value, list) else [value])]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def contents_of(
    arguments: Mapping[str, Any], stage: Callable[..., Any], out: Path, written_by: Mapping[str, str]
) -> list[Any]:
    """Fingerprints of the inputs of a step, as a JSON value.

    Args:
        arguments: The arguments as in the recipe, with variables filled in.
        stage: The function that runs.
        out: The folder of the pipeline.
        written_by: Absolute path of a file that an earlier step writes -> fingerprint of that step: what the file
            holds now may be of another run.

    Raises:
        UserError: The task or the training recipe is unknown or invalid.
    """

    def content(text: str) -> str | None:
        return written_by.get(os.path.abspath(text)) or content_of(text, out)

    hints = typing.get_type_hints(stage)
    inputs = [(name, text) for name, value in sorted(inputs_of(arguments).items()) for text in texts_of(value)]
    contents: list[Any] = [
        None if _is_choice(hints.get(name)) else content(str(recipe_path(text)) if name == "recipe" else text)
        for name, text in inputs
    ]
    given = {text for _, text in inputs}
    named = [(name, str(path)) for name, path in named_inputs(arguments, stage) if str(path) not in given]
    others = [(name, fingerprint) for name, text in named if (fingerprint := content(text))]
    return [*contents, others] if others else contents


def _is_choice(hint: Any) -> bool:
    """Whether a type has only a few texts, which then name no files."""
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    if typing.get_origin(hint) in (list, Union, types.UnionType):
        return all(map(_is_choice, members))
    return typing.get_origin(hint) is Literal


def named_inputs(arguments: Mapping[str, Any], stage: Callable[..., Any]) -> list[tuple[str, str | Path]]:
    """The inputs that the task and the training recipe of a step name, each with the key that names it.

    The content of a YAML file is not repeated: it covers the data file of a task.

    Args:
        arguments: The arguments as in the recipe, with variables filled in.
        stage: The function that runs.

    Raises:
        UserError: The task or the training recipe is unknown or invalid.
    """
    named: list[tuple[str, str | Path]] = []
    for text in words_of(arguments.get("exclude_task", [])):
        load_task(text.partition("=")[0])
    if "task" in arguments:
        name = str(arguments["task"])
        task = load_task(name)
        file = None if "data" in arguments or "data" not in typing.get_type_hints(stage) else task.spec.data.file
        if file and (is_plugin(name) or not (task.folder / file).is_file()):
            named.append(("task", task.folder / file))
    recipe = recipe_path(sample_path(arguments["recipe"])) if "recipe" in arguments else None
    if "set" in arguments or (recipe and recipe.is_file()):
        # As `finetune` and `distill` read it: arguments go first, and paths are relative to the working directory.
        changes = {key: arguments.get(key) for key in (*_TRAINING_DATA, *_MODELS)}
        read = recipe if recipe and recipe.is_file() else None
        settings = read_settings(read, changes, words_of(arguments.get("set", [])))
        named += [(key, text) for key in changes for text in texts_of(settings.get(key))]
    return named


def missing_inputs(
    arguments: Mapping[str, Any], converted: Mapping[str, Any], stage: Callable[..., Any], out: Path
) -> list[str]:
    """Input files and folders of a step that do not exist, except those in the pipeline's folder.

    Args:
        arguments: The arguments as in the recipe, with variables filled in.
        converted: The same in the types of the stage's parameters.
        stage: The function that runs.
        out: The folder of the pipeline.
    """
    given = [(name, value) for name, values in inputs_of(converted).items() for value in _listed(values)]
    paths = []
    for name, value in [*given, *named_inputs(arguments, stage)]:
        if isinstance(value, Path) or (isinstance(value, str) and name in (*_TRAINING_DATA, "instructions")):
            on_the_hub = name in _ON_THE_HUB and (isinstance(value, Path) or name == "instructions")
            path = recipe_path(sample_path(value)) if name == "recipe" else sample_path(value)
            if not os.path.exists(path) and not is_within(path, out) and not (on_the_hub and is_hub_name(path)):
                paths.append(str(value))
    return list(dict.fromkeys(paths))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def content_of(text: str, out: Path) -> str | None:
    """Fingerprint of an input outside the pipeline's folder; None if the text does not name one.

    It covers the bytes of a file or of a plug-in's source, and the names, sizes and times of the files in a folder,
    of a run folder the bytes of its small files.

    Args:
        text: The value of an argument, or a part of it.
        out: The folder of the pipeline.
    """
    if not text:
        return None
    parts = [labeler for part in text.split(",") for labeler in split_labelers(part)]
    with contextlib.suppress(OSError):  # too long for the name of a file
        if sources := [source for name in parts if (source := source_file(name))]:
            return jsonl.file_fingerprint(sources)
    # Such as `run-a,run-b`, `judge:MODEL` and `climate-fever=FILE`.
    names = [text] if len(parts) == 1 else parts
    names += [name for part in parts for mark in ":=" if (name := part.partition(mark)[2])]
    contents = {name: content for name in names if (content := _path_content(sample_path(name), out))}
    return contents.get(text) or (jsonl.fingerprint(contents) if contents else None)


def _path_content(path: Path, out: Path) -> str | None:
    """Fingerprint of a file or folder outside the pipeline's folder; None if there is none."""
    try:
        if is_within(path, out):
            return None
        if path.is_file():
            return jsonl.file_fingerprint(_with_named_files(path))
        if path.is_dir():
            return jsonl.fingerprint(_folder_content(path, out))
    except OSError:  # not a path (too long), or an unreadable folder
        pass
    return None


def _folder_content(folder: Path, out: Path) -> list[Any]:
    """Name, size and time of each file in a folder; of a run, content of small files: repeating it rewrites some."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not is_within(file, out))
    run_folders = {file.parent for file in files if file.name == runs.MANIFEST}
    content: list[Any] = []
    for file in files:
        name, stat = str(file.relative_to(folder)), file.stat()
        if file.parent not in run_folders:
            content.append((name, stat.st_size, stat.st_mtime_ns))
        elif file.name != runs.LOCK:
            small = stat.st_size <= _SMALL
            content.append((name, jsonl.file_fingerprint([file]) if small else (stat.st_size, stat.st_mtime_ns)))
    return content


def _with_named_files(path: Path) -> list[Path]:
    """A file; if it is YAML, also the recipe that it extends and the data file of its task."""
    files = [path]
    for file in files:  # grows while it is read
        tree = read_yaml(file) if file.suffix in (".yaml", ".yml") else None
        if isinstance(tree, dict):
            data = tree.get("data")
            names = (tree.get("extends"), data.get("file") if isinstance(data, dict) else None)
            named = [file.parent / name for name in names if isinstance(name, str)]
            files += [other for other in named if other.is_file() and other not in files]
    return files


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or in it.

    Args:
        path: The path.
        folder: The folder.
    """
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
