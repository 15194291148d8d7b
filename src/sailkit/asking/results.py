"""The result of the verb `ask`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sailkit.records import Judgement, SearchResult
from sailkit.rendering.result import Result


@dataclass(frozen=True)
class Answer(Result):
    """A model's answer to a question, with the search results that it was shown.

    Attributes:
        question: The question, or the claim of a task.
        model: The model's name.
        results: The search results, in the order shown.
        judgements: The model's judgement of each search result. `score` is the probability that the model gives to
            `informative`. `verdict` is what the model's verification sentence says, or the likeliest sentence if the
            model answers without one. Empty if the model gives no log-probabilities.
        verification: The verification sentence that the model wrote before its answer; empty if it wrote none.
        answer: The answer; for a task, its answer word, or the raw output if it has no readable label.
        label: The label of the task; None without a task, or if the answer is unreadable.
        labels: Label -> probability, for a task; empty if the answer was generated.
        prompt: The prompt as the model got it.
        prompt_tokens: Length of the prompt.
        completion_tokens: Number of generated tokens of the answer.
        cut_tokens: Tokens of search results that did not fit into the prompt.
        cut_off: Whether the answer stopped at a limit before its end.
        is_claim: Whether the question was asked as a claim of a task.
        compared_with: The answer of the other model to the same question and results.
    """

    question: str
    model: str
    results: tuple[SearchResult, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    verification: str = ""
    answer: str = ""
    label: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    prompt: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_tokens: int = 0
    cut_off: bool = False
    is_claim: bool = False
    compared_with: Answer | None = None

    @property
    def both(self) -> tuple[Answer, ...]:
        """This answer, and that of the other model if there is one."""
        return (self, *(self.compared_with.both if self.compared_with else ()))

    @property
    def is_unsupported(self) -> bool:
        """Whether the model judged its search results before it answered, and called none of them informative."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        return bool(self.verification and verdicts) and "informative" not in verdicts

    def to_json(self) -> dict[str, Any]:
        """The answer as `--json` writes it."""
        return {
            "question": self.question,
            "model": self.model,
            "results": judged_results(self),
            "verification": self.verification,
            "is_unsupported": self.is_unsupported,
            "answer": self.answer,
            "label": self.label,
            "labels": dict(self.labels),
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cut_tokens": self.cut_tokens,
            "cut_off": self.cut_off,
            "compared_with": self.compared_with.to_json() if self.compared_with else None,
        }


def judged_results(answer: Answer) -> list[dict[str, Any]]:
    """The search results with the model's `verdict` and `informative`, its probability; None if it gave none."""
    judgements = answer.judgements or (Judgement(None, None),) * len(answer.results)
    return [
        {**asdict(result), "verdict": judgement.verdict, "informative": judgement.score}
        for result, judgement in zip(answer.results, judgements, strict=True)
    ]
