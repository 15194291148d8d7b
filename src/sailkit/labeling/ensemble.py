"""A labeler that scores with the mean of several others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sailkit.errors import UserError
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
        return common_machine([machine_of(member) for member in self._members])

    def describe(self) -> dict[str, Any]:
        """The descriptions of the members."""
        return describe_ensemble([{"labeler": member.name, **member.describe()} for member in self._members])

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Batches in order, which each member divides into its own."""
        return batches_of(len(pairs), _BATCH)

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """The mean score of each pair."""
        by_member = [_scores(member, pairs) for member in self._members]
        return [mean_score(scores) for scores in zip(*by_member, strict=True)]


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of the members' scores of a pair; none if one of them has none. A mean has no stance.

    Args:
        scores: The score of each member.
    """
    cut_tokens = max(score.cut_tokens for score in scores)
    if failed := next((score for score in scores if score.score is None), None):
        return Score(None, failed.outcome, cut_tokens, failed.raw_output)
    reply = next((score.raw_output for score in scores if score.raw_output is not None), None)
    return Score(fmean(score.score for score in scores if score.score is not None), "judged", cut_tokens, reply)


def describe_ensemble(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The description of an ensemble.

    Args:
        members: The descriptions of its members.

    Raises:
        UserError: The prompts of its members have different dates.
    """
    dates = {member["date"] for member in members if member.get("date")}
    if len(dates) > 1:
        raise UserError(f"the labelers would read different dates ({', '.join(sorted(dates))}); give a `date`")
    return {"version": 1, "members": list(members)} | ({"date": dates.pop()} if dates else {})


def common_machine(machines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`device` and `dtype` of several models; a server's are not known.

    Args:
        machines: Those of each model.
    """
    values = {
        fact: sorted({machine[fact] for machine in machines if machine.get(fact)}) for fact in ("device", "dtype")
    }
    return {fact: ", ".join(of_fact) for fact, of_fact in values.items() if of_fact}


def _scores(member: Labeler, pairs: Sequence[ResultPair]) -> list[Score]:
    scores: dict[int, Score] = {}
    for batch in member.plan(pairs):
        scores |= zip(batch, score_batch(member, [pairs[i] for i in batch]), strict=True)
    return [scores[i] for i in range(len(pairs))]
