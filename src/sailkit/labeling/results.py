"""The results of the verbs `label` and `fit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.tables import to_frame
from sailkit.labeling.labels_file import LABELS, open_labels, parse_judgements
from sailkit.prompts.thoughts import thought_is_open
from sailkit.records import Judgement, JudgementOutcome, Verdict
from sailkit.rendering.result import Result

if TYPE_CHECKING:
    import pandas as pd

FITTED = "fitted.json"
NO_SCORE = tuple(outcome for outcome in get_args(JudgementOutcome) if outcome != "judged")


@dataclass(frozen=True)
class Labeling(Result):
    """The judgements of one labeler on all search results, as `label` writes them.

    Attributes:
        folder: The run's folder.
        labeler: The labeler's name.
        threshold: Results with this score or a higher one are informative.
        n: Number of instructions.
        pairs: Number of their search results.
        missing_shards: Unfinished shards, numbered from 1; there are judgements only when all have finished.
        counts: Number of results that are `informative` or `distracting`, or that have no score because of
            `unreadable`, `refused`, `failed` or `no_response`.
        cut_tokens: Tokens of the results that the labeler did not read.
        flag_messages: Name of a flag -> sentences that say why to doubt the scores.
        machine: `device` and `dtype` of the model, if it ran here; not stored in the run folder.
    """

    folder: Path
    labeler: str
    threshold: float
    n: int
    pairs: int
    missing_shards: tuple[int, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    cut_tokens: int = 0
    flag_messages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> Labeling:
        """Read a finished run of `label`.

        Raises:
            UserError: The folder holds no such run, or it has not finished.
        """
        folder = Path(folder)
        settings, rows = open_labels(folder)
        judgements = (
            judgement for line, row in rows for judgement in parse_judgements(row, f"{folder / LABELS}, line {line}")
        )
        return cls.of_judgements(folder, settings, judgements)

    @classmethod
    def of_judgements(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        judgements: Iterable[Judgement],
        machine: Mapping[str, Any] | None = None,
    ) -> Labeling:
        """Count judgements.

        Args:
            folder: The run's folder.
            settings: The settings of its manifest.
            judgements: All judgements of the run.
            machine: See `Labeling`.
        """
        counts: Counter[str] = Counter()
        cut_tokens = read_from_text = open_thoughts = 0
        for judgement in judgements:
            counts[judgement.verdict or judgement.outcome] += 1
            cut_tokens += judgement.cut_tokens
            read_from_text += judgement.outcome == "judged" and judgement.raw_output is not None
            open_thoughts += thought_is_open(judgement.raw_output or "")
        return cls(
            folder,
            settings["labeler"]["labeler"],
            settings["threshold"],
            settings["n"],
            settings["pairs"],
            counts={name: counts[name] for name in (*get_args(Verdict), *NO_SCORE)},
            cut_tokens=cut_tokens,
            flag_messages=_flag_messages(settings["pairs"], read_from_text, open_thoughts),
            machine=machine or {},
        )

    @property
    def finished(self) -> bool:
        """Whether all results have been judged."""
        return not self.missing_shards

    @property
    def flags(self) -> list[str]:
        """Names of the reasons to doubt the scores."""
        return list(self.flag_messages)

    @property
    def path(self) -> Path:
        """The file with the judgements."""
        return self.folder / LABELS

    def to_json(self) -> dict[str, Any]:
        """Counts and the path of the labels, or the missing shards."""
        head = {**self.machine, "labeler": self.labeler, "n": self.n, "finished": self.finished}
        if not self.finished:
            return {**head, "missing_shards": list(self.missing_shards)}
        verdicts = {name: self.counts[name] for name in get_args(Verdict)}
        judged = sum(verdicts.values())
        return {
            **head,
            "pairs": self.pairs,
            "threshold": self.threshold,
            **verdicts,
            "informative_share": self.counts["informative"] / judged if judged else None,
            **{name: self.counts[name] for name in NO_SCORE},
            "flags": self.flags,
            "flag_messages": dict(self.flag_messages),
            "cut_tokens": self.cut_tokens,
            "labels": str(self.path),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each judgement: `id` of the instruction, `result` (its number, from 1), and the judgement."""
        _, rows = open_labels(self.folder)
        return to_frame(
            {"id": row["id"], "result": number, **entry}
            for _, row in rows
            for number, entry in enumerate(row["judgements"], start=1)
        )


def _flag_messages(pairs: int, read_from_text: int, open_thoughts: int) -> dict[str, list[str]]:
    messages: dict[str, list[str]] = {}
    if read_from_text:
        messages["read-from-text"] = [
            f"{read_from_text} of {pairs} judgements were read from a judge's text, as 1 or 0: the probabilities of "
            "the first token did not decide between the answer words, or were not given"
        ]
    if open_thoughts:
        messages["open-thoughts"] = [f"{open_thoughts} of {pairs} replies end within a thought, before any answer"]
    return messages


def fitted_on(folder: Path) -> list[dict[str, Any]]:
    """The data, seed and share of claims that a model was fitted on, and of those that its base was fitted on.

    Args:
        folder: The model's folder; empty for one that `fit` did not write.
    """
    if not (folder / FITTED).exists():
        return []
    record = jsonl.read_json(folder / FITTED)
    latest = {"data_sha256": record["data_sha256"], "seed": record["seed"], "share": record.get("share", 0.5)}
    return [latest, *record.get("base_fitted_on", [])]


@dataclass(frozen=True)
class FittedLabeler(Result):
    """A labeler that was trained on human judgements.

    Attributes:
        folder: The model's folder.
        data: The data set of the judgements.
        pairs: Number of training pairs.
        claims: Number of their claims.
        train_loss: Mean training loss.
        held_out_f1_macro: Macro-F1 of the three classes on the held-out claims, by which the checkpoint was chosen.
        device: The device of the training.
        dtype: Number format of the forward pass.
    """

    folder: Path
    data: str
    pairs: int
    claims: int
    train_loss: float
    device: str
    dtype: str
    held_out_f1_macro: float | None = None

    @classmethod
    def load(cls, folder: str | Path) -> FittedLabeler:
        """Read the folder of a fitted labeler.

        Raises:
            UserError: The folder holds no fitted labeler.
        """
        folder = Path(folder)
        if not (folder / FITTED).exists():
            raise UserError(f"{folder} is no model that  sailkit fit  wrote: it has no {FITTED}")
        record = jsonl.read_json(folder / FITTED)
        return cls(folder, **{item.name: record[item.name] for item in fields(cls) if item.name in record})

    @property
    def name(self) -> str:
        """The labeler's name, for `label` and `audit`."""
        return f"entailment:{self.folder}"

    def to_json(self) -> dict[str, Any]:
        """The record of the training, and the model's folder."""
        record = asdict(self)
        del record["folder"]
        return {**record, "model": str(self.folder)}
