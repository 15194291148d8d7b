"""A task as its YAML states it: where the data are, what the labels are called, the wordings of each protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sailkit.errors import nearest
from sailkit.metrics import NOT_ANSWERED


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# YAML reads a bare true, no or 1 as something else; a label's word is always text.
Word = Annotated[
    str, BeforeValidator(lambda v: str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v)
]


class EvidenceFields(_Spec):
    """Where a row keeps its search results: a list field, and the fields of each entry.

    `stance` is the field that says what people found a result to speak for, `stances` which label each of its values
    is; any other value speaks for none.
    """

    list: str
    body: str
    title: str | None = None
    url: str | None = None
    stance: str | None = None
    stances: dict[Word, str] = Field(default_factory=dict)


class Fields(_Spec):
    """Names of the fields that hold what a task needs."""

    id: str
    text: str
    label: str
    group: str | None = None
    evidence: EvidenceFields | None = None


class LabelFile(_Spec):
    """A CSV beside a folder of texts that gives each text's label."""

    path: str
    id: str
    label: str


class DataSpec(_Spec):
    """How a data set is laid out: one table with fields, or a folder of text files with a label file."""

    file: str | None = None
    fields: Fields | None = None
    folder: str | None = None
    label_file: LabelFile | None = None
    label_values: dict[Word, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_layout(self) -> DataSpec:
        if len({self.fields is None, self.folder is not None, self.label_file is not None}) > 1:
            raise ValueError("give either `fields`, or `folder` with `label_file`")
        return self


class LabelSpec(_Spec):
    """The word that stands for a label in prompts and scores, and other words read as the same."""

    answer: Word
    also: tuple[Word, ...] = ()


class ProtocolSpec(_Spec):
    """The wordings of one way to ask; each is one prompt, or several in a row with `{previous}`."""

    wordings: dict[str, str | tuple[str, ...]]
    answers: dict[str, Word] = Field(default_factory=dict)
    also: dict[str, tuple[Word, ...]] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=16, ge=1)


class TaskSpec(_Spec):
    """A task as its YAML states it."""

    name: str
    about: str = ""
    data: DataSpec
    labels: dict[str, LabelSpec]
    default_labels: tuple[str, ...] = ()
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
            "data.label_values": self.data.label_values.values(),
        }
        if self.data.fields and self.data.fields.evidence:
            uses["data.fields.evidence.stances"] = self.data.fields.evidence.stances.values()
        for where, names in uses.items():
            for name in names:
                if name not in self.labels:
                    raise ValueError(f"{where}: {name!r} is no label; {nearest(name, self.labels)}")
        for protocol, spec in self.protocols.items():
            if not spec.wordings:
                raise ValueError(f"protocols.{protocol}: no wordings")
            for name in (*spec.answers, *spec.also):
                if name not in self.labels:
                    raise ValueError(f"protocols.{protocol}: {name!r} is no label; {nearest(name, self.labels)}")
            answers = ((label, (word,)) for label, word in spec.answers.items())
            _check_words([*answers, *spec.also.items()], f"protocols.{protocol}")
        return self


def _check_words(words: Iterable[tuple[str, Sequence[str]]], where: str) -> None:
    """Refuse a word that stands for two labels: it would be scored and read as whichever comes last."""
    seen: dict[str, str] = {}
    for label, word in ((label, word) for label, own in words for word in own):
        if (other := seen.setdefault(word.casefold(), label)) != label:
            raise ValueError(f"{where}: {word!r} stands for both {other} and {label}")
