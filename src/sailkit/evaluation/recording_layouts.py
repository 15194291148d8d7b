"""Detects the field names and the answer vocabulary of known layouts of recorded outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.prompts.parse import read_answer
from sailkit.tasks.task import Task

RECORDED_FIELDS = {
    "id": "id",
    "text": "text",
    "label": "label",
    "output": "output",
    "prediction": "prediction_recorded",
    "reference": "reference_recorded",
    "reference_output": "reference_output",
    "prompt": "prompt",
    "group": "group",
}
_RESPONSE, _LABEL = "_response", "_label"
_REFERENCE = "openai"  # the model whose answers are the ground truth in a table of responses


def layout_of(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """Detect the field names of a recording, by the keys of `RECORDED_FIELDS`, from one of its rows.

    Two layouts are known: our own, and a table of responses such as
    `claim, openai_response, openai_label, llama_response, llama_label`.

    Raises:
        UserError: A table of responses of several models; the user has to choose one.
    """
    models = [name.removesuffix(_RESPONSE) for name in row if isinstance(name, str) and name.endswith(_RESPONSE)]
    others = [name for name in models if name != _REFERENCE]
    if RECORDED_FIELDS["output"] in row or not others:
        return RECORDED_FIELDS
    if len(others) > 1:
        shown = ", ".join(f"{name}{_RESPONSE}" for name in others)
        raise UserError(
            f"{where}: responses of several models ({shown}); choose with `fields` "
            f"output={others[0]}{_RESPONSE},prediction={others[0]}{_LABEL}"
        )
    return {
        **RECORDED_FIELDS,
        "text": "claim" if "claim" in row else RECORDED_FIELDS["text"],
        "output": others[0] + _RESPONSE,
        "prediction": others[0] + _LABEL,
        "reference": _REFERENCE + _LABEL,
        "reference_output": _REFERENCE + _RESPONSE,
    }


def bare(value: object) -> str:
    """A recorded word in lower case, stripped of white space, punctuation and quotes."""
    return str(value).strip(" \t\r\n.!,;:\"'`*").casefold()


def words_of_answers(
    task: Task, recorded: Iterable[object], outputs: Sequence[str], where: str | Path
) -> dict[str, str]:
    """Choose the vocabulary with which a recording's answers are parsed.

    A vocabulary fits if it contains all labels of the recording's parser. Of several, the one that parses most answers
    is used (in a tie, the first). The same word may mean the opposite in another question, so a notice reports a choice
    other than the first.

    Args:
        task: The task, with the labels in use.
        recorded: Labels that the recording's parsers gave to the answers of the model and of the reference.
        outputs: The raw answers.
        where: Name of the recording, for the notice.
    """
    names = {label.casefold() for label in task.labels}
    values = {bare(value) for value in recorded if value not in (None, "")} - names
    fitting = [words for words in task.vocabularies if values <= {bare(word) for word in words}]
    fitting = fitting or task.vocabularies
    if len(fitting) == 1:
        return fitting[0]
    best = max(fitting, key=lambda words: sum(read_answer(text, words)[0] is not None for text in outputs))
    if best is not fitting[0]:
        answers = {label: word for word, label in reversed(best.items())}
        shown = " and ".join(f"{answers[label]} for {label}" for label in task.labels if label in answers)
        runs.notice(f"{where}: its labels do not tell the words of its answers; they are read with {shown}")
    return best
