"""The results of `evaluate`, `rescore` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation.figures import Baselines, Flag, LabelFigures, Summary, Truth, flags_to_json
from sailkit.evaluation.flagging import Flagging
from sailkit.evaluation.predictions import load_run
from sailkit.files import jsonl
from sailkit.files.tables import to_frame
from sailkit.records import Prediction
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd

# Settings of the manifest that precede the figures in `metrics.json`.
SETTINGS = (
    "model", "task", "protocol", "wording", "answer", "search", "calibrate", "dtype", "device", "left_out",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation(Summary, Result):
    """A model measured on a task; see `Summary` for the figures.

    Attributes:
        folder: The run's folder, with `manifest.json`, `predictions.jsonl` and `metrics.json`.
        model: The model's name.
        task: The task's name.
        protocol: The protocol.
        wording: The protocol's wording.
        answer: `logprob` if the labels' answer words were scored, `generate` if an answer was generated.
        search: Which search results were shown: `evidence`, `near`, `random` or `none`.
        calibrate: Whether scores on an empty input were subtracted.
        dtype: Number format of the model; None if a server does not report it.
        device: Device of the model; None if a server does not report it.
        left_out: Number of data rows that were left out because of their labels.
    """

    folder: Path
    model: str
    task: str
    protocol: str | None
    wording: str | None
    answer: str | None
    search: str | None
    calibrate: bool | None
    dtype: str | None
    device: str | None
    left_out: int | None

    @cached_property
    def predictions(self) -> tuple[Prediction, ...]:
        """All answers, in the order of the data; read from the folder on first use."""
        return load_run(self.folder).predictions

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return {name: getattr(self, name) for name in SETTINGS} | super().to_json()

    def to_frame(self) -> pd.DataFrame:
        """The predictions as a pandas DataFrame, one row for each item.

        Raises:
            UserError: pandas is not installed.
        """
        names = ("id", "text", "gold", "reference", "label", "outcome", "answered_by")
        numbers = ("prompt_tokens", "completion_tokens", "cut_tokens")
        scored = any(p.scores for p in self.predictions)
        return to_frame(
            {name: getattr(p, name) for name in names}
            | ({f"score_{label}": p.scores.get(label) for label in self.labels} if scored else {})
            | {"raw_output": p.raw_output, "prompt": p.prompt, "group": p.group or None}
            | {name: getattr(p, name) for name in numbers}
            for p in self.predictions
        )

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read the evaluation of a run folder.

        Args:
            folder: The run's folder.

        Raises:
            UserError: The folder holds no finished evaluation.
        """
        folder = Path(folder)
        path = folder / runs.METRICS
        runs.read_finished(folder, path.name, "evaluate")
        flat = jsonl.read_json(path)
        settings: dict[str, Any] = {name: flat.get(name) for name in SETTINGS}
        try:
            return cls(folder=folder, **settings, **cls.fields_of(flat))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not the figures of an evaluation ({error!r}); evaluate again") from None


@dataclass(frozen=True, kw_only=True)
class Rescored(Result):
    """Recorded outputs parsed again, with the recorded and published figures.

    Attributes:
        name: The recording's name; None if published figures were checked without a recording.
        task: The task whose answer words were used.
        summary: Figures of the labels parsed again; None without a recording.
        recorded: Figures of the recorded predictions against the same labels; None if there are none.
        recorded_disagrees: Number of recorded predictions that differ from the parsed labels; None if there are none.
        published_f1_kinds: Kinds of F1 that equal a published F1 of unknown kind; None if none was given.
        flags: Reasons to doubt the recorded or published figures.
    """

    name: str | None = None
    task: str | None = None
    summary: Summary | None = None
    recorded: LabelFigures | None = None
    recorded_disagrees: int | None = None
    published_f1_kinds: tuple[str, ...] | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def figures(self) -> dict[str, Estimate]:
        """All figures with their intervals; `recorded_...` are those of the recorded predictions."""
        recorded = self.recorded.figures if self.recorded else {}
        again = self.summary.figures if self.summary else {}
        return again | {f"recorded_{name}": estimate for name, estimate in recorded.items()}

    def to_json(self) -> dict[str, Any]:
        """Figures and flags, flat."""
        flat: dict[str, Any] = {}
        if self.summary:
            flat |= {"name": self.name, "task": self.task} | self.summary.flat()
        if self.recorded:
            flat |= self.recorded.flat("recorded_")
        if self.recorded_disagrees is not None:
            flat["recorded_disagrees"] = self.recorded_disagrees
        if self.published_f1_kinds is not None:
            flat["published_f1_kind"] = "/".join(self.published_f1_kinds) or None
        return flat | flags_to_json(self.flags)


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """Two sets of predictions on the items that they share.

    Attributes:
        a: Name of the first set.
        b: Name of the second set.
        n: Items that count.
        groups: Number of groups, if groups are tested; None if items are.
        left_out: Items without a label that both sets share.
        both_right: Items that both have right.
        both_wrong: Items that neither has right.
        only_a: Items that only the first has right.
        only_b: Items that only the second has right.
        differences: Accuracy and macro-F1 of the first minus the second, with paired intervals.
        a_figures: Figures of the first set.
        b_figures: Figures of the second set.
        baselines: Baselines on these items.
        test: Name of the paired test.
        p_value: P-value of that test.
        p_value_holm: P-value after Holm's adjustment for the number of pairs.
        minimum_detectable_difference: The difference in accuracy that is detected with a power of 0.8.
        factors: Settings in which the runs differ, with both values.
        unknown_provenance: Set -> settings that it does not record.
        flagging: Verdicts on the search results of both sets against their labels; None without verdicts and labels, or
            if the sets are of different models.
        isolates: What the difference measures, if the runs differ in a single factor; else empty.
        reference_disagreements: Items on which the two sets have different reference labels.
        verdict: `better`, `worse` (the first against the second) or `cannot tell`.
        verdict_text: The verdict as a sentence.
        remark: The figures that support the verdict.
    """

    a: str
    b: str
    n: int
    groups: int | None
    left_out: int
    both_right: int
    both_wrong: int
    only_a: int
    only_b: int
    differences: dict[str, Estimate]
    a_figures: LabelFigures
    b_figures: LabelFigures
    baselines: Baselines
    test: str
    p_value: float
    p_value_holm: float
    minimum_detectable_difference: float
    factors: dict[str, list[Any]]
    unknown_provenance: dict[str, list[str]]
    isolates: str
    reference_disagreements: int
    flagging: Flagging | None = None
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    verdict_text: str = ""
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """All attributes as flat JSON."""
        differences: dict[str, float] = {}
        for name, estimate in self.differences.items():
            differences |= estimate.flat(f"{name}_difference")
        before = ("a", "b", "n", "both_right", "both_wrong", "only_a", "only_b", "test", "p_value")
        after = ("factors", "unknown_provenance", "isolates", "reference_disagreements", "left_out", "p_value_holm",
                 "verdict", "verdict_text", "remark")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in before},
            **({} if self.groups is None else {"groups": self.groups}),
            "minimum_detectable_difference": self.minimum_detectable_difference,
            **differences,
            **self.a_figures.flat("a_"),
            **self.b_figures.flat("b_"),
            **self.baselines.flat(""),
            **(self.flagging.flat() if self.flagging else {}),
            **{name: getattr(self, name) for name in after},
        }


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Two or more sets of predictions, compared in pairs.

    Attributes:
        names: The sets' names.
        against: The data set's own labels (human), or those of a reference model.
        pairs: The comparison of each pair.
        machines: Set -> the machine on which it ran; empty if that is not recorded.
        flags: Reasons to doubt the verdicts.
    """

    names: tuple[str, ...]
    against: Truth
    pairs: tuple[PairComparison, ...]
    machines: dict[str, str]
    flags: tuple[Flag, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All pairs in `comparisons`; the figures of a single pair are also at the top level."""
        pairs = [pair.to_json() for pair in self.pairs]
        first = pairs[0] if len(pairs) == 1 else {}
        about = {"names": list(self.names), "against": self.against, "comparisons": pairs, "machines": self.machines}
        return {**first, **about, **flags_to_json(self.flags)}

    def to_frame(self) -> pd.DataFrame:
        """A row for each pair: verdict, test, and a column for each figure and both ends of its interval."""
        return to_frame(pair.to_json() for pair in self.pairs)
