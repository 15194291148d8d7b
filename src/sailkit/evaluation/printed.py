"""The short reports that `evaluate`, `rescore` and `compare` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sailkit.evaluation.figures import Baselines, Flag, LabelFigures, Summary, flags_to_json
from sailkit.evaluation.flagging import Flagging
from sailkit.evaluation.results import Comparison, Evaluation, PairComparison, Rescored
from sailkit.evaluation.selective import Selective
from sailkit.rendering import model
from sailkit.rendering.model import Cell, Flags, Group, Headline, Interval, Intervals, Matrix, Report, Row, Table, Text
from sailkit.rendering.numbers import listed, machine

FIGURES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "weighted_f1": "Weighted F1",
    "mcc": "Matthews correlation",
}
_PLOTTED = ("accuracy", "macro_f1")


def evaluation_report(evaluation: Evaluation) -> Report:
    """The figures against each kind of labels, and the confusion matrix."""
    search = evaluation.search if evaluation.search != "none" else None
    settings = [
        evaluation.protocol, evaluation.wording, evaluation.answer, search and f"search {search}",
        "calibrated" if evaluation.calibrate else "",
        machine({"dtype": evaluation.dtype, "device": evaluation.device}),
    ]  # fmt: skip
    human = {"human labels": evaluation.human}
    columns = human if evaluation.against == "human" else {"reference": evaluation.main, **human}
    return model.short(
        f"{evaluation.model} on {evaluation.task} ({', '.join(filter(None, settings))})",
        _counted(evaluation.n, evaluation.groups),
        *_against(evaluation, columns),
        flags_block("", evaluation.flags),
    )


def rescored_report(rescored: Rescored) -> Report:
    """Recorded predictions next to the labels parsed again from the answers."""
    summary = rescored.summary
    if summary is None:
        return model.short("", "", flags_block("", rescored.flags))
    truth = f"{summary.against} labels"
    columns = {f"as recorded, {truth}": rescored.recorded, f"read again, {truth}": summary.main}
    if summary.human is not None and summary.against != "human":
        columns["read again, human labels"] = summary.human
    about = f"{_counted(summary.n, summary.groups, 'recorded answers')}, read as task {rescored.task}"
    return model.short(rescored.name or "", about, *_against(summary, columns), flags_block("", rescored.flags))


def comparison_report(comparison: Comparison) -> Report:
    """Table, test and verdict of each pair of sets."""
    machines = [f"{name} in {how}" for name, how in comparison.machines.items() if how]
    blocks: list[model.Block] = [block for pair in comparison.pairs for block in _pair(pair, comparison)]
    if len({pair.n for pair in comparison.pairs}) == 1:  # else the sets have other items in each pair
        sets = {name: (figures, pair.baselines) for pair in comparison.pairs
                for name, figures in ((pair.a, pair.a_figures), (pair.b, pair.b_figures))}  # fmt: skip
        blocks.append(_intervals(sets))
    return model.short(listed(comparison.names), ", ".join(machines), *blocks, flags_block("", comparison.flags))


def _pair(pair: PairComparison, comparison: Comparison) -> list[Table | Text | Headline]:
    rows = [
        Row(FIGURES[name], [Cell(pair.a_figures.figures[name].value), Cell(pair.b_figures.figures[name].value),
                            Cell(pair.differences[name], signed=True)])
        for name in _PLOTTED
    ]  # fmt: skip
    test = f"{pair.test.removesuffix(' test')} p = {pair.p_value:.3g}"
    if (tests := len(comparison.pairs)) > 1:
        test += f", {pair.p_value_holm:.3g} after Holm's adjustment for {tests} comparisons"
    heading = f"on {_counted(pair.n, pair.groups)}, {comparison.against} labels"
    return [
        Table([pair.a, pair.b, "difference (95 % interval)"], [Group(heading, rows)]),
        Text(f"correct in one run only: {pair.a} {pair.only_a}, {pair.b} {pair.only_b}; {test}"),
        *([Text(flagging_line(pair.flagging))] if pair.flagging else []),
        Headline(pair.verdict_text, pair.remark),
    ]


def flagging_line(figures: Flagging, models: int = 1) -> str:
    """One line on the verdicts of a model, or of several on average, on search results."""
    called = [
        f"{share.value:.1%} of the {label}"
        for label, share in (("informative", figures.informative), ("distracting", figures.distracting))
        if share is not None
    ]
    mcc = figures.mcc
    correlation = f", MCC {mcc.value:.3f} [{mcc.low:.3f}, {mcc.high:.3f}]" if mcc else ""
    shares = f"{' and '.join(called)}{correlation}"
    judges = "the model judges correctly" if models == 1 else f"{models} models judge correctly, on average,"
    return f"of {figures.results} search results with labels, {judges} {shares}"


def selective_line(figures: Selective) -> str:
    """One line on the answers with and without a search result that the model calls informative."""
    parts = [
        f"on {which} {part.n} accuracy {part.accuracy.value:.3f} [{part.accuracy.low:.3f}, {part.accuracy.high:.3f}], "
        f"macro-F1 {part.macro_f1.value:.3f} (a constant answer: accuracy {part.majority_accuracy:.3f})"
        for which, part in (("these", figures.selected), ("the other", figures.rejected))
        if part is not None
    ]
    coverage = f"{figures.coverage.value:.1%} of the items have a result that the model calls informative"
    return f"{coverage}: {'; '.join(parts)}"


def _counted(items: int, groups: int | None, what: str = "items") -> str:
    return f"{items} {what}" + (f" in {groups} groups" if groups else "")


def flags_block(name: str, flags: Sequence[Flag]) -> Flags:
    """Flags as a block of a report.

    Args:
        name: The set that they are about; empty if that is clear.
        flags: The flags.
    """
    return Flags(name, flags_to_json(flags)["flag_messages"])


def _intervals(sets: Mapping[str, tuple[LabelFigures, Baselines]]) -> Intervals:
    """Figures of sets with their intervals, each beside a constant answer."""
    return Intervals(
        {
            FIGURES[name]: [
                Interval(title, own.figures[name], f"always answering {base.majority_label}", at)
                for title, (own, base) in sets.items()
                for at in [base.majority_accuracy if name == "accuracy" else base.majority_macro_f1]
            ]
            for name in _PLOTTED
        }
    )


def _against(summary: Summary, columns: Mapping[str, LabelFigures | None]) -> list[model.Block]:
    """Figures with intervals, baselines and the confusion matrix; empty without labels."""
    if summary.baselines is None or summary.confusion is None:
        return []
    names = {**FIGURES, **{f"f1_{label}": f"F1 of {label}" for label in summary.labels}}
    rows = [
        Row(title, [Cell(column.figures.get(name) if column else None) for column in columns.values()])
        for name, title in names.items()
    ]
    baselines = {"human" if summary.human else str(summary.against): summary.baselines}
    if summary.reference is not None and summary.human is not None:
        baselines["reference"] = summary.reference.baselines
    lines = [
        f"always answering {base.majority_label}: accuracy {base.majority_accuracy:.4f} against the {kind} labels"
        for kind, base in baselines.items()
    ]
    if summary.auroc is not None:
        lines.append(f"AUROC {summary.auroc:.4f}, expected calibration error {summary.ece:.4f}")
    if summary.flagging is not None:
        lines.append(flagging_line(summary.flagging))
    if summary.selective is not None:
        lines.append(selective_line(summary.selective))
    table = summary.confusion
    own, others = summary.baselines, summary.reference.baselines if summary.reference else summary.baselines
    return [
        _intervals({title: (column, own if column is summary.human else others)
                    for title, column in columns.items() if column}),
        Table(list(columns), [Group("95 % intervals", rows)]),
        *map(Text, lines),
        Matrix("", f"{summary.against} label", table.rows, table.columns, table.counts),
    ]  # fmt: skip
