"""One HTML file and the same as Markdown: the verdict, the reasons to doubt it, the figures and every answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sailkit import __version__, runs
from sailkit.distillation import report as distilled_page
from sailkit.distillation.results import is_distilled
from sailkit.errors import UserError
from sailkit.evaluation import predictions, summary
from sailkit.evaluation.compare import compare_sets
from sailkit.evaluation.evaluate import METRICS
from sailkit.evaluation.predictions import PredictionSet
from sailkit.evaluation.recordings import load
from sailkit.evaluation.rescore import rescore_set
from sailkit.files import jsonl
from sailkit.labeling import report as audit_page
from sailkit.labeling.results import is_audit
from sailkit.rendering import numbers, page
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Counts, Estimate
from sailkit.training import report as tuned_page
from sailkit.training.report import is_tuned

_FIGURES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "weighted_f1": "Weighted F1",
    "mcc": "Matthews correlation",
}
_PLOTTED = ("accuracy", "macro_f1", "balanced_accuracy")
_IN_SHORT = ("Accuracy", "Macro-F1", "Weighted F1", "Unreadable", "Refused", "Always the most frequent label: accuracy")


@dataclass(frozen=True)
class View:
    """One set as the report shows it, judged against the chosen labels.

    Attributes:
        name: What it is called; distinct within the report.
        data: Its predictions.
        figures: Flat figures and flags.
        prefix: Put before a figure's name, gives it against the chosen labels.
        truth: The chosen label of each item, or None.
        counts: Confusion counts against the chosen labels.
        facts: What is known of how it came about.
    """

    name: str
    data: PredictionSet
    figures: dict[str, Any]
    prefix: str
    truth: list[str | None]
    counts: Counts
    facts: dict[str, Any]

    def estimate(self, name: str, prefix: str | None = None) -> Estimate:
        """A figure with its interval, against the chosen labels unless a prefix says otherwise."""
        key = (self.prefix if prefix is None else prefix) + name
        return Estimate(self.figures[key], self.figures[f"{key}_low"], self.figures[f"{key}_high"])

    @property
    def majority(self) -> str:
        """The most frequent label: what a constant would answer."""
        return self.data.labels[int(self.counts.sum(-1).argmax())]

    def baseline(self, name: str) -> float:
        """A figure of always answering the most frequent label."""
        constant = np.zeros_like(self.counts)
        constant[:, int(self.counts.sum(-1).argmax())] = self.counts.sum(-1)
        return float(metrics.STATISTICS[name](constant))

    def plotted(self, name: str) -> tuple[str, Estimate, str, float]:
        """What a plot of intervals needs to know."""
        return self.name, self.estimate(name), f"always answering {self.majority}", self.baseline(name)


def report(
    *sets: Path,
    out: Path = Path("report.html"),
    against: Literal["human", "reference"] = "human",
    task: str | None = None,
    fields: list[str] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write one HTML file about sets of predictions, audits, a training run or distillations, and Markdown beside it.

    The file loads nothing from elsewhere. It shows the verdict first, then every reason to doubt it, the figures
    with their intervals, and each item down to its prompt and raw output. Of audits of labelers it shows which is
    best, the figures, each two labelers side by side, and where they differ most. Of a training run it shows what was
    learnt, the curves, recipe and data; of distillations how near each student came to its teacher, and which nearer.

    Args:
        sets: Run folders, or files of recorded outputs; or folders of audits; or the run folder of finetune; or
            run folders of distill, of which the first is compared with each other.
        out: The HTML file, or a folder for report.html; the Markdown gets the same name with .md.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task whose answer words are used.
        fields: For files: what they call the fields id, text, label, output, prediction, reference, prompt, group:
            KEY=NAME, repeated, or a YAML file.
        title: The report's title; names sets and task by default.
        seed: Seed of the bootstrap.

    Returns:
        Where the HTML and the Markdown are, and the verdict in words.

    Raises:
        UserError: A set cannot be read or has no such labels, sets do not fit together, or a file that is
            no report is in the way; options that the folders do not have.
    """
    if not sets:
        raise UserError("report needs one or more run folders or files of recorded outputs")
    options = {"against": against != "human", "task": task, "fields": fields}
    if tuned := [path for path in sets if is_tuned(path)]:
        if len(sets) > 1:
            raise UserError(f"one training run at a time, and nothing beside it; {len(sets)} folders were given")
        _check(sets, tuned, "a training run", options)
        return tuned_page.write(sets[0], out, title)
    if distilled := [path for path in sets if is_distilled(path)]:
        _check(sets, distilled, "a distillation", options)
        return distilled_page.write(sets, out, title, seed)
    if audits := [path for path in sets if is_audit(path)]:
        _check(sets, audits, "an audit", options)
        return audit_page.write(audits, out, title)
    places = page.places(out)
    views = [_view(path, against, task, fields, seed) for path in sets]
    compared: dict[str, Any] = {"comparisons": [], "flag_messages": {}}
    if len(sets) > 1:
        compared = compare_sets([view.data for view in views], against, seed)
        views = [replace(view, name=name) for view, name in zip(views, compared["names"], strict=True)]
    names = [view.name for view in views]
    labels = views[0].data.labels
    pairs = [{**pair, "lead": _lead(pair)} for pair in compared["comparisons"]]
    worth = [_worth(view) for view in views]
    flags = [*((v.name, v.figures["flag_messages"]) for v in views), ("The comparison", compared["flag_messages"])]
    facts, unknown = page.provenance([view.facts for view in views])
    groups = _groups(views, against)
    content = {
        "title": title or f"{_listed(names)} on {_listed(sorted({str(v.facts['task']) for v in views}))}",
        "version": __version__,
        "against": against,
        "names": names,
        "labels": labels,
        "items": len(views[0].truth),
        "grouped": len({p.unit for p in views[0].data.predictions}) if views[0].figures.get("groups") else None,
        "machines": list(dict.fromkeys(filter(None, (numbers.machine(view.facts) for view in views)))),
        "judged": [int(view.counts.sum()) for view in views],
        "started": [str(view.facts["started_at"])[:10] for view in views if view.facts.get("started_at")],
        "pairs": pairs,
        "worth": worth,
        "flags": [(name, [(c, text) for c in found for text in found[c]]) for name, found in flags if found],
        "plots": page.plots({_FIGURES[x]: [v.plotted(x) for v in views] for x in _PLOTTED}),
        "groups": groups,
        "summary": [row for _, rows in groups[:3] for row in rows if row[0] in _IN_SHORT],
        "confusions": [(view.name, view.counts.tolist()) for view in views],
        "columns": [*labels, *metrics.NOT_ANSWERED],
        "facts": facts,
        "unknown": unknown,
    }
    items = page.collect_items(names, [v.data.predictions for v in views], [v.truth for v in views], labels)
    page.write(places, "report", content, items)
    verdict = "; ".join(pair["verdict_text"] for pair in pairs) or worth[0]["headline"]
    return {"html": str(places[0]), "markdown": str(places[1]), "verdict": verdict}


def _check(sets: Sequence[Path], own: Sequence[Path], what: str, options: dict[str, Any]) -> None:
    """Refuse folders of another kind beside these, and options that they do not have."""
    if others := [path for path in sets if path not in own]:
        raise UserError(f"{own[0]} is {what} and {others[0]} is none; report on them one after the other")
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"--{given[0]} is for sets of predictions; {own[0]} is {what}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _view(path: Path, against: str, task: str | None, fields: list[str] | None, seed: int) -> View:
    data = load(path, task, fields)
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
        figures = summary.with_flags(*rescore_set(data, {}, seed))
    truth = {"human": [p.gold for p in rows], "reference": [p.reference for p in rows]}
    if not any(truth[against]):
        other = "reference" if against == "human" else "human"
        mend = f"; use --against {other}" if any(truth[other]) else ""
        raise UserError(f"{path} has no {against} labels{mend}")
    judged = [(t, p) for t, p in zip(truth[against], rows, strict=True) if t is not None]
    if any(p.recorded is not None for p in rows):
        units = summary.units_of([p for _, p in judged])
        recorded = [(t, p.recorded or "unreadable") for t, p in judged]
        figures |= summary.against(recorded, labels, "recorded_", seed, units)
    counts = metrics.confusion([t for t, _ in judged], [p.predicted for _, p in judged], labels)
    return View(data.name, data, figures, "human_" if against == "human" else "", truth[against], counts, facts)


def _measured(folder: Path, data: PredictionSet, seed: int) -> dict[str, Any]:
    """The figures that the evaluation wrote, if they are those of its predictions."""
    path, rows = folder / METRICS, data.predictions
    if not path.exists():
        scored = data.provenance.get("answer") == "logprob"
        dtype = data.provenance.get("dtype")
        found = summary.summarise(rows, data.labels, dtype, seed, scored=scored, noise=data.noise)
        return summary.with_flags(*found)
    figures = jsonl.read_json(path)
    asked = any(p.reference is not None for p in rows)
    judged = [(t, p.predicted) for p in rows if (t := p.reference if asked else p.gold) is not None]
    counts = metrics.confusion([t for t, _ in judged], [said for _, said in judged], data.labels).tolist()
    same = figures.get("n") == len(rows) and figures.get("confusion", {}).get("counts", counts) == counts
    if not same or "flag_messages" not in figures:
        raise UserError(f"{path} does not fit {predictions.PREDICTIONS} beside it; run the same evaluate command again")
    return figures


def _worth(view: View) -> dict[str, str]:
    """What one set is worth, in a sentence, and what that rests on."""
    accuracy, base, rows = view.estimate("accuracy"), view.baseline("accuracy"), view.data.predictions
    always = f"always answering {view.majority}"
    said, times = Counter(p.predicted for p in rows).most_common(1)[0]
    silent = sum(p.label is None for p in rows)
    judged = [p for p, label in zip(rows, view.truth, strict=True) if label is not None]
    units = summary.units_of(judged)
    groups = len({*units}) if units else None
    if (len(judged) if groups is None else groups) < LEAST_UNITS:
        headline = f"{summary.counted(len(judged), groups)} are too few to tell what {view.name} is worth"
    elif silent > len(rows) / 2:
        headline = f"{view.name} mostly gives no answer that can be read ({silent} of {len(rows)} items)"
    elif times >= summary.CONSTANT_SHARE * len(rows) and said != view.majority:
        headline = f"{view.name} answers {said} to nearly everything ({times} of {len(rows)} items)"
    elif accuracy.high < base:
        headline = f"{view.name} is worse than {always}"
    elif accuracy.low <= base:
        headline = f"{view.name} is indistinguishable from {always}"
    else:
        headline = f"{view.name} is better than {always}"
    detail = f"accuracy {accuracy.value:.3f}, 95 % interval {page.span(accuracy)}; {always} gives {base:.3f}"
    return {"headline": headline, "detail": detail}


def _lead(pair: dict[str, Any]) -> tuple[str, str]:
    """A verdict as a headline, and the remark that is set smaller below it."""
    text = pair["verdict_text"]
    return text[:1].upper() + text[1:] if pair["verdict"] == "cannot tell" else text, pair["remark"]


Cell = tuple[str, str] | None


def _groups(views: Sequence[View], against: str) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """The table of figures: heading -> name -> a cell for each set; rows of which nothing is known are left out."""

    def interval(name: str, prefix: str | None = None) -> list[Cell]:
        known = [(v.prefix if prefix is None else prefix) + name in v.figures for v in views]
        found = [v.estimate(name, prefix) if k else None for v, k in zip(views, known, strict=True)]
        return [(page.figure(e.value), page.span(e)) if e else None for e in found]

    def number(name: str, own: bool = False) -> list[Cell]:
        values = [v.figures.get((v.prefix if own else "") + name) for v in views]
        return [None if x is None else (page.figure(x), "") for x in values]

    def count(name: str) -> list[Cell]:
        return [(str(v.figures[name]), f"{v.figures[name] / len(v.truth):.1%}") for v in views]

    def constant(name: str) -> list[Cell]:
        return [(page.figure(v.baseline(name)), v.majority) for v in views]

    other, prefix = ("reference", "") if against == "human" else ("human", "human_")
    second = [v.figures.get("against") == "reference" for v in views]
    scored_by = sorted({str(v.figures.get("against")) for v in views if v.figures.get("auroc") is not None})
    aside = "" if scored_by == [against] else f" ({' and '.join(scored_by)} labels)"
    scored = [any(p.scores for p in v.data.predictions) for v in views]
    ties = [cell if known else None for cell, known in zip(count("near_ties"), scored, strict=True)]
    guessing: list[Cell] = [(page.figure(metrics.prior_accuracy(v.counts)), "") for v in views]
    labels = views[0].data.labels
    groups: dict[str, dict[str, list[Cell]]] = {
        f"Against the {against} labels": {
            **{title: interval(name) for name, title in _FIGURES.items()},
            **{f"F1 of {label}": interval(f"f1_{label}") for label in labels},
        },
        "Items without a label": {
            "Unreadable": count("unreadable"),
            "Refused": count("refused"),
            "Accuracy if all of them were wrong": number("accuracy_if_unanswered_wrong", own=True),
            "Accuracy if all of them were right": number("accuracy_if_unanswered_right", own=True),
        },
        "Without looking": {
            "Always the most frequent label: accuracy": constant("accuracy"),
            "Always the most frequent label: macro-F1": constant("macro_f1"),
            "Each label as often as it occurs: accuracy": guessing,
        },
        "Scores": {
            f"AUROC{aside}": number("auroc"),
            f"Expected calibration error{aside}": number("ece"),
            "Answers within numerical noise of a tie": ties,
        },
        f"As recorded, before reading the answers again, against the {against} labels": {
            title: interval(name, "recorded_") for name, title in _FIGURES.items() if name != "mcc"
        },
        f"Against the {other} labels": {
            title: [c if s else None for c, s in zip(interval(name, prefix), second, strict=True)]
            for name, title in _FIGURES.items()
            if name in _PLOTTED
        },
        "The reference": {
            "Agreement with the human labels": number("reference_agreement"),
            "Cohen's kappa with the human labels": number("reference_kappa"),
        },
    }
    kept = {head: [(name, cells) for name, cells in rows.items() if any(cells)] for head, rows in groups.items()}
    return [(head, rows) for head, rows in kept.items() if rows]
