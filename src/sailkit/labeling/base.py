"""Labelers: who judges a search result informative or distracting with respect to a response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import Instruction, Judgement, JudgementOutcome, Searched, SearchResult, Verdict

LABELS = "labels.jsonl"


@dataclass(frozen=True, slots=True)
class ResultPair:
    """What is judged: one search result, for one instruction and its response."""

    instruction: Instruction
    result: SearchResult


@dataclass(frozen=True, slots=True)
class Score:
    """What a labeler says of one pair.

    Attributes:
        score: How informative, in [0, 1] by the labeler's own measure; None where there is none.
        outcome: `judged`, or why there is no score.
        cut_tokens: Tokens of the result that were not seen.
        raw_output: What a judging model said, where it was read from text; or why its server gave no answer.
    """

    score: float | None
    outcome: JudgementOutcome = "judged"
    cut_tokens: int = 0
    raw_output: str | None = None


class Labeler(Protocol):
    """Anything that scores pairs.

    Attributes:
        name: What the user called it.
        threshold: Scores from here on are informative, unless the user says otherwise.
    """

    name: str
    threshold: float

    def describe(self) -> dict[str, Any]:
        """Everything about the labeler that decides its scores, for the manifest."""

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Cut a whole run into batches of indices; every pair is in one."""

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """Score the pairs of one batch of the plan."""


def machine_of(labeler: Labeler) -> dict[str, Any]:
    """`device` and `dtype` of a labeler's model, where it has one that runs here: its `runs_on`."""
    return dict(getattr(labeler, "runs_on", {}))


def score_batch(labeler: Labeler, pairs: Sequence[ResultPair]) -> list[Score]:
    """Score one batch: the one function that runs here, in a shard or on a cluster.

    Raises:
        UserError: The labeler gave a score that is no number from 0 to 1.
    """
    found = labeler.score(pairs)
    for score, pair in zip(found, pairs, strict=True):
        if score.score is not None and not (math.isfinite(score.score) and 0 <= score.score <= 1):
            raise UserError(f"{labeler.name} gave the score {score.score} for a result of {pair.instruction.id}")
    return found


def statement(instruction: Instruction) -> str:
    """What a result is judged against: the response, with what was asked in view (unless it says so itself)."""
    said = instruction.output.strip()
    asked = [text.strip() for text in (instruction.instruction, instruction.input)]
    return "\n".join([*(text for text in asked if text and text not in said), said])


def batches_of(count: int, size: int) -> list[list[int]]:
    """Batches of so many, in order."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def verdict_for(score: float | None, threshold: float) -> Verdict | None:
    """What a score means against a threshold; None stays None: there is no default class."""
    if score is None:
        return None
    return "informative" if score >= threshold else "distracting"


def pairs_fingerprint(searched: Searched) -> str:
    """sha256 of all that a row's judgements are about, 16 hex digits."""
    one = searched.instruction
    texts = [one.instruction, one.input, one.output, *((result.title, result.body) for result in searched.results)]
    return jsonl.fingerprint(texts)[:16]


def labels_row(searched: Searched, judgements: Sequence[Judgement]) -> jsonl.JsonObject:
    """A row of `labels.jsonl`: one judgement for each result of the row of the same id."""
    return {
        "id": searched.instruction.id,
        "pairs": pairs_fingerprint(searched),
        "judgements": [asdict(judgement) for judgement in judgements],
    }


@dataclass(frozen=True)
class Labels:
    """What one labeler said about a whole set of search results.

    Attributes:
        labeler: Its name and version, as the manifest has them.
        threshold: The one that its verdicts were made with.
        judgements: For each row of the results, one for each result.
    """

    labeler: dict[str, Any]
    threshold: float
    judgements: tuple[tuple[Judgement, ...], ...]


def read_labels(folder: str | Path, searched: Sequence[Searched]) -> Labels:
    """Read a run of `label` beside the results that it judged.

    Args:
        folder: The run folder.
        searched: The rows that were labelled, in order.

    Raises:
        UserError: Not such a run, unfinished, or about other data; the row is named.
    """
    folder = Path(folder)
    manifest = runs.read_manifest(folder)
    if manifest["stage"] != "label":
        raise UserError(f"{folder} holds a run of {manifest['stage']!r}; a run of 'label' is needed")
    path = folder / LABELS
    if not path.exists():
        raise UserError(f"{folder} is not finished; run the same  sailkit label  again, it goes on where it stopped")
    rows = list(jsonl.read_rows(path))
    if len(rows) != len(searched):
        raise UserError(f"{path} has {len(rows)} rows and the results have {len(searched)}: labels of other data")
    judgements = []
    for (line, row), one in zip(rows, searched, strict=True):
        where = f"{path}, line {line}"
        if row.get("id") != one.instruction.id or row.get("pairs") != pairs_fingerprint(one):
            raise UserError(
                f"{where}: labels of other data (id {row.get('id')!r} there, {one.instruction.id!r} in the results, "
                "or the texts differ); label these results again"
            )
        judgements.append(_judgements(row, len(one.results), where))
    settings = manifest["settings"]
    return Labels(settings["labeler"], settings["threshold"], tuple(judgements))


def _judgements(row: Mapping[str, Any], count: int, where: str) -> tuple[Judgement, ...]:
    entries = row.get("judgements")
    if not isinstance(entries, list) or len(entries) != count:
        raise UserError(f"{where}: should have one judgement for each of {count} results")
    found = []
    for entry in entries:
        try:
            one = Judgement(**entry)
        except TypeError:
            raise UserError(f"{where}: a judgement has other fields than it should") from None
        judged = one.outcome == "judged"
        right = (
            isinstance(one.score, (int, float))
            and one.score is not True
            and 0 <= one.score <= 1
            and one.verdict in get_args(Verdict)
        )
        if one.outcome not in get_args(JudgementOutcome) or (judged and not right):
            raise UserError(f"{where}: a judgement has a score outside 0 to 1, or an unknown verdict or outcome")
        found.append(one)
    return tuple(found)
