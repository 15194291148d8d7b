"""Read human judgements of search results: votes of Climate-FEVER, stances of Factcheck-GPT, FEVER or any table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.files.tables import read_table
from sailkit.labeling.base import ResultPair
from sailkit.labeling.options import JudgementColumns
from sailkit.records import Instruction, SearchResult
from sailkit.stats import metrics
from sailkit.tasks.task import load_task

# `informative`: supports or refutes, but the data do not say which.
Stance = Literal["supports", "refutes", "neither", "informative"]
STANCES: tuple[Stance, ...] = ("supports", "refutes", "neither")  # the order of a fitted model's outputs
Origin = Literal["judged", "near", "random"]

_VOTES: dict[str, Stance] = {"SUPPORTS": "supports", "REFUTES": "refutes", "NOT_ENOUGH_INFO": "neither"}
_FACTCHECK: dict[str, Stance] = {
    "irrelevant": "neither", "partially support": "supports", "completely support": "supports", "refute": "refutes",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HumanPair:
    """A search result with its human judgements.

    Attributes:
        pair: The claim as response, and the result.
        claim: Id of the claim, or of a group of claims about one passage; the bootstrap draws whole groups.
        stance: The data set's own judgement.
        votes: The vote of each annotator; without votes, the data set's own judgement.
        origin: `judged` by people; or `near` or `random`: a passage of another claim, taken to say nothing of this one.
    """

    pair: ResultPair
    claim: str
    stance: Stance
    votes: tuple[Stance, ...]
    origin: Origin = "judged"

    @property
    def official(self) -> bool:
        """The data set's own judgement, True for informative."""
        return self.stance != "neither"

    @property
    def share(self) -> float:
        """Share of the votes that call the result informative (it supports or refutes the claim)."""
        return sum(vote != "neither" for vote in self.votes) / len(self.votes)

    @property
    def targets(self) -> tuple[float, ...]:
        """Share of the votes for each of `STANCES`; `informative` counts half for each of the first two."""
        shares = [float(sum(vote == stance for vote in self.votes)) for stance in STANCES]
        undecided = self.votes.count("informative") / 2
        return tuple(share / len(self.votes) for share in (shares[0] + undecided, shares[1] + undecided, shares[2]))


@dataclass(frozen=True)
class HumanJudgements:
    """A data set of human judgements.

    Attributes:
        name: The data set: `climate-fever`, `factcheck-gpt`, or the name of the file.
        pairs: The pairs in the order of the file.
        left_out: Number of pairs left out: duplicates, and pairs with contradicting verdicts.
        sha256: Fingerprint of the file.
    """

    name: str
    pairs: tuple[HumanPair, ...]
    left_out: dict[str, int]
    sha256: str

    @property
    def needs_negatives(self) -> bool:
        """Whether every judged result is informative."""
        return all(pair.official for pair in self.pairs)


def read_judgements(path: str | Path, columns: JudgementColumns = JudgementColumns()) -> HumanJudgements:
    """Read human judgements; the fields of the rows show which data set it is.

    Args:
        path: The file.
        columns: The columns of any other table of pairs; see `JudgementColumns`.

    Raises:
        UserError: The file is missing, malformed, or of another data set.
    """
    path = Path(path)
    rows = list(read_table(path))
    if columns.judgement:
        name, pairs = path.stem, list(_table(rows, path, columns))
    elif rows and isinstance(rows[0][1].get("evidence"), list):
        name, pairs = path.stem, list(_stance_data(path))
    else:
        name, pairs = _known_data(rows, path)
    groups: dict[tuple[str, str, str, str], list[HumanPair]] = {}
    for pair in pairs:
        result = pair.pair.result
        groups.setdefault((pair.claim, pair.pair.instruction.output, result.title, result.body), []).append(pair)
    if not groups:
        raise UserError(f"{path}: no judgements")
    consistent = [group for group in groups.values() if not _contradict({pair.stance for pair in group})]
    all_pairs, consistent_pairs = (sum(map(len, kind)) for kind in (groups.values(), consistent))
    left_out = {"doubled": consistent_pairs - len(consistent), "contradicting": all_pairs - consistent_pairs}
    return HumanJudgements(name, tuple(group[0] for group in consistent), left_out, jsonl.file_fingerprint([path]))


def _contradict(stances: set[Stance]) -> bool:
    return len({stance == "neither" for stance in stances}) > 1 or {"supports", "refutes"} <= stances


def _known_data(rows: Sequence[tuple[int, Mapping[str, Any]]], path: Path) -> tuple[str, list[HumanPair]]:
    name = ""
    all_pairs: list[HumanPair] = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if "evidences" in row and "claim" in row:
            kind, pairs = "climate-fever", _climate_fever(row, where)
        elif "stance" in row and "evidence" in row and "claim" in row:
            kind, pairs = "factcheck-gpt", _factcheck(row, where)
        else:
            raise UserError(
                f"{where}: neither Climate-FEVER (claim, evidences) nor Factcheck-GPT (claim, evidence, stance) nor "
                "FEVER (claim, evidence: a list); for another table say `judgement_column`"
            )
        if kind != (name := name or kind):
            raise UserError(f"{where}: a row of {kind} among those of {name}")
        all_pairs += pairs
    return name, all_pairs


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
            pair = ResultPair(Instruction(identity, "", "", claim), SearchResult(body, title))
            yield HumanPair(pair, identity, _VOTES[label], tuple(_VOTES[vote] for vote in cast))


def _factcheck(row: Mapping[str, Any], where: str) -> Iterator[HumanPair]:
    claim, stance = jsonl.check_text(row["claim"], "claim", where), str(row["stance"]).strip().lower().replace("-", " ")
    if stance not in _FACTCHECK:
        raise UserError(f"{where}: stance {stance!r} is not one of {', '.join(_FACTCHECK)}")
    result = SearchResult(jsonl.check_text(row["evidence"] or "", "evidence", where))
    yield _judged(claim, result, _FACTCHECK[stance])


def _stance_data(path: Path) -> Iterator[HumanPair]:
    """Pairs of a file in the form of the task `fever`; claims about one passage are one group."""
    for example in load_task("fever", ["all"]).load(path).examples:
        if len(example.stances) != len(example.evidence):
            raise UserError(f"{path}: example {example.id!r}: a search result has no stance")
        for result, stance in zip(example.evidence, example.stances, strict=True):
            yield _judged(example.text, result, _VOTES[stance or "NOT_ENOUGH_INFO"], example.group)


def _table(rows: Sequence[tuple[int, Mapping[str, Any]]], path: Path, columns: JudgementColumns) -> Iterator[HumanPair]:
    words = columns.words()
    for line, row in rows:
        where = f"{path}, line {line}"
        names = [columns.claim, columns.result, columns.judgement, *([columns.title] if columns.title else [])]
        if absent := [name for name in names if name not in row]:
            raise UserError(f"{where}: no column {absent[0]!r}; {nearest(absent[0], list(row))}")
        claim, body, judgement, *titles = (
            jsonl.check_text("" if row[name] is None else str(row[name]), name, where) for name in names
        )
        if (word := judgement.strip().lower()) not in words:
            raise UserError(
                f"{where}: {judgement!r} in column {columns.judgement!r} has no meaning yet; name it in `supports`, "
                "`refutes`, `informative` or `distracting`"
            )
        yield _judged(claim, SearchResult(body, "".join(titles)), words[word])


def _judged(claim: str, result: SearchResult, stance: Stance, group: str | None = None) -> HumanPair:
    return HumanPair(ResultPair(Instruction(group or claim, "", "", claim), result), group or claim, stance, (stance,))


def gold_labels(pairs: Sequence[HumanPair], stratum: str) -> list[bool | None]:
    """The gold label of each pair in a stratum, True for informative; None where the pair is not in the stratum.

    Args:
        pairs: The pairs to judge.
        stratum: `unanimous` (all votes agree), `majority` (more than half agree), `official` (the data set's own);
            `near` or `random`: judged pairs, and pairs of that origin.
    """
    if stratum in ("near", "random"):
        return [pair.official if pair.origin in ("judged", stratum) else None for pair in pairs]
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
        informative = [vote != "neither" for vote in pair.votes]
        for index, vote in enumerate(informative):
            others = [*informative[:index], *informative[index + 1 :]]
            if 2 * sum(others) != len(others):
                votes.append(vote)
                majorities.append(2 * sum(others) > len(others))
    return votes, majorities


def human_kappa(pairs: Sequence[HumanPair]) -> float | None:
    """Cohen's kappa between one annotator and the majority of the others; None if there are no such votes."""
    votes, majorities = votes_against_majorities(pairs)
    return metrics.kappa([str(v) for v in votes], [str(v) for v in majorities]) if votes else None
