"""Reports on sets of predictions: verdict, reasons for doubt, figures and all answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sailkit.evaluation.compare import compare_sets
from sailkit.evaluation.figures import LabelFigures, Truth
from sailkit.evaluation.group_report import evaluation_group_report, group_comparison_report, group_page
from sailkit.evaluation.group_results import EvaluationGroup, GroupComparison
from sailkit.evaluation.groups import is_group, load_group, single_run
from sailkit.evaluation.items import collect_items
from sailkit.evaluation.printed import (
    FIGURES,
    comparison_report,
    evaluation_report,
    flags_block,
    rescored_report,
)
from sailkit.evaluation.recordings import load_predictions
from sailkit.evaluation.reliability import reliability
from sailkit.evaluation.results import Comparison, Evaluation, PairComparison, Rescored
from sailkit.evaluation.search_effect import one_list, search_effects, section, verdict
from sailkit.evaluation.unreadable import reasons, table_of_reasons
from sailkit.evaluation.views import View, read_view, worth_of
from sailkit.rendering.commands import command_blocks
from sailkit.rendering.model import (
    Bullets,
    Calibration,
    Cell,
    Facts,
    Figures,
    Group,
    Heading,
    Headline,
    Interval,
    Intervals,
    Matrix,
    Report,
    Row,
    Section,
    Split,
    Table,
    Text,
)  # fmt: skip
from sailkit.rendering.numbers import capitalised, fact, listed, machine, p_value
from sailkit.stats import metrics

_CALIBRATION = (
    "A dot is the share of right answers among those of about the same probability, with its 95 % interval; where "
    "probabilities are calibrated, dots lie on the dashed line, and below it the model is too sure of itself."
)
_PLOTTED = ("accuracy", "macro_f1", "balanced_accuracy")
_FACTS = {
    "model": "model", "served_model": "served model", "revision": "revision", "weights_sha256": "weights (sha256)",
    "recording_sha256": "recording (sha256)", "tokenizer_sha256": "tokenizer (sha256)", "dtype": "number format",
    "device": "device", "chat_template": "chat template", "task": "task", "data_sha256": "data (sha256)",
    "protocol": "protocol", "wording": "wording", "answer": "answer mode", "search": "search results",
    "results": "most search results",
    "left_out": "rows of the data left out",
    "shots": "worked examples", "calibrate": "calibrated", "max_new_tokens": "longest answer (tokens)",
    "rules_version": "reading rules (version)", "seed": "seed", "git_revision": "git revision",
    "reference": "reference model", "versions": "versions", "platform": "platform", "started_at": "started",
}  # fmt: skip
_OPTIONAL = ("served_model", "recording_sha256", "left_out", "reference")  # facts that do not apply to every set


def report_on(
    paths: Sequence[Path],
    against: Truth = "human",
    task: str | None = None,
    fields: list[str] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> Report:
    """A report on one or more sets of predictions, which are compared in pairs.

    Args:
        paths: Run folders, or files of recorded outputs; or groups of runs, see `sailkit.evaluation.groups`.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task whose answer words are used.
        fields: For files: the names of their fields.
        title: The title; by default derived from sets and task.
        seed: Seed of the bootstrap.

    Raises:
        UserError: A set cannot be read or has no such labels, or the sets cannot be compared.
    """
    if any(map(is_group, paths)):
        loaded = [load_group(p) if is_group(p) else single_run(load_predictions(p, task, fields)) for p in paths]
        return group_page(loaded, against, title)
    views = [read_view(path, against, task, fields, seed) for path in paths]
    pairs: tuple[PairComparison, ...] = ()
    doubts = []
    if len(views) > 1:
        comparison = compare_sets([view.data for view in views], against, seed)
        views = [replace(view, name=name) for view, name in zip(views, comparison.names, strict=True)]
        pairs = comparison.pairs
        doubts = [flags_block("The comparison", comparison.flags)] if comparison.flags else []
    names, labels = [view.name for view in views], views[0].data.labels
    worth = [worth_of(view) for view in views]
    of_sets = [flags_block(view.name, view.flags) for view in views if view.flags]
    doubts = [*of_sets, *doubts]
    effects = search_effects(views, against, seed)
    why = [reasons(view.data, task) for view in views]
    plots = [plot for view in views if (plot := reliability(view, seed))]
    commands = command_blocks({view.name: {"environment": view.facts} for view in views})
    return Report(
        title or f"{listed(names)} on {listed(sorted({str(v.facts['task']) for v in views}))}",
        _about(views, against),
        [
            *([section(effects, one_list(of_sets))] if effects else []),
            Section("Each pair" if effects else "Verdict", _verdict(pairs, worth, against)),
            Section("Reasons for doubt", doubts or [Text("None of the checks raised a flag.")]),
            Section("Intervals", [_intervals(views)]),
            Section("Figures", [Text("Figures with their 95 % intervals."), Table(names, _groups(views, against))]),
            Section("Answers by label", [*_confusion(views, against), *table_of_reasons(names, why)]),
            *([Section("Calibration", [Text(_CALIBRATION), Calibration(plots)])] if plots else []),
            *([Section("Command", commands)] if commands else []),
            Section("Provenance", _provenance(views)),
        ],
        verdict(effects) if effects else "; ".join(pair.verdict_text for pair in pairs) or worth[0][0],
        collect_items(names, [v.data.predictions for v in views], [v.truth for v in views], labels, why),
    )


def _about(views: Sequence[View], against: str) -> str:
    first, items = views[0], len(views[0].truth)
    groups = f" in {len({p.unit for p in first.data.predictions}):,} groups" if first.summary.groups else ""
    judged = [int(view.counts.sum()) for view in views]
    some = f" ({', '.join(map(str, dict.fromkeys(judged)))} have one)" if min(judged) < items else ""
    days = sorted({str(view.facts["started_at"])[:10] for view in views if view.facts.get("started_at")})
    machines = list(dict.fromkeys(filter(None, (machine(view.facts) for view in views))))
    parts = [f"{items:,} items{groups}", " and ".join(machines), f"judged against the {against} labels{some}",
             f"run on {' and '.join(days)}" if days else ""]  # fmt: skip
    return "; ".join(filter(None, parts))


def _verdict(
    pairs: Sequence[PairComparison], worth: Sequence[tuple[str, str]], against: str
) -> list[Headline | Bullets | Heading | Figures | Split | Text]:
    if not pairs:
        headline, detail = worth[0]
        return [Headline(headline, capitalised(detail))]
    blocks: list[Headline | Bullets | Heading | Figures | Split | Text] = []
    for pair in pairs:
        sentence = capitalised(pair.verdict_text) if pair.verdict == "cannot tell" else pair.verdict_text
        blocks.append(Headline(sentence, capitalised(pair.remark)))
    blocks.append(Bullets([(headline, f"{detail}.") for headline, detail in worth]))
    adjusted = f", after Holm's adjustment for {len(pairs)} comparisons" if len(pairs) > 1 else ""
    for pair in pairs:
        figures = [
            ("Difference in accuracy", Cell(pair.differences["accuracy"], signed=True)),
            ("Difference in macro-F1", Cell(pair.differences["macro_f1"], signed=True)),
            (f"p, {pair.test}{adjusted}", Cell(p_value(pair.p_value_holm))),
            ("Detectable with power 0.8", Cell(pair.minimum_detectable_difference)),
        ]
        blocks += [Heading(f"{pair.a} against {pair.b}")] if len(pairs) > 1 else []
        blocks += [
            Figures(figures),
            Split(pair.a, pair.b, (pair.both_right, pair.only_a, pair.only_b, pair.both_wrong)),
        ]
        if pair.left_out:
            text = f"{pair.left_out} items are left out: they have no {against} label that both sets share."
            blocks.append(Text(text))
    which = f"{pairs[0].a} minus {pairs[0].b}" if len(pairs) == 1 else "the first minus the second"
    over = " over groups of items" if pairs[0].groups else ""
    return [*blocks, Text(f"Differences are {which}, with 95 % intervals from a paired bootstrap{over}.")]


def _intervals(views: Sequence[View]) -> Intervals:
    figures = {
        FIGURES[name]: [
            Interval(v.name, v.main.figures[name], f"always answering {v.majority}", v.baseline(name))
            for v in views
            if v.main is not None
        ]
        for name in _PLOTTED
    }
    return Intervals(
        figures,
        "A dot and its whisker are a figure and its 95 % interval; the dashed line is what one constant answer gives.",
    )


def _groups(views: Sequence[View], against: str) -> list[Group]:
    """The table of figures, without rows whose values are all unknown."""

    def figures(which: Callable[[View], LabelFigures | None], names: Mapping[str, str]) -> list[Row]:
        known = [which(view) for view in views]
        return [Row(title, [Cell(own.figures.get(name) if own else None) for own in known])
                for name, title in names.items()]  # fmt: skip

    def row(title: str, value: Callable[[View], float | None]) -> Row:
        return Row(title, [Cell(value(view)) for view in views])

    def share(title: str, count: Callable[[View], int]) -> Row:
        return Row(title, [Cell(count(view), f"{count(view) / len(view.truth):.1%}") for view in views])

    def constant(title: str, name: str) -> Row:
        return Row(title, [Cell(view.baseline(name), view.majority) for view in views])

    other = "reference" if against == "human" else "human"
    scored_by = sorted({str(view.summary.against) for view in views if view.summary.auroc is not None})
    which = "" if scored_by == [against] else f" ({' and '.join(scored_by)} labels)"
    ties = [
        cell if any(p.scores for p in view.data.predictions) else Cell(None)
        for view, cell in zip(views, share("", lambda view: view.summary.near_ties).cells, strict=True)
    ]
    mains = [view.main for view in views]
    bounds = [(own.if_unanswered_wrong, own.if_unanswered_right) if own else None for own in mains]
    references = [view.summary.reference for view in views]
    agreement = [own.agreement.value if own and own.agreement else None for own in references]
    labels = {f"f1_{label}": f"F1 of {label}" for label in views[0].data.labels}
    groups = {
        f"Against the {against} labels": figures(lambda view: view.main, FIGURES | labels),
        "Items without a label": [
            share("Unreadable", lambda view: view.summary.unreadable),
            share("Refused", lambda view: view.summary.refused),
            Row("Accuracy if all of them were wrong", [Cell(own and own[0]) for own in bounds]),
            Row("Accuracy if all of them were right", [Cell(own and own[1]) for own in bounds]),
        ],
        "Without looking": [
            constant("Always the most frequent label: accuracy", "accuracy"),
            constant("Always the most frequent label: macro-F1", "macro_f1"),
            row("Each label as often as it occurs: accuracy", lambda view: metrics.prior_accuracy(view.counts)),
        ],
        "With and without a result that the model calls informative": _selective(views, against),
        "Scores": [
            row(f"AUROC{which}", lambda view: view.summary.auroc),
            row(f"Expected calibration error{which}", lambda view: view.summary.ece),
            Row("Answers within numerical noise of a tie", ties),
        ],
        f"As recorded, before reading the answers again, against the {against} labels": figures(
            lambda view: view.recorded, {name: title for name, title in FIGURES.items() if name != "mcc"}
        ),
        f"Against the {other} labels": figures(lambda view: view.other, {name: FIGURES[name] for name in _PLOTTED}),
        "The reference": [
            Row("Agreement with the human labels", list(map(Cell, agreement))),
            Row("Cohen's kappa with the human labels", [Cell(own.kappa if own else None) for own in references]),
        ],
    }  # fmt: skip
    known = [Group(heading, [row for row in rows if row.known]) for heading, rows in groups.items()]
    return [group for group in known if group.rows]


def _selective(views: Sequence[View], against: str) -> list[Row]:
    chosen = [view.summary.selective if view.summary.against == against else None for view in views]
    rows = [Row("Share of the items with one (coverage)", [Cell(own.coverage if own else None) for own in chosen])]
    titles = {
        "n": "Number of {}",
        "accuracy": "Accuracy on {}",
        "macro_f1": "Macro-F1 on {}",
        "majority_accuracy": "Accuracy of a constant answer on {}",
    }
    for items, which in (("items with one", "selected"), ("the other items", "rejected")):
        parts = [getattr(own, which, None) for own in chosen]
        rows += [Row(title.format(items), [Cell(getattr(part, name, None)) for part in parts])
                 for name, title in titles.items()]  # fmt: skip
    return rows


def _confusion(views: Sequence[View], against: str) -> list[Text | Matrix]:
    labels = views[0].data.labels
    columns = [*labels, *metrics.NOT_ANSWERED]
    note = f"Rows: the {against} label. Columns: the answer. Shaded by share of the row."
    return [Text(note), *(Matrix(v.name, f"{against} label", labels, columns, v.counts.tolist()) for v in views)]


def _provenance(views: Sequence[View]) -> list[Facts | Text]:
    """The provenance of the sets, followed by the facts that no set records."""
    rows = {name: [fact(name, view.facts) for view in views] for name in _FACTS}
    known = {name: values for name, values in rows.items() if any(value is not None for value in values)}
    titles = {name: capitalised(_FACTS[name]) for name in known}
    table = Facts([view.name for view in views], [(titles[name], values) for name, values in known.items()],
                  compared=[title for name, title in titles.items() if name != "started_at"])  # fmt: skip
    unknown = [title for name, title in _FACTS.items() if name not in known and name not in _OPTIONAL]
    return [table, Text(f"Not recorded for any set: {', '.join(unknown)}.")] if unknown else [table]


def short_report(result: Evaluation | EvaluationGroup | Rescored | Comparison | GroupComparison) -> Report:
    """The short report that `evaluate`, `rescore` or `compare` prints."""
    if isinstance(result, EvaluationGroup):
        return evaluation_group_report(result)
    if isinstance(result, GroupComparison):
        return group_comparison_report(result)
    if isinstance(result, Evaluation):
        return evaluation_report(result)
    return comparison_report(result) if isinstance(result, Comparison) else rescored_report(result)
