"""What an audit of labelers found, as one HTML file and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from sailkit import __version__, runs
from sailkit.labeling.audit import BM25
from sailkit.labeling.results import Audit, Case, Gap, StratumFigures, read_audit
from sailkit.rendering import numbers, page
from sailkit.rendering.numbers import short_names
from sailkit.stats.intervals import LEAST_UNITS, Estimate

_FIGURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "precision_distracting": "Precision for distracting",
    "recall_distracting": "Recall for distracting",
    "brier": "Brier score (0 is best)",
    "ece": "Expected calibration error (0 is best)",
}
_PLOTTED = {"auroc": ("chance", 0.5), "balanced_accuracy": ("always the same judgement", 0.5)}
_AT_DEFAULT = {
    "default_balanced_accuracy": "Balanced accuracy at that default",
    "default_kappa": "Cohen's kappa at that default",
}
_STRATA = {
    "unanimous": "all votes agree",
    "majority": "more than half of the votes agree",
    "official": "the data set's own verdict",
}
Cell = tuple[str, str] | tuple[str, str, bool] | None  # figure, what is set smaller, whether it stands out


def write(folders: Sequence[Path], out: Path, title: str | None = None) -> dict[str, Any]:
    """Write the page of one or more audits.

    Args:
        folders: Of the audits.
        out: See `page.places`.
        title: Made from the data sets by default.

    Returns:
        Where the HTML and the Markdown are, and the verdicts in words.
    """
    places = page.places(out)
    found = [read_audit(folder) for folder in folders]
    data = [one.data for one in found]
    names = (
        data if len(set(data)) == len(data) else [f"{one.data} ({f})" for one, f in zip(found, folders, strict=True)]
    )
    shown = [_content(*each) for each in zip(names, found, folders, strict=True)]
    heading = title or f"Labelers against people on {' and '.join(dict.fromkeys(data))}"
    page.write(places, "audit", {"title": heading, "version": __version__, "audits": shown})
    return {"html": str(places[0]), "markdown": str(places[1]), "verdict": "; ".join(one["headline"] for one in shown)}


def _content(name: str, audit: Audit, folder: Path) -> dict[str, Any]:
    short = {**short_names(audit.labelers), BM25: "BM25 score"}
    columns, stratum = [*audit.ranked, BM25], audit.strata[0]
    couples = list(combinations(columns, 2))
    gaps = {couple: audit.gap(*couple, stratum) for couple in couples}
    plotted = {
        title: [
            (short[own], estimate, *_PLOTTED[figure])
            for own in columns
            if (estimate := audit.row(own, stratum).estimate(figure))
        ]
        for figure, title in _FIGURES.items()
        if figure in _PLOTTED
    }
    return {
        "name": name,
        **_verdict(audit, short),
        "stratum": stratum,
        "meaning": _STRATA.get(stratum, stratum),
        "n": audit.row(BM25, stratum).n,
        "claims": audit.claims,
        "pairs": audit.pairs_in_all,
        "names": [short[own] for own in columns],
        "plots": page.plots(plotted),
        "groups": [(_about(audit.row(BM25, each)), _rows(audit, columns, each)) for each in audit.strata],
        "baselines": _baselines(audit),
        "strata": audit.strata,
        "couples": _couples(audit, couples, short),
        "apart": [
            {"first": short[a], "second": short[b], "cases": [_case(*case) for case in gaps[a, b].cases]}
            for a, b in couples
        ],
        "facts": _facts(audit, folder),
        "machines": [
            f"{short[own]} in {how}" for own in audit.ranked if (how := numbers.machine(audit.machines.get(own, {})))
        ],
        "labelers": [short[own] for own in audit.ranked],
        "labeler_facts": _labeler_facts([audit.labelers[own] for own in audit.ranked]),
    }


def _verdict(audit: Audit, short: dict[str, str]) -> dict[str, Any]:
    """Which labeler is best, as far as can be told, and what that rests on."""
    stratum = audit.strata[0]
    best, *rest = audit.ranked
    rival = "similarity" if "similarity" in rest else [*rest, BM25][0]
    called = {**short, BM25: "a BM25 score"}
    row, gap = audit.row(best, stratum), audit.gap(best, rival, stratum)
    auroc = row.estimate("auroc")
    if audit.claims_reported is not None and audit.claims_reported < LEAST_UNITS:
        headline = f"{audit.claims_reported} claims are too few to tell how well {called[best]} judges"
    elif auroc is None or auroc.low <= 0.5 <= auroc.high:
        headline = f"Cannot tell whether {called[best]} judges better than chance"
    elif auroc.high < 0.5:
        headline = f"{called[best]} judges worse than chance"
    elif not gap.sign:
        headline = f"Cannot tell whether {called[best]} or {called[rival]} judges better"
    else:
        headline = f"{called[best]} judges {'better' if gap.sign > 0 else 'worse'} than {called[rival]}"
    signs = {other: audit.gap(best, other, stratum).sign for other in [*rest, BM25] if other != rival}
    remark = [
        f"{called[best]} {words} {_listed([called[other] for other in signs if signs[other] == sign])}"
        for sign, words in ((1, "is better than"), (0, "cannot be told apart from"), (-1, "is worse than"))
        if sign in signs.values()
    ]
    if len(rest) > 1:
        remark.append(f"It was chosen as the best of {len(rest) + 1}, which the intervals do not allow for")
    leads = [
        (f"AUROC of {short[best]}", _cell(auroc, row.number("auroc"))),
        (f"Difference to {short[rival]}", _difference(gap)),
        ("Its balanced accuracy", _cell(row.estimate("balanced_accuracy"), row.number("balanced_accuracy"))),
        ("Its kappa with people", _cell(row.estimate("kappa"), row.number("kappa"))),
    ]
    return {"headline": headline, "remark": remark, "leads": leads}


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cell(estimate: Estimate | None, value: float | None = None) -> Cell:
    if estimate is not None:
        return page.figure(estimate.value), page.span(estimate)
    return None if value is None else (page.figure(value), "")


def _difference(gap: Gap) -> Cell:
    if gap.auroc is None:
        return None
    return (
        page.signed(gap.auroc.value),
        f"{page.signed(gap.auroc.low)} to {page.signed(gap.auroc.high)}",
        bool(gap.sign),
    )


def _about(row: StratumFigures) -> str:
    meaning = f" ({_STRATA[row.stratum]})" if row.stratum in _STRATA else ""
    return f"{row.stratum}{meaning}: {row.n:,} pairs, {row.informative_share:.1%} of them informative"


def _rows(audit: Audit, columns: Sequence[str], stratum: str) -> list[tuple[str, list[Cell]]]:
    """The table of one stratum: name of a figure -> a cell for each column; rows of which nothing is known left out."""
    rows = [audit.row(name, stratum) for name in columns]
    table: dict[str, list[Cell]] = {
        title: [_cell(row.estimate(name), row.number(name)) for row in rows] for name, title in _FIGURES.items()
    }
    table["Threshold, chosen on the other half"] = [(page.figure(row.threshold), "") for row in rows]
    table["Threshold, the labeler's default"] = [_cell(None, row.default_threshold) for row in rows]
    for name, title in _AT_DEFAULT.items():
        table[title] = [_cell(row.estimate(name), row.number(name)) for row in rows]
    table["Pairs without a score, in all strata"] = [
        (str(r.without_score), "") if r.without_score else None for r in rows
    ]
    return [(title, cells) for title, cells in table.items() if any(cells)]


def _baselines(audit: Audit) -> list[tuple[str, str]]:
    """What needs no labeler, in words."""
    rows = [audit.row(BM25, stratum) for stratum in audit.strata]

    def each(name: str) -> str:
        values = [(row.number(name), row.stratum) for row in rows]
        return ", ".join(f"{page.figure(value)} ({stratum})" for value, stratum in values if value is not None)

    constant = ", ".join(
        f"{page.figure(row.majority_accuracy)} ({row.stratum}, "
        f"always {'informative' if row.informative_share >= 0.5 else 'distracting'})"
        for row in rows
    )
    found = [
        ("BM25 score of claim and result", f"AUROC {each('auroc')}; balanced accuracy {each('balanced_accuracy')}"),
        ("Always the more frequent judgement", f"accuracy {constant}; balanced accuracy 0.500, kappa 0.000"),
    ]
    if audit.human_kappa is not None:
        words = (
            f"kappa {page.figure(audit.human_kappa)}, over all pairs with three or more votes, in any stratum or half"
        )
        found.append(("One person against the rest", words))
    return found


def _couples(
    audit: Audit, couples: Sequence[tuple[str, str]], short: dict[str, str]
) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    gaps = [(couple, [audit.gap(*couple, stratum) for stratum in audit.strata]) for couple in couples]
    return [
        (
            "Difference of AUROC",
            [(f"{short[a]} minus {short[b]}", [_difference(g) for g in own]) for (a, b), own in gaps],
        ),
        (
            "Agreement of their judgements (Cohen's kappa)",
            [(f"{short[a]} and {short[b]}", [_cell(None, g.kappa) for g in own]) for (a, b), own in gaps],
        ),
    ]


def _case(case: Case, first: float, second: float) -> dict[str, Any]:
    bars = [(page.figure(x), f"{100 * min(1, max(0, x)):.1f}%") for x in (case.human_share, first, second)]
    return {"claim": case.claim, "result": case.result, "bars": bars}


def _facts(audit: Audit, folder: Path) -> list[tuple[str, list[str | None]]]:
    begun = (folder / runs.MANIFEST).exists()
    made = runs.read_manifest(folder)["environment"] if begun else {}
    facts = {
        "data": audit.data,
        "data (sha256)": audit.data_sha256,
        "claims": f"{audit.claims:,}" + ("" if audit.limit is None else f" (the first {audit.limit:,})"),
        "pairs": f"{audit.pairs_in_all:,}",
        "pairs left out": audit.left_out,
        "seed": audit.seed,
        "git revision": made.get("git_revision"),
        "versions": made.get("versions"),
        "platform": made.get("platform"),
        "started": made.get("started_at"),
    }
    return [(name, [page.fact(name, facts)]) for name in facts]


def _labeler_facts(told: Sequence[dict[str, Any]]) -> list[tuple[str, list[str | None]]]:
    names = dict.fromkeys(name for facts in told for name in facts)
    return [(name.replace("_", " "), [page.fact(name, facts) or "–" for facts in told]) for name in names]
