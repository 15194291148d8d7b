"""Loads a task from YAML: examples, labels, and prompts that ask for a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sailkit import runs
from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.files.yaml_files import read_yaml
from sailkit.plugins import is_plugin, load_attribute
from sailkit.records import Example
from sailkit.tasks.rows import Examples, folder_rows, memory_rows, table_rows
from sailkit.tasks.spec import TaskSpec, explain

Half = Literal["first", "second"]
_SEEDS = 2**64  # of seed_for
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Question:
    """One protocol in one wording, for the labels in use.

    Attributes:
        protocol: `direct`, `fair`, `think-twice`, or a task's own.
        wording: The wording's name.
        steps: Prompt templates, one model call each, with `{text}`, `{evidence}`, `{answers}`, `{previous}`,
            `{reply_1}`, `{examples}`.
        systems: The system text of each step, or None.
        answers: Label -> its answer word, which is scored.
        words: Word -> label, for reading replies.
        new_tokens: Token limit of the reply of each step.
        train: Whether training rows may use this wording.
    """

    protocol: str
    wording: str
    steps: tuple[str, ...]
    systems: tuple[str, ...]
    answers: dict[str, str]
    words: dict[str, str]
    new_tokens: tuple[int, ...]
    train: bool = True

    @property
    def literals(self) -> list[Any]:
        """The parts of this question that a fingerprint of the prompts includes."""
        return [self.steps, self.answers, *([self.systems] if any(self.systems) else [])]

    @property
    def shows_examples(self) -> bool:
        """Whether the wording has a field for worked examples."""
        return any("{examples}" in step for step in self.steps)


@dataclass(frozen=True)
class Task:
    """A task ready for use.

    Attributes:
        spec: The content of the YAML.
        labels: The labels in use, in order.
        folder: The folder of the YAML, which relative data paths refer to.
    """

    spec: TaskSpec
    labels: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """The task's name."""
        return self.spec.name

    @property
    def groups_share_subject(self) -> bool:
        """Whether the examples of a group are about one subject: those whose search results overlap."""
        fields = self.spec.data.fields
        return fields is not None and fields.groups_by_evidence

    @property
    def stances(self) -> Mapping[Any, str]:
        """Human judgements of search results -> the label that such a result supports; empty without judgements."""
        fields = self.spec.data.fields
        return fields.evidence.stances if fields and fields.evidence else {}

    def question(self, protocol: str, wording: str | None = None) -> Question:
        """Pick a protocol and a wording (the first by default).

        Raises:
            UserError: Unknown protocol or wording, or a label in use has no answer in that protocol.
        """
        if protocol not in self.spec.protocols:
            raise UserError(f"task {self.name} has no protocol {protocol!r}; {nearest(protocol, self.spec.protocols)}")
        spec = self.spec.protocols[protocol]
        wording = wording or next(iter(spec.wordings))
        if wording not in spec.wordings:
            raise UserError(f"{self.name}/{protocol} has no wording {wording!r}; {nearest(wording, spec.wordings)}")
        chosen = spec.wordings[wording]
        # The answers of a wording replace those of its protocol, which replace those of the labels.
        source = chosen if chosen.answers else spec
        also = chosen.also if chosen.answers or chosen.also else spec.also
        if source.answers and (missing := [label for label in self.labels if label not in source.answers]):
            raise UserError(
                f"{self.name}/{protocol} has no answer for {', '.join(missing)}; use `label_set` or another `protocol`"
            )
        answers = {label: source.answers.get(label, self.spec.labels[label].answer) for label in self.labels}
        words = {word: label for label in self.labels for word in (answers[label], *also.get(label, ()))}
        if not source.answers:
            words |= self.words()
        return Question(
            protocol=protocol,
            wording=wording,
            steps=tuple(step.prompt for step in chosen.steps),
            systems=tuple(step.system for step in chosen.steps),
            answers=answers,
            words=words,
            new_tokens=tuple(step.max_new_tokens or spec.max_new_tokens for step in chosen.steps),
            train=chosen.train,
        )

    def words(self) -> dict[str, str]:
        """Word -> label, from the names of the labels, their answer words and synonyms."""
        table = {label.lower(): label for label in self.labels}
        for label in self.labels:
            spec = self.spec.labels[label]
            table |= dict.fromkeys((spec.answer, *spec.also), label)
        return table

    @cached_property
    def vocabularies(self) -> list[dict[str, str]]:
        """`words`, followed by the words of each wording with other answers."""
        vocabularies = [self.words()]
        for protocol, spec in self.spec.protocols.items():
            for wording in spec.wordings:
                answered = spec.wordings[wording].answers or spec.answers or self.labels
                labels = tuple(label for label in self.labels if label in answered)
                words = replace(self, labels=labels).question(protocol, wording).words
                if not words.items() <= vocabularies[0].items() and words not in vocabularies:
                    vocabularies.append(words)
        return vocabularies

    @cached_property
    def label_words(self) -> dict[str, str]:
        """Lower-case word -> label, for words with the same label in all vocabularies."""
        meanings: dict[str, set[str]] = {}
        for vocabulary in self.vocabularies:
            for word, label in vocabulary.items():
                meanings.setdefault(word.casefold(), set()).add(label)
        return {word: labels.pop() for word, labels in meanings.items() if len(labels) == 1}

    def load(self, data: str | Path | Examples | None = None) -> Dataset:
        """Read the task's examples.

        Args:
            data: File, folder or name on the hub (`OWNER/NAME[:SPLIT]`), by default from the YAML; or examples in
                memory, see `sailkit.tasks.rows.memory_rows`.

        Raises:
            UserError: The data are not given, missing, malformed or empty, an id occurs twice, or a label is unknown.
        """
        spec = self.spec.data
        if data is None:
            if spec.file is None:
                source = f"; get {spec.source}" if spec.source else ""
                raise UserError(f"task {self.name} does not carry its data{source}; say where they are with `data`")
            data = self.folder / spec.file
        if isinstance(data, (str, Path)):
            path = Path(data)
            rows = list(folder_rows(path, spec) if spec.folder else table_rows(path, spec))
        else:
            path = Path("`examples`")
            rows = list(memory_rows(data, spec))
        ids = jsonl.UniqueIds()
        for example, where in rows:
            ids.add(example.id, where)
            if example.label not in self.spec.labels:
                raise UserError(f"{where}: label {example.label!r} is not one of {', '.join(self.spec.labels)}")
        examples = [example for example, _ in rows if example.label in self.labels]
        if not examples:
            raise UserError(f"{path}: no examples with the labels {', '.join(self.labels)}")
        fingerprint = jsonl.fingerprint([asdict(example) for example, _ in rows])
        return Dataset(tuple(examples), len(rows) - len(examples), fingerprint)


@dataclass(frozen=True)
class Dataset:
    """The examples of a task whose labels are in use.

    Attributes:
        examples: The examples, in the order of the data.
        left_out: Number of examples whose labels are not in use.
        fingerprint: sha256 of all rows.
    """

    examples: tuple[Example, ...]
    left_out: int
    fingerprint: str


def in_first_half(name: str, seed: int) -> bool:
    """Whether a claim or group is in the half for selection, fitting and training, not in the half for reporting."""
    return runs.seed_for(seed, "half of the claims", name) % 2 == 0


def in_first_part(name: str, seed: int, share: float = 0.5) -> bool:
    """Whether a claim or group is in the first half, or among as many of the others as make it the share of all."""
    more = runs.seed_for(seed, "claims to fit on", name) / _SEEDS < 2 * share - 1
    return in_first_half(name, seed) or more


def in_half(example: Example, half: Half | None, first_share: float = 0.5) -> bool:
    """Whether an example is in a half of its data set; groups are never split, and the halves never change.

    Args:
        example: The example.
        half: The half; None for both.
        first_share: Share of the examples in the first half, from 0.5: it then takes some from the second.

    Raises:
        UserError: No such share, or a share without a half.
    """
    if not 0.5 <= first_share < 1:
        raise UserError(f"`first_share` should be from 0.5 to below 1, not {first_share}")
    if half is None and first_share != 0.5:
        raise UserError("`first_share` says how large the first half is: give `half`, too")
    return half is None or in_first_part(example.group, 0, first_share) == (half == "first")


def builtin_tasks() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _builtin_folder().iterdir() if p.name.endswith(".yaml"))


def _builtin_folder() -> Path:
    return Path(__file__).parent / "builtin"


def load_task(name: str | Path | Task, labels: Sequence[str] | None = None) -> Task:
    """Load a task by name, or from a YAML file.

    Args:
        name: A built-in task's name, a path that ends in `.yaml` or `.yml`, or `module:attribute` for a mapping of the
            same structure, whose files are relative to the working directory. A loaded task gets other labels.
        labels: The labels to use; `["all"]` for all; by default the task's default labels.

    Raises:
        UserError: Unknown name, unreadable or invalid YAML (the field is named), unknown label.
    """
    if isinstance(name, Task):
        return name if labels is None else replace(name, labels=_chosen_labels(name.spec, labels))
    content, folder = _read(str(name))
    try:
        spec = TaskSpec.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{_path_of(str(name))}: {explain(error)}") from None
    return Task(spec, _chosen_labels(spec, labels), folder)


def _read(name: str, extending: tuple[str, ...] = ()) -> tuple[Any, Path]:
    """The content of a task with that of the task it extends, and the folder that its data are relative to."""
    path = _path_of(name)
    content = load_attribute(name) if is_plugin(name) else read_yaml(path)
    if not isinstance(content, Mapping) or "extends" not in content:
        return content, path.parent
    base = content["extends"]
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: extends: should be the name of a task or the path of a .yaml file, not {base!r}")
    base = str(path.parent / base) if base.endswith(_SUFFIXES) else base
    resolved = str(path.resolve())
    if resolved in extending:
        raise UserError(f"{path}: extends: the tasks extend each other in a circle")
    inherited, folder = _read(base, (*extending, resolved))
    if not isinstance(inherited, Mapping):
        raise UserError(f"{_path_of(base)}: the file: expected the keys of a task")
    changed = {key: value for key, value in content.items() if key != "extends"}
    return {**inherited, **changed}, path.parent if "data" in changed else folder


def _path_of(name: str) -> Path:
    if name.endswith(_SUFFIXES) or is_plugin(name):
        return Path(name)
    if name not in builtin_tasks():
        raise UserError(
            f"no task {name!r}: {nearest(name, builtin_tasks())}; your own is a path to a .yaml file, or "
            "module:attribute"
        )
    return _builtin_folder() / f"{name}.yaml"


def _chosen_labels(spec: TaskSpec, labels: Sequence[str] | None) -> tuple[str, ...]:
    if labels is None:
        chosen = spec.default_labels or tuple(spec.labels)
    elif list(labels) == ["all"]:
        chosen = tuple(spec.labels)
    else:
        for label in labels:
            if label not in spec.labels:
                raise UserError(f"task {spec.name} has no label {label!r}; {nearest(label, spec.labels)}")
        chosen = tuple(label for label in spec.labels if label in labels)
    if len(chosen) < 2:
        raise UserError(f"task {spec.name}: choose at least two labels")
    return chosen
