"""A set of predictions as a report shows it: judged against one kind of labels, with what is known of its origin."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation import predictions, summary
from sailkit.evaluation.predictions import PredictionSet
from sailkit.evaluation.recordings import load_predictions
from sailkit.evaluation.rescore import recorded_figures, rescore_set
from sailkit.files import jsonl
from sailkit.rendering.numbers import span
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Counts, Estimate, read_estimates


@dataclass(frozen=True)
class View:
    """A set of predictions judged against the chosen labels.

    Attributes:
        name: What it is called; distinct within the report.
        data: Its predictions.
        figures: Flat figures and flags.
        estimates: Those of the figures that have an interval.
        prefix: Put before a figure's name, gives it against the chosen labels.
        truth: The chosen label of each item, or None.
        counts: Confusion counts against the chosen labels.
        facts: What is known of how it came about.
    """

    name: str
    data: PredictionSet
    figures: dict[str, Any]
    estimates: dict[str, Estimate]
    prefix: str
    truth: list[str | None]
    counts: Counts
    facts: dict[str, Any]

    @property
    def majority(self) -> str:
        """The most frequent label: what a constant would answer."""
        return self.data.labels[int(self.counts.sum(-1).argmax())]

    def baseline(self, name: str) -> float:
        """A figure of always answering the most frequent label."""
        constant = np.zeros_like(self.counts)
        constant[:, int(self.counts.sum(-1).argmax())] = self.counts.sum(-1)
        return float(metrics.STATISTICS[name](constant))


def read_view(path: Path, against: str, task: str | None, fields: list[str] | None, seed: int) -> View:
    """Read a set of predictions and judge it.

    Args:
        path: A run folder, or a file of recorded outputs.
        against: The data set's own labels (human), or those of a reference model.
        task: For a file: the task whose answer words are used.
        fields: For a file: what it calls the fields.
        seed: Of the bootstrap.

    Raises:
        UserError: The set cannot be read or has no such labels, or its figures are those of other predictions.
    """
    data = load_predictions(path, task, fields)
    rows, labels = data.predictions, data.labels
    facts: dict[str, Any] = {**data.provenance, "rules_version": data.rules_version}
    if path.is_dir():
        manifest = runs.read_manifest(path)
        facts |= {**manifest["environment"], **manifest["settings"]}
        if (path / predictions.REFERENCE_FOLDER).is_dir():
            facts["reference"] = runs.read_manifest(path / predictions.REFERENCE_FOLDER)["settings"]["model"]
        figures = _measured(path, data, seed)
    else:
        facts["recording_sha256"] = jsonl.file_fingerprint([path])
        figures = rescore_set(data, {}, seed).to_json()
    truth = {"human": [p.gold for p in rows], "reference": [p.reference for p in rows]}
    if not any(truth[against]):
        other = "reference" if against == "human" else "human"
        mend = f"; use `against={other!r}`" if any(truth[other]) else ""
        raise UserError(f"{path} has no {against} labels{mend}")
    judged = [(label, p) for label, p in zip(truth[against], rows, strict=True) if label is not None]
    if any(p.recorded is not None for p in rows):
        recorded = recorded_figures(rows, truth[against], labels, seed)
        figures |= recorded.flat("recorded_") if recorded else {}
    counts = metrics.confusion([label for label, _ in judged], [p.predicted for _, p in judged], labels)
    prefix = "human_" if against == "human" else ""
    return View(data.name, data, figures, read_estimates(figures), prefix, truth[against], counts, facts)


def _measured(folder: Path, data: PredictionSet, seed: int) -> dict[str, Any]:
    """The figures that the evaluation wrote, if they are those of its predictions."""
    path, rows = folder / runs.METRICS, data.predictions
    if not path.exists():
        scored = data.provenance.get("answer") == "logprob"
        dtype = data.provenance.get("dtype")
        return summary.summarise(rows, data.labels, dtype, seed, scored=scored, noise=data.noise).to_json()
    figures = jsonl.read_json(path)
    has_reference = any(p.reference is not None for p in rows)
    judged = [(t, p.predicted) for p in rows if (t := p.reference if has_reference else p.gold) is not None]
    counts = metrics.confusion([t for t, _ in judged], [answer for _, answer in judged], data.labels).tolist()
    same = figures.get("n") == len(rows) and figures.get("confusion", {}).get("counts", counts) == counts
    if not same or "flag_messages" not in figures:
        raise UserError(f"{path} does not fit {predictions.PREDICTIONS} beside it; run the same evaluate command again")
    return figures


def worth_of(view: View) -> tuple[str, str]:
    """What a set is worth, in a sentence, and what that rests on."""
    accuracy, base = view.estimates[view.prefix + "accuracy"], view.baseline("accuracy")
    rows = view.data.predictions
    always = f"always answering {view.majority}"
    answer, times = Counter(p.predicted for p in rows).most_common(1)[0]
    silent = sum(p.label is None for p in rows)
    judged = [p for p, label in zip(rows, view.truth, strict=True) if label is not None]
    units = summary.units_of(judged)
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
