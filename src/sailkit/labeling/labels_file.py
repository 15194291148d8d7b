"""Read and write `labels.jsonl`: for each row of search results, a judgement of each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import Judgement, JudgementOutcome, Searched, Verdict

LABELS = "labels.jsonl"


def pairs_fingerprint(searched: Searched) -> str:
    """sha256 of the texts that a row's judgements depend on, 16 hex digits."""
    row = searched.instruction
    texts = [row.instruction, row.input, row.output, *((result.title, result.body) for result in searched.results)]
    return jsonl.fingerprint(texts)[:16]


def labels_row(searched: Searched, judgements: Sequence[Judgement]) -> jsonl.JsonObject:
    """A row of `labels.jsonl`: one judgement for each result of a row of search results."""
    return {
        "id": searched.instruction.id,
        "pairs": pairs_fingerprint(searched),
        "judgements": [asdict(judgement) for judgement in judgements],
    }


@dataclass(frozen=True)
class Labels:
    """The judgements of one labeler on a whole set of search results.

    Attributes:
        labeler: The labeler's description, as in the manifest.
        threshold: The threshold of its verdicts.
        judgements: For each row, a judgement for each result.
    """

    labeler: dict[str, Any]
    threshold: float
    judgements: tuple[tuple[Judgement, ...], ...]


def open_labels(folder: str | Path) -> tuple[dict[str, Any], list[tuple[int, jsonl.JsonObject]]]:
    """The settings of a finished run of `label`, and the rows of its labels with their line numbers.

    Raises:
        UserError: The folder holds no such run, or it has not finished.
    """
    settings = runs.read_finished(folder, LABELS, "label")["settings"]
    return settings, list(jsonl.read_rows(Path(folder) / LABELS))


def read_labels(folder: str | Path, searched: Sequence[Searched]) -> Labels:
    """Read a run of `label`, and check that it judged these results.

    Args:
        folder: The run folder.
        searched: The rows that were labelled, in order.

    Raises:
        UserError: The run is of another verb, unfinished, or of other data; the row is named.
    """
    settings, rows = open_labels(folder)
    path = Path(folder) / LABELS
    if len(rows) != len(searched):
        raise UserError(f"{path} has {len(rows)} rows and the results have {len(searched)}: labels of other data")
    judgements = []
    for (line, row), expected in zip(rows, searched, strict=True):
        where = f"{path}, line {line}"
        if row.get("id") != expected.instruction.id or row.get("pairs") != pairs_fingerprint(expected):
            raise UserError(
                f"{where}: labels of other data (id {row.get('id')!r} there, {expected.instruction.id!r} in the "
                "results, or the texts differ); label these results again"
            )
        judgements.append(parse_judgements(row, where, len(expected.results)))
    return Labels(settings["labeler"], settings["threshold"], tuple(judgements))


def parse_judgements(row: Mapping[str, Any], where: str, count: int | None = None) -> tuple[Judgement, ...]:
    """The judgements of a row of `labels.jsonl`.

    Args:
        row: The row.
        where: File and line, for errors.
        count: Expected number of judgements, if known.

    Raises:
        UserError: Their number is not `count`, or one is malformed.
    """
    entries = row.get("judgements")
    if not isinstance(entries, list) or count not in (None, len(entries)):
        raise UserError(f"{where}: should have one judgement for each of {count} results")
    judgements = []
    for entry in entries:
        try:
            judgement = Judgement(**entry)
        except TypeError:
            raise UserError(f"{where}: a judgement has other fields than it should") from None
        judged = judgement.outcome == "judged"
        valid = (
            isinstance(judgement.score, (int, float))
            and judgement.score is not True
            and 0 <= judgement.score <= 1
            and judgement.verdict in get_args(Verdict)
        )
        if judgement.outcome not in get_args(JudgementOutcome) or (judged and not valid):
            raise UserError(f"{where}: a judgement has a score outside 0 to 1, or an unknown verdict or outcome")
        judgements.append(judgement)
    return tuple(judgements)
