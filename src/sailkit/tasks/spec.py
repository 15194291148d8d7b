"""The schema of a task's YAML: data, labels, and the wordings of each protocol."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sailkit.errors import nearest
from sailkit.prompts.parse import tokens_of
from sailkit.stats.metrics import NOT_ANSWERED


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# YAML reads an unquoted 1 as a number, but an answer word is always text.
Word = Annotated[
    str, BeforeValidator(lambda v: str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v)
]


class EvidenceTable(_Spec):
    """A second table in the folder of the data, with a row for each search result and the text that it belongs to."""

    path: str
    key: str


class EvidenceFields(_Spec):
    """The fields of a row that hold its search results: a list with the fields of its entries, or columns of text.

    Without `body` the entries of the list are texts. `stance` is the field with the human judgement of what a result
    supports, and `stances` maps its values to labels; other values support no label. With `table`, the entries are the
    rows of a second table whose `key` is the text of the row.
    """

    # Left out of the task's fingerprint: runs of earlier versions resume, and the fingerprint of the data covers it.
    table: EvidenceTable | None = Field(default=None, exclude=True)
    list: str | None = None
    columns: tuple[str, ...] = ()
    body: str | None = None
    title: str | None = None
    url: str | None = None
    stance: str | None = None
    stances: dict[Word, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> EvidenceFields:
        if (self.list is None) == (not self.columns):
            raise ValueError("give either `list`, or one or several `columns`")
        if self.table and self.body is None:
            raise ValueError("`table` needs a `list` with the field of its text, `body`")
        if (self.columns or self.body is None) and (self.body or self.title or self.url or self.stance):
            raise ValueError("`title`, `url` and `stance` are fields of the entries of a `list` that have a `body`")
        return self


def _as_evidence(value: object) -> object:
    """Accept a column, or a list of columns, as evidence."""
    return {"columns": [value] if isinstance(value, str) else value} if isinstance(value, (str, list)) else value


class Fields(_Spec):
    """Names of a task's fields in the data; dots denote nested fields, such as `doc.claim`.

    Without an `id`, rows are numbered from 1. If `group` is the list of search results, rows whose search results
    share a sentence are one group.
    """

    id: str = "id"
    text: str
    label: str
    group: str | None = None
    evidence: Annotated[EvidenceFields | None, BeforeValidator(_as_evidence)] = None

    @property
    def groups_by_evidence(self) -> bool:
        """Whether rows whose search results overlap are one group."""
        return self.evidence is not None and self.group is not None and self.group == self.evidence.list

    def names(self) -> list[str | None]:
        """All fields that are read from a row."""
        evidence = self.evidence
        return [self.id, self.text, self.label, self.group, *((evidence.list, *evidence.columns) if evidence else ())]


class LabelFile(_Spec):
    """A CSV file with the label of each text in a folder."""

    path: str
    id: str
    label: str


class DataSpec(_Spec):
    """The layout of a data set: one table with fields, or a folder of text files with a label file.

    `source` states where to get data that do not come with the task. With `table`, the data are a folder, and this is
    its table of rows.
    """

    source: str | None = None
    file: str | None = None
    table: str | None = Field(default=None, exclude=True)  # as EvidenceFields.table
    fields: Fields | None = None
    folder: str | None = None
    label_file: LabelFile | None = None
    label_values: dict[Word, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_layout(self) -> DataSpec:
        if len({self.fields is None, self.folder is not None, self.label_file is not None}) > 1:
            raise ValueError("give either fields, or folder with label_file")
        evidence = self.fields.evidence if self.fields else None
        if evidence and evidence.table and not self.table:
            raise ValueError("fields.evidence.table: give the `table` of the rows too")
        return self


class LabelSpec(_Spec):
    """The answer word of a label in prompts and scores, and its synonyms in replies."""

    answer: Word
    also: tuple[Word, ...] = ()


class StepSpec(_Spec):
    """One model call: prompt, system text, and the token limit of the reply (by default the protocol's)."""

    prompt: str
    system: str = ""
    max_new_tokens: int | None = Field(default=None, ge=1)


class WordingSpec(_Spec):
    """The steps of a wording, and its differences from the protocol.

    `answers` and `also` replace the protocol's. With `train`, `build-task` writes training rows in this wording; a
    published wording is for evaluation only.
    """

    steps: tuple[Annotated[StepSpec, BeforeValidator(lambda v: {"prompt": v} if isinstance(v, str) else v)], ...] = (
        Field(min_length=1)
    )
    answers: dict[str, Word] = Field(default_factory=dict)
    also: dict[str, tuple[Word, ...]] = Field(default_factory=dict)
    train: bool = True


def _as_wording(value: object) -> object:
    """Accept a prompt, a list of steps, or one step as a wording.

    Next to `steps`, `system` and `max_new_tokens` are the defaults of all steps.
    """
    if not isinstance(value, dict):
        return {"steps": [value] if isinstance(value, str) else value}
    shared = {name: value[name] for name in StepSpec.model_fields if name in value}
    rest = {name: value[name] for name in value if name not in shared}
    steps = rest.get("steps", [{}])
    steps = [steps] if isinstance(steps, (str, dict)) else steps
    if isinstance(steps, list):
        each = ({"prompt": step} if isinstance(step, str) else step for step in steps)
        steps = [{**shared, **step} if isinstance(step, dict) else step for step in each]
    return {**rest, "steps": steps}


class ProtocolSpec(_Spec):
    """The wordings of one protocol; each is one prompt, or a sequence of prompts with `{previous}`."""

    wordings: dict[str, Annotated[WordingSpec, BeforeValidator(_as_wording)]]
    answers: dict[str, Word] = Field(default_factory=dict)
    also: dict[str, tuple[Word, ...]] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=16, ge=1)


class TaskSpec(_Spec):
    """The content of a task's YAML."""

    name: str
    about: str = ""
    data: DataSpec
    labels: dict[str, LabelSpec]
    default_labels: tuple[str, ...] = ()
    # The label of a claim that no search result decides; left out of the fingerprint as EvidenceFields.table is.
    undecided_label: str | None = Field(default=None, exclude=True)
    protocols: dict[str, ProtocolSpec]

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        if len(self.labels) < 2:
            raise ValueError("labels: at least two are needed")
        if taken := self.labels.keys() & NOT_ANSWERED:
            raise ValueError(f"labels: {taken.pop()!r} is what an answer without a label is called; use another name")
        _check_words([(label, (spec.answer, *spec.also)) for label, spec in self.labels.items()], "labels")
        uses: dict[str, Iterable[str]] = {
            "default_labels": self.default_labels,
            "undecided_label": filter(None, [self.undecided_label]),
            "data.label_values": self.data.label_values.values(),
        }
        if self.data.fields and self.data.fields.evidence:
            uses["data.fields.evidence.stances"] = self.data.fields.evidence.stances.values()
        if len({*self.default_labels}) < len(self.default_labels):
            raise ValueError("default_labels: a label is there twice")
        for where, names in uses.items():
            for name in names:
                if name not in self.labels:
                    raise ValueError(f"{where}: {name!r} is no label; {nearest(name, self.labels)}")
        for protocol, spec in self.protocols.items():
            if not spec.wordings:
                raise ValueError(f"protocols.{protocol}: no wordings")
            _check_answers(spec, self.labels, f"protocols.{protocol}")
            for name, wording in spec.wordings.items():
                where = f"protocols.{protocol}.wordings.{name}"
                _check_answers(wording, self.labels, where)
                for number, step in enumerate(wording.steps, start=1):
                    _check_fields(step, number, where)
        return self


def _check_answers(spec: ProtocolSpec | WordingSpec, labels: Iterable[str], where: str) -> None:
    for name in (*spec.answers, *spec.also):
        if name not in labels:
            raise ValueError(f"{where}: {name!r} is no label; {nearest(name, labels)}")
    answers = ((label, (word,)) for label, word in spec.answers.items())
    _check_words([*answers, *spec.also.items()], where)


# Probable misspellings of a field: {text }, {text.x}, {text!r}, {Text}. Other braces are text, as in JSON.
_FIELD_LIKE = re.compile(
    r"\{\s*(?:[A-Za-z_][\w.]*\s*|(?i:text|answers|evidence|previous|examples|reply_\d+)\b[^{}]*)\}"
)


def _check_fields(step: StepSpec, number: int, where: str) -> None:
    """Refuse an unknown or misspelt field, and a step whose prompt is the same for every item."""
    replies = ["previous", *(f"reply_{n}" for n in range(1, number))] if number > 1 else []
    known = ["text", "answers", "evidence", *replies] + (["examples"] if number == 1 else [])
    for text, fields in ((step.prompt, known), (step.system, ["answers"])):
        for match in _FIELD_LIKE.finditer(text):
            if match.group() not in (f"{{{field}}}" for field in fields):
                name = match.group().strip("{} ")
                what = f"the system text of step {number}" if text is step.system else f"step {number}"
                raise ValueError(f"{where}: {what} has no field {match.group()}; {nearest(name, fields)}")
    if not any(f"{{{field}}}" in step.prompt for field in ("text", *replies)):
        what = " or ".join(f"{{{field}}}" for field in ("text", *replies))
        raise ValueError(f"{where}: step {number} does not show the item: every item would get one prompt; add {what}")


def _check_words(words: Iterable[tuple[str, Sequence[str]]], where: str) -> None:
    """Refuse a word that stands for two labels, or that a text cannot tell from the word of another label."""
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for label, word in ((label, word) for label, its_words in words for word in its_words):
        if not tokens_of(word):
            raise ValueError(f"{where}: {word!r} of {label} has no letter or digit, and signs are not read")
        first, other = seen.setdefault(tokens_of(word), (word, label))
        if other != label and first.casefold() == word.casefold():
            raise ValueError(f"{where}: {word!r} stands for both {other} and {label}")
        if other != label:
            raise ValueError(
                f"{where}: {first!r} of {other} and {word!r} of {label} differ in signs alone, which are not read; "
                "use words of letters and digits"
            )


def explain(error: ValidationError) -> str:
    """Describe the first error of a task in one line: where, what, and how to fix it if that is known."""
    # A misspelt key also counts as missing; report the spelling, which the user can fix.
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    where = ".".join(map(str, first["loc"])) or "the file"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        keys = {key for spec in _Spec.__subclasses__() for key in spec.model_fields}
        close = difflib.get_close_matches(str(first["loc"][-1]), keys, n=1)
        message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
    elif first["type"] == "string_type":
        message = f"should be text, not {first['input']!r}; put it in quotes"
    return f"{where}: {message}"
