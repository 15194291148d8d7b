"""Read the steps of a pipeline from its recipe, check their arguments, and fingerprint everything they depend on."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

from cyclopts import App, CycloptsError

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.files.yaml_files import parse_yaml, read_yaml
from sailkit.packaged import recipe_path
from sailkit.rendering.result import to_json
from sailkit.signatures import for_command_line
from sailkit.steps.inputs import contents_of, inputs_of, missing_inputs, texts_of, words_of

Stage = Callable[..., Any]
_PASSWORD = re.compile(r"://[^/@\s]*@")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("about", "needs", "variables", "steps")


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
            texts = words_of(value)
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            elif name in parameters and parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                positional += texts
            else:
                words += (word for text in texts for word in ([f"{flag}={text}"] if text[:1] == "-" else [flag, text]))
        return [*positional, *words]

    @property
    def files(self) -> list[str]:
        """The files that it writes outside its folder, as they are named in the recipe."""
        return [str(self.arguments[name]) for name in sorted(self.arguments.keys() - inputs_of(self.arguments).keys())]

    @property
    def written(self) -> list[str]:
        """Its folder and the files that it writes elsewhere."""
        return [str(self.folder), *self.files] if self.folder else self.files

    @property
    def missing(self) -> list[str]:
        """Its input files and folders that do not exist, except those in the pipeline's folder."""
        return missing_inputs(self.arguments, self.bound.arguments, self.stage, self.out)

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
        recipe: A YAML file with `steps`, and optionally `about`, `needs` and `variables`; or the name of one that comes
            with the package.
        out: The folder of the pipeline; each step writes to the folder of its name in it.
        settings: Values that override variables, as NAME=VALUE.
        stages: Verb -> stage.

    Raises:
        UserError: A key, stage, argument, variable or task is unknown, a value has the wrong type, or an address has a
            password.
    """
    recipe = recipe_path(recipe)
    tree = read_yaml(recipe)
    if not isinstance(tree, dict) or not isinstance(tree.get("steps"), dict):
        raise UserError(
            f"{recipe} is no pipeline: it has no steps, as  steps: {{NAME: {{STAGE: {{...}}}}}}; a training recipe is "
            "for sailkit finetune or sailkit distill"
        )
    for key in tree.keys() - {*_KEYS}:
        raise UserError(f"{recipe}: unknown key {key!r}; {nearest(str(key), _KEYS)}")
    variables = tree.get("variables") or {}
    if not isinstance(variables, dict) or "here" in variables:
        raise UserError(f"{recipe}: write  variables:  as  NAME: VALUE; $here is always the folder of the recipe")
    chosen = _settings(settings, variables)
    # The location of the recipe does not affect any result.
    values, decisive = ({"here": here} for here in (str(Path(recipe).parent), ""))
    for name, value in variables.items():
        for known in (values, decisive):
            known[name] = chosen[name] if name in chosen else _fill(value, known, f"{recipe}: variable {name}")
    steps: list[Step] = []
    for name, body in tree["steps"].items():
        where = f"{recipe}: step {name}"
        if not _NAME.fullmatch(str(name)) or name in values:
            raise UserError(f"{where}: choose a name of small letters, digits and _ that is no variable")
        if name == "earlier":
            raise UserError(f"{where}: that folder is for earlier versions of steps; choose another name")
        if not isinstance(body, dict) or len(body) != 1:
            raise UserError(f"{where}: write one stage with its arguments, as  {name}: {{evaluate: {{task: ...}}}}")
        ((verb, written),) = body.items()
        if verb not in stages:
            raise UserError(f"{where}: no stage {verb!r}; {nearest(str(verb), stages)}")
        if not isinstance(written or {}, dict) or not all(isinstance(key, str) for key in written or {}):
            raise UserError(f"{where}: write the arguments of {verb} as  {{NAME: VALUE}}")
        steps.append(_step(name, verb, stages[verb], written or {}, values, decisive, out, steps, where))
    for step in steps:
        step.bound  # noqa: B018 - raises
    return steps


def dependents(steps: Sequence[Step], changed: Iterable[Step]) -> list[Step]:
    """The steps that read what any of some steps write, directly or through others."""
    written = [path for step in changed for path in step.written]
    reading: list[Step] = []
    for step in steps:
        texts = [*texts_of(inputs_of(step.arguments))]
        if any(re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", text) for path in written for text in texts):
            reading.append(step)
            written += step.written
    return reading


def _step(
    name: str, verb: str, stage: Stage, written: Mapping[str, Any], values: Mapping[str, Any],
    decisive: Mapping[str, Any], out: Path, earlier: list[Step], where: str,
) -> Step:  # fmt: skip
    for step in earlier:
        if step.folder is None and re.search(rf"\${{?{step.name}\b", str(written)):
            raise UserError(f"{where}: step {step.name} ({step.verb}) writes no folder; name a step that does")
    folders = {step.name: str(step.folder) for step in earlier if step.folder}
    fingerprints = {step.name: step.fingerprint for step in earlier}
    arguments = _arguments(written, {**values, **folders}, where)
    decides = _arguments(written, {**decisive, **fingerprints}, where)
    # A file that an earlier step writes is known by that step: its content is that of another run.
    written_by = {os.path.abspath(path): step.fingerprint for step in earlier for path in step.files}
    if any(_PASSWORD.search(word) for value in arguments.values() for word in words_of(value)):
        raise UserError(f"step {name}: an address takes no user:password@, for it is written to files")
    try:
        contents = contents_of(arguments, stage, out, written_by)
    except (UserError, OSError) as error:  # the latter for a name that is too long
        raise UserError(f"{where}: {error}") from None
    folder = None
    if "out" in inspect.signature(stage).parameters:
        if "out" in arguments:
            raise UserError(f"{where}: a step writes to {out / name}; leave out the argument 'out'")
        folder = out / name
        arguments["out"] = str(folder)
    return Step(name, verb, stage, arguments, out, folder, jsonl.fingerprint([verb, decides, contents]))


def _settings(settings: Iterable[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or name not in variables:
            raise UserError(
                f"`set` {name!r}: write NAME=VALUE, NAME a variable of the recipe; {nearest(name, variables)}"
            )
        chosen[name] = parse_yaml(value, f"`set` {text}")
    return chosen


def position_of(steps: Sequence[Step], name: str | None) -> int | None:
    """The position of the step with a name; None without a name."""
    names = [step.name for step in steps]
    if name is not None and name not in names:
        raise UserError(f"no step {name!r}; {nearest(name, names)}")
    return None if name is None else names.index(name)


def estimate(step: Step) -> dict[str, Any] | None:
    """Estimate a step: its missing input files, or the result of the stage's own dry run."""
    if missing := step.missing:
        return {"missing": missing}
    if "dry_run" not in step.bound.signature.parameters:
        return None
    try:
        needs: dict[str, Any] = to_json(step.stage(*step.bound.args, **{**step.bound.kwargs, "dry_run": True}))
    except UserError as error:  # its inputs do not exist before the earlier steps have run
        return {"not_yet": str(error)}
    return needs


def check_inputs(steps: Sequence[Step]) -> None:
    """Raise a UserError if an input of any step is missing, so that no step runs for hours before it shows."""
    written = {path for step in steps for path in step.files}
    missing = {step.name: [path for path in step.missing if path not in written] for step in steps}
    if named := [f"step {name}: {', '.join(paths)}" for name, paths in missing.items() if paths]:
        raise UserError(f"missing inputs: {'; '.join(named)}; paths are relative to the working directory")


def _arguments(written: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a stage by parameter name; a null is dropped, so the default applies."""
    filled = {key.replace("-", "_"): _fill(value, values, where) for key, value in written.items()}
    return {key: value for key, value in filled.items() if value is not None}


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
    except ValueError:
        raise UserError(f"{where}: {value!r}: write $$ for a dollar sign, and $NAME for a variable or step") from None
    except KeyError as error:
        name = str(error.args[0])
        raise UserError(f"{where}: {value!r}: no such variable or earlier step; {nearest(name, values)}") from None
