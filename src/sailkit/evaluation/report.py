"""Sets of predictions as a report: the verdict, the reasons to doubt it, the figures and every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit.evaluation.compare import compare_sets
from sailkit.evaluation.figures import Truth
from sailkit.evaluation.items import collect_items
from sailkit.evaluation.printed import FIGURES, summarise_comparison, summarise_evaluation, summarise_rescored
from sailkit.evaluation.results import Comparison, Evaluation, Rescored
from sailkit.evaluation.views import View, read_view, worth_of
from sailkit.rendering.model import (
    Bullets,
    Cell,
    Facts,
    Figures,
    Flags,
    Group,
    Heading,
    Interval,
    Intervals,
    Matrix,
    Report,
    Row,
    Section,
    Split,
    Table,
    Text,
    Verdict,
)  # fmt: skip
from sailkit.rendering.numbers import capitalised, fact, listed, machine, p_value
from sailkit.stats import metrics
from sailkit.stats.intervals import read_estimates

_PLOTTED = ("accuracy", "macro_f1", "balanced_accuracy")
_FACTS = {
    "model": "model", "served_model": "served model", "revision": "revision", "weights_sha256": "weights (sha256)",
    "recording_sha256": "recording (sha256)", "tokenizer_sha256": "tokenizer (sha256)", "dtype": "number format",
    "device": "device", "chat_template": "chat template", "task": "task", "data_sha256": "data (sha256)",
    "protocol": "protocol", "wording": "wording", "answer": "answer mode", "search": "search results",
    "left_out": "rows of the data left out",
    "shots": "worked examples", "calibrate": "calibrated", "max_new_tokens": "longest answer (tokens)",
    "rules_version": "reading rules (version)", "seed": "seed", "git_revision": "git revision",
    "reference": "reference model", "versions": "versions", "platform": "platform", "started_at": "started",
}  # fmt: skip
_OPTIONAL = ("served_model", "recording_sha256", "left_out", "reference")  # not every set could have these


def report_on(
    paths: Sequence[Path],
    against: Truth = "human",
    task: str | None = None,
    fields: list[str] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> Report:
    """A report on one or more sets of predictions; of several, each two are compared.

    Args:
        paths: Run folders, or files of recorded outputs.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task whose answer words are used.
        fields: For files: what they call the fields.
        title: Made from sets and task by default.
        seed: Of the bootstrap.

    Raises:
        UserError: A set cannot be read or has no such labels, or sets do not fit together.
    """
    views = [read_view(path, against, task, fields, seed) for path in paths]
    compared: dict[str, Any] = {"comparisons": [], "flag_messages": {}}
    if len(views) > 1:
        compared = compare_sets([view.data for view in views], against, seed).to_json()
        views = [replace(view, name=name) for view, name in zip(views, compared["names"], strict=True)]
    names, labels = [view.name for view in views], views[0].data.labels
    pairs: list[dict[str, Any]] = compared["comparisons"]
    worth = [worth_of(view) for view in views]
    flags = [*((v.name, v.figures["flag_messages"]) for v in views), ("The comparison", compared["flag_messages"])]
    doubts = [Flags(name, messages) for name, messages in flags if messages]
    return Report(
        title or f"{listed(names)} on {listed(sorted({str(v.facts['task']) for v in views}))}",
        _about(views, against),
        [
            Section("Verdict", _verdict(pairs, worth, against)),
            Section("Reasons for doubt", doubts or [Text("None of the checks raised a flag.")]),
            Section("Intervals", [_intervals(views)]),
            Section("Figures", [Text("Figures with their 95 % intervals."), Table(names, _groups(views, against))]),
            Section("Answers by label", _confusion(views, against)),
            Section("How it came about", _provenance(views)),
        ],
        "; ".join(pair["verdict_text"] for pair in pairs) or worth[0][0],
        collect_items(names, [v.data.predictions for v in views], [v.truth for v in views], labels),
    )


def _about(views: Sequence[View], against: str) -> str:
    first, items = views[0], len(views[0].truth)
    groups = f" in {len({p.unit for p in first.data.predictions}):,} groups" if first.figures.get("groups") else ""
    judged = [int(view.counts.sum()) for view in views]
    some = f" ({', '.join(map(str, dict.fromkeys(judged)))} have one)" if min(judged) < items else ""
    days = sorted({str(view.facts["started_at"])[:10] for view in views if view.facts.get("started_at")})
    machines = list(dict.fromkeys(filter(None, (machine(view.facts) for view in views))))
    parts = [f"{items:,} items{groups}", " and ".join(machines), f"judged against the {against} labels{some}",
             f"run on {' and '.join(days)}" if days else ""]  # fmt: skip
    return "; ".join(filter(None, parts))


def _verdict(
    pairs: Sequence[dict[str, Any]], worth: Sequence[tuple[str, str]], against: str
) -> list[Verdict | Bullets | Heading | Figures | Split | Text]:
    if not pairs:
        headline, detail = worth[0]
        return [Verdict(headline, capitalised(detail))]
    blocks: list[Verdict | Bullets | Heading | Figures | Split | Text] = []
    for pair in pairs:
        sentence = capitalised(pair["verdict_text"]) if pair["verdict"] == "cannot tell" else pair["verdict_text"]
        blocks.append(Verdict(sentence, capitalised(pair["remark"])))
    blocks.append(Bullets([(headline, f"{detail}.") for headline, detail in worth]))
    for pair in pairs:
        gaps = read_estimates(pair)
        figures = [
            ("Difference in accuracy", Cell(gaps["accuracy_difference"], signed=True)),
            ("Difference in macro-F1", Cell(gaps["macro_f1_difference"], signed=True)),
            (f"p, {pair['test']}, after Holm", Cell(p_value(pair["p_value_holm"]))),
            ("Detectable 4 times in 5", Cell(pair["minimum_detectable_difference"])),
        ]
        counts = pair["both_right"], pair["only_a"], pair["only_b"], pair["both_wrong"]
        blocks += [Heading(f"{pair['a']} against {pair['b']}")] if len(pairs) > 1 else []
        blocks += [Figures(figures), Split(pair["a"], pair["b"], counts)]
        if pair["left_out"]:
            text = f"{pair['left_out']} items are left out: they have no {against} label that both sets share."
            blocks.append(Text(text))
    which = f"{pairs[0]['a']} minus {pairs[0]['b']}" if len(pairs) == 1 else "the first minus the second"
    over = " over groups of items" if pairs[0].get("groups") else ""
    return [*blocks, Text(f"Differences are {which}, with 95 % intervals from a paired bootstrap{over}.")]


def _intervals(views: Sequence[View]) -> Intervals:
    figures = {
        FIGURES[name]: [
            Interval(v.name, v.estimates[v.prefix + name], f"always answering {v.majority}", v.baseline(name))
            for v in views
        ]
        for name in _PLOTTED
    }
    return Intervals(
        figures,
        "A dot and its whisker are a figure and its 95 % interval; the dashed line is what one constant answer gives.",
    )


def _groups(views: Sequence[View], against: str) -> list[Group]:
    """The table of figures; rows of which nothing is known are left out."""

    def interval(title: str, name: str, prefix: str | None = None) -> Row:
        return Row(title, [Cell(v.estimates.get((v.prefix if prefix is None else prefix) + name)) for v in views])

    def number(title: str, name: str) -> Row:
        return Row(title, [Cell(v.figures.get(name)) for v in views])

    def count(title: str, name: str) -> Row:
        return Row(title, [Cell(v.figures[name], f"{v.figures[name] / len(v.truth):.1%}") for v in views])

    def constant(title: str, name: str) -> Row:
        return Row(title, [Cell(v.baseline(name), v.majority) for v in views])

    def without_label(end: str) -> Row:
        cells = [Cell(v.figures.get(f"{v.prefix}accuracy_if_unanswered_{end}")) for v in views]
        return Row(f"Accuracy if all of them were {end}", cells)

    other, prefix = ("reference", "") if against == "human" else ("human", "human_")
    scored_by = sorted({str(v.figures.get("against")) for v in views if v.figures.get("auroc") is not None})
    which = "" if scored_by == [against] else f" ({' and '.join(scored_by)} labels)"
    ties = count("Answers within numerical noise of a tie", "near_ties").cells
    scored = [any(p.scores for p in v.data.predictions) for v in views]
    two_truths = [view.figures.get("against") == "reference" for view in views]
    second = [interval(title, name, prefix) for name, title in FIGURES.items() if name in _PLOTTED]
    guessing = [Cell(metrics.prior_accuracy(v.counts)) for v in views]
    groups = {
        f"Against the {against} labels": [
            *(interval(title, name) for name, title in FIGURES.items()),
            *(interval(f"F1 of {label}", f"f1_{label}") for label in views[0].data.labels),
        ],
        "Items without a label": [
            count("Unreadable", "unreadable"), count("Refused", "refused"),
            without_label("wrong"), without_label("right"),
        ],
        "Without looking": [
            constant("Always the most frequent label: accuracy", "accuracy"),
            constant("Always the most frequent label: macro-F1", "macro_f1"),
            Row("Each label as often as it occurs: accuracy", guessing),
        ],
        "Scores": [
            number(f"AUROC{which}", "auroc"), number(f"Expected calibration error{which}", "ece"),
            Row("Answers within numerical noise of a tie", _only(ties, scored)),
        ],
        f"As recorded, before reading the answers again, against the {against} labels": [
            interval(title, name, "recorded_") for name, title in FIGURES.items() if name != "mcc"
        ],
        f"Against the {other} labels": [Row(row.name, _only(row.cells, two_truths)) for row in second],
        "The reference": [
            number("Agreement with the human labels", "reference_agreement"),
            number("Cohen's kappa with the human labels", "reference_kappa"),
        ],
    }  # fmt: skip
    known = [Group(heading, [row for row in rows if row.known]) for heading, rows in groups.items()]
    return [group for group in known if group.rows]


def _only(cells: Sequence[Cell], which: Sequence[bool]) -> list[Cell]:
    """Cells of which some do not apply."""
    return [cell if applies else Cell(None) for cell, applies in zip(cells, which, strict=True)]


def _confusion(views: Sequence[View], against: str) -> list[Text | Matrix]:
    labels = views[0].data.labels
    columns = [*labels, *metrics.NOT_ANSWERED]
    note = f"Rows: the {against} label. Columns: the answer. Shaded by share of the row."
    return [Text(note), *(Matrix(v.name, f"{against} label", labels, columns, v.counts.tolist()) for v in views)]


def _provenance(views: Sequence[View]) -> list[Facts | Text]:
    """How the sets came about; what no set records is named below."""
    rows = {name: [fact(name, view.facts) for view in views] for name in _FACTS}
    known = {name: values for name, values in rows.items() if any(value is not None for value in values)}
    titles = {name: capitalised(_FACTS[name]) for name in known}
    table = Facts([view.name for view in views], [(titles[name], values) for name, values in known.items()],
                  compared=[title for name, title in titles.items() if name != "started_at"])  # fmt: skip
    unknown = [title for name, title in _FACTS.items() if name not in known and name not in _OPTIONAL]
    return [table, Text(f"Not recorded for any set: {', '.join(unknown)}.")] if unknown else [table]


def summarise(result: Evaluation | Rescored | Comparison) -> Report:
    """What `evaluate`, `rescore` and `compare` print of a result."""
    if isinstance(result, Evaluation):
        return summarise_evaluation(result)
    return summarise_comparison(result) if isinstance(result, Comparison) else summarise_rescored(result)
