"""Asking a model about one batch of examples, through all steps of a protocol, and understanding what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sailkit.errors import UserError
from sailkit.evaluation.evidence import EvidenceStyle
from sailkit.models.base import Model, Reply
from sailkit.prompts.parse import read_answer
from sailkit.prompts.render import Message, Part, Prompt, frames, step_prompt
from sailkit.prompts.thoughts import split_thoughts
from sailkit.records import Example, Outcome, Prediction
from sailkit.tasks.task import Question

AnswerMode = Literal["logprob", "generate"]


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks, and how its answers are understood.

    Attributes:
        question: Protocol and wording.
        mode: Score the labels or generate an answer in the last step.
        shots: Worked examples as earlier turns, the same for every item.
        bias: Log-probability of each label when nothing is asked about; subtracted from the scores.
        evidence_style: How search results are shown as in training; None where the wording says where they go, or
            none are shown.
        examples: Worked examples of a wording that says where they go, with `{examples}`.
    """

    question: Question
    mode: AnswerMode
    shots: tuple[Message, ...] = ()
    bias: Mapping[str, float] | None = None
    evidence_style: EvidenceStyle | None = None
    examples: tuple[Part, ...] = ()


def answer_batch(model: Model, plan: Plan, batch: Sequence[tuple[int, Example]]) -> list[Prediction]:
    """Ask a model about one batch of examples, through all steps of the protocol.

    Args:
        model: Who is asked.
        plan: What is asked.
        batch: Index and example of each item.

    Returns:
        One prediction for each item, in order.
    """
    question = plan.question
    replied: list[tuple[str, ...]] = [()] * len(batch)
    turns: list[list[dict[str, Any]]] = [[] for _ in batch]
    replies: dict[int, Reply] = {}  # the last of each item; a refusal ends it
    last = len(question.steps) - 1
    for step in range(last):
        going = [i for i in range(len(batch)) if i not in replies]
        prompts = _step(plan, [batch[i] for i in going], step, [replied[i] for i in going])
        for i, reply in _asked(going, model.generate(prompts, question.new_tokens[step], lambda _: False), replies):
            replied[i] = (*replied[i], split_thoughts(reply.text or "")[0])
            turns[i].append(_turn(reply))
    going = [i for i in range(len(batch)) if i not in replies]
    prompts = _step(plan, [batch[i] for i in going], last, [replied[i] for i in going])
    if plan.evidence_style and plan.evidence_style.verify:
        going, prompts = _verified(model, plan.evidence_style, batch, going, prompts, turns, replies)
    if plan.mode == "logprob":
        answers = model.score(prompts, question.answers)
    else:
        answers = model.generate(prompts, question.new_tokens[last], lambda text: _complete(text, question.words))
    replies.update(zip(going, answers, strict=True))
    return [_understand(plan, index, example, replies[i], tuple(turns[i])) for i, (index, example) in enumerate(batch)]


def _asked(going: Sequence[int], found: Sequence[Reply], refused: dict[int, Reply]) -> list[tuple[int, Reply]]:
    """The replies to items that go on; a server's refusal of one becomes its last reply."""
    both = list(zip(going, found, strict=True))
    refused.update((i, reply) for i, reply in both if reply.refusal is not None)
    return [(i, reply) for i, reply in both if reply.refusal is None]


def _verified(
    model: Model,
    form: EvidenceStyle,
    batch: Sequence[tuple[int, Example]],
    going: Sequence[int],
    prompts: Sequence[Prompt],
    turns: Sequence[list[dict[str, Any]]],
    refused: dict[int, Reply],
) -> tuple[list[int], list[Prompt]]:
    """Have each item's search results judged; the answer goes on behind the sentence that says so."""
    found = dict(zip(going, prompts, strict=True))
    places = [i for i in going if batch[i][1].evidence]
    if places:
        counts = sorted({len(batch[i][1].evidence) for i in places})
        likely = [sentence for n in counts for sentence in form.sentences_of(n)]
        replies = model.generate([found[i] for i in places], form.bound, form.verified, likely)
        for i, reply in _asked(places, replies, refused):
            sentence, verdicts = form.sentence(split_thoughts(reply.text or "")[0], len(batch[i][1].evidence))
            found[i] = form.behind(found[i], sentence)
            turns[i].append({**_turn(reply), "verdicts": verdicts})
    left = [i for i in going if i not in refused]
    return left, [found[i] for i in left]


def _turn(reply: Reply) -> dict[str, Any]:
    """An earlier call, as a prediction keeps it."""
    turn = {"prompt": reply.prompt, "raw_output": reply.text, "completion_tokens": reply.completion_tokens}
    return {**turn, "thought": reply.thought} if reply.thought else turn


def _step(
    plan: Plan, batch: Sequence[tuple[int, Example]], step: int, replied: Sequence[Sequence[str]]
) -> list[Prompt]:
    return [prompt_for(plan, example, step, earlier) for (_, example), earlier in zip(batch, replied, strict=True)]


def prompt_for(plan: Plan, example: Example, step: int, replied: Sequence[str] | None = None) -> Prompt:
    """The conversation of one step, with the new texts of the steps before (empty where they are not known yet)."""
    question = plan.question
    answers = list(question.answers.values())
    if plan.evidence_style:
        asked = step_prompt(question.steps[step], example.text, answers)
        return plan.evidence_style.prompt(asked[-1].text, example)
    return step_prompt(
        question.steps[step], example.text, answers, example.evidence, [""] * step if replied is None else replied,
        plan.shots, question.systems[step], plan.examples if step == 0 else (),
    )  # fmt: skip


def shows_evidence(question: Question) -> bool:
    """Whether a wording says itself where search results go."""
    return any("{evidence}" in step for step in question.steps)


def _complete(text: str, words: Mapping[str, str]) -> bool:
    """An answer is complete with its sentence or line, as soon as that gives a label."""
    ended = (
        text.rstrip().endswith((".", "!", "?"))
        or "\n" in text.strip("\n ")
        or (text.strip() != "" and text.endswith("\n"))
    )
    return ended and read_answer(text, words)[1] == "answered"


def _understand(
    plan: Plan, index: int, example: Example, reply: Reply, turns: tuple[dict[str, Any], ...]
) -> Prediction:
    scores: dict[str, float] = {}
    label: str | None = None
    outcome: Outcome = "refused"
    if reply.refusal is None:
        bias = plan.bias or {}
        logs = {a.label: a.logprob - bias.get(a.label, 0.0) for a in reply.answers.values()}
        observed = {a.label for a in reply.answers.values() if not a.bound}
        best = max(logs, key=lambda name: logs[name], default=None)
        if best in observed:  # what is only bounded decides nothing
            scores, label, outcome = _softmax(logs), best, "answered"
        else:
            label, outcome = read_answer(reply.text or "", plan.question.words)
    return Prediction(
        id=example.id,
        index=index,
        text=example.text,
        gold=example.label,
        label=label,
        outcome=outcome,
        answered_by="logprob" if scores else "text",
        scores=scores,
        answers=reply.answers,
        raw_output=reply.text,
        prompt=reply.prompt,
        prompt_fingerprint=reply.prompt_fingerprint,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cut_tokens=reply.cut_tokens,
        turns=turns,
        group="" if example.group == example.id else example.group,
        reason=reply.refusal,
        thought=reply.thought,
    )


def _softmax(logs: Mapping[str, float]) -> dict[str, float]:
    top = max(logs.values())
    total = sum(math.exp(v - top) for v in logs.values())
    return {name: math.exp(v - top) / total for name, v in logs.items()}


def content_free_bias(model: Model, plan: Plan) -> dict[str, float]:
    """Log of each label's mean probability on inputs that say nothing (Zhao et al. 2021, contextual calibration)."""
    empty = [(i, Example(f"content-free-{i}", text, None)) for i, text in enumerate(frames()["content_free"])]
    found = answer_batch(model, plan, empty)
    if not all(p.scores for p in found):
        raise UserError(
            "`calibrate` needs log-probabilities that decide on an empty input, and this endpoint gives none"
        )
    return {label: math.log(sum(p.scores[label] for p in found) / len(found)) for label in plan.question.answers}
