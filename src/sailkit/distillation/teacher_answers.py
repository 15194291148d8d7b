"""Collects a teacher's answers as training data for sequence distillation, unchanged but without thoughts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.data.exports import DROPPED, HELD_OUT, TRAIN, example_row
from sailkit.distributed import Processes
from sailkit.errors import UserError, at_least_one
from sailkit.evaluation.processes import write_batches
from sailkit.files import jsonl
from sailkit.files.tables import read_table
from sailkit.models.base import Model
from sailkit.prompts.parse import ANSWER_RULES_VERSION
from sailkit.prompts.render import PromptTooLongError, as_text
from sailkit.prompts.sail import (
    check_style,
    completion,
    conversation,
    read_verification,
    trained_style,
    verification,
)
from sailkit.prompts.styles import wording
from sailkit.prompts.thoughts import split_thoughts
from sailkit.records import TrainingExample
from sailkit.training.tokenise import held_out_of, read_data, unique_ids

ANSWERS = "answers.jsonl"  # the replies, in the order of the planned batches
STAGE = "teacher-answers"
_LIMIT = "the answer did not end within the limit"
_THOUGHT = "the answer ended within a thought"
_EMPTY = "empty answer"
_REFUSED = "the teacher's server refused"
_TOO_LONG = "the prompt is too long"
_NOT_RENDERED = "the prompt cannot be rendered"
_KINDS = (_LIMIT, _THOUGHT, _EMPTY, _REFUSED, _TOO_LONG, _NOT_RENDERED)


@dataclass(frozen=True)
class TeacherAnswers:
    """A teacher's answers as training data.

    Attributes:
        folder: The run folder, which finetune reads.
        n: Number of prompts.
        n_train: Number of training rows.
        n_held_out: Number of held-out rows.
        n_dropped: Number of rows without a usable answer.
        dropped: Reason -> number of dropped rows.
        unjudged: Number of answers without a verification sentence.
        cut_tokens: Tokens of search results that were cut to fit.
        in_order: Whether recorded answers were matched to rows by order alone.
    """

    folder: Path
    n: int
    n_train: int
    n_held_out: int
    n_dropped: int
    dropped: dict[str, int]
    unjudged: int
    cut_tokens: int
    in_order: bool

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in ("folder", "in_order")}
        return {**values, "answers": str(self.folder), "in_order": self.in_order}


def teacher_answers(
    teacher: Model | Path,
    data: Sequence[str],
    out: Path,
    *,
    style: str | None = None,
    max_new_tokens: int = 512,
    processes: Processes | None = None,
) -> TeacherAnswers:
    """Have a teacher answer the prompts of training data, to train on its answers.

    Prompts are rendered as in training. Writes train.jsonl, held_out.jsonl (where the data have one) and dropped.jsonl
    to a run folder that finetune reads. A run that was stopped continues where it stopped.

    Args:
        teacher: A loaded model, or a file with its answers: a list of `{prompt, response}`, which belong to the rows
            with these prompts; or to as many rows in order, where it has no prompts, or ones that are worded in another
            way and hold each row's instruction and input.
        data: Run folders of build, whose held-out rows are answered too, or files of training examples.
        out: The run folder.
        style: Style of the prompts; by default that of the teacher's training, else each row's style.
        max_new_tokens: Most tokens of an answer.
        processes: Processes that share the prompts, each with the teacher loaded; the main process writes. By default
            this process alone.

    Returns:
        Counts of rows, of dropped ones by reason, and where they are.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    processes = processes or Processes()
    with processes.raise_together():
        at_least_one(max_new_tokens=max_new_tokens)
        if isinstance(teacher, Path):
            described: dict[str, Any] = {"recorded_sha256": jsonl.file_fingerprint([teacher])}
        else:
            described = teacher.describe()
        style = style or trained_style(described)
        if style is not None:
            check_style(style)
        train, held_out = read_data(data, style=style), read_data(held_out_of(data), HELD_OUT, style)
        examples = unique_ids([*train, *held_out])
        settings = {
            **described,
            "style": style,
            "styles_sha256": jsonl.fingerprint(wording()),
            "rules_version": ANSWER_RULES_VERSION,
            "max_new_tokens": None if isinstance(teacher, Path) else max_new_tokens,
            "data_sha256": jsonl.fingerprint([example_row(example) for example in examples]),
            "n": len(examples),
            "held_out": len(held_out),
        }
        in_order = False
        if isinstance(teacher, Path):  # check it before creating a folder that is bound to this file
            recorded, in_order = _recorded(teacher, examples)
        else:
            _check_style(teacher, examples)
    with runs.open_shared_run(processes, out, STAGE, settings) as run:
        if not isinstance(teacher, Path):
            recorded = _ask(processes, run, teacher, examples, max_new_tokens)
        return processes.from_main(lambda: _finish(run, examples, recorded, len(train), in_order))


def with_reply(example: TrainingExample, reply: str) -> TrainingExample:
    """A training example whose completion is a teacher's reply.

    A verification sentence at its beginning, in the wording of the example's style, is parsed into judgements; without
    one, the whole reply is the response. Thoughts are removed.
    """
    reply = split_thoughts(reply)[0]
    text = reply.removeprefix(wording()["text"]["gap"]) if example.style == "sail" else reply.strip()
    verdicts = read_verification(text, len(example.results)) or ()
    opening = verification(verdicts, example.style) + wording()["behind_verification"] if verdicts else ""
    judged = replace(example, judgements=verdicts, response=text.removeprefix(opening))
    # The sentence may have been worded differently, or nothing may follow it.
    unchanged = completion(judged) == text and judged.response.strip()
    return judged if unchanged else replace(example, judgements=(), response=text)


def _check_style(teacher: Model, examples: Sequence[TrainingExample]) -> None:
    """Raise a UserError unless exactly the chat style is used with a chat template."""
    templated = bool(teacher.describe().get("chat_template"))
    for style in dict.fromkeys(example.style for example in examples):
        if (style == "chat") != templated:
            has = "has a chat template" if templated else "has no chat template"
            mend = "ask in `style='chat'`, or" if templated else "ask in `style='sail-fixed'`, or"
            raise UserError(f"{teacher.name} {has}, and style {style!r} does not go with it; {mend} set `chat`")


def _ask(
    processes: Processes, run: runs.Run, teacher: Model, examples: Sequence[TrainingExample], limit: int
) -> list[dict[str, Any]]:
    """In the main process, the teacher's reply to each example: its `text`, or the `reason` why there is none."""
    prompts = [conversation(example) for example in examples]
    reasons: dict[int, str] = {}
    for i, prompt in enumerate(prompts):
        try:
            teacher.plan([prompt], limit, [f"example {examples[i].id!r}"])
        except PromptTooLongError as error:
            reasons[i] = f"{_TOO_LONG}: {error}"
        except UserError as error:
            reasons[i] = f"{_NOT_RENDERED}: {error}"
    fitting = [i for i in range(len(examples)) if i not in reasons]
    batches = [[fitting[i] for i in batch] for batch in teacher.plan([prompts[i] for i in fitting], limit)]

    def answer(batch: Sequence[int]) -> list[jsonl.JsonObject]:
        replies = teacher.generate([prompts[i] for i in batch], limit, lambda _: False)
        return [
            {
                "id": examples[i].id,
                "text": reply.text or "",
                "cut_off": reply.cut_off,
                "cut_tokens": reply.cut_tokens,
                "completion_tokens": reply.completion_tokens,
                **({"refusal": reply.refusal} if reply.refusal is not None else {}),
                **({"unfinished": True} if reply.thought and not (reply.text or "").strip() else {}),
            }
            for i, reply in zip(batch, replies, strict=True)
        ]

    path = run.path(ANSWERS)
    write_batches(processes, path, batches, lambda i: examples[i].id, answer, f"asking {teacher.name}")
    if not processes.is_main:
        return []
    by_id = {row["id"]: row for _, row in jsonl.read_rows(path)}
    return [
        {"reason": reasons[i]}
        if i in reasons
        else by_id[example.id] | ({"reason": _LIMIT} if by_id[example.id]["cut_off"] else {})
        for i, example in enumerate(examples)
    ]


def _recorded(path: Path, examples: Sequence[TrainingExample]) -> tuple[list[dict[str, Any]], bool]:
    """The recorded answers to the examples, and whether they were matched by order instead of by prompt."""
    rows = list(read_table(path))
    no_prompts = all(row.get("prompt") in (None, "") for _, row in rows)
    answers: dict[str, list[str]] = {}
    for line, row in rows:
        for name in ("response",) if no_prompts else ("prompt", "response"):
            jsonl.check_text(row.get(name), name, f"{path}, row {line}")
        answers.setdefault("" if no_prompts else row["prompt"].strip(), []).append(row["response"])
    prompts = [as_text(conversation(example)[0].parts).strip() for example in examples]
    unmatched = [example.id for example, prompt in zip(examples, prompts, strict=True) if prompt not in answers]
    if not unmatched:
        # Repeated prompts use their answers in turn.
        turns = {prompt: list(texts) for prompt, texts in answers.items()}
        return [
            {"text": turns[prompt].pop(0) if len(turns[prompt]) > 1 else turns[prompt][0]} for prompt in prompts
        ], False
    if len(unmatched) == len(examples) == len(rows):
        why = "it has no prompts" if no_prompts else "its prompts are worded in another way, and hold what the rows ask"
        if no_prompts or all(
            _contains_task(row["prompt"], example) for (_, row), example in zip(rows, examples, strict=True)
        ):
            runs.notice(f"{path}: {why}; its answers are taken in order")
            return [{"text": row["response"]} for _, row in rows], True
    raise UserError(
        f"{path}: its {len(rows)} answers do not belong to these {len(examples)} rows: {len(unmatched)} of the "
        f"prompts are not there, the first that of example {unmatched[0]!r}; give the data and style that were asked"
    )


def _contains_task(prompt: str, example: TrainingExample) -> bool:
    """Whether a prompt contains an example's instruction and input."""
    prompt = " ".join(prompt.split())
    return all(" ".join(text.split()) in prompt for text in (example.instruction, example.input))


def _missing(row: Mapping[str, Any]) -> str:
    """Why a reply cannot be trained on; empty if it can."""
    answer, thinking = split_thoughts(row.get("text", ""))
    if row.get("refusal") is not None:
        return f"{_REFUSED}: {row['refusal']}"
    if thinking or row.get("unfinished"):
        return _THOUGHT
    return row.get("reason") or ("" if answer.strip() else _EMPTY)


def _kind(reason: str) -> str:
    """The kind under which a reason is counted."""
    return next(kind for kind in _KINDS if reason.startswith(kind))


def _finish(
    run: runs.Run, examples: Sequence[TrainingExample], replies: Sequence[dict[str, Any]], train: int, in_order: bool
) -> TeacherAnswers:
    parts: tuple[list[TrainingExample], list[TrainingExample]] = ([], [])
    dropped = []
    for i, (example, row) in enumerate(zip(examples, replies, strict=True)):
        reason = _missing(row)
        if reason:
            dropped.append({"id": example.id, "reason": reason})
        else:
            parts[i >= train].append(with_reply(example, row["text"]))
    if not parts[0]:
        raise UserError(f"{run.folder}: no answer is left to train on; the first was dropped: {dropped[0]['reason']}")
    for name, kept in zip((TRAIN, HELD_OUT), parts, strict=True):
        jsonl.write_rows(run.path(name), map(example_row, kept))
    jsonl.write_rows(run.path(DROPPED), dropped)
    rows = [*parts[0], *parts[1]]
    reasons = Counter(_kind(row["reason"]) for row in dropped)
    return TeacherAnswers(
        run.folder,
        n=len(examples),
        n_train=len(parts[0]),
        n_held_out=len(parts[1]),
        n_dropped=len(dropped),
        dropped=dict(sorted(reasons.items())),
        unjudged=sum(bool(row.results) and not row.judgements for row in rows),
        cut_tokens=sum(row.get("cut_tokens", 0) for row in replies),
        in_order=in_order,
    )
