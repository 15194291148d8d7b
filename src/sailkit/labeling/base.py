"""The protocol of labelers, which score how informative a search result is for a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

from sailkit.errors import UserError
from sailkit.records import Instruction, JudgementOutcome, SearchResult, Verdict


@dataclass(frozen=True, slots=True)
class ResultPair:
    """The input of a labeler: a search result, with the instruction and response that it should support."""

    instruction: Instruction
    result: SearchResult


@dataclass(frozen=True, slots=True)
class Score:
    """A labeler's score of one pair.

    Attributes:
        score: How informative the result is, in [0, 1]; None where there is no score.
        outcome: `judged`, or why there is no score.
        cut_tokens: Tokens of the result that the labeler did not read.
        raw_output: The reply of the judging model, if the score was parsed from it; or its server's error.
        stance: P(supports) / (P(supports) + P(refutes)), of labelers that tell the two apart; only audits keep it.
    """

    score: float | None
    outcome: JudgementOutcome = "judged"
    cut_tokens: int = 0
    raw_output: str | None = None
    stance: float | None = None


class Labeler(Protocol):
    """Anything that scores pairs: any class with these attributes and methods, without a base class.

    Scores have to be reproducible for the same description and batch, because a stopped run continues after the batches
    that it has written. A labeler whose model runs on this machine may also have an attribute `runs_on`, a dict with
    its `device` and `dtype`, which is shown with the results.

    Example:
        A labeler that calls a result informative if it contains the response word for word:

            class ContainsResponse:
                name = "contains-response"
                threshold = 0.5

                def describe(self):
                    return {"labeler": self.name, "version": 1}

                def plan(self, pairs):
                    return [[index] for index in range(len(pairs))]

                def score(self, pairs):
                    return [Score(float(pair.instruction.output in pair.result.text)) for pair in pairs]

    Attributes:
        name: The name that the user selected it by.
        threshold: Results with this score or a higher one are informative, unless the user sets another threshold.
    """

    name: str
    threshold: float

    def describe(self) -> dict[str, Any]:
        """Everything that affects the scores, for the manifest: `labeler` (the name), a version, hashes of files ...

        A run is continued only if the description is unchanged, so increase the version when scores change.
        """

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Split the pairs of a run into batches of indices; every index is in exactly one batch.

        Args:
            pairs: All pairs of the run, before any is scored and before they are divided among machines.
        """

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """Score the pairs of one batch of the plan.

        Args:
            pairs: The pairs of the batch, in its order.

        Returns:
            One score for each pair; `Score(None, outcome)` where there is none.
        """


def machine_of(labeler: Labeler) -> dict[str, Any]:
    """`device` and `dtype` of a labeler's model; empty unless it runs on this machine."""
    return dict(getattr(labeler, "runs_on", {}))


def score_batch(labeler: Labeler, pairs: Sequence[ResultPair]) -> list[Score]:
    """Score one batch, whether in this process, in a shard or on a cluster.

    Raises:
        UserError: The labeler returned a score outside [0, 1], none without a reason, or not one score for each pair.
    """
    scores = labeler.score(pairs)
    if len(scores) != len(pairs):
        raise UserError(f"{labeler.name} gave {len(scores)} scores for {len(pairs)} search results")
    return [_checked(score, labeler.name, pair.instruction.id) for score, pair in zip(scores, pairs, strict=True)]


def _checked(score: Score, labeler: str, instruction: str) -> Score:
    """The score in Python's numbers, where a plug-in may give NumPy's."""
    if score.outcome not in get_args(JudgementOutcome) or (score.score is None) == (score.outcome == "judged"):
        raise UserError(
            f"{labeler} gave the score {score.score} with the outcome {score.outcome!r} for a result of {instruction}"
        )
    if score.score is None:
        return score
    try:
        value = float(score.score)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{labeler} gave the score {score.score} for a result of {instruction}")
    stance = None if score.stance is None else float(score.stance)
    return replace(score, score=value, cut_tokens=int(score.cut_tokens), stance=stance)


def statement(instruction: Instruction) -> str:
    """The text that a result is judged against: the response, after the parts of the question that it omits."""
    response = instruction.output.strip()
    question = [text.strip() for text in (instruction.instruction, instruction.input)]
    return "\n".join([*(text for text in question if text and text not in response), response])


def batches_of(count: int, size: int) -> list[list[int]]:
    """Batches of `size` consecutive indices; the last may be smaller."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def verdict_for(score: float | None, threshold: float) -> Verdict | None:
    """The verdict of a score at a threshold; None without a score: there is no default class."""
    if score is None:
        return None
    return "informative" if score >= threshold else "distracting"
