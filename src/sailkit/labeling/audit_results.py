"""The result of the verb `audit`: labelers measured against human judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailkit import runs
from sailkit.files.tables import to_frame
from sailkit.labeling.audit_file import AUDIT, read_audit_file
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StratumFigures:
    """The figures of one labeler in one stratum, on the half of the claims not used to choose its threshold.

    Attributes:
        labeler: The labeler's name, or that of the BM25 baseline.
        stratum: How gold labels are derived from votes; see `gold_labels`.
        n: Number of pairs.
        n_claims: Number of their claims; None in audits of earlier versions.
        without_score: Pairs of that half, in all strata, to which the labeler gave no score.
        informative_share: Share of the pairs that are informative.
        threshold: The threshold that was chosen on the other half of the claims.
        default_threshold: The labeler's own threshold; None for the baseline.
        majority_accuracy: Accuracy of always giving the more frequent judgement.
        figures: `auroc`, `balanced_accuracy`, `kappa`, `mcc`, `precision_distracting`, `recall_distracting`, `brier`,
            `ece`; at the default threshold `default_balanced_accuracy` and `default_kappa`; and `stance_auroc` (results
            that support against those that refute), of labelers that tell the two apart. None where undefined.
    """

    labeler: str
    stratum: str
    n: int
    n_claims: int | None
    without_score: int
    informative_share: float
    threshold: float
    default_threshold: float | None
    majority_accuracy: float
    figures: Mapping[str, Estimate | None]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> StratumFigures:
        """The inverse of `to_json`."""
        figures = {name: _estimate(row, name) for name in row if f"{name}_low" in row}
        names = [name for name in cls.__dataclass_fields__ if name != "figures"]
        return cls(**{name: row[name] for name in names}, figures=figures)

    def to_json(self) -> dict[str, Any]:
        """The row as it is written to `audit.json`."""
        row = asdict(self)
        del row["figures"]
        for name, estimate in self.figures.items():
            row |= _flat(estimate, name)
        return row


@dataclass(frozen=True)
class Disagreement:
    """A pair to which two labelers give different scores.

    Attributes:
        claim: The claim.
        result: The search result, shortened.
        human_share: Share of the votes that call the result informative.
        first: Score of the first labeler.
        second: Score of the second.
    """

    claim: str
    result: str
    human_share: float
    first: float
    second: float


@dataclass(frozen=True)
class LabelerDifference:
    """The difference of two labelers on the same pairs of one stratum.

    Attributes:
        first: Name of the first labeler.
        second: Name of the second.
        stratum: The stratum.
        auroc: AUROC of the second minus that of the first; None where undefined.
        agreement_kappa: Cohen's kappa of their verdicts.
        examples: The pairs whose scores differ most.
    """

    first: str
    second: str
    stratum: str
    auroc: Estimate | None
    agreement_kappa: float | None
    examples: tuple[Disagreement, ...]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LabelerDifference:
        """The inverse of `to_json`."""
        examples = tuple(Disagreement(**example) for example in row["examples"])
        auroc = _estimate(row, "auroc_difference")
        return cls(row["first"], row["second"], row["stratum"], auroc, row["agreement_kappa"], examples)

    def to_json(self) -> dict[str, Any]:
        """The row as it is written to `audit.json`."""
        return {
            "first": self.first,
            "second": self.second,
            "stratum": self.stratum,
            **_flat(self.auroc, "auroc_difference"),
            "agreement_kappa": self.agreement_kappa,
            "examples": [asdict(example) for example in self.examples],
        }

    @property
    def sign(self) -> int:
        """1 where the second labeler is better, -1 where the first is, 0 where the interval includes 0."""
        return 0 if self.auroc is None else self.auroc.sign

    def swapped(self) -> LabelerDifference:
        """The difference with first and second exchanged."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            auroc=self.auroc and Estimate(-self.auroc.value, -self.auroc.high, -self.auroc.low),
            examples=tuple(replace(example, first=example.second, second=example.first) for example in self.examples),
        )


@dataclass(frozen=True)
class Audit(Result):
    """Labelers measured against human judgements.

    Attributes:
        folder: The run's folder.
        data: The data set of the judgements.
        data_sha256: Fingerprint of its file.
        pairs: Number of scored pairs.
        claims: Number of their claims.
        claims_reported: Number of claims behind the figures; None in old files.
        left_out: Reason -> number of pairs left out.
        rows: The figures of each labeler, the BM25 baseline first, in each stratum.
        differences: Each pair of labelers in each stratum.
        human_kappa: Cohen's kappa of one annotator and the majority of the others; None if unknown.
        labelers: The description of each labeler.
        machines: `device` and `dtype` of each labeler's model, if it ran here.
        seed: Seed of the halves and the bootstrap.
        limit: Maximum number of claims; None for all.
    """

    folder: Path
    data: str
    data_sha256: str | None
    pairs: int
    claims: int
    claims_reported: int | None
    left_out: Mapping[str, int]
    rows: tuple[StratumFigures, ...]
    differences: tuple[LabelerDifference, ...]
    human_kappa: float | None
    labelers: Mapping[str, Mapping[str, Any]]
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Audit:
        """Read a finished audit.

        Raises:
            UserError: The audit has not finished, or its file is damaged; the first problem is named.
        """
        folder = Path(folder)
        path = folder / AUDIT
        if not path.exists():
            raise runs.not_finished(folder, "audit")
        content = read_audit_file(path)
        rows = tuple(map(StratumFigures.from_json, content.pop("audits")))
        differences = tuple(map(LabelerDifference.from_json, content.pop("differences")))
        return cls(folder, pairs=content.pop("pairs_in_all"), rows=rows, differences=differences, **content)

    @property
    def path(self) -> Path:
        """The file with all figures."""
        return self.folder / AUDIT

    def to_json(self) -> dict[str, Any]:
        """The content of `audit.json`, and where it is."""
        return {
            "data": self.data,
            "data_sha256": self.data_sha256,
            "pairs_in_all": self.pairs,
            "claims": self.claims,
            "left_out": dict(self.left_out),
            "audits": [row.to_json() for row in self.rows],
            "differences": [difference.to_json() for difference in self.differences],
            "human_kappa": self.human_kappa,
            "labelers": dict(self.labelers),
            "machines": dict(self.machines),
            "claims_reported": self.claims_reported,
            "seed": self.seed,
            "limit": self.limit,
            "audit": str(self.path),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each labeler and stratum, with a column for each figure and for both ends of its interval."""
        return to_frame(row.to_json() for row in self.rows)

    @property
    def figures(self) -> dict[str, dict[str, Mapping[str, Estimate | None]]]:
        """Labeler -> stratum -> name of a figure -> the figure."""
        figures: dict[str, dict[str, Mapping[str, Estimate | None]]] = {}
        for row in self.rows:
            figures.setdefault(row.labeler, {})[row.stratum] = row.figures
        return figures

    @property
    def strata(self) -> list[str]:
        """Strata in order; verdicts refer to the first."""
        return list(dict.fromkeys(row.stratum for row in self.rows))

    @property
    def ranked(self) -> list[str]:
        """Labelers without the baseline, by descending AUROC in the first stratum."""

        def auroc(name: str) -> float:
            estimate = self.row(name, self.strata[0]).figures["auroc"]
            return estimate.value if estimate else 0.0

        return sorted(self.labelers, key=auroc, reverse=True)

    def row(self, labeler: str, stratum: str) -> StratumFigures:
        """The figures of a labeler, or of the baseline (`BM25`), in a stratum."""
        return next(row for row in self.rows if (row.labeler, row.stratum) == (labeler, stratum))

    def difference(self, labeler: str, other: str, stratum: str) -> LabelerDifference:
        """The difference `labeler` minus `other` in a stratum."""
        for difference in self.differences:
            if {difference.first, difference.second} == {labeler, other} and difference.stratum == stratum:
                return difference if difference.second == labeler else difference.swapped()
        raise KeyError((labeler, other, stratum))


def _estimate(row: Mapping[str, Any], name: str) -> Estimate | None:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return None if value is None or low is None or high is None else Estimate(value, low, high)


def _flat(estimate: Estimate | None, name: str) -> dict[str, float | None]:
    return dict(estimate.flat(name)) if estimate else {name: None, f"{name}_low": None, f"{name}_high": None}
