"""The list of runs as people read it: state, main figure with its interval, model and age of each run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.model import Block, Cell, Group, Heading, Report, Row, Section, Table, Text
from sailkit.stats.intervals import Estimate, read_estimates
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
_LONGEST_MODEL = 14


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
    path = Path(run.folder) / runs.METRICS
    if run.stage not in _FIGURES or not path.exists():
        return None
    try:
        metrics: Mapping[str, Any] = jsonl.read_json(path)
    except UserError:
        return None
    key = _FIGURES[run.stage][0]
    if run.stage == "distill":
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


def report_of_runs(listed: runs.RunList, title: str = "") -> Report:
    """A table for each stage and task, with the best figures first.

    Args:
        listed: The runs.
        title: Title of the report.
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
    return Report(title, "", (Section("", blocks),))


def _model(run: runs.RunSummary) -> Any:
    """The evaluated or trained model of a run."""
    trained = (("recipe", "model"), ("recipe", "student", "model"))
    values = (run.model, *(runs.setting_of(run.folder, *keys) for keys in trained))
    return next((value for value in values if value), None)


def _short(model: Any) -> str | None:
    if not isinstance(model, str):
        return None
    name = model.rpartition("@")[0] or model
    parts = name.rstrip("/").split("/")
    name = "/".join(parts[-2:]) if parts[-1] == "model" else parts[-1]
    return name if len(name) <= _LONGEST_MODEL else f"{name[: _LONGEST_MODEL - 1]}…"


def resume_point(out: str | Path | None) -> str | None:
    """The newest checkpoint, or the row, from which a stopped stage continues; None if it begins anew."""
    if out is None or not Path(out).is_dir():
        return None
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
