"""What a person reads on the terminal, one function for each verb."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sailkit.console import console
from sailkit.rendering.numbers import decimals, machine, short_names

Result = dict[str, Any] | list[dict[str, Any]]

# Name of a figure -> what a person reads.
_FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "mcc": "Matthews correlation",
}


def _flags(figures: Mapping[str, Any]) -> None:
    for code, sentences in figures.get("flag_messages", {}).items():
        for sentence in sentences:
            console().print(f"[bold yellow]![/] [bold]{escape(code)}[/]: {escape(sentence)}")


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _items(figures: Mapping[str, Any], what: str = "items") -> str:
    groups = f" in {figures['groups']} groups" if figures.get("groups") else ""
    return f"{figures['n']} {what}{groups}"


def _interval(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:.4f} [{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"


def _figure_table(figures: Mapping[str, Any], columns: Mapping[str, str]) -> Table:
    """Figures with intervals; columns are given as heading -> prefix of the names."""
    table = Table(box=None, pad_edge=False)
    table.add_column("95 % intervals")
    for heading in columns:
        table.add_column(escape(heading))
    names = {**_FIGURES, **{f"f1_{label}": f"F1 of {label}" for label in figures["labels"]}}
    for name, title in names.items():
        table.add_row(escape(title), *(_interval(figures, prefix + name) for prefix in columns.values()))
    return table


def _confusion(figures: Mapping[str, Any]) -> None:
    matrix = figures["confusion"]
    table = Table(box=None, pad_edge=False)
    table.add_column(escape(f"{figures['against']} label, then answers"))
    for column in matrix["columns"]:
        table.add_column(escape(column), justify="right")
    for row, counts in zip(matrix["rows"], matrix["counts"], strict=True):
        table.add_row(escape(row), *map(str, counts))
    console().print(table)


def _majority(figures: Mapping[str, Any]) -> None:
    """What one constant answer gives, against each kind of labels."""
    kinds = {"": "human" if "human_accuracy" in figures else figures["against"]}
    if "reference_majority_label" in figures and "human_accuracy" in figures:
        kinds["reference_"] = "reference"
    for prefix, kind in kinds.items():
        label, accuracy = (figures[f"{prefix}majority_{name}"] for name in ("label", "accuracy"))
        console().print(f"always answering {escape(label)}: accuracy {accuracy:.4f} against the {kind} labels")


def evaluation(figures: Result) -> None:
    """What `evaluate` found."""
    assert isinstance(figures, dict)
    out = console()
    shown = [f"search {figures['search']}"] if figures.get("search", "none") != "none" else []
    shown += ["calibrated"] if figures.get("calibrate") else []
    how = _listed(figures["protocol"], figures["wording"], figures["answer"], *shown, machine(figures))
    what = f"{figures['model']} on {figures['task']} ({how})"
    out.print(f"\n[bold]{escape(what)}[/]: {_items(figures)}")
    if "against" in figures:
        columns = (
            {"human labels": "human_"} if figures["against"] == "human" else {"reference": "", "human labels": "human_"}
        )
        out.print(_figure_table(figures, columns))
        _majority(figures)
        if figures.get("auroc") is not None:
            out.print(f"AUROC {figures['auroc']:.4f}, expected calibration error {figures['ece']:.4f}")
        _confusion(figures)
    _flags(figures)


def rescored(found: Result) -> None:
    """What `rescore` found."""
    for figures in found if isinstance(found, list) else [found]:
        out = console()
        if "name" in figures:
            out.print(
                f"\n[bold]{escape(figures['name'])}[/]: {_items(figures, 'recorded answers')}, "
                f"read as task {escape(figures['task'])}"
            )
        if "against" in figures:
            truth = f"{figures['against']} labels"
            columns = {f"as recorded, {truth}": "recorded_", f"read again, {truth}": ""}
            if "human_accuracy" in figures and figures["against"] != "human":
                columns["read again, human labels"] = "human_"
            out.print(_figure_table(figures, columns))
            _majority(figures)
            _confusion(figures)
        _flags(figures)


def comparison(found: Result) -> None:
    """What `compare` found."""
    assert isinstance(found, dict)
    out = console()
    if known := [f"{name} in {how}" for name, how in found["machines"].items() if how]:
        out.print(f"\n{escape(_listed(*known))}")
    for pair in found["comparisons"]:
        table = Table(box=None, pad_edge=False)
        for heading in (
            f"on {_items(pair)}, {found['against']} labels",
            pair["a"],
            pair["b"],
            "difference (95 % interval)",
        ):
            table.add_column(escape(heading))
        for name in ("accuracy", "macro_f1"):
            value, low, high = (pair[f"{name}_difference{end}"] for end in ("", "_low", "_high"))
            digits = decimals(low, high)
            difference = f"{value:+.4f}  [{low:+.{digits}f}, {high:+.{digits}f}]"
            table.add_row(_FIGURES[name], f"{pair[f'a_{name}']:.4f}", f"{pair[f'b_{name}']:.4f}", difference)
        out.print()
        out.print(table)
        alone = f"right alone: {pair['a']} {pair['only_a']}, {pair['b']} {pair['only_b']}"
        test = f"{pair['test'].removesuffix(' test')} p = {pair['p_value']:.3g}, after Holm {pair['p_value_holm']:.3g}"
        out.print(f"{escape(alone)}; {escape(test)}")
        remark = f" ({pair['remark']})" if pair["remark"] else ""
        out.print(f"[bold]{escape(pair['verdict_text'])}[/]{escape(remark)}")
    _flags(found)


def report(found: Result) -> None:
    """Where `report` wrote, and the verdict."""
    assert isinstance(found, dict)
    lines = [found["verdict"], f"report: {found['html']}", f"Markdown: {found['markdown']}"]
    console().print("\n".join(map(escape, lines)))


def search(found: Result) -> None:
    """What `search` found."""
    assert isinstance(found, dict)
    outcomes = ", ".join(f"{name} {found[name]}" for name in ("found", "empty", "unavailable", "left_out"))
    out = console()
    out.print(f"[bold]{escape(found['engine'])}[/]: {found['n']} instructions: {outcomes}")
    out.print(f"{found['results_in_all']} results, {found['dropped_results']} without text dropped")
    out.print(f"results: {escape(found['results'])}")


def built(found: Result) -> None:
    """What `build` made."""
    assert isinstance(found, dict)
    names = {
        "n_in": "rows",
        "n_train": "train",
        "n_held_out": "held out",
        "n_dropped": "dropped",
        "n_removed": "removed",
    }
    console().print(", ".join(f"{title} {found[name]}" for name, title in names.items()))
    shares = found["judgement_shares"]
    console().print("judgements in train: " + ", ".join(f"{name} {places(share)}" for name, share in shares.items()))
    _flags(found)


def labels(found: Result) -> None:
    """What `label` judged."""
    assert isinstance(found, dict)
    if not found["finished"]:
        console().print(f"waiting for the shards {', '.join(map(str, found['missing_shards']))}")
        return
    out = console()
    how = f" ({machine(found)})" if machine(found) else ""
    out.print(f"[bold]{escape(found['labeler'])}[/]{how}: {found['pairs']} search results of {found['n']} instructions")
    informative, distracting, threshold = (found[name] for name in ("informative", "distracting", "threshold"))
    out.print(f"informative {informative}, distracting {distracting} (threshold {threshold:g})")
    silent = {name: found[name] for name in ("unreadable", "refused", "failed", "no_response") if found[name]}
    if silent:
        out.print("without a judgement: " + ", ".join(f"{name} {count}" for name, count in silent.items()))
    out.print(f"labels: {escape(found['labels'])}")
    _flags(found)


def fitted(found: Result) -> None:
    """What `fit` made."""
    assert isinstance(found, dict)
    about = f"{found['pairs']} pairs of {found['claims']} claims ({escape(found['data'])})"
    console().print(f"fitted on {about}, {machine(found)}")
    console().print(f"model: {escape(found['model'])}")


def places(value: float | None, form: str = ".3f") -> str:
    """A figure with its places, or a dash."""
    return "-" if value is None else format(value, form)


def audit(found: Result) -> None:
    """What `audit` measured."""
    assert isinstance(found, dict)
    out = console()
    names = short_names(dict.fromkeys(row["labeler"] for row in found["audits"]))
    machines = [f"{names[name]} in {how}" for name, facts in found["machines"].items() if (how := machine(facts))]
    about = f"{found['pairs_in_all']} pairs of {found['claims']} claims, {found['claims_reported']} of them reported on"
    out.print(escape(_listed(about, *machines)))
    for stratum in dict.fromkeys(row["stratum"] for row in found["audits"]):
        rows = [row for row in found["audits"] if row["stratum"] == stratum]
        table = Table(box=None, pad_edge=False)
        headings = ("AUROC", "balanced accuracy", "kappa", "MCC", "distracting: precision", "recall", "Brier", "ECE")
        for heading in (f"{stratum}, {rows[0]['n']} pairs", *headings):
            table.add_column(escape(heading))
        for row in rows:
            ranges = [
                f"{places(row[name])} [{places(row[name + '_low'])}, {places(row[name + '_high'])}]"
                for name in ("auroc", "balanced_accuracy", "kappa")
            ]
            rest = [row[name] for name in ("mcc", "precision_distracting", "recall_distracting", "brier", "ece")]
            table.add_row(escape(names[row["labeler"]]), *ranges, *map(places, rest))
        out.print()
        out.print(table)
        majority = rows[0]["majority_accuracy"]
        out.print(f"always the more frequent judgement: accuracy {majority:.3f}, balanced accuracy 0.5, kappa 0")
    if found["human_kappa"] is not None:
        out.print(f"one person against the rest: kappa {found['human_kappa']:.3f}")
    base = "similarity" if "similarity" in found["labelers"] else next(iter(found["labelers"]))
    first = found["audits"][0]["stratum"]
    for row in found["differences"]:
        if row["stratum"] != first or base not in (row["first"], row["second"]):
            continue
        gap, low, high = (places(row[f"auroc_difference{end}"], "+.3f") for end in ("", "_low", "_high"))
        pair = f"{escape(names[row['second']])} minus {escape(names[row['first']])}"
        kappa = places(row["agreement_kappa"])
        out.print(f"{first}: {pair}: AUROC {gap} [{low}, {high}]; agreement kappa {kappa}")
    folder = escape(str(Path(found["audit"]).parent))
    out.print(f"every two labelers, every stratum, and where they differ:  sailkit report {folder}")
    out.print(f"audit: {escape(found['audit'])}")


def runs(found: Result) -> None:
    """Runs, or how two of them differ."""
    assert isinstance(found, dict)
    rows = found.get("runs")
    if rows is None:
        rows = [
            {"setting": name, **dict(zip(found["names"], map(str, pair), strict=True))}
            for name, pair in found["differences"].items()
        ]
    if not rows:
        console().print("no runs" if "runs" in found else "the two runs have the same settings")
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(escape(heading))
    for row in rows:
        table.add_row(*(escape("-" if value is None else str(value)) for value in row.values()))
    console().print(table)
