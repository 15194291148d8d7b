"""The records that flow between stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["answered", "unreadable", "refused"]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One search result.

    Attributes:
        title: Its heading; may be empty.
        body: Its text.
        url: Where it was found; empty where unknown.
        source: The engine or data set that gave it.
        rank: Its place among the results, from 1; 0 where unknown.
        retrieved_at: ISO 8601 time, or empty.
    """

    body: str
    title: str = ""
    url: str = ""
    source: str = ""
    rank: int = 0
    retrieved_at: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task.

    Attributes:
        id: Unique within the data set.
        text: What is judged: a claim, a statement.
        label: The data set's own label, or None where it has none.
        evidence: Search results that belong to it, best first.
    """

    id: str
    text: str
    label: str | None
    evidence: tuple[SearchResult, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """How likely one answer wording is behind the prompt.

    Attributes:
        label: The label that it stands for.
        ids: Its token ids; empty where a server does not say.
        logprob: Its log-probability in nats.
        bound: True where that is an upper bound: a server gives only the likeliest tokens.
    """

    label: str
    ids: tuple[int, ...]
    logprob: float
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said about one example; a row of `predictions.jsonl`.

    Attributes:
        id: The example's id.
        index: The example's place in the data set, from 0.
        text: The example's text.
        gold: The data set's own label.
        label: What was understood, or None; never a default class.
        outcome: `answered`, or why there is no label.
        answered_by: `logprob` (scores decided) or `text` (the raw output was read).
        scores: Probability of each label, summing to 1 over the labels; empty where there are none.
        answers: Answer wording -> its label, token ids and log-probability.
        raw_output: The newly generated text, untouched; None where nothing was generated.
        prompt: The prompt as the model got it.
        prompt_fingerprint: sha256 of what was sent, 16 hex digits.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated.
        cut_tokens: Tokens of search results left out so that the prompt fits.
        turns: Earlier calls of a protocol with several: prompt and raw output of each.
        reference: The label that a reference model gave, where there is one.
        recorded: The label that the parser of a recording decided, where it is one.
    """

    id: str
    index: int
    text: str
    gold: str | None
    label: str | None
    outcome: Outcome
    answered_by: Literal["logprob", "text"]
    scores: dict[str, float] = field(default_factory=dict)
    answers: dict[str, AnswerScore] = field(default_factory=dict)
    raw_output: str | None = None
    prompt: str = ""
    prompt_fingerprint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_tokens: int = 0
    turns: tuple[dict[str, Any], ...] = ()
    reference: str | None = None
    recorded: str | None = None

    @property
    def said(self) -> str:
        """The label, or the outcome where there is none: a column of the confusion matrix."""
        return self.outcome if self.label is None else self.label
