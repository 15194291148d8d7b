"""Reports on labels, fitted labelers and audits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from sailkit import runs
from sailkit.labeling.audit_file import BM25, flat_description
from sailkit.labeling.audit_results import Audit, LabelerDifference
from sailkit.labeling.results import NO_SCORE, FittedLabeler, Labeling
from sailkit.labeling.verdict import baselines, best_labeler, cell_of, names_of
from sailkit.rendering import model
from sailkit.rendering.model import (
    Cases,
    Cell,
    Facts,
    Group,
    Heading,
    Interval,
    Intervals,
    Report,
    Row,
    Section,
    Table,
    Text,
)  # fmt: skip
from sailkit.rendering.numbers import capitalised, fact, machine

_FIGURES = {
    "auroc": "AUROC",
    "stance_auroc": "AUROC, supports against refutes",
    "balanced_accuracy": "Balanced accuracy",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "precision_distracting": "Precision for distracting",
    "recall_distracting": "Recall for distracting",
    "brier": "Brier score (0 is best)",
    "ece": "Expected calibration error (0 is best)",
}
_WITH_INTERVAL = ("auroc", "stance_auroc", "balanced_accuracy", "kappa")
_PLOTTED = {"auroc": ("chance", 0.5), "balanced_accuracy": ("always the same judgement", 0.5)}
_AT_DEFAULT = {
    "default_balanced_accuracy": "Balanced accuracy at that default",
    "default_kappa": "Cohen's kappa at that default",
}
_STRATA = {
    "unanimous": "all votes agree",
    "majority": "more than half of the votes agree",
    "official": "the data set's own verdict",
    "near": "judged results, and near misses of other claims",
    "random": "judged results, and random ones of other claims",
}


def report_on(folders: Sequence[Path], title: str | None = None) -> Report:
    """A report on one or more audits.

    Args:
        folders: Run folders of audits.
        title: Title of the report; derived from the data sets by default.

    Raises:
        UserError: An audit is not finished, or its file is damaged.
    """
    audits = [Audit.load(folder) for folder in folders]
    data = [audit.data for audit in audits]
    several, distinct = len(audits) > 1, len(set(data)) == len(data)
    names = data if distinct else [f"{audit.data} ({folder})" for audit, folder in zip(audits, folders, strict=True)]
    verdicts = [best_labeler(audit) for audit in audits]
    blocks: list[model.Block] = []
    for name, own in zip(names, verdicts, strict=True):
        blocks += [Heading(name), *own] if several else own
    about = "" if several else f": {audits[0].row(BM25, audits[0].strata[0]).n:,} pairs of the {_stratum(audits[0])}"
    half = "Against people, on the half of the claims on which no threshold was chosen"
    sections = [Section("Verdict", [*blocks, Text(f"{half}{about}, with 95 % intervals over claims.")])]
    for name, audit, folder in zip(names, audits, folders, strict=True):
        parts: dict[str, Sequence[model.Block]] = {
            "Intervals": [_intervals(audit)],
            "Figures": [Table(_columns(audit), _groups(audit))],
            "Baselines": [baselines(audit)],
            "Pairwise comparison": [
                Text("On the same claims. A difference is bold where its 95 % interval excludes 0; elsewhere it cannot "
                     "be told which of the two is better."),
                _pairwise(audit),
            ],
            "Largest disagreements": [
                Text(f"The results of the {_stratum(audit)} whose scores differ most. People: the share of them "
                     "who call the result informative."),
                *_disagreements(audit),
            ],
            "Provenance": _provenance(audit, folder),
        }  # fmt: skip
        sections += [Section(heading, own, name if several else "") for heading, own in parts.items()]
    return Report(
        title or f"Labelers against people on {' and '.join(dict.fromkeys(data))}",
        "; ".join(_about(name, audit) for name, audit in zip(names, audits, strict=True)),
        sections,
        "; ".join(sentence.text for sentence, _ in verdicts),
    )


def _about(name: str, audit: Audit) -> str:
    about = f"{audit.pairs:,} search results for {audit.claims:,} claims of {name}"
    return ", ".join([about, *_machines(audit)])


def _machines(audit: Audit) -> list[str]:
    names = names_of(audit)
    return [f"{names[own]} in {how}" for own in audit.ranked if (how := machine(audit.machines.get(own, {})))]


def _columns(audit: Audit) -> list[str]:
    return [names_of(audit)[name] for name in (*audit.ranked, BM25)]


def _stratum(audit: Audit) -> str:
    name = audit.strata[0]
    return f"stratum {name} ({_STRATA.get(name, name)})"


def _intervals(audit: Audit) -> Intervals:
    short = names_of(audit)
    rows = [(short[name], audit.row(name, audit.strata[0])) for name in (*audit.ranked, BM25)]
    figures = {
        _FIGURES[name]: [Interval(who, e, *baseline) for who, row in rows if (e := row.figures[name]) is not None]
        for name, baseline in _PLOTTED.items()
    }
    note = (
        f"{capitalised(_stratum(audit))}. A dot and its whisker are a figure and its 95 % interval; the dashed line is "
        "the baseline. AUROC is how often an informative result gets a higher score than a distracting one."
    )
    return Intervals(figures, note)


def _groups(audit: Audit) -> list[Group]:
    """A group of figures for each stratum; rows without any value are left out."""
    groups = []
    for stratum in audit.strata:
        rows = [audit.row(name, stratum) for name in (*audit.ranked, BM25)]
        table = [
            *(Row(title, [cell_of(row, name) for row in rows]) for name, title in _FIGURES.items()),
            Row("Threshold, chosen on the other half", [Cell(row.threshold) for row in rows]),
            Row("Threshold, the labeler's default", [Cell(row.default_threshold) for row in rows]),
            *(Row(title, [cell_of(row, name) for row in rows]) for name, title in _AT_DEFAULT.items()),
            Row("Pairs without a score, in all strata", [Cell(row.without_score or None) for row in rows]),
        ]
        meaning = f" ({_STRATA[stratum]})" if stratum in _STRATA else ""
        share = f"{rows[-1].informative_share:.1%} of them informative"
        groups.append(Group(f"{stratum}{meaning}: {rows[-1].n:,} pairs, {share}", [row for row in table if row.known]))
    return groups


def _gaps(audit: Audit) -> list[tuple[str, str, list[LabelerDifference]]]:
    """Each pair of labelers, with their difference in each stratum."""
    couples = combinations((*audit.ranked, BM25), 2)
    return [(a, b, [audit.difference(a, b, stratum) for stratum in audit.strata]) for a, b in couples]


def _pairwise(audit: Audit) -> Table:
    short, gaps = names_of(audit), _gaps(audit)
    differences = [
        Row(f"{short[a]} minus {short[b]}", [Cell(gap.auroc, signed=True) for gap in own]) for a, b, own in gaps
    ]
    agreement = [Row(f"{short[a]} and {short[b]}", [Cell(gap.agreement_kappa) for gap in own]) for a, b, own in gaps]
    groups = [
        Group("Difference of AUROC", differences),
        Group("Agreement of their judgements (Cohen's kappa)", agreement),
    ]
    return Table(audit.strata, groups)


def _disagreements(audit: Audit) -> list[Cases]:
    short = names_of(audit)
    return [
        Cases(
            f"{short[a]} and {short[b]}",
            ["people", short[a], short[b]],
            [model.Case(e.claim, e.result, (e.human_share, e.second, e.first)) for e in gaps[0].examples],
            open=number == 0,
        )
        for number, (a, b, gaps) in enumerate(_gaps(audit))
    ]


def _provenance(audit: Audit, folder: Path) -> list[Facts]:
    has_manifest = (folder / runs.MANIFEST).exists()
    environment = runs.read_manifest(folder)["environment"] if has_manifest else {}
    facts = {
        "data": audit.data,
        "data (sha256)": audit.data_sha256,
        "claims": f"{audit.claims:,}" + ("" if audit.limit is None else f" (the first {audit.limit:,})"),
        "pairs": f"{audit.pairs:,}",
        "pairs left out": audit.left_out,
        "seed": audit.seed,
        "git revision": environment.get("git_revision"),
        "versions": environment.get("versions"),
        "platform": environment.get("platform"),
        "started": environment.get("started_at"),
    }
    known = [flat_description(audit.labelers[name]) for name in audit.ranked]
    names = dict.fromkeys(name for settings in known for name in settings)
    rows = [
        (capitalised(name.replace("_", " ")), [fact(name, settings) or "–" for settings in known]) for name in names
    ]
    return [
        Facts(["the audit"], [(capitalised(name), [fact(name, facts)]) for name in facts]),
        Facts([names_of(audit)[name] for name in audit.ranked], rows),
    ]


def short_report(result: Audit | Labeling | FittedLabeler) -> Report:
    """The report that `audit`, `label` or `fit` prints."""
    if isinstance(result, Audit):
        return _audit_report(result)
    return _labels_report(result) if isinstance(result, Labeling) else _fit_report(result)


def _short_group(audit: Audit, stratum: str) -> Group:
    """The figures of a stratum; only the main ones have intervals."""
    rows = [audit.row(name, stratum) for name in (*audit.ranked, BM25)]
    known = {name: [cell_of(row, name) for row in rows] for name in _FIGURES}
    values = {
        name: cells if name in _WITH_INTERVAL else [Cell(cell.point) for cell in cells] for name, cells in known.items()
    }
    short = [row for row in (Row(_FIGURES[name], cells) for name, cells in values.items()) if row.known]
    return Group(f"{stratum}, {rows[-1].n:,} pairs", short)


def _audit_report(audit: Audit) -> Report:
    """The figures of each stratum, and the difference of each labeler to the simplest one."""
    short, stratum = names_of(audit), audit.strata[0]
    base = "similarity" if "similarity" in audit.labelers else next(iter(audit.labelers))
    gaps = [
        Row(f"{short[name]} minus {short[base]}", [Cell(gap.auroc, signed=True), Cell(gap.agreement_kappa)])
        for name in (*audit.ranked, BM25)
        if name != base
        for gap in [audit.difference(name, base, stratum)]
    ]
    reported = f", {audit.claims_reported} of them reported on"
    return model.short(
        "",
        ", ".join([f"{audit.pairs} pairs of {audit.claims} claims{reported}", *_machines(audit)]),
        _intervals(audit),
        Table(_columns(audit), [_short_group(audit, each) for each in audit.strata]),
        baselines(audit),
        Table(["AUROC", "agreement (kappa)"], [Group(f"{stratum}, differences", gaps)]),
        Text(f"every two labelers, every stratum, and where they differ:  sailkit report {audit.folder}"),
        Text(f"audit: {audit.path}"),
    )


def _labels_report(labeling: Labeling) -> Report:
    """Counts of the judgements."""
    if not labeling.finished:
        return model.short("", f"waiting for the shards {', '.join(map(str, labeling.missing_shards))}")
    how = f" ({machine(labeling.machine)})" if machine(labeling.machine) else ""
    counts = labeling.counts
    verdicts = f"informative {counts['informative']}, distracting {counts['distracting']}"
    lines = [f"{verdicts} (threshold {labeling.threshold:g})"]
    if silent := {name: counts[name] for name in NO_SCORE if counts[name]}:
        lines.append("without a judgement: " + ", ".join(f"{name} {count}" for name, count in silent.items()))
    return model.short(
        f"{labeling.labeler}{how}",
        f"{labeling.pairs} search results of {labeling.n} instructions",
        *map(Text, [*lines, f"labels: {labeling.path}"]),
        model.Flags("", labeling.flag_messages),
    )


def _fit_report(fitted: FittedLabeler) -> Report:
    """The training data of the labeler, and its folder."""
    about = f"{fitted.pairs} pairs of {fitted.claims} claims ({fitted.data})"
    how = machine({"device": fitted.device, "dtype": fitted.dtype})
    return model.short("", f"fitted on {about}, {how}", Text(f"model: {fitted.folder}"))
