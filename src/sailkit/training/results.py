"""The results of the verbs `finetune` and `merge`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate, read_estimates

HISTORY = "history.jsonl"
MODEL = "model"
_BASE, _TUNED = "base_", "tuned_"  # prefixes of held-out figures in JSON


@dataclass(frozen=True)
class TrainingRun(Result):
    """A finished training run.

    Attributes:
        folder: The run folder.
        base: The base model, as named in the recipe.
        about: The description in the recipe.
        dtype: Number format of training; None for old runs.
        device: `cpu` or `cuda`; None for old runs.
        rows: Number of training examples.
        dropped: Number of training examples left out.
        tokens: Tokens of one epoch.
        supervised_tokens: Supervised tokens of one epoch.
        cut_tokens: Tokens cut from search results to fit.
        headings_left: Lines of search results that look like headings of the prompt.
        held_out_rows: Number of held-out examples.
        processes: Number of processes.
        global_batch: Rows of an optimizer step.
        steps: Optimizer steps.
        best_step: The step whose weights were kept; None for the last.
        epochs: Passes over the data.
        seconds: Duration including evaluation; since the last resumption.
        tokens_per_second: Throughput of training, without evaluation.
        saved: The trained model's folder, as named when it was written.
        before: Held-out figures of the base: `loss`, `flagging_mcc` ...
        after: Held-out figures of the trained model.
        figures: Figures with an interval: `loss_change`, per supervised held-out token.
        pushed: The hub's URL of the model, if uploaded.
    """

    folder: Path
    base: str
    about: str
    dtype: str | None
    device: str | None
    rows: int
    dropped: int
    tokens: int
    supervised_tokens: int
    cut_tokens: int
    headings_left: int
    held_out_rows: int
    processes: int
    global_batch: int
    steps: int
    best_step: int | None
    epochs: float
    seconds: float
    tokens_per_second: float
    saved: str
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    pushed: str | None = None

    @property
    def model(self) -> Path:
        """The folder of the trained model; adapters if the recipe has lora."""
        return self.folder / MODEL

    @property
    def history(self) -> list[dict[str, Any]]:
        """The log history: a row for each logged step or evaluation."""
        path = self.folder / HISTORY
        return [row for _, row in jsonl.read_rows(path)] if path.exists() else []

    @classmethod
    def load(cls, folder: str | Path) -> TrainingRun:
        """Read a run folder.

        Raises:
            UserError: The run is not finished, or its files are damaged.
        """
        folder = Path(folder)
        if not (folder / runs.METRICS).exists():
            raise runs.not_finished(folder, "finetune")
        try:
            return cls.from_json(folder, jsonl.read_json(folder / runs.METRICS))
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder} does not hold what finetune writes ({type(error).__name__}: {error})") from None

    @classmethod
    def from_json(cls, folder: Path, values: Mapping[str, Any]) -> TrainingRun:
        """The inverse of `to_json`; fields that old runs lack are None."""
        return cls(
            folder,
            values["model"],
            **{name: cast("Any", values.get(name)) for name in _flat_names()},
            before={name.removeprefix(_BASE): value for name, value in values.items() if name.startswith(_BASE)},
            after={name.removeprefix(_TUNED): value for name, value in values.items() if name.startswith(_TUNED)},
            figures=read_estimates(values),
            pushed=values.get("pushed"),
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as one flat mapping, as in metrics.json and `--json`."""
        values = {"model": self.base} | {name: getattr(self, name) for name in _flat_names()}
        values = {name: value for name, value in values.items() if value is not None or name == "best_step"}
        values |= {_BASE + name: value for name, value in self.before.items()}
        values |= {_TUNED + name: value for name, value in self.after.items()}
        for name, estimate in self.figures.items():
            values |= estimate.flat(name)
        return values | ({} if self.pushed is None else {"pushed": self.pushed})


def _flat_names() -> list[str]:
    """Fields that have the same name in JSON."""
    others = ("folder", "base", "before", "after", "figures", "pushed")
    return [field.name for field in dataclasses.fields(TrainingRun) if field.name not in others]


@dataclass(frozen=True)
class TrainingPlan(Result):
    """The result of a dry run: steps, tokens, memory and time of a training run.

    Attributes:
        model: The base model, as named in the recipe.
        rows: Number of training examples.
        dropped: Number of examples that would be left out.
        dropped_rows: Their ids and reasons.
        tokens: Tokens of one epoch.
        supervised_tokens: Supervised tokens of one epoch.
        longest: Tokens of the longest row.
        cut_tokens: Tokens that would be cut from search results; None without a tokenizer.
        tokens_estimated: Whether tokens are estimated from words, for lack of a tokenizer.
        held_out_rows: Number of held-out examples.
        rows_per_step: Rows of an optimizer step.
        steps_per_epoch: Optimizer steps of an epoch.
        steps: Optimizer steps in all.
        epochs: Passes over the data.
        tokens_in_all: Tokens of all epochs.
        supervised_in_all: Supervised tokens of all epochs.
        parameters: Parameters of the model; this and the next three are None without its config.
        trainable_parameters: Trained parameters.
        memory: Bytes of a step by part; see `sailkit.training.memory.step_memory`.
        columns: Width of the output layer.
        seconds: Duration at the given throughput, or None.
        missing: Sentences on what is missing, for the estimate or for the run.
        device: The device that the memory is estimated for, `cpu` or `cuda`; None if it is not estimated.
        processes: Number of processes, each on a device of its own.
    """

    model: str
    rows: int
    dropped: int
    dropped_rows: list[dict[str, str]]
    tokens: int
    supervised_tokens: int
    longest: int
    cut_tokens: int | None
    tokens_estimated: bool
    held_out_rows: int
    rows_per_step: int
    steps_per_epoch: int
    steps: int
    epochs: float
    tokens_in_all: int
    supervised_in_all: int
    parameters: int | None = None
    trainable_parameters: int | None = None
    memory: dict[str, int] | None = None
    columns: int | None = None
    seconds: float | None = None
    missing: list[str] = field(default_factory=list)
    device: str | None = None
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        """The plan as `--json` writes it."""
        return {"dry_run": True, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class MergedModel(Result):
    """A model with its adapters merged in.

    Attributes:
        model: The model folder.
        base: The base model, as named by the adapters.
    """

    model: Path
    base: str

    def to_json(self) -> dict[str, Any]:
        """The result as `--json` writes it."""
        return {"model": str(self.model), "base": self.base}
