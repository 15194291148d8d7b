"""The results of the verbs `build` and `build-task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sailkit import runs
from sailkit.data.card import CARD
from sailkit.data.exports import HELD_OUT, TRAIN, read_row
from sailkit.files import jsonl
from sailkit.files.tables import to_frame
from sailkit.records import TrainingExample, Verdict
from sailkit.rendering.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainingData(Result):
    """Training data in a run folder.

    Attributes:
        folder: The run's folder.
        n_in: Number of input rows.
        n_train: Number of training rows.
        n_held_out: Number of held-out rows.
        n_dropped: Rows left out because they are unusable.
        n_removed: Rows left out because they contain an example of a task.
        judgements: Verdict -> number of search results in the training set.
        judgement_shares: Verdict -> share of search results; None without search results.
        flag_messages: Name of a flag -> sentences that say why to doubt the data.
        card: The whole data card, as in `card.json`: counts, lengths and settings.
    """

    folder: Path
    n_in: int
    n_train: int
    n_held_out: int
    n_dropped: int
    n_removed: int
    judgements: Mapping[Verdict, int]
    judgement_shares: Mapping[Verdict, float | None]
    flag_messages: Mapping[str, Sequence[str]]
    card: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_card(cls, folder: Path, card: Mapping[str, Any]) -> Self:
        """The result of a run with this data card."""
        names = [name for name in cls.__dataclass_fields__ if name not in ("folder", "card")]
        return cls(folder=folder, card=card, **{name: card[name] for name in names})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a finished run.

        Raises:
            UserError: The folder holds no such run, or it has not finished.
        """
        folder = Path(folder)
        runs.read_finished(folder, CARD, "build", "build-task")
        return cls.from_card(folder, jsonl.read_json(folder / CARD))

    @property
    def flags(self) -> list[str]:
        """Names of the reasons to doubt the data."""
        return list(self.flag_messages)

    def examples(self, *, held_out: bool = False) -> list[TrainingExample]:
        """The training examples, or the held-out ones."""
        path = self.folder / (HELD_OUT if held_out else TRAIN)
        return [read_row(row, f"{path}, line {line}") for line, row in jsonl.read_rows(path)]

    def to_json(self) -> dict[str, Any]:
        """The data card."""
        return dict(self.card)

    def to_frame(self) -> pd.DataFrame:
        """All rows, with a column `held_out`."""
        return to_frame(
            {**asdict(example), "held_out": held_out}
            for held_out in (False, True)
            for example in self.examples(held_out=held_out)
        )


@dataclass(frozen=True)
class BuiltTask(TrainingData):
    """Training data from the examples of a task.

    Attributes:
        claims: Number of groups of examples in the training set.
        labels: Rows of the training set by label.
        wording_auroc: AUROC of predicting the label from the words of the claim alone, out of fold, `of the claims`
            and `of the training rows`; None where it cannot be measured.
    """

    claims: int
    labels: Mapping[str, int]
    wording_auroc: Mapping[str, float | None]
