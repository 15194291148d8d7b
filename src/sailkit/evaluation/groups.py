"""Groups of runs: the same evaluation of models that were trained with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation.group_results import EvaluationGroup
from sailkit.evaluation.predictions import FACTORS, RARE_FACTORS, PredictionSet, load_run
from sailkit.files import jsonl

# Settings in which the runs of a group may differ: those of the training run, and the machine.
_OF_A_RUN = ("model", "weights_sha256", "tokenizer_sha256", "dtype", "device")


@dataclass(frozen=True)
class RunGroup:
    """The predictions of several training runs on the same items.

    Attributes:
        name: The folder's name.
        runs: Name of each run -> its predictions.
    """

    name: str
    runs: dict[str, PredictionSet]

    @property
    def first(self) -> PredictionSet:
        """The first run."""
        return next(iter(self.runs.values()))

    @property
    def models(self) -> list[str]:
        """What identifies the model of each run: the hash of its weights, or else a name."""
        return [str(run.provenance.get("weights_sha256") or run.provenance.get("model") or name)
                for name, run in self.runs.items()]  # fmt: skip

    @property
    def missing(self) -> list[str]:
        """Factors that are not known of some run."""
        return [name for name in FACTORS if any(name in run.missing for run in self.runs.values())]


def is_group(source: object) -> TypeGuard[str | Path]:
    """Whether a source of predictions is a folder of run folders, or a list of run folders separated by commas."""
    if not isinstance(source, (str, Path)):
        return False
    if _exists(source):
        return Path(source).is_dir() and not (Path(source) / runs.MANIFEST).exists() and bool(run_folders(Path(source)))
    return "," in str(source)


def _exists(source: str | Path) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a list that is longer than a file's name can be
        return False


def load_group(source: str | Path) -> RunGroup:
    """Read the runs of a group.

    Args:
        source: A folder with a run folder of `evaluate` for each seed, or run folders separated by commas.

    Raises:
        UserError: A run is not finished, two runs are of the same model, or they differ in more than the model.
    """
    path = Path(source)
    listed = not _exists(path)
    folders = [Path(part.strip()) for part in str(source).split(",") if part.strip()] if listed else run_folders(path)
    if not folders:
        raise UserError(f"{source!r} names no run folder")
    names = _names(folders)
    common = {folder.name for folder in folders}
    name = path.resolve().name if not listed else common.pop() if len(common) == 1 else " + ".join(names)
    group = RunGroup(name, dict(zip(names, map(load_run, folders), strict=True)))
    _check(group, str(source))
    return group


def run_folders(path: Path, *stages: str) -> list[Path]:
    """The run folders directly in a folder, in natural order; with `stages`, only runs of these."""
    folders = [run for run in path.iterdir() if (run / runs.MANIFEST).is_file()]
    if stages:
        folders = [run for run in folders if jsonl.read_json(run / runs.MANIFEST).get("stage") in stages]
    return sorted(folders, key=lambda run: (len(run.name), run.name))  # seed-10 comes after seed-9


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of runs: of their folders, or of the folders above if these have the same name, as in seed-0/evidence."""
    names = [folder.name for folder in folders]
    above = [folder.resolve().parent.name for folder in folders]
    if len({*names}) == len(names):
        return names
    return above if len({*above}) == len(above) else [str(folder) for folder in folders]


def _check(group: RunGroup, source: str) -> None:
    """Refuse runs that are not repetitions of one evaluation with different models."""
    (first, provenance), *others = ((name, run.provenance) for name, run in group.runs.items())
    for name, other in others:
        factors = [factor for factor in (*FACTORS, *RARE_FACTORS) if factor not in _OF_A_RUN]
        differ = [factor for factor in factors if provenance.get(factor) != other.get(factor)]
        if differ:
            raise UserError(
                f"{source} is not a group of seeds: {first} and {name} differ in {', '.join(differ)}; give them as "
                "separate sets"
            )
    models: dict[str, str] = {}
    for name, model in zip(group.runs, group.models, strict=True):
        if model in models:
            raise UserError(
                f"{source}: {models[model]} and {name} are runs of the same model; a group holds models that were "
                "trained with different seeds"
            )
        models[model] = name


def single_run(run: PredictionSet) -> RunGroup:
    """A run as a group of its own."""
    return RunGroup(run.name, {run.name: run})


def evaluated_group(group: EvaluationGroup) -> RunGroup:
    """The predictions of a group of evaluations."""
    names = group.means.runs if group.means else [e.folder.name for e in group.evaluations]
    predictions = {name: load_run(e.folder) for name, e in zip(names, group.evaluations, strict=True)}
    return RunGroup(group.folder.name if group.folder else group.model, predictions)
