"""The records that flow between stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sailkit.urls import public_address

Outcome = Literal["answered", "unreadable", "refused"]
SearchOutcome = Literal["found", "empty", "unavailable", "left_out"]
Verdict = Literal["informative", "distracting"]
Method = Literal["sequence", "logits", "both"]  # of distillation
Precision = Literal["float16", "float32"]
# Why a search result has no score: the labeler's answer cannot be read, it refused or failed, there was no response.
JudgementOutcome = Literal["judged", "unreadable", "refused", "failed", "no_response"]


def result_text(title: str, body: str) -> str:
    """A passage or a search result as one text, for encoders, labelers and bags of words; prompts have their own form.

    Without a title it is the body alone.
    """
    return f"{title}. {body}" if title.strip() else body


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One search result.

    Attributes:
        title: Its heading; may be empty.
        body: Its text.
        url: Its address, without password; empty where unknown, or where the host is not public.
        source: The engine or data set that gave it.
        rank: Its rank among the results, from 1; 0 where unknown.
        retrieved_at: ISO 8601 time, or empty.
    """

    body: str
    title: str = ""
    url: str = ""
    source: str = ""
    rank: int = 0
    retrieved_at: str = ""
    __pydantic_config__: ClassVar = {"extra": "forbid"}  # in a row, a misspelt field is an error

    def __post_init__(self) -> None:
        """Keep only an address that may be shared, wherever the result comes from."""
        # Rows that others wrote may hold null.
        object.__setattr__(self, "url", public_address(self.url) if isinstance(self.url, str) else "")

    @property
    def text(self) -> str:
        """Title and body as one text."""
        return result_text(self.title, self.body)


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a model is asked to do, and the response that it should learn; Alpaca's fields.

    Attributes:
        id: Unique within the data set.
        instruction: The task in words.
        input: What it works on; may be empty.
        output: The response; may be empty.
    """

    id: str
    instruction: str
    input: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Searched:
    """An instruction with its search results; a row of `results.jsonl`.

    Attributes:
        instruction: What was searched for.
        results: The search results, best first within each engine.
        searches: Engine -> how its search went: `found`, `empty` (no results), `unavailable` (the engine could not be
            reached), `left_out` (not searched, on purpose).
        dropped_results: How many results had no text and were dropped.
    """

    instruction: Instruction
    results: tuple[SearchResult, ...] = ()
    searches: dict[str, SearchOutcome] = field(default_factory=dict)
    dropped_results: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A labeler's judgement of one search result, with respect to the response.

    Attributes:
        score: How informative, in [0, 1] by the labeler's own measure; None unless judged.
        verdict: The score against the labeler's threshold; None unless judged.
        outcome: `judged`, or why there is no score.
        cut_tokens: Tokens of the result that the labeler did not see.
        raw_output: The reply of a judging model, where the judgement was read from text; or why its server gave no
            answer.
    """

    score: float | None
    verdict: Verdict | None
    outcome: JudgementOutcome = "judged"
    cut_tokens: int = 0
    raw_output: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One row of training data, structured: only the tokenizer at hand can say what fits and what must stay text.

    Attributes:
        id: The instruction's id.
        instruction: The task in words.
        input: What it works on; may be empty.
        results: The search results shown, in order.
        judgements: One for each result; empty where the response has no verification sentence that can be read.
        response: The response that follows the verification sentence.
        style: `sail`, `sail-fixed` or `chat`.
    """

    id: str
    instruction: str
    input: str
    results: tuple[SearchResult, ...]
    judgements: tuple[Verdict, ...]
    response: str
    style: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task.

    Attributes:
        id: Unique within the data set.
        text: What is judged: a claim, a statement.
        label: The data set's own label, or None where it has none.
        evidence: Search results that belong to it, best first.
        stances: For each search result, the label that people judged it to support, or None where it supports none;
            empty where the data set does not say.
        group: Examples of one group are on the same side of every split; by default each example is its own group.
    """

    id: str
    text: str
    label: str | None
    evidence: tuple[SearchResult, ...] = ()
    stances: tuple[str | None, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The log-probability of an answer word after the prompt.

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
    """A model's answer to one example; a row of `predictions.jsonl`.

    Attributes:
        id: The example's id.
        index: The example's index in the data set, from 0.
        text: The example's text.
        gold: The data set's own label.
        label: The predicted label, or None where none can be read; there is no default class.
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
        group: The example's group, where the task declares one that is not its id; else empty.
        reason: Why a server gave no answer, in its words; None where it gave one.
        thought: The reasoning before the answer, where a server returns it separately.
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
    group: str = ""
    reason: str | None = None
    thought: str | None = None

    @property
    def unit(self) -> str:
        """The unit of resampling and of paired tests: the group, or the item where it has none."""
        return self.group or self.id

    @property
    def predicted(self) -> str:
        """The label, or the outcome where there is none: a column of the confusion matrix."""
        return self.outcome if self.label is None else self.label
