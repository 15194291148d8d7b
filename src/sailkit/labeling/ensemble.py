"""A labeler that scores with the mean of several others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sailkit.labeling.base import Labeler, ResultPair, Score, batches_of, machine_of, score_batch

_BATCH = 256


class Ensemble:
    """The mean of the scores of several labelers; a pair that one of them does not score has no score."""

    def __init__(self, name: str, members: Sequence[Labeler]) -> None:
        """Combine labelers.

        Args:
            name: The name that the user selected it by.
            members: The labelers.
        """
        self.name = name
        self.threshold = fmean(member.threshold for member in members)
        self._members = members

    @property
    def runs_on(self) -> dict[str, str]:
        """Devices and number formats of the members' models."""
        machines = [machine_of(member) for member in self._members]
        return {fact: ", ".join(sorted({machine[fact] for machine in machines if fact in machine}))
                for fact in ("device", "dtype") if any(fact in machine for machine in machines)}  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """The descriptions of the members."""
        members = [{"labeler": member.name, **member.describe()} for member in self._members]
        date = next((member["date"] for member in members if "date" in member), None)  # the same in all
        return {"labeler": self.name, "version": 1, "members": members, **({"date": date} if date else {})}

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Batches in order, which each member divides into its own."""
        return batches_of(len(pairs), _BATCH)

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """The mean score of each pair, with the stance of the first member that tells it."""
        by_member = [_scores(member, pairs) for member in self._members]
        return [mean_score(scores) for scores in zip(*by_member, strict=True)]


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of the members' scores of one pair; none if one of them has none.

    Args:
        scores: The score of each member.
    """
    values = [score.score for score in scores if score.score is not None]
    complete = len(values) == len(scores)
    return Score(
        fmean(values) if complete else None,
        outcome=next((score.outcome for score in scores if score.score is None), "judged"),
        cut_tokens=max(score.cut_tokens for score in scores),
        raw_output=next((score.raw_output for score in scores if score.raw_output is not None), None),
        stance=next((score.stance for score in scores if score.stance is not None), None),
    )


def _scores(member: Labeler, pairs: Sequence[ResultPair]) -> list[Score]:
    scores: dict[int, Score] = {}
    for batch in member.plan(pairs):
        scores |= zip(batch, score_batch(member, [pairs[i] for i in batch]), strict=True)
    return [scores[i] for i in range(len(pairs))]
