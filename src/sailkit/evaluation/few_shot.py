"""Adds worked examples to prompts, as earlier turns or at the wording's `{examples}`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.tables import read_table
from sailkit.prompts.render import Message, Part, fill, frames, step_prompt
from sailkit.records import Example
from sailkit.tasks.task import Question, Task


@dataclass(frozen=True)
class WorkedExamples:
    """Worked examples, ready for a prompt.

    Attributes:
        turns: Earlier turns of the conversation.
        parts: Text for `{examples}`.
        fingerprint: Fingerprint of the examples; None if there are none.
    """

    turns: tuple[Message, ...] = ()
    parts: tuple[Part, ...] = ()
    fingerprint: str | None = None


def worked_examples(
    task: Task, question: Question, path: str | Path | None, count: int, examples: Sequence[Example]
) -> WorkedExamples:
    """Read worked examples.

    Args:
        task: The task.
        question: Protocol and wording.
        path: Examples laid out like the task's data; for a wording with `{examples}`, a table of text and answer.
        count: Number of examples to show.
        examples: The evaluated examples, none of which may be a worked example.

    Raises:
        UserError: The wording requires examples and gets none, or accepts none; or an example is also evaluated.
    """
    name = f"{task.name}/{question.protocol}: wording {question.wording!r}"
    if path is None:
        if question.shows_examples:
            raise UserError(
                f"{name} shows worked examples; bring {count} with `few_shot` FILE, a table of text and answer"
            )
        return WorkedExamples()
    path = Path(path)
    if question.shows_examples:
        rows = _answered_texts(path, count)
        _refuse_evaluated(path, rows, examples)
        _refuse_labels(path, question, rows)
        # An example is the prompt itself, followed by its answer and a blank line.
        template = question.steps[0].replace("{examples}", "")
        words = [Part(frames()["answers_join"].join(question.answers.values()))]
        parts: list[Part] = []
        for text, answer in rows:
            example_parts = fill(template, {"text": text, "answers": words, "evidence": ""})
            gap, end = Part(" ", constant=True), Part("\n\n", constant=True)
            parts += (*example_parts, gap, Part(answer, trusted=False), end)
        constant = tuple(Part(part.text, part.trusted, constant=True) for part in parts)
        return WorkedExamples(parts=constant, fingerprint=jsonl.fingerprint([asdict(part) for part in constant]))
    if len(question.steps) > 1:
        raise UserError(f"`few_shot` works with protocols of one step, not with {question.protocol}")
    if task.spec.data.folder and path.is_file():
        raise UserError(
            f"{name} takes worked examples in the form of the task's data, a folder; tables of text and answer, "
            f"such as {path}, are for wordings with {{examples}}"
        )
    worked = task.load(path).examples[:count]
    _refuse_evaluated(path, [(example.text, example.id) for example in worked], examples)
    turns: list[Message] = []
    for example in worked:
        turns += step_prompt(question.steps[0], example.text, list(question.answers.values()), example.evidence)
        turns.append(Message("assistant", (Part(question.answers[str(example.label)]),)))
    return WorkedExamples(tuple(turns), fingerprint=jsonl.fingerprint([asdict(turn) for turn in turns]))


def _answered_texts(path: Path, count: int) -> list[tuple[str, str]]:
    """Read texts and their answers."""
    rows = [
        tuple(jsonl.text_field(row, name, path, line).strip() for name in ("text", "answer"))
        for line, row in read_table(path)
    ]
    if len(rows) < count:
        raise UserError(f"{path}: {len(rows)} worked examples, {count} are to be shown; add some, or use `shots`")
    return [(text, answer) for text, answer in rows[:count]]


def _refuse_labels(path: Path, question: Question, rows: Sequence[tuple[str, str]]) -> None:
    """Refuse labels as answers if there are several calls: the examples are in the first, which asks for a text."""
    words = {word.casefold() for word in question.words}
    if len(question.steps) > 1 and all(answer.strip(" .").casefold() in words for _, answer in rows):
        raise UserError(
            f"{path}: the worked answers are labels ({rows[0][1]!r} ...), and this wording shows them in its first "
            "call, which asks for a text; give what that call should answer, such as a fact"
        )


def _refuse_evaluated(path: Path, worked: Sequence[tuple[str, str]], examples: Sequence[Example]) -> None:
    evaluated = {example.text.strip(): example.id for example in examples}
    for text, name in worked:
        if (item := evaluated.get(text.strip())) is not None:
            raise UserError(f"{path}: worked example {name!r} is also asked about, as {item!r}")
