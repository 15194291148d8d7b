"""Read `audit.json` and validate it: every figure is present and a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from sailkit.errors import UserError
from sailkit.files import jsonl

AUDIT = "audit.json"
JUDGEMENTS = "judgements.jsonl"  # the human judgement of each pair, in the order of the scores
BM25 = "bm25 score"  # name of the baseline, next to the labelers
AUDIT_FIGURES = (
    "auroc", "balanced_accuracy", "kappa", "mcc", "precision_distracting", "recall_distracting", "brier", "ece",
)  # fmt: skip
_OF_THE_MACHINE = {
    "dtype",
    "lean_pass",
    "batch_tokens",
}  # change the last digits of scores only
_Number = FiniteFloat | None


def score_folder(name: str) -> str:
    """The subfolder with a labeler's scores; it has the same name in every audit."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())[-40:].strip('-')}-{jsonl.fingerprint(name)[:6]}"


def names_in_audit(audit: Mapping[str, Any], labeler: Mapping[str, Any]) -> list[str]:
    """The names under which an audit lists a labeler: as the user gave it, such as `module:attribute`.

    Args:
        audit: The content of `audit.json`.
        labeler: The description of the labeler in a run of label.
    """
    name, given = labeler["labeler"], audit.get("labelers")
    described = given if isinstance(given, dict) else {name: {}}
    listed = {
        key: other for key, other in described.items()
        if isinstance(other, dict) and name in (key, other.get("labeler"))
    }  # fmt: skip
    return [key for key, other in listed.items() if not differing_facts(labeler, other)] or list(listed)


def differing_facts(labeler: Mapping[str, Any], audited: Mapping[str, Any]) -> list[str]:
    """What two descriptions of a labeler both have, but with other values; number formats may differ."""
    first, second = _portable(labeler), _portable(audited)
    return sorted(fact for fact in first.keys() & second.keys() if first[fact] != second[fact])


def unshared_facts(labeler: Mapping[str, Any], audited: Mapping[str, Any]) -> list[str]:
    """What only one of two descriptions of a labeler has."""
    return sorted(_portable(labeler).keys() ^ _portable(audited).keys())


def _portable(labeler: Mapping[str, Any]) -> dict[str, Any]:
    """A flat description without the facts of the machine."""
    facts = flat_description(labeler)
    return {fact: value for fact, value in facts.items() if fact.rpartition(": ")[2] not in _OF_THE_MACHINE}


def flat_description(labeler: Mapping[str, Any]) -> dict[str, Any]:
    """A description in which the facts of an ensemble's members are facts of their own, `MEMBER: FACT`.

    Args:
        labeler: The description; `members` of an ensemble holds theirs.
    """
    facts = {fact: value for fact, value in labeler.items() if fact != "members"}
    for member in labeler.get("members", ()):
        facts |= {f"{member['labeler']}: {fact}": value for fact, value in member.items() if fact != "labeler"}
    return facts


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class _Row(_Record):
    """The figures of one labeler in one stratum; those with an interval are extra fields."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Number] = Field(init=False)
    labeler: str
    stratum: str
    n: int
    n_claims: int | None = None  # absent in audits of earlier versions
    without_score: int
    informative_share: FiniteFloat
    majority_accuracy: FiniteFloat
    threshold: FiniteFloat
    default_threshold: _Number

    @model_validator(mode="after")
    def _has_all_figures(self) -> _Row:
        for name in AUDIT_FIGURES:
            for key in (name, f"{name}_low", f"{name}_high"):
                if key not in self.__pydantic_extra__:
                    raise ValueError(f"{key} is missing")
                if name == "auroc" and self.__pydantic_extra__[key] is None:
                    raise ValueError("auroc has no value or no interval")
        return self


class _Disagreement(_Record):
    claim: str
    result: str
    human_share: FiniteFloat
    first: FiniteFloat
    second: FiniteFloat


class _Difference(_Record):
    first: str
    second: str
    stratum: str
    auroc_difference: _Number
    auroc_difference_low: _Number
    auroc_difference_high: _Number
    agreement_kappa: _Number
    examples: list[_Disagreement]


class _AuditFile(_Record):
    data: str
    data_sha256: str | None = None
    pairs_in_all: int
    claims: int
    left_out: dict[str, int]
    audits: list[_Row] = Field(min_length=1)
    differences: list[_Difference]
    human_kappa: _Number
    labelers: dict[str, dict[str, Any]] = Field(min_length=1)
    machines: dict[str, dict[str, Any]] = {}
    claims_reported: int | None = None
    seed: int
    limit: int | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> _AuditFile:
        names = [BM25, *self.labelers]
        rows = {(row.labeler, row.stratum) for row in self.audits}
        differences = {(frozenset((d.first, d.second)), d.stratum) for d in self.differences}
        for stratum in dict.fromkeys(row.stratum for row in self.audits):
            if lacking := [name for name in names if (name, stratum) not in rows]:
                raise ValueError(f"no figures of {lacking[0]!r} in stratum {stratum!r}")
            for pair in combinations(names, 2):
                if (frozenset(pair), stratum) not in differences:
                    raise ValueError(f"no difference of {pair[0]!r} and {pair[1]!r} in stratum {stratum!r}")
        return self


def read_audit_file(path: Path) -> dict[str, Any]:
    """Read and check `audit.json`.

    Raises:
        UserError: The file is damaged; the first problem is named.
    """
    content = jsonl.read_json(path)
    try:
        return _AuditFile.model_validate(content).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is not what sailkit audit writes: {where}: {what}; run the audit again") from None
