"""Explains why answers give no label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sailkit.errors import UserError
from sailkit.evaluation.predictions import PredictionSet
from sailkit.prompts.parse import read_with_reason
from sailkit.records import Prediction
from sailkit.rendering.model import Cell, Group, Row, Table
from sailkit.tasks.task import Task, builtin_tasks, load_task

_NO_TEXT = "was not recorded"


def reasons(data: PredictionSet, task: str | None = None) -> list[tuple[str, str]]:
    """Why each answer gives no label: the reason as a predicate of the reply, and the words that show it.

    Both are empty for an answer with a label, and where reading the reply again gives another outcome than was
    recorded, as with the words of another task.

    Args:
        data: The predictions.
        task: The task whose answer words are used, if it is not one that comes with the package.
    """
    words = _words(data, task)
    return [("", "") if p.label is not None else _reason(p, words) for p in data.predictions]


def _reason(prediction: Prediction, words: Mapping[str, str]) -> tuple[str, str]:
    if prediction.reason is not None:
        return "was refused by the server", prediction.reason
    if prediction.raw_output is None:
        return _NO_TEXT, ""
    reading = read_with_reason(prediction.raw_output.removeprefix(prediction.prompt), words)
    return (reading.reason, reading.words) if reading.outcome == prediction.outcome else ("", "")


def _words(data: PredictionSet, task: str | None) -> Mapping[str, str]:
    """The words with which the answers were read, as far as they are known."""
    name, protocol = task or data.provenance.get("task"), data.provenance.get("protocol")
    try:
        if task is None and name not in builtin_tasks():  # a manifest may be someone else's, and a task can be code
            raise UserError(f"{name} does not come with the package")
        known = load_task(str(name), ["all"])
        if not {*data.labels} <= {*known.labels}:  # another task of that name
            raise UserError(f"{name} has other labels")
        chosen = Task(known.spec, data.labels, known.folder)
        return chosen.question(protocol, data.provenance.get("wording")).words if protocol else chosen.words()
    except UserError:
        return {label.lower(): label for label in data.labels}


def table_of_reasons(names: Sequence[str], why: Sequence[Sequence[tuple[str, str]]]) -> list[Table]:
    """How many replies of each set have each reason; empty if all have a label.

    Args:
        names: Names of the sets.
        why: `reasons` of each set.
    """
    counts = [Counter(reason for reason, _ in rows if reason) for rows in why]
    order = sorted({reason for count in counts for reason in count}, key=lambda r: -sum(count[r] for count in counts))
    rows = [Row(f"The reply {reason}", [Cell(count[reason]) for count in counts]) for reason in order]
    return [Table(names, [Group("Why there is no label", rows)])] if rows else []
