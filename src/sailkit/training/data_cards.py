"""The data cards of a training run's data, and shortcuts that only the mixture of several data sets has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.data.card import CARD
from sailkit.files import jsonl
from sailkit.labeling.shortcuts import built_rows
from sailkit.models.sources import Source
from sailkit.stats.shortcut_items import question_baselines
from sailkit.stats.shortcuts import telling_views

DATA_CARDS = "data.json"  # copies of the data cards of the training data


def data_cards(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Read the data cards that build wrote, and of a mixture those that it was given; `card` is None without one."""
    cards: list[dict[str, Any]] = []
    for path in paths:
        if of_mixture := read_cards(Path(path)):
            cards += of_mixture
        else:
            file = Path(path) / CARD
            cards.append({"data": path, "card": jsonl.read_json(file) if file.is_file() else None})
    return cards


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """Read the data cards that a training run, or the data of a distillation, kept.

    Args:
        folder: The folder with the copies.
    """
    path = folder / DATA_CARDS
    cards: list[dict[str, Any]] = jsonl.read_json(path)["data"] if path.exists() else []
    return cards


def write_cards(run: runs.Run, data: Sequence[str]) -> None:
    """Copy the data cards into a run folder, once; flags of the mixture are added and printed.

    Args:
        run: The run.
        data: The training data.
    """
    if not run.path(DATA_CARDS).exists():
        copy_cards(data, run.folder)


def copy_cards(data: Sequence[str], folder: Path) -> None:
    """Copy the data cards into a folder; flags of the mixture are added and printed.

    Args:
        data: The training data.
        folder: The folder.
    """
    cards = data_cards(data)
    if flags := mixture_flags(data):
        cards.append({"data": "all of these together", "card": {"flag_messages": flags}})
        for message in flags["shortcut"]:
            runs.notice(f"shortcut in the mixture of the training data: {message}")
    jsonl.write_json(folder / DATA_CARDS, {"data": cards})


def mixture_flags(data: Sequence[str]) -> dict[str, list[str]]:
    """Flag data sets whose questions together tell whether the search results beside them are informative.

    One data set may show distracting results only beside questions that offer "Undecided", another informative ones
    beside questions that do not. A model then learns the form of the question instead of reading the results, and the
    data card of neither shows it.

    Args:
        data: The training data; files, and folders that are no runs of `build` or `build-task`, are left out.

    Returns:
        Flag -> sentences, as in a data card; empty for fewer than two folders.
    """
    folders = [path for path in map(Path, data) if (path / CARD).is_file() and (path / runs.MANIFEST).is_file()]
    if len(folders) < 2:
        return {}
    return telling_views({"judgement": question_baselines(built_rows(folders))})


def trained_tasks(cards: Sequence[Mapping[str, Any]], before: Sequence[Source | None]) -> list[dict[str, Any]]:
    """The parts of tasks from which `build-task` drew training rows, so that evaluate can tell their items.

    Args:
        cards: The data cards of the training data.
        before: The models and adapters with which the training started; their training data count too.
    """
    earlier = [task for source in before if source for task in source.trained().get("trained_tasks", ())]
    drawn = [card["card"] for card in cards if card["card"] and "task" in card["card"]]
    tasks = [
        {name: of.get(name) for name in ("task", "data_sha256", "half")} | {"first_share": of.get("first_share", 0.5)}
        for of in drawn
    ]
    tasks = earlier + tasks
    return [task for index, task in enumerate(tasks) if task not in tasks[:index]]
