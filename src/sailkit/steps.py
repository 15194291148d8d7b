"""Read the steps of a pipeline from its recipe, check their arguments, and fingerprint everything they depend on."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

from cyclopts import App, CycloptsError

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.files.yaml_files import parse_yaml, read_yaml
from sailkit.rendering.result import to_json
from sailkit.signatures import for_command_line

Stage = Callable[..., Any]
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("about", "variables", "steps")


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: a stage with its arguments.

    Attributes:
        name: Its name in the recipe, also that of its folder.
        verb: The stage, as on the command line.
        stage: The function that runs.
        arguments: As in the recipe, with variables and folders of earlier steps filled in.
        out: The folder of the pipeline.
        folder: Its output folder; None for a stage that only prints.
        fingerprint: sha256 over everything that affects the result: stage, arguments, inputs and steps it reads.
    """

    name: str
    verb: str
    stage: Stage
    arguments: Mapping[str, Any]
    out: Path
    folder: Path | None
    fingerprint: str

    @cached_property
    def words(self) -> list[str]:
        """The arguments as words of a command line."""
        parameters = inspect.signature(self.stage).parameters
        positional: list[str] = []
        words: list[str] = []
        for name, value in self.arguments.items():
            flag = f"--{name.replace('_', '-')}"
            values = [f"{key}={entry}" for key, entry in value.items()] if isinstance(value, Mapping) else value
            texts = [str(entry) for entry in (values if isinstance(values, list) else [values])]
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            elif name in parameters and parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                positional += texts
            else:
                words += (word for text in texts for word in ([f"{flag}={text}"] if text[:1] == "-" else [flag, text]))
        return [*positional, *words]

    @property
    def command(self) -> str:
        """The step as a command line."""
        return shlex.join(["sailkit", self.verb, *self.words])

    @cached_property
    def bound(self) -> inspect.BoundArguments:
        """The arguments, converted to the types of the stage's parameters.

        Raises:
            UserError: An argument is unknown or missing, or a value has the wrong type.
        """
        app = App(name=self.verb, help_flags=(), version_flags=())
        app.default(for_command_line(self.stage))
        try:
            return app.parse_args(self.words, print_error=False, exit_on_error=False)[1]
        except CycloptsError as error:
            raise UserError(f"step {self.name}: {self.verb}: {' '.join(str(error).split())}") from None


def read_recipe(recipe: str | Path, out: Path, settings: Iterable[str], stages: Mapping[str, Stage]) -> list[Step]:
    """Read a pipeline's recipe, and check all arguments of all steps before any runs.

    Args:
        recipe: A YAML file with `steps`, and optionally `about` and `variables`.
        out: The folder of the pipeline; each step writes to the folder of its name in it.
        settings: Values that override variables, as NAME=VALUE.
        stages: Verb -> stage.

    Raises:
        UserError: A key, stage, argument or variable is unknown, or a value has the wrong type.
    """
    tree = read_yaml(recipe)
    if not isinstance(tree, dict) or not isinstance(tree.get("steps"), dict):
        raise UserError(f"{recipe}: not a pipeline; write  steps:  with one  NAME: {{STAGE: {{...}}}}  for each step")
    for key in tree.keys() - {*_KEYS}:
        raise UserError(f"{recipe}: unknown key {key!r}; {nearest(str(key), _KEYS)}")
    values = {**(tree.get("variables") or {}), **_settings(settings, tree.get("variables") or {})}
    values["here"] = str(Path(recipe).parent)
    steps: list[Step] = []
    for name, body in tree["steps"].items():
        where = f"{recipe}: step {name}"
        if not _NAME.fullmatch(str(name)) or name in values:
            raise UserError(f"{where}: a name is small letters, digits and _, and no variable's name")
        if not isinstance(body, dict) or len(body) != 1:
            raise UserError(f"{where}: write one stage with its arguments, as  {name}: {{evaluate: {{task: ...}}}}")
        ((verb, written),) = body.items()
        if verb not in stages:
            raise UserError(f"{where}: no stage {verb!r}; {nearest(str(verb), stages)}")
        steps.append(_step(name, verb, stages[verb], written or {}, values, out, steps, where))
    for step in steps:
        step.bound  # noqa: B018 - what cannot be bound is an error now, not after hours
    return steps


def _step(
    name: str, verb: str, stage: Stage, written: Mapping[str, Any], values: Mapping[str, Any], out: Path,
    earlier: list[Step], where: str,
) -> Step:  # fmt: skip
    folders = {step.name: str(step.folder) for step in earlier if step.folder}
    fingerprints = {step.name: step.fingerprint for step in earlier}
    arguments = _fill(written, {**values, **folders}, where)
    decides = _fill(written, {**values, **fingerprints, "here": ""}, where)
    inputs = {text: _content(Path(text)) for text in _texts(arguments) if not Path(text).is_relative_to(out)}
    folder = None
    if "out" in inspect.signature(stage).parameters:
        folder = out / name
        arguments.setdefault("out", str(folder))
    contents = sorted(content for content in inputs.values() if content)
    return Step(name, verb, stage, arguments, out, folder, jsonl.fingerprint([verb, decides, contents]))


def _settings(settings: Iterable[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or name not in variables:
            raise UserError(f"`set` {text!r}: write NAME=VALUE; {nearest(name, variables)}")
        chosen[name] = parse_yaml(value, f"`set` {text}")
    return chosen


def estimate(step: Step) -> dict[str, Any] | None:
    """Estimate a step: its missing input files, or the result of the stage's own dry run."""
    values = step.bound.arguments.values()
    given = chain.from_iterable(value if isinstance(value, (list, tuple)) else [value] for value in values)
    inputs = [value for value in given if isinstance(value, Path) and not value.is_relative_to(step.out)]
    if missing := [str(path) for path in inputs if not path.exists()]:
        return {"missing": missing}
    if "dry_run" not in step.bound.signature.parameters:
        return None
    try:
        needs: dict[str, Any] = to_json(step.stage(*step.bound.args, **{**step.bound.kwargs, "dry_run": True}))
    except UserError as error:  # its inputs do not exist before the earlier steps have run
        return {"not_yet": str(error)}
    return needs


def _fill(value: Any, values: Mapping[str, Any], where: str) -> Any:
    """Substitute variables and folders in all texts; a text that is only a variable takes the variable's type."""
    if isinstance(value, Mapping):
        return {key: _fill(entry, values, where) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, values, where) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$") and value[1:] in values:
        return values[value[1:]]
    try:
        return Template(value).substitute(values)
    except (KeyError, ValueError) as error:
        name = str(error.args[0])
        raise UserError(f"{where}: {value!r}: no such variable or earlier step; {nearest(name, values)}") from None


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(entry)


def _content(path: Path) -> str | None:
    """Fingerprint of an input: sha256 of a file and of the recipe it extends; names, sizes and times in a folder."""
    try:
        if path.is_file():
            base = read_yaml(path).get("extends") if path.suffix == ".yaml" else None
            return jsonl.file_fingerprint([path]) + (_content(path.parent / base) or "" if base else "")
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return jsonl.fingerprint(
                [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
            )
    except OSError:  # not a path (too long), or an unreadable folder
        pass
    return None
