"""The results of evaluating and comparing groups of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sailkit.evaluation.figures import Baselines, Flag, Truth, flags_to_json
from sailkit.evaluation.flagging import Flagging
from sailkit.evaluation.results import Evaluation
from sailkit.files.tables import to_frame
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate
from sailkit.stats.seeds import SeedEstimate

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["better", "worse", "cannot tell"]
Measure = Literal["accuracy", "macro_f1", "balanced_accuracy"]


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """The figures of a group of runs.

    Attributes:
        name: The group's name.
        runs: The names of its runs.
        by_run: Figure -> its value in each run.
        figures: Figure -> its mean over the runs, with an interval over seeds and items.
        flagging: Mean agreement of the models' verdicts on search results with their labels; None without both.
    """

    name: str
    runs: tuple[str, ...]
    by_run: dict[str, tuple[float, ...]]
    figures: dict[str, Estimate]
    flagging: Flagging | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures, flat; `x_by_run` holds the values of figure `x`."""
        flat: dict[str, Any] = {"name": self.name, "runs": list(self.runs)}
        for name, estimate in self.figures.items():
            flat |= estimate.flat(name) | {f"{name}_by_run": list(self.by_run[name])}
        return flat | (self.flagging.flat() if self.flagging else {})


@dataclass(frozen=True, kw_only=True)
class EvaluationGroup(Result):
    """The models of several training seeds, each measured on the same task.

    Attributes:
        folder: The folder of the run folders; None if they are temporary.
        model: The name of the folder of the models.
        evaluations: The evaluation of each model.
        means: Mean figures with intervals over seeds and items; None without labels.
    """

    folder: Path | None
    model: str
    evaluations: tuple[Evaluation, ...]
    means: GroupFigures | None

    @property
    def figures(self) -> dict[str, Estimate]:
        """The mean figures with their intervals over seeds and items."""
        return self.means.figures if self.means else {}

    def to_json(self) -> dict[str, Any]:
        """The mean figures, flat, and the figures of each run."""
        means = self.means.to_json() if self.means else {}
        return {"model": self.model, "folder": self.folder and str(self.folder), **means,
                "evaluations": [evaluation.to_json() for evaluation in self.evaluations]}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """The difference between two groups of runs, or between two such differences.

    Attributes:
        a: Name of the first group.
        b: Name of the second group.
        seeds: Number of runs of each.
        paired: Whether the runs of both are of the same models, so that each run of a pairs with one of b.
        differences: Figure -> the mean of the first minus that of the second, with test and interval over seeds and
            items.
        by_run: Figure -> difference of each pair of runs; empty if the runs are not paired.
        p_value_holm: P-value of the deciding figure after Holm's adjustment for the number of differences.
        factors: Settings in which the groups differ, with both values.
        isolates: What the difference measures, if the groups differ in a single factor; else empty.
        flagging: Mean agreement of the models' verdicts on the search results of both groups with their labels; None
            unless these are the same models with other search results.
        verdict: `better`, `worse` (the first against the second) or `cannot tell`.
        verdict_text: The verdict as a sentence.
        remark: The figures that support the verdict.
    """

    a: str
    b: str
    seeds: tuple[int, int]
    paired: bool
    differences: dict[str, SeedEstimate]
    by_run: dict[str, tuple[float, ...]]
    p_value_holm: float = 1.0
    factors: dict[str, list[Any]]
    isolates: str
    flagging: Flagging | None = None
    verdict: Verdict = "cannot tell"
    verdict_text: str = ""
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """All attributes as flat JSON."""
        flat: dict[str, Any] = {"a": self.a, "b": self.b, "seeds": list(self.seeds), "paired": self.paired}
        for name, difference in self.differences.items():
            flat |= difference.estimate.flat(f"{name}_difference")
            flat |= {f"{name}_differences_by_run": list(self.by_run[name])} if name in self.by_run else {}
            flat |= {
                f"{name}_p_value": difference.p_value,
                f"{name}_minimum_detectable_difference": difference.detectable,
                f"{name}_seeds_needed": difference.seeds_needed,
            }
        flat |= self.flagging.flat() if self.flagging else {}
        after = ("p_value_holm", "factors", "isolates", "verdict", "verdict_text", "remark")
        return flat | {name: getattr(self, name) for name in after}


@dataclass(frozen=True, kw_only=True)
class GroupComparison(Result):
    """Two or more groups of runs, compared in pairs.

    Attributes:
        against: The data set's own labels (human), or those of a reference model.
        measure: The figure that decides the verdicts.
        n: Items that count.
        units: Number of groups of items, if the task declares them; None if each item is a unit.
        left_out: Items without a label that all runs share.
        groups: The figures of each group.
        baselines: Baselines on these items.
        pairs: The difference of each pair.
        interactions: Differences between what search results give two groups of models: evidence minus random of the
            first, minus the same of the second.
        flags: Reasons to doubt the verdicts.
    """

    against: Truth
    measure: Measure
    n: int
    units: int | None
    left_out: int
    groups: tuple[GroupFigures, ...]
    baselines: Baselines
    pairs: tuple[GroupDifference, ...]
    interactions: tuple[GroupDifference, ...] = ()
    flags: tuple[Flag, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the groups."""
        return tuple(group.name for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """All differences in `comparisons` and `interactions`; those of a single pair are also at the top level."""
        pairs = [pair.to_json() for pair in self.pairs]
        first = pairs[0] if len(pairs) == 1 else {}
        size = {"n": self.n, "left_out": self.left_out} | ({} if self.units is None else {"groups": self.units})
        return {
            **first,
            **size,
            "names": list(self.names),
            "against": self.against,
            "measure": self.measure,
            "run_groups": [group.to_json() for group in self.groups],
            **self.baselines.flat(""),
            "comparisons": pairs,
            "interactions": [difference.to_json() for difference in self.interactions],
            **flags_to_json(self.flags),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each pair: verdict, and a column for each figure and both ends of its interval."""
        return to_frame(pair.to_json() for pair in self.pairs)
