"""The report on several training runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.rendering import model
from sailkit.rendering.commands import command_blocks
from sailkit.rendering.model import Bullets, Cell, Facts, Group, Headline, Report, Row, Section, Table, Text
from sailkit.rendering.numbers import capitalised, fact, listed, signed
from sailkit.training import facts
from sailkit.training.data_cards import read_cards
from sailkit.training.held_out import loss_difference
from sailkit.training.report import ALL_SETTINGS, PROVENANCE, curves, headline
from sailkit.training.results import TrainingRun


@dataclass(frozen=True)
class _Run:
    name: str
    run: TrainingRun
    manifest: dict[str, Any]

    @property
    def settings(self) -> list[facts.Fact]:
        """The recipe, and then the settings in effect that it leaves out."""
        recipe = facts.recipe_rows(self.manifest["settings"]["recipe"])
        return [*recipe, *(row for row in facts.effective_rows(self.manifest) if row[0] not in dict(recipe))]


def report_on(folders: Sequence[Path], title: str | None = None, seed: int = 0) -> Report:
    """A report on several training runs; the first is compared with each of the others.

    Args:
        folders: The run folders.
        title: Title of the report; by default the runs' names.
        seed: Seed of the bootstrap.

    Raises:
        UserError: A run is not finished or was given twice, or its files are damaged.
    """
    short = [folder.resolve().name for folder in folders]
    names = short if len({*short}) == len(short) else list(map(str, folders))
    if len({*names}) < len(names):
        raise UserError(f"{max(names, key=names.count)} was given twice")
    trained = [_Run(name, TrainingRun.load(folder), runs.read_finished(folder, runs.METRICS, "finetune"))
               for name, folder in zip(names, folders, strict=True)]  # fmt: skip
    try:
        verdicts = [_verdict(trained[0], other, seed) for other in trained[1:]]
        headlines = [(run.name, headline(run.run.to_json())) for run in trained]
        sections = _sections(trained, verdicts, headlines)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{' or '.join(names)} does not hold what finetune writes ({what})") from None
    return Report(
        title or f"Fine-tuning: {listed(names)}",
        "; ".join(f"{run.name}: {run.run.base}" for run in trained),
        sections,
        "; ".join([*verdicts, *(f"{name}: {text}" for name, text in headlines)]),
    )


def _verdict(first: _Run, other: _Run, seed: int) -> str:
    """Which of two runs has the lower held-out loss, if their held-out rows are the same."""
    shared = {run.manifest["settings"].get("held_out_sha256") for run in (first, other)}
    if len(shared) > 1 or None in shared:
        return f"The held-out rows of {first.name} and {other.name} differ: their figures cannot be compared"
    gap = loss_difference(first.run.folder, other.run.folder, seed)
    if gap is None:
        return f"{first.name} and {other.name} have too few held-out losses for a comparison"
    size = f"difference {signed(gap.value)}, {signed(gap.low)} to {signed(gap.high)}"
    if gap.sign == 0:
        return f"It cannot be told whether {first.name} or {other.name} has the lower held-out loss ({size})"
    return f"{first.name} has a {'lower' if gap.sign < 0 else 'higher'} held-out loss than {other.name} ({size})"


def _sections(trained: Sequence[_Run], verdicts: Sequence[str], headlines: Sequence[tuple[str, str]]) -> list[Section]:
    names = [run.name for run in trained]
    settings = [run.settings for run in trained]
    differing, same = _split(names, settings)
    cards = [card for run in trained for card in read_cards(run.run.folder)]
    data = {str(card["data"]): card["card"] for card in cards if card["card"] is not None}
    counts = facts.side_by_side(names, [facts.trained_on(run.run.to_json()) for run in trained], capitalised)
    origin = [{**run.manifest["settings"], **run.manifest["environment"]} for run in trained]
    provenance = [(name, [fact(key, known) for known in origin]) for key, name in PROVENANCE.items()]
    sections: dict[str, list[model.Block]] = {
        "Verdict": [*map(Headline, verdicts), Bullets([(name, f"{text}.") for name, text in headlines])],
        "Limits of these figures": [facts.sentences([
            *facts.limits(trained[0].run.to_json())[:-1],
            "Intervals are over held-out rows: they say nothing of another seed.",
        ])],
        "Reasons to doubt the data": [*facts.doubts(cards)],
        "Curves": curves([run.run.folder for run in trained], names),
        "Figures": _figures(trained),
        "Settings that differ": [differing] if differing.rows else [Text("None.")],
        "Settings in common": [Text(ALL_SETTINGS), same] if same.rows else [],
        "Training data": [counts, *facts.card_facts(data.items())],
        "Command": [*command_blocks({run.name: run.manifest for run in trained})],
        "Provenance": [Facts(names, provenance, [name for key, name in PROVENANCE.items() if key != "started_at"])],
    }  # fmt: skip
    return [Section(heading, blocks) for heading, blocks in sections.items() if blocks]


def _split(names: Sequence[str], settings: Sequence[Sequence[facts.Fact]]) -> tuple[Facts, Facts]:
    """The settings that differ between the runs, and those that all have in common in a single column."""
    rows = facts.side_by_side(names, settings).rows
    differing = [row for row in rows if len({*row[1]}) > 1]
    return Facts(names, differing), facts.column("all runs", [(k, str(v[0])) for k, v in rows if len({*v}) == 1],
                                                 literal=True)  # fmt: skip


def _figures(trained: Sequence[_Run]) -> list[model.Block]:
    groups = []
    for heading, values in (("Before training", [run.run.before for run in trained]),
                            ("After training", [run.run.after for run in trained])):  # fmt: skip
        rows = [Row(title, [Cell(known.get(name)) for known in values]) for name, title in facts.FIGURE_TITLES.items()]
        if known := [row for row in rows if row.known]:
            groups.append(Group(heading, known))
    return [Table([run.name for run in trained], groups)] if groups else []
