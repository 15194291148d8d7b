"""Read human judgements of search results: Climate-FEVER's votes and Factcheck-GPT's stances."""

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

_NEI = "NOT_ENOUGH_INFO"
_VOTES = ("SUPPORTS", "REFUTES", _NEI)
_STANCES = {"irrelevant": 0.0, "partially support": 1.0, "completely support": 1.0, "refute": 1.0}


@dataclass(frozen=True, slots=True)
class HumanPair:
    """A search result with its human judgements.

    Attributes:
        pair: The claim as response, and the result.
        claim: Id of the claim; the bootstrap draws whole claims, with all their pairs.
        share: Share of the votes that call the result informative (it supports or refutes the claim).
        official: The data set's own verdict, True for informative.
        votes: The vote of each annotator, True for informative.
    """

    pair: ResultPair
    claim: str
    share: float
    official: bool
    votes: tuple[bool, ...] = ()


@dataclass(frozen=True)
class HumanJudgements:
    """A data set of human judgements.

    Attributes:
        name: The data set, `climate-fever` or `factcheck-gpt`.
        pairs: The pairs in the order of the file.
        left_out: Number of pairs left out: duplicates, and pairs with contradicting verdicts.
        sha256: Fingerprint of the file.
    """

    name: str
    pairs: tuple[HumanPair, ...]
    left_out: dict[str, int]
    sha256: str


def read_judgements(path: str | Path) -> HumanJudgements:
    """Read human judgements; the fields of the rows show which data set it is.

    Raises:
        UserError: The file is missing, malformed, or of another data set.
    """
    path = Path(path)
    groups: dict[tuple[str, str, str], list[HumanPair]] = {}
    name = ""
    for line, row in read_table(path):
        where = f"{path}, line {line}"
        if "evidences" in row and "claim" in row:
            kind, pairs = "climate-fever", _climate_fever(row, where)
        elif "stance" in row and "evidence" in row and "claim" in row:
            kind, pairs = "factcheck-gpt", _factcheck(row, where)
        else:
            raise UserError(
                f"{where}: neither Climate-FEVER (claim, evidences) nor Factcheck-GPT (claim, evidence, stance)"
            )
        if kind != (name := name or kind):
            raise UserError(f"{where}: a row of {kind} among those of {name}")
        for pair in pairs:
            result = pair.pair.result
            groups.setdefault((pair.claim, result.title, result.body), []).append(pair)
    if not groups:
        raise UserError(f"{path}: no judgements")
    consistent = [group for group in groups.values() if len({pair.official for pair in group}) == 1]
    all_pairs, consistent_pairs = (sum(map(len, kind)) for kind in (groups.values(), consistent))
    left_out = {"doubled": consistent_pairs - len(consistent), "contradicting": all_pairs - consistent_pairs}
    return HumanJudgements(name, tuple(group[0] for group in consistent), left_out, jsonl.file_fingerprint([path]))


def _climate_fever(row: Mapping[str, Any], where: str) -> Iterator[HumanPair]:
    claim = jsonl.check_text(row["claim"], "claim", where)
    identity = jsonl.check_text(str(row.get("claim_id", claim)), "claim_id", where)
    if not isinstance(row["evidences"], list):
        raise UserError(f"{where}: field 'evidences' should be a list")
    for index, entry in enumerate(row["evidences"]):
        entry_name = f"{where}: evidences[{index}]"
        try:
            votes, label = entry["votes"], entry["evidence_label"]
            body, title = (jsonl.check_text(entry[name], name, entry_name) for name in ("evidence", "article"))
        except (KeyError, TypeError):
            raise UserError(f"{entry_name} lacks votes, evidence, article or evidence_label") from None
        cast = [vote for vote in votes if vote is not None] if isinstance(votes, list) else [votes]
        # Anything but NOT_ENOUGH_INFO counts as informative, so an unknown vote has to be an error.
        if unknown := [vote for vote in (*cast, label) if vote not in _VOTES]:
            raise UserError(f"{entry_name}: {unknown[0]!r} is no vote; there are {', '.join(_VOTES)}")
        if cast:
            informative = tuple(vote != _NEI for vote in cast)
            pair = ResultPair(Instruction(identity, "", "", claim), SearchResult(body, title))
            yield HumanPair(pair, identity, sum(informative) / len(informative), label != _NEI, informative)


def _factcheck(row: Mapping[str, Any], where: str) -> Iterator[HumanPair]:
    claim, stance = jsonl.check_text(row["claim"], "claim", where), str(row["stance"]).strip().lower().replace("-", " ")
    if stance not in _STANCES:
        raise UserError(f"{where}: stance {stance!r} is not one of {', '.join(_STANCES)}")
    share = _STANCES[stance]
    pair = ResultPair(
        Instruction(claim, "", "", claim), SearchResult(jsonl.check_text(row["evidence"] or "", "evidence", where))
    )
    yield HumanPair(pair, claim, share, share > 0.5)


def gold_labels(pairs: Sequence[HumanPair], stratum: str) -> list[bool | None]:
    """The gold label of each pair in a stratum, True for informative; None where the pair is not in the stratum.

    Args:
        pairs: The pairs to judge.
        stratum: `unanimous` (all votes agree), `majority` (more than half agree), `official` (the data set's own).
    """
    if stratum == "official":
        return [pair.official for pair in pairs]
    if stratum == "majority":
        return [None if pair.share == 0.5 else pair.share > 0.5 for pair in pairs]
    return [pair.share == 1 if pair.share in (0, 1) else None for pair in pairs]


def votes_against_majorities(pairs: Sequence[HumanPair]) -> tuple[list[bool], list[bool]]:
    """Each vote with the majority of the other votes, for pairs with three or more votes; ties are skipped."""
    votes, majorities = [], []
    for pair in pairs:
        if len(pair.votes) < 3:
            continue
        for index, vote in enumerate(pair.votes):
            others = [*pair.votes[:index], *pair.votes[index + 1 :]]
            if 2 * sum(others) != len(others):
                votes.append(vote)
                majorities.append(2 * sum(others) > len(others))
    return votes, majorities


def human_kappa(pairs: Sequence[HumanPair]) -> float | None:
    """Cohen's kappa between one annotator and the majority of the others; None if there are no such votes."""
    votes, majorities = votes_against_majorities(pairs)
    return metrics.kappa([str(v) for v in votes], [str(v) for v in majorities]) if votes else None
