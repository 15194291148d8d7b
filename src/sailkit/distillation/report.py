"""How near students came to their teacher, as one HTML file and the same as Markdown, of one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sailkit import __version__
from sailkit.distillation.results import WHO, Distillation, StudentComparison, compare_students, estimates, read
from sailkit.distillation.steps import STUDENT
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering import numbers, page
from sailkit.stats.intervals import LEAST_ROWS, Estimate
from sailkit.training import plots, publish
from sailkit.training.finetune import DATA_CARDS
from sailkit.training.results import HISTORY

_TITLES = {
    "kl": "KL to the teacher, nats a token",
    "agreement": "Same likeliest token as the teacher",
    "cross_entropy": "Cross-entropy of the words, nats a token",
    "verification_agreement": "Search results flagged as the teacher does",
    "verification_kappa": "The same, beyond chance (Cohen's kappa)",
}
_TARGETS = {
    "positions": "Student's tokens",
    "aligned": "Begin where a teacher's token does",
    "conditioned": "Begin within a teacher's token",
    "without_target": "Have no target, cross-entropy alone",
    "captured_mass": "Teacher's probability that targets list",
    "identical_tokens": "Tokens that are the teacher's, in bytes and place",
    "student_bytes_per_token": "Bytes in a token of the student",
    "teacher_bytes_per_token": "Bytes in a token of the teacher",
    "rows_without_teacher": "Rows without the teacher, cross-entropy alone",
}
_PARTS = ("training_targets", "held_out_targets")
_SIDES = {"teacher_": "teacher", "student_": "student as it was"}
_FACTS = {
    **{f"{who}{what}_sha256": f"{what} of the {name} (sha256)" for who, name in _SIDES.items()
       for what in ("weights", "tokenizer", "config")},
    "cache": "cache that was given", "data_sha256": "data (sha256)", "git_revision": "git revision",
    "versions": "versions", "platform": "platform", "started_at": "started",
}  # fmt: skip
_MANY_ROWS = 50  # with fewer, intervals of the bootstrap are too narrow
Cell = tuple[str, str] | tuple[str, str, bool] | None  # figure, what is set smaller, whether it stands out


@dataclass(frozen=True)
class _Shown:
    """One run, and what it is called on the page."""

    name: str
    run: Distillation
    found: dict[str, dict[str, Estimate | None]]


def write(folders: Sequence[Path], out: Path, title: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Write the page of one or more distillations.

    Args:
        folders: Of the runs; the first is compared with each other.
        out: See `page.places`.
        title: Made from teacher and student, or from the runs' names, by default.
        seed: Of the bootstrap.

    Returns:
        Where the HTML and the Markdown are, and the verdicts in words.

    Raises:
        UserError: A run is not finished, or its files are damaged.
    """
    places = page.places(out)
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else list(map(str, folders))
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)} was given twice")
    names = names if len(names) > 1 else ["the run"]
    found = [read(folder) for folder in folders]
    shown = [_Shown(name, run, estimates(run, seed)) for name, run in zip(names, found, strict=True)]
    try:
        content = _content(shown, seed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{' or '.join(map(str, folders))} does not hold what distill writes ({what})") from None
    heading = title or (_about(shown[0].run) if len(shown) == 1 else f"Distillation: {', '.join(names)}")
    page.write(places, "distilled", {"title": heading, "version": __version__, **content})
    return {"html": str(places[0]), "markdown": str(places[1]), "verdict": "; ".join(content["verdicts"])}


def _about(run: Distillation) -> str:
    layers = f", {run.figures['student_layers']} of its layers" if run.figures["student_layers"] else ""
    return f"Distillation of {run.figures['teacher'] or 'recorded answers'} into {run.figures['student']}{layers}"


def _content(shown: Sequence[_Shown], seed: int) -> dict[str, Any]:
    pairs = [
        (one, compare_students(shown[0].run, one.run, seed)) for one in shown[1:] if shown[0].run.ids and one.run.ids
    ]
    students = [one.run.folder / STUDENT for one in shown]
    cards = [card for folder in students for card in _json(folder / DATA_CARDS).get("data", ())]
    plotted = [
        (one.name, after, "before training", before.value)
        for one in shown
        if (after := one.found["tuned"]["agreement"]) and (before := one.found["base"]["agreement"])
    ]
    headlines = [headline(one.run, one.found) for one in shown]
    told = [verdict(shown[0].name, one.name, pair) for one, pair in pairs]
    return {
        "verdicts": [*told, *headlines],
        "several": len(shown) > 1,
        "findings": [{"name": one.name, "about": _about(one.run), "headline": words, "leads": _leads(one.run)}
                     for one, words in zip(shown, headlines, strict=True)],
        "told": told,
        "limits": _limits([one.run for one in shown], seed),
        "doubts": list(dict.fromkeys(publish.doubts(cards))),
        "plots": page.plots({_TITLES["agreement"]: plotted}) if plotted else None,
        "fidelity": _fidelity(shown),
        "pairs": _pairs(shown[0].name, pairs),
        "remarks": [f"{one.name}: {pair.other_targets}" for one, pair in pairs if pair.other_targets],
        "targets": _targets(shown),
        "curves": [(one.name, _curves(folder)) for one, folder in zip(shown, students, strict=True)],
        "names": [one.name for one in shown],
        "machines": list(dict.fromkeys(filter(None, (numbers.machine(one.run.figures["training"]) for one in shown)))),
        "trained": _table([[("method", one.run.figures["method"]), *publish.trained_on(one.run.figures["training"])]
                           for one in shown]),
        "data": [(name, [(n, [v]) for n, v in publish.quoted(card["card"])])
                 for name, card in {str(card["data"]): card for card in cards}.items()],
        "recipe": _table([publish.recipe_rows(one.run.manifest["settings"]["recipe"]) for one in shown]),
        "facts": _facts([one.run for one in shown]),
    }  # fmt: skip


def headline(run: Distillation, found: dict[str, dict[str, Estimate | None]]) -> str:
    """Whether the student came nearer to its teacher, in one sentence that says no more than the intervals do.

    Args:
        run: The run.
        found: See `sailkit.distillation.results.estimates`.
    """
    rows = len(run.ids)
    before, after = (run.said(who, "kl") for who in WHO)
    if before is None or after is None:
        return "It is not known how near the student came: nothing was held out, or there was no teacher to ask"
    words = f"{numbers.change(before, after)} nats a token"
    change = found["change"]["kl"]
    if change is None:
        return f"{rows} held-out rows are too few to tell whether the student came nearer (KL to the teacher {words})"
    said = {
        -1: f"KL to the teacher fell ({words})",
        0: f"It cannot be told whether KL to the teacher fell ({words})",
        1: f"KL to the teacher rose ({words})",
    }[change.sign]
    first, last, gap = run.said("base", "agreement"), run.said("tuned", "agreement"), found["change"]["agreement"]
    if first is not None and last is not None and gap is not None:
        more = {1: "more often", 0: "as often, as far as can be told", -1: "less often"}[gap.sign]
        said += f", and the student agrees with its likeliest token {more}"
        said += f" ({numbers.change(first, last)})"
    return f"{said}, on {rows:,} held-out rows"


def verdict(first: str, other: str, pair: StudentComparison) -> str:
    """Which of two students is nearer to the teacher, in one sentence.

    Args:
        first: The name of one run.
        other: Of the other.
        pair: What their comparison gave.
    """
    gap = pair.differences["kl"]
    if pair.other_settings:
        why = "and with fewer entries KL is lower by construction"
        return f"{first} and {other} cannot be ranked by KL: their targets differ in {pair.other_settings}, {why}"
    if pair.unlike or gap is None:
        return f"{first} and {other} cannot be compared: {pair.unlike or 'no position has a target'}"
    words = f"difference of KL {page.signed(gap.value)}, on {pair.rows:,} held-out rows of both"
    if not gap.sign:
        return f"Cannot tell whether {first} or {other} is nearer to the teacher ({words})"
    return f"{first} is {'nearer to' if gap.value < 0 else 'further from'} the teacher than {other} ({words})"


def _leads(run: Distillation) -> list[tuple[str, str]]:
    found = []
    for name, title in _TITLES.items():
        values = [run.said(who, name) for who in WHO]
        if name != "verification_kappa" and any(value is not None for value in values):
            found.append((title, numbers.change(*values)))
    trained = run.figures["training"]
    kept = f", step {trained['best_step']:,} kept" if trained.get("best_step") is not None else ""
    return [*found, ("Trained", f"{trained['steps']:,} steps{kept}")]


def _cell(estimate: Estimate | None, value: float | None = None, change: bool = False) -> Cell:
    if estimate is None:
        return None if value is None else (page.figure(value), "")
    if not change:
        return page.figure(estimate.value), page.span(estimate)
    span = f"{page.signed(estimate.low)} to {page.signed(estimate.high)}"
    return page.signed(estimate.value), span, bool(estimate.sign)


def _row(one: _Shown, name: str) -> list[Cell]:
    cells = [_cell(one.found[who][name], one.run.said(who, name)) for who in WHO]
    return [*cells, _cell(one.found["change"][name], change=True)]


def _fidelity(shown: Sequence[_Shown]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Rows for each figure of one run; of several, rows for each run below each figure."""
    table = {title: [(one.name, _row(one, name)) for one in shown] for name, title in _TITLES.items()}
    known = {title: rows for title, rows in table.items() if any(cell for _, cells in rows for cell in cells)}
    if len(shown) > 1 or not known:
        return list(known.items())
    return [(f"Of {len(shown[0].run.ids):,} held-out rows", [(title, rows[0][1]) for title, rows in known.items()])]


def _pairs(
    first: str, pairs: Sequence[tuple[_Shown, StudentComparison]]
) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    return [
        (
            f"{first} minus {one.name}, {pair.rows:,} rows of both",
            [(_TITLES[name], [_cell(gap, change=True)]) for name, gap in pair.differences.items() if gap],
        )
        for one, pair in pairs
        if not pair.unlike
    ]


def _targets(shown: Sequence[_Shown]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    def cell(name: str, value: Any) -> Cell:
        if value is None:
            return None
        if isinstance(value, int) and not name.endswith("token"):
            return f"{value:,}", ""
        return (f"{value:.2f}" if name.endswith("per_token") else page.figure(value)), ""

    groups = []
    for one in shown:
        parts = [one.run.figures.get(part) or {} for part in _PARTS]
        rows = [(title, [cell(name, part.get(name)) for part in parts]) for name, title in _TARGETS.items()]
        if any(parts):
            groups.append((one.name, [(title, cells) for title, cells in rows if any(cells)]))
    return groups


def _curves(folder: Path) -> list[tuple[str, Any]]:
    history = [row for _, row in jsonl.read_rows(folder / HISTORY)] if (folder / HISTORY).exists() else []
    made = plots.plots_of(history, _json(folder / "metrics.json"))
    return [(plot.title, plots.draw(plot)) for plot in made]


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = jsonl.read_json(path) if path.exists() else {}
    return found


def _table(columns: Sequence[Sequence[tuple[str, Any]]]) -> list[tuple[str, list[str]]]:
    """Name -> what each run has; a dash where it has nothing."""
    held = [dict(rows) for rows in columns]
    names = dict.fromkeys(name for row in zip_longest(*columns) for name, _ in filter(None, row))
    return [(name, [str(own.get(name, "–")) for own in held]) for name in names]


def _facts(all_runs: Sequence[Distillation]) -> list[tuple[str, list[str | None]]]:
    known = [{**run.manifest["settings"], **run.manifest["environment"]} for run in all_runs]
    rows = [(title, [page.fact(name, own) for own in known]) for name, title in _FACTS.items()]
    return [(title, values) for title, values in rows if any(values) or title == "git revision"]


def _limits(all_runs: Sequence[Distillation], seed: int) -> list[str]:
    """What the figures do not show, in sentences."""
    measured = [run for run in all_runs if run.ids]
    found = [
        "Near to the teacher is not right: nothing here says whether answers are right, or better with search results "
        "than without; measure that with sailkit evaluate and compare.",
        "Each run is one training with one seed.",
    ]
    if not measured:
        return ["There were no held-out rows, or no teacher to ask: nothing is known of what was learnt.", *found]
    few = min(len(run.ids) for run in measured)
    narrow = f"; with {few} rows they are narrower than they should be" if LEAST_ROWS <= few < _MANY_ROWS else ""
    found = [
        f"Intervals are over held-out rows (bootstrap, seed {seed}): they say nothing of another training{narrow}.",
        "All tokens that a target does not list count as one, so KL over the whole vocabulary is at least as large.",
        "Held-out rows are the data's own words, read by both: what a student writes by itself can be further off.",
        "The checkpoint that was kept is the one with the lowest loss on the same held-out rows.",
        *found,
    ]
    if any(run.said("tuned", "verification_agreement") is not None for run in measured):
        found.insert(2, "The kappa of verification is not defined where both always say the same; such draws are left "
                        "out of its interval.")  # fmt: skip
    if any(run.figures["student_layers"] for run in measured):
        found.insert(2, "A student that was cut out of its teacher says next to nothing before training: that it came "
                        "nearer shows little; set it beside another student.")  # fmt: skip
    if any(run.figures["held_out_targets"]["identical_tokens"] < 1 for run in measured):
        found.insert(2, "Teacher and student have different tokens: the targets are the teacher's word brought into "
                        "the student's tokens, which is an approximation.")  # fmt: skip
    return found
