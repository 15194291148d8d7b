"""Evaluates the models of several training seeds with one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from sailkit import runs
from sailkit.distributed import process_group
from sailkit.errors import UserError
from sailkit.evaluation.group_figures import group_figures
from sailkit.evaluation.group_results import EvaluationGroup
from sailkit.evaluation.groups import RunGroup, run_folders
from sailkit.evaluation.predictions import load_run
from sailkit.evaluation.results import Evaluation

P = ParamSpec("P")
_MODEL = "model"  # the folder of the trained model in a run folder


def for_each_seed(evaluate: Callable[P, Evaluation]) -> Callable[P, Evaluation | EvaluationGroup]:
    """Let `evaluate` take the folder of `finetune`: that of one run, or that of several seeds, which gives a group."""
    stage: Callable[..., Evaluation] = evaluate

    @functools.wraps(evaluate)
    def call(*args: P.args, **kwargs: P.kwargs) -> Evaluation | EvaluationGroup:
        arguments: dict[str, Any] = dict(kwargs)
        given, out = arguments.get(_MODEL), arguments.get("out")
        folder = None if out is None else Path(out)
        with process_group() as processes:  # around all seeds: accelerate does not connect twice
            with processes.raise_together():
                models = models_of(Path(given)) if isinstance(given, (str, Path)) and Path(given).is_dir() else None
                if isinstance(models, dict):
                    _check_group(models, given, folder, arguments.get("csv_out"))
            if not isinstance(models, dict):
                return stage(*args, **arguments | ({} if models is None else {_MODEL: str(models)}))
            evaluations = {}
            for number, (name, model) in enumerate(models.items(), start=1):
                runs.notice(f"sailkit: model {number} of {len(models)}: {model}")
                of_seed = {_MODEL: str(model), "out": folder and folder / name}
                evaluations[name] = stage(*args, **arguments | of_seed)
            return processes.from_main(lambda: _group(folder, Path(str(given)).name, evaluations))

    return call


def _check_group(models: dict[str, Path], given: object, folder: Path | None, csv_out: object) -> None:
    if csv_out is not None:
        raise UserError(f"`csv_out` is for a single model, and {given} holds {len(models)}; leave it out")
    if folder and folder.is_dir() and any(folder.iterdir()) and not run_folders(folder):
        raise UserError(f"{folder} exists and does not hold a run for each seed; choose another `out`")


def models_of(folder: Path) -> Path | dict[str, Path] | None:
    """The model of a training run, the models of several seeds by name, or None for any other folder.

    Args:
        folder: The folder.

    Raises:
        UserError: One of several runs is not finished.
    """
    if (folder / runs.MANIFEST).exists():
        model = _model_of(folder)
        return model if model.is_dir() else None
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    below = {run.name: run for run in run_folders(folder, "finetune", "distill")}
    for run in below.values():
        if not _model_of(run).is_dir():
            raise runs.not_finished(run, runs.read_manifest(run)["stage"])
    return {name: _model_of(run) for name, run in below.items()} or None


def _model_of(run: Path) -> Path:
    """The model that a run of finetune or distill has written, or will write."""
    student = run / "student" / _MODEL
    return student if student.is_dir() else run / _MODEL


def _group(folder: Path | None, name: str, evaluations: dict[str, Evaluation]) -> EvaluationGroup:
    group = RunGroup(folder.name if folder else name, {run: load_run(e.folder) for run, e in evaluations.items()})
    first = next(iter(evaluations.values()))
    return EvaluationGroup(
        folder=folder,
        model=name,
        evaluations=tuple(evaluations.values()),
        means=group_figures(group, first.against) if first.against else None,
    )
