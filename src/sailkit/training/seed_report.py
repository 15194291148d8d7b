"""The report on training with several seeds."""

from __future__ import annotations

from pathlib import Path

from sailkit import runs
from sailkit.rendering.commands import command_blocks
from sailkit.rendering.model import Bullets, Report, Section, Text
from sailkit.training.report import curves, headline
from sailkit.training.seeds import TrainingGroup


def page(folder: Path, title: str | None = None) -> Report:
    """The page on models that were trained with several seeds.

    Args:
        folder: The folder of the run folders.
        title: Title of the page; derived from the model's name by default.

    Raises:
        UserError: A run is not finished, or its files are damaged.
    """
    group = TrainingGroup.load(folder)
    table = group.table()
    headlines = Bullets([(f"{run.folder.name}:", f" {headline(run.to_json())}.") for run in group.runs])
    note = Text("The interval of a mean is over seeds alone. Whether answers are right, and better with search results "
                "than without, is measured with  sailkit evaluate  and  sailkit compare.")  # fmt: skip
    drawn = curves([run.folder for run in group.runs], [run.folder.name for run in group.runs])
    commands = command_blocks({"every run": runs.read_manifest(group.runs[0].folder)})
    return Report(
        title or f"Fine-tuning of {group.runs[0].base}, {len(group.runs)} seeds",
        group.runs[0].about,
        [
            Section("Verdict", [headlines]),
            *([Section("Figures", [table, note])] if table else []),
            *([Section("Curves", drawn)] if drawn else []),
            *([Section("Command", commands)] if commands else []),
        ],
        "; ".join(f"{run.folder.name}: {headline(run.to_json())}" for run in group.runs),
    )
