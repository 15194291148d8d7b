"""The list of runs as people read it: state, main figure with its interval, model and age of each run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.journal import JOURNAL
from sailkit.rendering.model import (
    Block,
    Cell,
    Group,
    Heading,
    Interval,
    Intervals,
    Report,
    Row,
    Section,
    Table,
    Text,
)  # fmt: skip
from sailkit.stats.intervals import Estimate, read_estimates
from sailkit.text import shortened
from sailkit.training.checkpoints import CHECKPOINTS, newest

# Stage -> the file that it writes last; search writes only its results, row by row.
_LAST_FILE = {
    **dict.fromkeys(("evaluate", "finetune", "distill"), runs.METRICS),
    **dict.fromkeys(("build", "build-task"), "card.json"),
    "audit": "audit.json",
    "label": "labels.jsonl",
    "teacher-cache": "index.jsonl",
}
# Stage -> the key of its main figure in metrics.json, and its name; a figure with an interval has KEY_low and KEY_high.
_FIGURES = {
    "evaluate": ("macro_f1", "macro-F1"),
    "finetune": ("loss_change", "change of the held-out loss"),
    "distill": ("kl", "KL to the teacher"),
}
_ROWS = ("results.jsonl", "scores.jsonl", "predictions.jsonl")  # written row by row
_LONGEST_MODEL = 18
_RANKING = (
    "The best macro-F1 first, with 95 % intervals. Only the runs under one heading have the same items; whether one of "
    "them is better than another, sailkit compare tells from their answers in pairs."
)


def state(run: runs.RunSummary) -> str:
    """Whether a run is finished, stopped, or running in another process; empty if its stage does not tell."""
    folder = Path(run.folder)
    if _is_locked(folder):
        return "running"
    if run.stage not in _LAST_FILE:
        return ""
    return "finished" if (folder / _LAST_FILE[run.stage]).exists() else "stopped"


def _is_locked(folder: Path) -> bool:
    if not (folder / runs.LOCK).exists():
        return False
    try:
        with filelock.FileLock(folder / runs.LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that only others may write to
        return False


def figure(run: runs.RunSummary) -> Estimate | float | None:
    """The main figure of a run, with its interval if it has one."""
    return _main_figure(run.stage, _metrics(run)) if run.stage in _FIGURES else None


def _main_figure(stage: str, metrics: Mapping[str, Any]) -> Estimate | float | None:
    key = _FIGURES[stage][0]
    if stage == "distill":
        metrics = metrics.get("tuned") or {}
    value = metrics.get(key)
    return read_estimates(metrics).get(key) or (value if isinstance(value, (int, float)) else None)


def age(started_at: str, now: float) -> str | None:
    """The time since the start of a run in its largest unit, such as `3 h`; None for an unreadable time."""
    try:
        seconds = now - datetime.strptime(started_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
    units = (("d", 86400), ("h", 3600), ("min", 60))
    return next((f"{seconds / size:.0f} {unit}" for unit, size in units if seconds >= size), f"{max(seconds, 0):.0f} s")


def report_of_runs(listed: runs.RunList) -> Report:
    """A table for each stage and task, with the best figures first.

    Args:
        listed: The runs.
    """
    now = time.time()
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for run in listed.runs:
        value = figure(run)
        point = value.value if isinstance(value, Estimate) else value
        cells = [Cell(state(run) or None), Cell(value), Cell(_short(_model(run))), Cell(age(run.started_at, now))]
        rank = float("inf") if point is None else -point if run.stage == "evaluate" else point
        groups.setdefault((run.stage, str(run.task or "")), []).append((rank, Row(run.folder, cells)))
    blocks: list[Block] = [] if groups else [Text("no runs")]
    for (stage, task), rows in groups.items():
        name = _FIGURES[stage][1] if stage in _FIGURES else "figure"
        blocks += [Heading(" ".join(filter(None, (stage, task))))]
        ordered = [row for _, row in sorted(rows, key=lambda entry: entry[0])]
        blocks += [Table(("state", name, "model", "age"), [Group("folder", ordered)])]
    return Report("", "", (Section("", blocks),))


def leaderboard(listed: runs.RunList) -> Report:
    """The list of runs as a page: for each task, evaluations of the same items with the best macro-F1 first.

    Args:
        listed: The runs.
    """
    evaluations: dict[str, list[runs.RunSummary]] = {}
    for run in listed.runs:
        if run.stage == "evaluate":
            evaluations.setdefault(str(run.task), []).append(run)
    note = [Text(_RANKING)] if evaluations else []
    sections = [Section(f"evaluate {task}", _ranking(rows)) for task, rows in evaluations.items()]
    others = runs.RunList(tuple(run for run in listed.runs if run.stage != "evaluate"))
    if others.runs or not sections:
        sections.append(Section("Other stages" if sections else "Runs", report_of_runs(others).sections[0].blocks))
    sections[0] = replace(sections[0], blocks=[*note, *sections[0].blocks])
    finished = sum(state(run) == "finished" for run in listed.runs)
    return Report("Runs", f"{len(listed.runs):,} runs, {finished:,} of them finished", sections)


def _ranking(evaluations: Sequence[runs.RunSummary]) -> list[Block]:
    """The evaluations of a task, in groups with the same items and labels."""
    now = time.time()
    groups: dict[str, list[_Ranked]] = {}
    for run in evaluations:
        settings = runs.read_manifest(run.folder)["settings"]
        labels, data = " and ".join(settings.get("labels") or ()), str(settings.get("data_sha256"))[:12]
        half = f", {half} half" if (half := settings.get("half")) else ""
        share = f" (first share {share:g})" if (share := settings.get("first_share")) else ""
        heading = f"{settings.get('n')} items{half}{share}, labels {labels}, data {data}"
        groups.setdefault(heading, []).append(_Ranked(run, settings, _metrics(run)))
    tables: list[Group] = []
    intervals: dict[str, list[Interval]] = {}
    for heading, ranked in groups.items():
        ranked.sort(key=lambda entry: -entry.value.value if isinstance(entry.value, Estimate) else float("inf"))
        tables.append(Group(heading, [entry.row(rank, now) for rank, entry in enumerate(ranked, 1)]))
        if rows := [row for entry in ranked if (row := entry.interval)]:
            intervals["macro-F1" if len(groups) == 1 else f"macro-F1, {heading}"] = rows
    drawn = [Intervals(intervals, "The dashed line is what one constant answer gives.")] if intervals else []
    return [Table(("macro-F1", "accuracy", "model", "search", "state"), tables), *drawn]


@dataclass(frozen=True)
class _Ranked:
    """An evaluation with its settings and figures."""

    run: runs.RunSummary
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def value(self) -> Estimate | float | None:
        """Its main figure."""
        return _main_figure(self.run.stage, self.metrics)

    def row(self, rank: int, now: float) -> Row:
        """Its row in the table."""
        cells = [
            Cell(self.value), Cell(read_estimates(self.metrics).get("accuracy")), Cell(_short(_model(self.run), 60)),
            Cell(self.settings.get("search") or "none"),
            Cell(state(self.run) or None, f"begun {age(self.run.started_at, now)} ago"),
        ]  # fmt: skip
        return Row(f"{rank}. {self.run.folder}" if self.value is not None else self.run.folder, cells)

    @property
    def interval(self) -> Interval | None:
        """Its row in the plot; None without an interval or a baseline."""
        constant, label = self.metrics.get("majority_macro_f1"), self.metrics.get("majority_label")
        if not isinstance(self.value, Estimate) or not isinstance(constant, float):
            return None
        return Interval(self.run.folder, self.value, f"always answering {label}", constant)


def _metrics(run: runs.RunSummary) -> Mapping[str, Any]:
    """The figures of a run; empty if it has none."""
    try:
        metrics: Mapping[str, Any] = jsonl.read_json(Path(run.folder) / runs.METRICS)
    except UserError:
        return {}
    return metrics


def _model(run: runs.RunSummary) -> Any:
    """The evaluated or trained model of a run."""
    trained = (("recipe", "model"), ("recipe", "student", "model"))
    values = (run.model, *(runs.setting_of(run.folder, *keys) for keys in trained))
    return next((value for value in values if value), None)


def _short(model: Any, longest: int = _LONGEST_MODEL) -> str | None:
    if not isinstance(model, str):
        return None
    name = model.rpartition("@")[0] or model
    parts = name.rstrip("/").split("/")
    name = "/".join(parts[-2:]) if parts[-1] == "model" else parts[-1]
    return shortened(name, longest)


def resume_point(out: str | Path | None) -> str | None:
    """The newest checkpoint, or the row, from which a stopped stage continues; None if it begins anew.

    Of a pipeline, also the step that started last, unless it has finished.
    """
    if out is None or not Path(out).is_dir():
        return None
    if (journal := Path(out) / JOURNAL).is_file():
        name, entry = next(reversed(jsonl.read_json(journal)["steps"].items()), ("", {"finished": True}))
        if entry["finished"]:
            return None
        return ", ".join(filter(None, (f"step {name}", resume_point(Path(out) / name))))
    checkpoints = [newest(folder) for folder in Path(out).rglob(CHECKPOINTS)]
    logs = [path for name in _ROWS for path in Path(out).rglob(name) if path.stat().st_size]
    candidates = [path for path in (*checkpoints, *logs) if path is not None]
    if not candidates:
        return None
    last = max(candidates, key=lambda path: path.stat().st_mtime)
    if last.is_dir():
        return f"checkpoint {last}"
    with last.open("rb") as stream:
        rows = sum(line.endswith(b"\n") for line in stream)
    return f"row {rows + 1} of {last}"
