"""State in words which labeler of an audit is best, if the intervals allow it, and describe the baselines."""

from __future__ import annotations

from sailkit.labeling.audit_file import BM25
from sailkit.labeling.audit_results import Audit, StratumFigures
from sailkit.rendering.model import Bullets, Cell, Figures, Headline
from sailkit.rendering.numbers import figure, listed, short_names
from sailkit.stats.intervals import LEAST_UNITS


def names_of(audit: Audit) -> dict[str, str]:
    """Short names of the labelers and of the BM25 baseline."""
    return {**short_names(audit.labelers), BM25: "BM25 score"}


def best_labeler(audit: Audit) -> tuple[Headline, Figures]:
    """State which labeler is best, if the intervals allow it, with the figures behind the verdict."""
    stratum, short = audit.strata[0], names_of(audit)
    best, *rest = audit.ranked
    rival = "similarity" if "similarity" in rest else [*rest, BM25][0]
    names = {**short, BM25: "a BM25 score"}
    row, gap = audit.row(best, stratum), audit.difference(best, rival, stratum)
    auroc = row.figures["auroc"]
    claims = row.n_claims or audit.claims_reported
    if claims is not None and claims < LEAST_UNITS:
        headline = f"{claims} claims are too few to tell how well {names[best]} judges"
    elif auroc is None or auroc.low <= 0.5 <= auroc.high:
        headline = f"Cannot tell whether {names[best]} judges better than chance"
    elif auroc.high < 0.5:
        headline = f"{names[best]} judges worse than chance"
    elif not gap.sign:
        headline = f"Cannot tell whether {names[best]} or {names[rival]} judges better"
    else:
        headline = f"{names[best]} judges {'better' if gap.sign > 0 else 'worse'} than {names[rival]}"
    signs = {other: audit.difference(best, other, stratum).sign for other in [*rest, BM25] if other != rival}
    remarks = [
        f"{names[best]} {words} {listed([names[other] for other in signs if signs[other] == sign])}"
        for sign, words in ((1, "is better than"), (0, "cannot be told apart from"), (-1, "is worse than"))
        if sign in signs.values()
    ]
    if len(rest) > 1:
        remarks.append(f"It was chosen as the best of {len(rest) + 1}, which the intervals do not allow for")
    figures = [
        (f"AUROC of {short[best]}", cell_of(row, "auroc")),
        (f"Difference to {short[rival]}", Cell(gap.auroc, signed=True)),
        ("Its balanced accuracy", cell_of(row, "balanced_accuracy")),
        ("Its kappa with people", cell_of(row, "kappa")),
    ]
    return Headline(headline, ". ".join(remarks)), Figures(figures)


def cell_of(row: StratumFigures, name: str) -> Cell:
    """A figure, with its interval where it has one."""
    return Cell(row.figures.get(name))


def baselines(audit: Audit) -> Bullets:
    """Baselines without a labeler, and the agreement between people."""
    rows = [audit.row(BM25, stratum) for stratum in audit.strata]

    def each(name: str) -> str:
        estimates = [(row.figures[name], row.stratum) for row in rows]
        return ", ".join(f"{figure(estimate.value)} ({stratum})" for estimate, stratum in estimates if estimate)

    constant = ", ".join(
        f"{figure(row.majority_accuracy)} ({row.stratum}, "
        f"always {'informative' if row.informative_share >= 0.5 else 'distracting'})"
        for row in rows
    )
    entries = [
        ("BM25 score of claim and result", f"AUROC {each('auroc')}; balanced accuracy {each('balanced_accuracy')}."),
        ("Always the more frequent judgement", f"accuracy {constant}; balanced accuracy 0.500, kappa 0.000."),
    ]
    if audit.human_kappa is not None:
        over = "over all pairs with three or more votes, in any stratum or half"
        entries.append(("One person against the rest", f"kappa {figure(audit.human_kappa)}, {over}."))
    return Bullets(entries)
