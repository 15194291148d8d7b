"""What people said of search results: Climate-FEVER's votes and Factcheck-GPT's stances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.tables import read_table
from sailkit.labeling.base import ResultPair
from sailkit.records import Instruction, SearchResult
from sailkit.stats import metrics

__all__ = ["HumanJudgements", "HumanPair", "human_kappa", "read_judgements", "truth", "votes_against_majorities"]
_NEI = "NOT_ENOUGH_INFO"
_VOTES = ("SUPPORTS", "REFUTES", _NEI)
_STANCES = {"irrelevant": 0.0, "partially support": 1.0, "completely support": 1.0, "refute": 1.0}


@dataclass(frozen=True, slots=True)
class HumanPair:
    """One search result and what people said of it.

    Attributes:
        pair: The claim as response, and the result.
        claim: What the pair belongs to; pairs of one claim are drawn together.
        share: Share of votes that call the result informative (it supports or refutes the claim).
        official: The data set's own verdict.
        votes: Each person's vote, True for informative.
    """

    pair: ResultPair
    claim: str
    share: float
    official: bool
    votes: tuple[bool, ...] = ()


@dataclass(frozen=True)
class HumanJudgements:
    """A data set of them.

    Attributes:
        name: Which.
        pairs: In the order of the file.
        left_out: Pairs that came twice, and pairs on which the file contradicts itself.
        sha256: Fingerprint of the file.
    """

    name: str
    pairs: tuple[HumanPair, ...]
    left_out: dict[str, int]
    sha256: str


def read_judgements(path: str | Path) -> HumanJudgements:
    """Read human judgements; which data set it is shows from its fields.

    Raises:
        UserError: The file is missing, malformed, or of neither kind.
    """
    path = Path(path)
    found: dict[tuple[str, str, str], list[HumanPair]] = {}
    name = ""
    for line, row in read_table(path):
        where = f"{path}, line {line}"
        if "evidences" in row and "claim" in row:
            kind, many = "climate-fever", _climate_fever(row, where)
        elif "stance" in row and "evidence" in row and "claim" in row:
            kind, many = "factcheck-gpt", _factcheck(row, where)
        else:
            raise UserError(
                f"{where}: neither Climate-FEVER (claim, evidences) nor Factcheck-GPT (claim, evidence, stance)"
            )
        if kind != (name := name or kind):
            raise UserError(f"{where}: a row of {kind} among those of {name}")
        for one in many:
            result = one.pair.result
            found.setdefault((one.claim, result.title, result.body), []).append(one)
    if not found:
        raise UserError(f"{path}: no judgements")
    agreed = [many for many in found.values() if len({one.official for one in many}) == 1]
    kept = [many[0] for many in agreed]
    counts = [sum(map(len, groups)) for groups in (found.values(), agreed)]
    left_out = {"doubled": counts[1] - len(kept), "contradicting": counts[0] - counts[1]}
    return HumanJudgements(name, tuple(kept), left_out, jsonl.file_fingerprint([path]))


def _climate_fever(row: Mapping[str, Any], where: str) -> Iterator[HumanPair]:
    claim = _text(row["claim"], "claim", where)
    identity = _text(str(row.get("claim_id", claim)), "claim_id", where)
    if not isinstance(row["evidences"], list):
        raise UserError(f"{where}: field 'evidences' should be a list")
    for place, entry in enumerate(row["evidences"]):
        there = f"{where}: evidences[{place}]"
        try:
            said, label = entry["votes"], entry["evidence_label"]
            body, title = (_text(entry[name], name, there) for name in ("evidence", "article"))
        except (KeyError, TypeError):
            raise UserError(f"{there} lacks votes, evidence, article or evidence_label") from None
        cast = [vote for vote in said if vote is not None] if isinstance(said, list) else [said]
        # A vote in other words would count as informative.
        if unknown := [vote for vote in (*cast, label) if vote not in _VOTES]:
            raise UserError(f"{there}: {unknown[0]!r} is no vote; there are {', '.join(_VOTES)}")
        if cast:
            votes = tuple(vote != _NEI for vote in cast)
            pair = ResultPair(Instruction(identity, "", "", claim), SearchResult(body, title))
            yield HumanPair(pair, identity, sum(votes) / len(votes), label != _NEI, votes)


def _factcheck(row: Mapping[str, Any], where: str) -> Iterator[HumanPair]:
    claim, stance = _text(row["claim"], "claim", where), str(row["stance"]).strip().lower().replace("-", " ")
    if stance not in _STANCES:
        raise UserError(f"{where}: stance {stance!r} is not one of {', '.join(_STANCES)}")
    share = _STANCES[stance]
    pair = ResultPair(Instruction(claim, "", "", claim), SearchResult(_text(row["evidence"] or "", "evidence", where)))
    yield HumanPair(pair, claim, share, share > 0.5)


def _text(value: object, name: str, where: str) -> str:
    if not jsonl.is_text(value):
        raise UserError(f"{where}: field {name!r} should be text")
    return str(value)


def truth(pairs: Sequence[HumanPair], stratum: str) -> list[bool | None]:
    """Whether each pair is informative by a stratum's reading, or None where it is not in the stratum.

    Args:
        pairs: n pairs.
        stratum: `unanimous` (all votes agree), `majority` (more than half agree), `official` (the data set's own).
    """
    if stratum == "official":
        return [one.official for one in pairs]
    if stratum == "majority":
        return [None if one.share == 0.5 else one.share > 0.5 for one in pairs]
    return [one.share == 1 if one.share in (0, 1) else None for one in pairs]


def votes_against_majorities(pairs: Sequence[HumanPair]) -> tuple[list[bool], list[bool]]:
    """Each vote beside the majority of the others, for pairs with three or more votes; ties among them left out."""
    alone, rest = [], []
    for one in pairs:
        if len(one.votes) < 3:
            continue
        for place, vote in enumerate(one.votes):
            others = [*one.votes[:place], *one.votes[place + 1 :]]
            if 2 * sum(others) != len(others):
                alone.append(vote)
                rest.append(2 * sum(others) > len(others))
    return alone, rest


def human_kappa(pairs: Sequence[HumanPair]) -> float | None:
    """Cohen's kappa between one annotator and the majority of the others; None where nobody stands against others."""
    alone, rest = votes_against_majorities(pairs)
    return metrics.kappa([str(v) for v in alone], [str(v) for v in rest]) if alone else None
