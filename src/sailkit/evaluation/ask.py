"""Runs batches of examples through all steps of a protocol: prompts, replies and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sailkit.errors import UserError
from sailkit.evaluation.evidence import EvidenceStyle, judgements_of
from sailkit.models.base import Model, Reply
from sailkit.prompts.parse import read_answer
from sailkit.prompts.render import Message, Part, Prompt, frames, step_prompt
from sailkit.prompts.thoughts import split_thoughts
from sailkit.records import Example, Outcome, Prediction
from sailkit.tasks.task import Question

AnswerMode = Literal["logprob", "generate"]


@dataclass(frozen=True)
class Plan:
    """The prompts of an evaluation, and how replies are parsed.

    Attributes:
        question: Protocol and wording.
        mode: Whether the last step scores the labels or generates an answer.
        shots: Worked examples as earlier turns, the same for every item.
        bias: Log-probability of each label on an empty input, which is subtracted from the scores.
        evidence_style: The training style in which search results are shown; None if the wording has `{evidence}`, or
            no results are shown.
        examples: Worked examples for the `{examples}` of the wording.
    """

    question: Question
    mode: AnswerMode
    shots: tuple[Message, ...] = ()
    bias: Mapping[str, float] | None = None
    evidence_style: EvidenceStyle | None = None
    examples: tuple[Part, ...] = ()


def answer_batch(model: Model, plan: Plan, batch: Sequence[tuple[int, Example]]) -> list[Prediction]:
    """Have a model answer one batch of examples, through all steps of the protocol.

    Args:
        model: The model.
        plan: The prompts to use.
        batch: Index and example of each item.

    Returns:
        One prediction for each item, in order.
    """
    question = plan.question
    replied: list[tuple[str, ...]] = [()] * len(batch)
    turns: list[list[dict[str, Any]]] = [[] for _ in batch]
    last_replies: dict[int, Reply] = {}  # by index within the batch; a refusal ends an item early
    last = len(question.steps) - 1
    for step in range(last):
        remaining = [i for i in range(len(batch)) if i not in last_replies]
        prompts = _prompts(plan, batch, step, replied, remaining)
        replies = model.generate(prompts, question.new_tokens[step], lambda _: False)
        for i, reply in _without_refusals(remaining, replies, last_replies):
            replied[i] = (*replied[i], split_thoughts(reply.text or "")[0])
            turns[i].append(_turn(reply))
    remaining = [i for i in range(len(batch)) if i not in last_replies]
    prompts = _prompts(plan, batch, last, replied, remaining)
    if plan.evidence_style and plan.evidence_style.verify:
        examples = [example for _, example in batch]
        remaining, prompts = _verified(model, plan.evidence_style, examples, remaining, prompts, turns, last_replies)
    if plan.mode == "logprob":
        answers = model.score(prompts, question.answers)
    else:
        answers = model.generate(prompts, question.new_tokens[last], lambda text: _complete(text, question.words))
    last_replies.update(zip(remaining, answers, strict=True))
    return [
        _prediction(plan, index, example, last_replies[i], tuple(turns[i])) for i, (index, example) in enumerate(batch)
    ]


def _without_refusals(
    indices: Sequence[int], replies: Sequence[Reply], last_replies: dict[int, Reply]
) -> list[tuple[int, Reply]]:
    """The replies of the items that continue; a refusal is recorded as the item's last reply."""
    pairs = list(zip(indices, replies, strict=True))
    last_replies.update((i, reply) for i, reply in pairs if reply.refusal is not None)
    return [(i, reply) for i, reply in pairs if reply.refusal is None]


def _verified(
    model: Model,
    style: EvidenceStyle,
    examples: Sequence[Example],
    indices: Sequence[int],
    prompts: Sequence[Prompt],
    turns: Sequence[list[dict[str, Any]]],
    last_replies: dict[int, Reply],
) -> tuple[list[int], list[Prompt]]:
    """Have the model generate each item's verification sentence, after which it will answer.

    Args:
        model: The model.
        style: How search results are shown.
        examples: All examples of the batch.
        indices: Indices of the examples that continue.
        prompts: Their prompts.
        turns: Earlier calls of each example; the verification is appended.
        last_replies: Last replies so far; refusals are added.

    Returns:
        The indices that continue, and their prompts with the sentence as the beginning of the answer.
    """
    prompt_of = dict(zip(indices, prompts, strict=True))
    if with_results := [i for i in indices if examples[i].evidence]:
        counts = sorted({len(examples[i].evidence) for i in with_results})
        likely = [sentence for n in counts for sentence in style.sentences_of(n)]
        replies = model.generate([prompt_of[i] for i in with_results], style.bound, style.verified, likely)
        for i, reply in _without_refusals(with_results, replies, last_replies):
            sentence, verdicts = style.sentence(split_thoughts(reply.text or "")[0], len(examples[i].evidence))
            prompt_of[i] = style.behind(prompt_of[i], sentence)
            judged = judgements_of(examples[i])
            turns[i].append({**_turn(reply), "verdicts": verdicts, **({"judgements": judged} if judged else {})})
    remaining = [i for i in indices if i not in last_replies]
    return remaining, [prompt_of[i] for i in remaining]


def _turn(reply: Reply) -> dict[str, Any]:
    """An earlier call as a prediction records it."""
    turn = {"prompt": reply.prompt, "raw_output": reply.text, "completion_tokens": reply.completion_tokens}
    return {**turn, "thought": reply.thought} if reply.thought else turn


def _prompts(
    plan: Plan,
    batch: Sequence[tuple[int, Example]],
    step: int,
    replied: Sequence[Sequence[str]],
    indices: Sequence[int],
) -> list[Prompt]:
    return [prompt_for(plan, batch[i][1], step, replied[i]) for i in indices]


def prompt_for(plan: Plan, example: Example, step: int, replied: Sequence[str] | None = None) -> Prompt:
    """The prompt of one step, which quotes the replies of earlier steps (empty if they are not known yet)."""
    question = plan.question
    answers = list(question.answers.values())
    if plan.evidence_style:
        turns = step_prompt(question.steps[step], example.text, answers)
        return plan.evidence_style.prompt(turns[-1].text, example)
    return step_prompt(
        question.steps[step], example.text, answers, example.evidence, [""] * step if replied is None else replied,
        plan.shots, question.systems[step], plan.examples if step == 0 else (),
    )  # fmt: skip


def shows_evidence(question: Question) -> bool:
    """Whether a wording has a field for search results."""
    return any("{evidence}" in step for step in question.steps)


def _complete(text: str, words: Mapping[str, str]) -> bool:
    """An answer is complete at the end of a sentence or line that gives a label."""
    ended = (
        text.rstrip().endswith((".", "!", "?"))
        or "\n" in text.strip("\n ")
        or (text.strip() != "" and text.endswith("\n"))
    )
    return ended and read_answer(text, words)[1] == "answered"


def _prediction(
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
        # A server lists only the likeliest tokens. Other answer words have only an upper bound, and no label may win by
        # a bound.
        if best in observed:
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
    """Log of each label's mean probability on content-free inputs (contextual calibration, Zhao et al. 2021)."""
    empty = [(i, Example(f"content-free-{i}", text, None)) for i, text in enumerate(frames()["content_free"])]
    answered = answer_batch(model, plan, empty)
    if not all(p.scores for p in answered):
        raise UserError(
            "`calibrate` needs log-probabilities that decide on an empty input, and this endpoint gives none"
        )
    return {label: math.log(sum(p.scores[label] for p in answered) / len(answered)) for label in plan.question.answers}
