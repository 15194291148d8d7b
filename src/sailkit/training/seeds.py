"""The result of training with several seeds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering import model
from sailkit.rendering.model import Cell, Group, Report, Row, Table, Text
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate
from sailkit.stats.seeds import mean_over_seeds
from sailkit.training.facts import FIGURE_TITLES
from sailkit.training.recipe import Recipe
from sailkit.training.results import TrainingRun


@dataclass(frozen=True)
class TrainingGroup(Result):
    """Training runs that differ only in their seed.

    Attributes:
        folder: The folder of the run folders.
        runs: The finished runs, by seed.
    """

    folder: Path
    runs: tuple[TrainingRun, ...]

    @property
    def models(self) -> tuple[Path, ...]:
        """The folders of the trained models."""
        return tuple(run.model for run in self.runs)

    @property
    def before(self) -> dict[str, float]:
        """Held-out figures of the base, the same for every seed."""
        return dict(self.runs[0].before)

    @property
    def after(self) -> dict[str, Estimate]:
        """Held-out figures of the trained models: the mean over the seeds; the interval is over seeds alone."""
        names = [name for name in self.runs[0].after if all(run.after.get(name) is not None for run in self.runs)]
        return {name: mean_over_seeds([run.after[name] for run in self.runs], *_range(name)) for name in names}

    @classmethod
    def load(cls, folder: str | Path) -> TrainingGroup:
        """Read the folder of a group.

        Raises:
            UserError: It holds no runs, or one is not finished.
        """
        folders = seed_folders(Path(folder))
        if not folders:
            raise UserError(f"{folder} has no runs of  sailkit finetune --seeds  (folders seed-0, seed-1 ...)")
        return cls(Path(folder), tuple(map(TrainingRun.load, folders)))

    def to_json(self) -> dict[str, Any]:
        """The mean figures, and the figures of each run."""
        flat: dict[str, Any] = {"folder": str(self.folder), "seeds": [run.folder.name for run in self.runs]}
        flat |= {f"base_{name}": value for name, value in self.before.items()}
        for name, estimate in self.after.items():
            flat |= estimate.flat(f"tuned_{name}") if len(self.runs) > 1 else {f"tuned_{name}": estimate.value}
        return flat | {"runs": [run.to_json() for run in self.runs]}

    def report(self) -> Report:
        """Held-out figures before and after training: the mean over seeds, and each seed."""
        table = self.table()
        return model.short(
            f"{self.runs[0].base}, {len(self.runs)} seeds",
            f"{self.runs[0].steps} steps on {self.runs[0].rows} examples each",
            *([table] if table else []),
            Text(f"models: {', '.join(str(path) for path in self.models)}"),
        )

    def table(self) -> Table | None:
        """Held-out figures before and after training; None without held-out rows."""
        after = self.after
        rows = [
            Row(
                title,
                [
                    Cell(self.before.get(name)),
                    Cell(after[name] if len(self.runs) > 1 else after[name].value),
                    *(Cell(run.after.get(name)) for run in self.runs),
                ],
            )
            for name, title in FIGURE_TITLES.items()
            if name in after
        ]
        names = [run.folder.name for run in self.runs]
        columns = ["before", "after (mean)", *names]
        return Table(columns, [Group("held out, 95 % interval over seeds", rows)]) if rows else None


def seed_folders(folder: Path) -> list[Path]:
    """The run folders of a group, by seed."""
    folders = [path for path in folder.glob("seed-*") if path.name.removeprefix("seed-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("seed-")))


def is_group(folder: Path) -> bool:
    """Whether a folder holds training runs of several seeds."""
    return any(runs.setting_of(path, "recipe") is not None for path in seed_folders(folder))


def _range(figure: str) -> tuple[float, float]:
    """The least and the largest value of a held-out figure."""
    if figure.endswith("loss"):
        return 0.0, math.inf
    if figure.endswith("_mcc"):
        return -1.0, 1.0
    shares = ("_accuracy", "_macro_f1", "_auroc", "_precision", "_recall", "_informative", "_distracting")
    return (0.0, 1.0) if figure.endswith(shares) else (-math.inf, math.inf)


def check_group(recipe: Recipe, folder: Path) -> None:
    """Check that the runs in a folder differ from a recipe in their seed alone.

    Args:
        recipe: The recipe of further runs.
        folder: The folder of the run folders.

    Raises:
        UserError: A run there is of another recipe.
    """

    def apart_from_seed(settings: dict[str, Any]) -> dict[str, Any]:
        training = {name: value for name, value in settings["training"].items() if name != "seed"}
        return {**settings, "training": training, "date": None}  # the date counts where a template reads it

    new = apart_from_seed(json.loads(jsonl.dumps(recipe.settings())))
    for run in seed_folders(folder):
        earlier = apart_from_seed(runs.read_manifest(run, "finetune")["settings"]["recipe"])
        if what := "; ".join(runs.differences(earlier, new)):
            raise UserError(f"{run} is of another recipe ({what}); choose another `out` or the same settings")
