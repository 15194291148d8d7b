"""The shortcut audit: what baselines that do not read the search results know of the labels, beside a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.rows import parse_row
from sailkit.models.encoder import load_encoder
from sailkit.models.sources import ENCODER
from sailkit.records import Example, Prediction, TrainingExample, original_id
from sailkit.rendering.model import Cell, Flags, Group, Report, Row, Table, Text, short
from sailkit.rendering.result import Result
from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate, resample
from sailkit.stats.shortcut_items import GROUPS, as_table, by_question, example_items, training_baselines
from sailkit.stats.shortcuts import (
    NEAR,
    Encode,
    ShortcutBaseline,
    lead,
    sampled,
    shortcut_baselines,
    telling_views,
)
from sailkit.tasks.task import load_task

SHORTCUTS = "shortcuts.json"
_TRAIN, _CARD = "train.jsonl", "card.json"  # of `build` and `build-task`
_PREDICTIONS = "predictions.jsonl"  # of `evaluate`


@dataclass(frozen=True)
class ModelLead:
    """A model beside a baseline, on the items that the model answered.

    Attributes:
        model: The run's folder.
        baseline: The baseline's name.
        n: Number of items.
        model_macro_f1: Macro-F1 of the model.
        baseline_macro_f1: Macro-F1 of the baseline.
        difference: The model's minus the baseline's.
    """

    model: str
    baseline: str
    n: int
    model_macro_f1: Estimate
    baseline_macro_f1: Estimate
    difference: Estimate

    def to_json(self) -> dict[str, Any]:
        """As a row of `shortcuts.json`."""
        figures = ("model_macro_f1", "baseline_macro_f1", "difference")
        flat = {name: value for figure in figures for name, value in getattr(self, figure).flat(figure).items()}
        return {"model": self.model, "baseline": self.baseline, "n": self.n, **flat}


@dataclass(frozen=True)
class ShortcutAudit(Result):
    """Baselines that cannot have read the search results of a claim, on a task or on built training data.

    Attributes:
        folder: The run's folder.
        data: The task, or the folders of the built data.
        n: Number of items.
        labels: Label -> number of items.
        baselines: Target -> its baselines. The target is `label` for a task; `answer` and `judgement` for built data.
        leads: Each model beside each baseline.
        flag_messages: Name of a flag -> sentences that give reasons to doubt the data or a model.
    """

    folder: Path
    data: str
    n: int
    labels: Mapping[str, int]
    baselines: Mapping[str, Sequence[ShortcutBaseline]]
    leads: Sequence[ModelLead]
    flag_messages: Mapping[str, Sequence[str]]

    @property
    def flags(self) -> list[str]:
        """Names of the reasons to doubt the data or a model."""
        return list(self.flag_messages)

    def to_json(self) -> dict[str, Any]:
        """The content of `shortcuts.json`."""
        return {
            "data": self.data,
            "n": self.n,
            "labels": dict(self.labels),
            "baselines": as_table(self.baselines),
            "leads": [row.to_json() for row in self.leads],
            "flags": self.flags,
            "flag_messages": {name: list(messages) for name, messages in self.flag_messages.items()},
        }

    def report(self) -> Report:
        """A table of the baselines, one of the models beside them, and the flags."""
        blocks: list[Text | Table | Flags] = [baseline_table(as_table(self.baselines))]
        if not any(self.baselines.values()):
            blocks = [Text("too few items or labels for a baseline")]
        if self.leads:
            columns = ["model macro-F1", "baseline macro-F1", "difference"]
            groups = [
                Group(
                    model,
                    [
                        Row(
                            row.baseline,
                            [
                                Cell(row.model_macro_f1),
                                Cell(row.baseline_macro_f1),
                                Cell(row.difference, signed=True),
                            ],
                        )
                        for row in self.leads
                        if row.model == model
                    ],
                )
                for model in dict.fromkeys(row.model for row in self.leads)
            ]
            blocks.append(Table(columns, groups))
        counts = ", ".join(f"{label} {count}" for label, count in self.labels.items())
        return short(f"shortcuts in {self.data}", f"{self.n:,} items: {counts}", *blocks, Flags("", self.flag_messages))


def baseline_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `as_table` as a table of a report."""

    def cell(row: Mapping[str, Any], name: str) -> Cell:
        return Cell(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]))

    groups = [
        Group(
            f"{target}, predicted from",
            [
                Row(f"{row['view']} ({row['features']})", [cell(row, "auroc"), cell(row, "macro_f1")])
                for row in rows
                if row["target"] == target
            ],
        )
        for target in dict.fromkeys(row["target"] for row in rows)
    ]
    return Table(["AUROC", "macro-F1"], groups)


def audit_shortcuts(
    *, data: Sequence[Path], task: str | None, models: Sequence[Path], out: Path, seed: int, limit: int | None
) -> ShortcutAudit:
    """Audit a task's data, or folders of `build` and `build-task` as one mixture.

    Args:
        data: The task's data, or the folders.
        task: The task; None for folders.
        models: Run folders of `evaluate` on the task, to compare with the baselines.
        out: The run folder.
        seed: Seed of sample, folds and bootstrap.
        limit: Use only the first LIMIT examples.

    Raises:
        UserError: Data or a run cannot be read, or do not belong together.
    """
    encode = _encoder()
    settings: dict[str, Any]
    if task is None:
        rows = built_rows(data, models)[:limit]
        settings = {"data_sha256": jsonl.file_fingerprint([folder / _TRAIN for folder in data])}
    else:
        if len(data) > 1:
            raise UserError("give the data of a `task` as one file or folder")
        chosen = load_task(task)
        dataset = chosen.load(data[0] if data else None)
        examples = dataset.examples[:limit]
        settings = {"task": chosen.name, "data_sha256": dataset.fingerprint}
        predictions = {str(path): _predictions(path, chosen.name) for path in models}
        for name, rows_of in predictions.items():
            _check_same_items(name, rows_of, examples)
    settings |= {"seed": seed, "limit": limit, "minilm": encode is not None, "models": [str(path) for path in models]}
    with runs.open_run(out, "shortcut audit", settings) as run:
        if task is None:
            baselines = training_baselines(rows, seed, encode)
            labels = dict(sorted(Counter(row.response for _, row in rows).items())) if "answer" in baselines else {}
            result = ShortcutAudit(
                out, " + ".join(map(str, data)), len(rows), labels, baselines, (), _flags(baselines, ())
            )
        else:
            needed = {prediction.id for rows_of in predictions.values() for prediction in rows_of}
            items = sampled(example_items(examples), seed, first=needed)
            baselines = {"label": shortcut_baselines(items, seed, encode)}
            groups = {item.id: item.group for item in items}
            leads = [
                lead
                for name, rows_of in predictions.items()
                for baseline in baselines["label"]
                if (lead := _lead(name, rows_of, baseline, groups, seed))
            ]
            labels = dict(sorted(Counter(item.label for item in items).items()))
            result = ShortcutAudit(out, chosen.name, len(items), labels, baselines, leads, _flags(baselines, leads))
        jsonl.write_json(run.path(SHORTCUTS), result.to_json())
    return result


def _encoder() -> Encode | None:
    """The embedded sentence encoder; None, with a notice, if it is not installed."""
    try:
        model, _ = load_encoder(ENCODER, "baselines on MiniLM embeddings")
    except UserError as error:
        runs.notice(f"without baselines on MiniLM embeddings: {error}")
        return None

    def encode(texts: Sequence[str]) -> Any:
        unique = list(dict.fromkeys(texts))
        row = {text: index for index, text in enumerate(unique)}
        vectors = model.encode(unique, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return vectors[[row[text] for text in texts]]

    return encode


def built_rows(folders: Sequence[Path], models: Sequence[Path] = ()) -> list[tuple[str, TrainingExample]]:
    """The training examples of built folders, each with its group.

    Raises:
        UserError: A folder was not written by `build` or `build-task`, or models are given.
    """
    missing = [folder for folder in folders if not (folder / _CARD).is_file()]
    if missing or not folders:
        raise UserError(
            "`data` should be run folders of build or build-task, or the data of a `task`; to measure labelers, name "
            "them with `labeler`" + (f" ({missing[0]} is no such folder)" if missing else "")
        )
    if models:
        raise UserError("`model_runs` are compared on the data of a `task`")
    of_task: list[tuple[str, TrainingExample]] = []
    others: list[TrainingExample] = []
    for number, folder in enumerate(folders):
        path = folder / _TRAIN
        rows = [parse_row(TrainingExample, row, f"{path}, line {line}") for line, row in jsonl.read_rows(path)]
        manifest = runs.read_manifest(folder)
        groups = _groups(folder, rows) if manifest["stage"] == "build-task" else None
        if len(folders) > 1:  # ids stay unique, and data sets of one task share their groups
            rows = [replace(row, id=f"{number}/{row.id}") for row in rows]
            groups = groups and [f"{manifest['settings']['task']} {group}" for group in groups]
        if groups is None:
            others += rows
        else:
            of_task += zip(groups, rows, strict=True)
    return of_task + by_question(others)


def _groups(folder: Path, rows: Sequence[TrainingExample]) -> list[str]:
    """The group of each row that `build-task` wrote."""
    if (folder / GROUPS).exists():
        groups = jsonl.read_json(folder / GROUPS)
        return [groups[row.id] for row in rows]
    runs.notice(f"{folder} does not record the groups of its examples: similar claims may be in different folds")
    return [original_id(row.id.rsplit("/", 2)[0]) for row in rows]  # rows are named EXAMPLE/LABEL/COPY


def _predictions(folder: Path, task: str) -> list[Prediction]:
    other = runs.setting_of(folder, "task")
    if other != task:
        raise UserError(
            f"`model_runs` {folder} is no run of evaluate on {task}" + (f", but on {other}" if other else "")
        )
    runs.read_finished(folder, runs.METRICS)
    path = folder / _PREDICTIONS
    return [parse_row(Prediction, row, f"{path}, line {line}") for line, row in jsonl.read_rows(path)]


def _check_same_items(model: str, predictions: Sequence[Prediction], examples: Sequence[Example]) -> None:
    """Refuse a run on other data, also where they have the same ids, such as numbers of rows."""
    by_id = {example.id: example for example in examples}
    if not any(row.id in by_id for row in predictions):
        raise UserError(
            f"`model_runs` {model}: none of its items is in the data; give the data that it was measured on"
        )
    for row in predictions:
        example = by_id.get(row.id)
        if example and (row.text != example.text or row.gold not in (None, example.label)):
            raise UserError(
                f"`model_runs` {model}: its item {row.id!r} has another text or label than in the data; give the data "
                "that it was measured on"
            )


def _lead(
    model: str, predictions: Sequence[Prediction], baseline: ShortcutBaseline, groups: Mapping[str, str], seed: int
) -> ModelLead | None:
    rows = [row for row in predictions if row.id in baseline.predicted and row.gold is not None]
    if not rows:
        runs.notice(f"{model} is not compared: none of its items is in the sample that the baselines predict")
        return None
    gold = [str(row.gold) for row in rows]
    guesses = [baseline.predicted[row.id] for row in rows]
    of_rows = [groups[row.id] for row in rows]
    labels = sorted({*gold, *guesses})
    # As in `lead`: any other label is wrong, and so counts as unreadable.
    answers = [row.label if row.label in labels else row.outcome if row.label is None else "unreadable" for row in rows]
    model_f1, baseline_f1 = (
        resample(metrics.confusion_units(gold, column, labels, of_rows), seed).estimate(metrics.macro_f1)
        for column in (answers, guesses)
    )
    difference = lead(gold, answers, guesses, of_rows, seed)
    return ModelLead(model, baseline.name, len(rows), model_f1, baseline_f1, difference)


def _flags(baselines: Mapping[str, Sequence[ShortcutBaseline]], leads: Sequence[ModelLead]) -> dict[str, list[str]]:
    flags = telling_views(baselines)
    for model in dict.fromkeys(row.model for row in leads):
        best = max((row for row in leads if row.model == model), key=lambda row: row.baseline_macro_f1.value)
        if best.difference.low <= NEAR:
            difference = best.difference
            flags.setdefault("shortcut-near-model", []).append(
                f"{model}: macro-F1 {best.model_macro_f1.value:.3f} against {best.baseline_macro_f1.value:.3f} of the "
                f"{best.baseline}, a difference of {difference.value:+.3f} [{difference.low:+.3f}, "
                f"{difference.high:+.3f}]; the model may not have read the search results"
            )
    return flags
