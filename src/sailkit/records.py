"""The records that stages exchange: instructions, search results, judgements, examples and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sailkit.urls import public_address

Outcome = Literal["answered", "unreadable", "refused"]
SearchOutcome = Literal["found", "empty", "unavailable", "left_out"]
Verdict = Literal["informative", "distracting"]
Method = Literal["sequence", "logits", "both"]  # of distillation
Precision = Literal["float16", "float32"]
# `judged`, or why there is no score: unreadable answer, refusal, failure, or no response to judge against.
JudgementOutcome = Literal["judged", "unreadable", "refused", "failed", "no_response"]


def result_text(title: str, body: str) -> str:
    """Join title and body of a search result for encoders, labelers and bags of words; prompts have their own format.

    Without a title, it is the body alone.
    """
    return f"{title}. {body}" if title.strip() else body


COUNTERFACTUAL = "/counterfactual-"  # in the ids of counterfactual examples, before what is replaced


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One search result.

    Attributes:
        title: Its heading; may be empty.
        body: Its text.
        url: Its URL, without password; empty if unknown, or if the host is not public.
        source: The engine or data set that it comes from.
        rank: Its rank among the results, from 1; 0 if unknown.
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
        """Keep only a URL that is safe to share, whatever the source of the result."""
        # Rows of other programs may contain null.
        object.__setattr__(self, "url", public_address(self.url) if isinstance(self.url, str) else "")

    @property
    def text(self) -> str:
        """Title and body as one text."""
        return result_text(self.title, self.body)


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction with the target response, in Alpaca's fields.

    Attributes:
        id: Unique within the data set.
        instruction: The task in words.
        input: The input of the task; may be empty.
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
        instruction: The instruction.
        results: The search results, best first within each engine.
        searches: Engine -> how its search went: `found`, `empty` (no results), `unavailable` (the engine could not be
            reached), `left_out` (not searched, on purpose).
        dropped_results: Number of results dropped because they have no text.
    """

    instruction: Instruction
    results: tuple[SearchResult, ...] = ()
    searches: dict[str, SearchOutcome] = field(default_factory=dict)
    dropped_results: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A labeler's judgement of one search result, with respect to the response.

    Attributes:
        score: How informative the result is, in [0, 1]; None unless judged.
        verdict: The score against the labeler's threshold; None unless judged.
        outcome: `judged`, or why there is no score.
        cut_tokens: Tokens of the result that the labeler did not read.
        raw_output: The reply of the judging model, if the judgement was parsed from it; or its server's error.
    """

    score: float | None
    verdict: Verdict | None
    outcome: JudgementOutcome = "judged"
    cut_tokens: int = 0
    raw_output: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A structured row of training data; it is rendered only once the tokenizer is known.

    Attributes:
        id: The instruction's id.
        instruction: The task in words.
        input: What it works on; may be empty.
        results: The search results shown, in order.
        judgements: One for each result; empty if the response has no readable verification sentence.
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
        text: The text to classify, such as a claim.
        label: The data set's own label, or None if it has none.
        evidence: Search results of the example, best first.
        stances: For each search result, the label that it supports by human judgement, or None if it supports none;
            empty if the data set has no such judgements.
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
        ids: Its token ids; empty if a server does not return them.
        logprob: Its log-probability in nats.
        bound: Whether it is an upper bound, because a server returns only the likeliest tokens.
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
        label: The predicted label, or None if the answer is unreadable; there is no default class.
        outcome: `answered`, or why there is no label.
        answered_by: `logprob` (from scores) or `text` (parsed from the raw output).
        scores: Probability of each label, summing to 1 over the labels; empty without scores.
        answers: Answer wording -> its label, token ids and log-probability.
        raw_output: The generated text, unchanged; None if nothing was generated.
        prompt: The rendered prompt.
        prompt_fingerprint: sha256 of the request, 16 hex digits.
        prompt_tokens: Number of prompt tokens.
        completion_tokens: Number of generated tokens.
        cut_tokens: Tokens cut from search results so that the prompt fits.
        turns: Prompt and raw output of earlier calls, in a protocol with several.
        reference: The label of a reference model, if there is one.
        recorded: The label by the parser of a recording, if it is one.
        group: The example's group, if the task declares one that is not its id; else empty.
        reason: The server's reason for giving no answer; None if it answered.
        thought: The reasoning before the answer, if a server returns it separately.
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
        """The unit of resampling and of paired tests: the group (often called after its first item), or the item."""
        return self.group or self.id

    @property
    def predicted(self) -> str:
        """The label, or else the outcome: a column of the confusion matrix."""
        return self.outcome if self.label is None else self.label


def original_id(example_id: str) -> str:
    """The id of the example from which a counterfactual one was rewritten; others are their own original."""
    return example_id.partition(COUNTERFACTUAL)[0]
