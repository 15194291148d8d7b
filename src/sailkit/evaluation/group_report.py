"""The reports on groups of runs that `evaluate` and `compare` print."""

from __future__ import annotations

from sailkit.evaluation.group_results import EvaluationGroup, GroupComparison, GroupDifference
from sailkit.evaluation.printed import FIGURES, flags_block
from sailkit.rendering import model
from sailkit.rendering.model import Block, Cell, Group, Headline, Report, Row, Table, Text
from sailkit.rendering.numbers import listed


def group_comparison_report(comparison: GroupComparison) -> Report:
    """Figures of each group, and the difference, test and verdict of each pair."""
    size = f"{comparison.n} items" + (f" in {comparison.units} groups" if comparison.units else "")
    base = comparison.baselines
    always = f"always answering {base.majority_label}: accuracy {base.majority_accuracy:.4f}"
    return model.short(
        listed(comparison.names),
        f"{size}, {comparison.against} labels",
        figures_table(comparison),
        Text(f"{always}, macro-F1 {base.majority_macro_f1:.4f}"),
        *(block for pair in (*comparison.pairs, *comparison.interactions) for block in _difference(pair)),
        flags_block("", comparison.flags),
    )


def evaluation_group_report(group: EvaluationGroup) -> Report:
    """The mean figures of the models with their intervals, the figures of each, and their flags."""
    first = group.evaluations[0]
    names = group.means.runs if group.means else [evaluation.folder.name for evaluation in group.evaluations]
    blocks: list[Block] = []
    if group.means:
        rows = [
            Row(FIGURES[name], [Cell(estimate), *map(Cell, group.means.by_run[name])])
            for name, estimate in group.means.figures.items()
        ]
        blocks.append(Table(["mean", *names], [Group("95 % intervals over seeds and items", rows)]))
    flags = [flags_block(name, e.flags) for name, e in zip(names, group.evaluations, strict=True) if e.flags]
    shown = f", search {first.search}" if first.search != "none" else ""
    title = f"{group.model} on {first.task} ({first.protocol}{shown})"
    return model.short(title, f"{first.n} items, {len(names)} models", *blocks, *flags)


def figures_table(comparison: GroupComparison) -> Table:
    """The figures of each group with their intervals, and of each run."""
    groups = [Group("mean over seeds, 95 % intervals over seeds and items",
                    [Row(FIGURES[name], [Cell(group.figures[name]) for group in comparison.groups])
                     for name in comparison.groups[0].figures])]  # fmt: skip
    most = max(len(group.runs) for group in comparison.groups)
    rows = [
        Row(
            f"run {number + 1}",
            [
                Cell(values[number] if number < len(values := group.by_run[comparison.measure]) else None)
                for group in comparison.groups
            ],
        )
        for number in range(most)
    ]
    return Table(comparison.names, [*groups, Group(f"{FIGURES[comparison.measure]} of each run", rows)])


def _difference(pair: GroupDifference) -> list[Table | Headline]:
    rows = [
        Row(FIGURES[name], [Cell(each.estimate, signed=True), Cell(f"{each.p_value:.3g}"), Cell(each.detectable),
                            Cell(each.seeds_needed)])
        for name, each in pair.differences.items()
    ]  # fmt: skip
    columns = ("difference (95 % interval)", "p", "detectable", "seeds needed")
    return [Table(columns, [Group(f"{pair.a} minus {pair.b}", rows)]), Headline(pair.verdict_text, pair.remark)]
