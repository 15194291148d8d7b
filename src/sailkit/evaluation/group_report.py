"""The reports on groups of runs that `evaluate` and `compare` print and `report` writes."""

from __future__ import annotations

from collections.abc import Sequence

from sailkit.evaluation.compare_groups import compare_groups
from sailkit.evaluation.figures import Truth
from sailkit.evaluation.flagging import Flagging
from sailkit.evaluation.group_results import EvaluationGroup, GroupComparison, GroupDifference
from sailkit.evaluation.groups import RunGroup
from sailkit.evaluation.predictions import FACTORS
from sailkit.evaluation.printed import FIGURES, flagging_line, flags_block
from sailkit.rendering import model
from sailkit.rendering.model import (
    Block,
    Cell,
    Facts,
    Group,
    Headline,
    Interval,
    Intervals,
    Report,
    Row,
    Section,
    Table,
    Text,
)
from sailkit.rendering.numbers import capitalised, fact, listed

_TITLES = {
    **FIGURES,
    "auroc": "AUROC",
    "coverage": "Coverage (items with a result called informative)",
    "selected_accuracy": "Accuracy of these items",
    "rejected_accuracy": "Accuracy of the others",
}


def group_comparison_report(comparison: GroupComparison) -> Report:
    """Figures of each group, and the difference, test and verdict of each pair."""
    base = comparison.baselines
    always = f"always answering {base.majority_label}: accuracy {base.majority_accuracy:.4f}"
    return model.short(
        listed(comparison.names),
        f"{_counted(comparison)}, {comparison.against} labels",
        figures_table(comparison),
        Text(f"{always}, macro-F1 {base.majority_macro_f1:.4f}"),
        *(
            block
            for pair in (*comparison.pairs, *comparison.interactions)
            for block in (*_difference(pair), Headline(pair.verdict_text, pair.remark))
        ),
        flags_block("", comparison.flags),
    )


def evaluation_group_report(group: EvaluationGroup) -> Report:
    """The mean figures of the models with their intervals, the figures of each, and their flags."""
    first = group.evaluations[0]
    names = group.means.runs if group.means else [evaluation.folder.name for evaluation in group.evaluations]
    blocks: list[Block] = []
    if group.means:
        rows = [
            Row(_TITLES[name], [Cell(estimate), *map(Cell, group.means.by_run[name])])
            for name, estimate in group.means.figures.items()
        ]
        blocks.append(Table(["mean", *names], [Group("95 % intervals over seeds and items", rows)]))
        blocks += _flagging(group.means.flagging, len(names))
    flags = [flags_block(name, e.flags) for name, e in zip(names, group.evaluations, strict=True) if e.flags]
    shown = f", search {first.search}" if first.search != "none" else ""
    title = f"{group.model} on {first.task} ({first.protocol}{shown})"
    return model.short(title, f"{first.n} items, {len(names)} models", *blocks, *flags)


def group_page(groups: Sequence[RunGroup], against: Truth, title: str | None) -> Report:
    """The page on one or more groups of runs: verdicts, reasons for doubt, figures of groups and runs.

    Args:
        groups: The groups; a single run is a group of one.
        against: The data set's own labels (human), or those of a reference model.
        title: The title; by default derived from groups and task.
    """
    comparison = compare_groups(groups, against)
    # What search gives comes first: it is the question of most reports.
    pairs = sorted(comparison.pairs, key=lambda pair: not _is_search_effect(pair))
    differences = [*pairs, *comparison.interactions]
    headlines = [Headline(capitalised(difference.verdict_text) if difference.verdict == "cannot tell"
                          else difference.verdict_text, capitalised(difference.remark))
                 for difference in differences]  # fmt: skip
    seeds = Text("Tests and intervals are over seeds and items: a verdict is about training, not about single models.")
    tables: list[Block] = [table for difference in differences for table in _difference(difference)]
    tasks = sorted({str(group.first.provenance.get("task")) for group in groups})
    first = differences[0].verdict_text if differences else f"{listed(comparison.names)}, {_counted(comparison)}"
    return Report(
        title or f"{listed(comparison.names)} on {listed(tasks)}",
        f"{_counted(comparison)}, judged against the {against} labels",
        [
            *([Section("Verdict", [*headlines, seeds])] if differences else []),
            Section("Reasons for doubt", [flags_block("", comparison.flags)] if comparison.flags
                    else [Text("None of the checks raised a flag.")]),
            Section("Intervals", [_plot(comparison)]),
            Section("Figures", [figures_table(comparison), *tables]),
            Section("Provenance", [_provenance(comparison.names, groups)]),
        ],
        first,
    )  # fmt: skip


def _is_search_effect(pair: GroupDifference) -> bool:
    return bool(pair.isolates) and {*pair.factors.get("search", ())} == {"evidence", "random"}


def _counted(comparison: GroupComparison) -> str:
    runs = sum(len(group.runs) for group in comparison.groups)
    return f"{comparison.n} items" + (f" in {comparison.units} groups" if comparison.units else "") + f", {runs} runs"


def _plot(comparison: GroupComparison) -> Intervals:
    base = comparison.baselines
    constant = {"accuracy": base.majority_accuracy, "macro_f1": base.majority_macro_f1}
    always = f"always answering {base.majority_label}"
    figures = {
        _TITLES[name]: [Interval(group.name, group.figures[name], always, at) for group in comparison.groups]
        for name, at in constant.items()
    }
    note = "A dot is the mean of the runs, its whisker the 95 % interval over seeds and items; the dashed line is what "
    return Intervals(figures, note + "one constant answer gives.")


def _provenance(names: Sequence[str], groups: Sequence[RunGroup]) -> Facts:
    """The settings of each group; where its runs differ, those of each run."""
    rows = []
    for factor in FACTORS:
        values = [list(dict.fromkeys(fact(factor, run.provenance) for run in group.runs.values())) for group in groups]
        cells = [", ".join(str(value) for value in of_group if value is not None) or None for of_group in values]
        if any(cells):
            rows.append((capitalised(factor.replace("_", " ")), cells))
    return Facts(names, rows, compared=[title for title, _ in rows])


def figures_table(comparison: GroupComparison) -> Table:
    """The figures of each group with their intervals, and of each run."""
    known = dict.fromkeys(name for group in comparison.groups for name in group.figures)
    groups = [Group("mean over seeds, 95 % intervals over seeds and items",
                    [Row(_TITLES[name], [Cell(group.figures.get(name)) for group in comparison.groups])
                     for name in known])]  # fmt: skip
    most = max(len(group.runs) for group in comparison.groups)
    rows = [
        Row(
            _run_name(comparison, number),
            [
                Cell(values[number] if most == 1 or 1 < len(values) > number else None)
                for values in (group.by_run[comparison.measure] for group in comparison.groups)
            ],
        )
        for number in range(most)
    ]
    return Table(comparison.names, [*groups, Group(f"{_TITLES[comparison.measure]} of each run", rows)])


def _run_name(comparison: GroupComparison, number: int) -> str:
    """The name of the run with this number in each group, if all groups of several runs call it the same."""
    names = {group.runs[number] for group in comparison.groups if 1 < len(group.runs) > number}
    return names.pop() if len(names) == 1 else f"run {number + 1}"


def _flagging(figures: Flagging | None, models: int) -> list[Text]:
    return [Text(flagging_line(figures, models))] if figures else []


def _difference(pair: GroupDifference) -> list[Table | Text]:
    rows = [
        Row(_TITLES[name], [Cell(each.estimate, signed=True), Cell(f"{each.p_value:.3g}"), Cell(each.detectable),
                            Cell(each.seeds_needed)])
        for name, each in pair.differences.items()
    ]  # fmt: skip
    columns = ("difference (95 % interval)", "p", "detectable", "seeds needed")
    return [
        Table(columns, [Group(f"{pair.a} minus {pair.b}", rows)]),
        *_flagging(pair.flagging, pair.seeds[0]),
    ]
