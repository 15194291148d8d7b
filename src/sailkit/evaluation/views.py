"""Prepares a set of predictions for a report: figures against the chosen labels, flags and provenance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation import predictions, summary
from sailkit.evaluation.figures import Flag, LabelFigures, Summary, Truth
from sailkit.evaluation.predictions import PredictionSet
from sailkit.evaluation.recordings import load_predictions
from sailkit.evaluation.rescore import recorded_figures, rescore_set
from sailkit.files import jsonl
from sailkit.rendering.numbers import span
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Counts


@dataclass(frozen=True)
class View:
    """A set of predictions, evaluated against the chosen labels.

    Attributes:
        name: Its name, distinct within the report.
        data: The predictions.
        against: The chosen labels: the data set's own (human), or those of a reference model.
        summary: Figures against both kinds of labels.
        recorded: Figures of the recorded predictions against the chosen labels; None if there are none.
        flags: Reasons to doubt the figures.
        truth: The true label of each item, or None.
        counts: Confusion counts against the chosen labels.
        facts: The known provenance.
    """

    name: str
    data: PredictionSet
    against: Truth
    summary: Summary
    recorded: LabelFigures | None
    flags: tuple[Flag, ...]
    truth: list[str | None]
    counts: Counts
    facts: dict[str, Any]

    @property
    def main(self) -> LabelFigures | None:
        """Figures against the chosen labels."""
        return self.summary.human if self.against == "human" else self.summary.main

    @property
    def other(self) -> LabelFigures | None:
        """Figures against the other kind of labels; None if there is none."""
        if self.against == "reference":
            return self.summary.human
        return self.summary.main if self.summary.against == "reference" else None

    @property
    def majority(self) -> str:
        """The most frequent label, which a constant baseline answers."""
        return self.data.labels[int(self.counts.sum(-1).argmax())]

    def baseline(self, name: str) -> float:
        """A figure of always answering the most frequent label."""
        constant = np.zeros_like(self.counts)
        constant[:, int(self.counts.sum(-1).argmax())] = self.counts.sum(-1)
        return float(metrics.STATISTICS[name](constant))


def read_view(path: Path, against: Truth, task: str | None, fields: list[str] | None, seed: int) -> View:
    """Read a set of predictions and compute its figures.

    Args:
        path: A run folder, or a file of recorded outputs.
        against: The data set's own labels (human), or those of a reference model.
        task: For a file: the task whose answer words are used.
        fields: For a file: the names of its fields.
        seed: Seed of the bootstrap.

    Raises:
        UserError: The set cannot be read or has no such labels, or its figures belong to other predictions.
    """
    data = load_predictions(path, task, fields)
    rows, labels = data.predictions, data.labels
    facts: dict[str, Any] = {**data.provenance, "rules_version": data.rules_version}
    if path.is_dir():
        manifest = runs.read_manifest(path)
        facts |= {**manifest["environment"], **manifest["settings"]}
        if (path / predictions.REFERENCE_FOLDER).is_dir():
            facts["reference"] = runs.read_manifest(path / predictions.REFERENCE_FOLDER)["settings"]["model"]
        measured = _measured(path, data, seed)
        flags = measured.flags
    else:
        facts["recording_sha256"] = jsonl.file_fingerprint([path])
        rescored = rescore_set(data, {}, seed)
        measured, flags = rescored.summary or _measured(path, data, seed), rescored.flags
    truth = {"human": [p.gold for p in rows], "reference": [p.reference for p in rows]}
    if not any(truth[against]):
        other = "reference" if against == "human" else "human"
        mend = f"; use `against={other!r}`" if any(truth[other]) else ""
        raise UserError(f"{path} has no {against} labels{mend}")
    judged = [(label, p) for label, p in zip(truth[against], rows, strict=True) if label is not None]
    has_record = any(p.recorded is not None for p in rows)
    recorded = recorded_figures(rows, truth[against], labels, seed) if has_record else None
    counts = metrics.confusion([label for label, _ in judged], [p.predicted for _, p in judged], labels)
    return View(data.name, data, against, measured, recorded, flags, truth[against], counts, facts)


def _measured(folder: Path, data: PredictionSet, seed: int) -> Summary:
    """Read the figures that the evaluation wrote, and check that they belong to its predictions."""
    path, rows = folder / runs.METRICS, data.predictions
    if not path.exists():
        scored = data.provenance.get("answer") == "logprob"
        dtype = data.provenance.get("dtype")
        return summary.summarise_predictions(rows, data.labels, dtype, seed, scored=scored, noise=data.noise)
    has_reference = any(p.reference is not None for p in rows)
    judged = [(t, p.predicted) for p in rows if (t := p.reference if has_reference else p.gold) is not None]
    counts = metrics.confusion([t for t, _ in judged], [answer for _, answer in judged], data.labels)
    try:
        measured = Summary(**Summary.fields_of(jsonl.read_json(path)))
        same = measured.n == len(rows) and (
            measured.confusion is None or np.array_equal(measured.confusion.counts, counts)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        same = False
    if not same:
        raise UserError(f"{path} does not fit {predictions.PREDICTIONS} beside it; run the same evaluate command again")
    return measured


def worth_of(view: View) -> tuple[str, str]:
    """One sentence on the quality of a set, and the figures that support it."""
    assert view.main is not None  # it has labels of that kind
    accuracy, base = view.main.figures["accuracy"], view.baseline("accuracy")
    rows = view.data.predictions
    always = f"always answering {view.majority}"
    answer, times = Counter(p.predicted for p in rows).most_common(1)[0]
    silent = sum(p.label is None for p in rows)
    judged = [p for p, label in zip(rows, view.truth, strict=True) if label is not None]
    units = predictions.units_of(judged)
    groups = len({*units}) if units else None
    if (len(judged) if groups is None else groups) < LEAST_UNITS:
        headline = f"{summary.counted(len(judged), groups)} are too few to tell what {view.name} is worth"
    elif silent > len(rows) / 2:
        headline = f"{view.name} mostly gives no answer that can be read ({silent} of {len(rows)} items)"
    elif times >= summary.CONSTANT_SHARE * len(rows) and answer != view.majority:
        headline = f"{view.name} answers {answer} to nearly everything ({times} of {len(rows)} items)"
    elif accuracy.high < base:
        headline = f"{view.name} is worse than {always}"
    elif accuracy.low <= base:
        headline = f"{view.name} is indistinguishable from {always}"
    else:
        headline = f"{view.name} is better than {always}"
    return headline, f"accuracy {accuracy.value:.3f}, 95 % interval {span(accuracy)}; {always} gives {base:.3f}"
