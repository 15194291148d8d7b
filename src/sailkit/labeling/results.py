"""What an audit wrote, read again: every figure that it should have is there and is a number."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.audit import AUDIT, BM25, STAGE
from sailkit.stats.intervals import Estimate

AUDIT_FIGURES = (
    "auroc", "balanced_accuracy", "kappa", "mcc", "precision_distracting", "recall_distracting", "brier", "ece",
)  # fmt: skip
Number = FiniteFloat | None


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class StratumFigures(_Record):
    """One labeler in one stratum; its figures are further fields."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number] = Field(init=False)
    labeler: str
    stratum: str
    n: int
    without_score: int
    informative_share: FiniteFloat
    majority_accuracy: FiniteFloat
    threshold: FiniteFloat
    default_threshold: Number

    @model_validator(mode="after")
    def _has_all_figures(self) -> StratumFigures:
        for name in AUDIT_FIGURES:
            for key in (name, f"{name}_low", f"{name}_high"):
                if key not in self.__pydantic_extra__:
                    raise ValueError(f"{key} is missing")
        if self.estimate("auroc") is None:
            raise ValueError("auroc has no value or no interval")
        return self

    def number(self, name: str) -> float | None:
        """A figure, or None where there is none."""
        return self.__pydantic_extra__.get(name)

    def estimate(self, name: str) -> Estimate | None:
        """A figure with its interval, or None where one of them is not known."""
        return _estimate(*(self.number(name + end) for end in ("", "_low", "_high")))


class Case(_Record):
    """A pair on which two labelers differ."""

    claim: str
    result: str
    human_share: FiniteFloat
    first: FiniteFloat
    second: FiniteFloat


class Difference(_Record):
    """Two labelers in one stratum: the second minus the first."""

    first: str
    second: str
    stratum: str
    auroc_difference: Number
    auroc_difference_low: Number
    auroc_difference_high: Number
    agreement_kappa: Number
    examples: list[Case]


class Gap(NamedTuple):
    """How much better one labeler is than another, and where they differ most."""

    auroc: Estimate | None
    kappa: float | None
    cases: list[tuple[Case, float, float]]

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0: cannot tell."""
        return 0 if self.auroc is None else int(self.auroc.low > 0) - int(self.auroc.high < 0)


class Audit(_Record):
    """What `sailkit audit` writes."""

    data: str
    data_sha256: str | None = None
    pairs_in_all: int
    claims: int
    left_out: dict[str, int]
    audits: list[StratumFigures] = Field(min_length=1)
    differences: list[Difference]
    human_kappa: Number
    labelers: dict[str, dict[str, Any]] = Field(min_length=1)
    machines: dict[str, dict[str, Any]] = {}
    claims_reported: int | None = None
    seed: int
    limit: int | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Audit:
        names = [BM25, *self.labelers]
        rows = {(row.labeler, row.stratum) for row in self.audits}
        couples = {(frozenset((d.first, d.second)), d.stratum) for d in self.differences}
        for stratum in self.strata:
            if lacking := [name for name in names if (name, stratum) not in rows]:
                raise ValueError(f"no figures of {lacking[0]!r} in stratum {stratum!r}")
            for pair in combinations(names, 2):
                if (frozenset(pair), stratum) not in couples:
                    raise ValueError(f"no difference of {pair[0]!r} and {pair[1]!r} in stratum {stratum!r}")
        return self

    @property
    def strata(self) -> list[str]:
        """Strata in order; the first is the one that a verdict is about."""
        return list(dict.fromkeys(row.stratum for row in self.audits))

    @property
    def ranked(self) -> list[str]:
        """Labelers, the one with the greatest AUROC in the first stratum first."""
        return sorted(self.labelers, key=lambda name: -(self.row(name, self.strata[0]).number("auroc") or 0))

    def row(self, name: str, stratum: str) -> StratumFigures:
        """The figures of a labeler."""
        return next(row for row in self.audits if (row.labeler, row.stratum) == (name, stratum))

    def gap(self, better: str, other: str, stratum: str) -> Gap:
        """One labeler minus another."""
        for d in self.differences:
            if {d.first, d.second} == {better, other} and d.stratum == stratum:
                found = (d.auroc_difference, d.auroc_difference_low, d.auroc_difference_high)
                if d.second == better:
                    return Gap(_estimate(*found), d.agreement_kappa, [(c, c.second, c.first) for c in d.examples])
                value, low, high = (None if x is None else -x for x in found)
                return Gap(_estimate(value, high, low), d.agreement_kappa, [(c, c.first, c.second) for c in d.examples])
        raise KeyError((better, other, stratum))


def _estimate(value: float | None, low: float | None, high: float | None) -> Estimate | None:
    return None if value is None or low is None or high is None else Estimate(value, low, high)


def is_audit(folder: Path) -> bool:
    """Whether a folder is that of an audit, finished or not."""
    begun = (folder / runs.MANIFEST).is_file() and runs.read_manifest(folder)["stage"] == STAGE
    return begun or (folder / AUDIT).is_file()


def read_audit(folder: Path) -> Audit:
    """Read what an audit found.

    Raises:
        UserError: The audit is not finished, or its file is damaged; the first fault is named.
    """
    path = folder / AUDIT
    if not path.exists():
        raise UserError(f"{folder} is not finished; run the same  sailkit audit  again, it goes on where it stopped")
    try:
        return Audit.model_validate(jsonl.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is not what sailkit audit writes: {where}: {what}; run the audit again") from None
