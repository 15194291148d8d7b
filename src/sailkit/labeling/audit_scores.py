"""The scores of the labelers of an audit, each labeler's in its own folder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sailkit import runs
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.labeling.audit_file import score_folder
from sailkit.labeling.base import Labeler, ResultPair, Score, machine_of, score_batch, statement
from sailkit.labeling.ensemble import common_machine, describe_ensemble, mean_score
from sailkit.labeling.label import SCORES
from sailkit.labeling.load import load_labeler, member_names
from sailkit.labeling.options import AuditedLabelerOptions


@dataclass(frozen=True)
class ScoredLabeler:
    """A labeler of an audit.

    Attributes:
        threshold: Its default threshold.
        description: Everything that affects its scores.
        machine: `device` and `dtype` of its model, if it ran here.
        scores: Its score of each pair.
    """

    threshold: float
    description: dict[str, Any]
    machine: dict[str, Any]
    scores: list[Score]


def score_all(
    run: runs.Run,
    names: Sequence[str],
    options: AuditedLabelerOptions,
    pairs: Sequence[ResultPair],
    data_sha256: str,
    earlier: Path | None,
) -> dict[str, ScoredLabeler]:
    """Score all pairs with each labeler; the members of `A+B` are scored once, and their mean is computed from these.

    Args:
        run: The run of the audit.
        names: The labelers.
        options: How to load and run them.
        pairs: The pairs.
        data_sha256: Hash of the data that the pairs are from.
        earlier: An earlier audit; its scores are copied where labeler and pairs are the same.

    Returns:
        The labelers by name.
    """

    def open_scores(name: str, description: dict[str, Any]) -> Any:
        folder = run.path(score_folder(name))
        settings = {"labeler": description, "data_sha256": data_sha256, "n": len(pairs)}
        return runs.open_run(folder, "labeler scores", settings | _pairs_setting(folder, pairs))

    scored: dict[str, ScoredLabeler] = {}
    for name in dict.fromkeys(member for joined in names for member in member_names(joined)):
        labeler = load_labeler(name, options)
        description = {"labeler": labeler.name, **labeler.describe()}
        with open_scores(name, description) as scores_run:
            if earlier is not None:
                _take_over(scores_run, earlier / score_folder(name))
            scores = _scores(scores_run, labeler, pairs)
        scored[name] = ScoredLabeler(labeler.threshold, description, machine_of(labeler), scores)
    for name in names:
        members = [scored[member] for member in member_names(name)]
        if len(members) == 1:
            continue
        description = {"labeler": name, **describe_ensemble([member.description for member in members])}
        scores = [mean_score(of_pair) for of_pair in zip(*(member.scores for member in members), strict=True)]
        with open_scores(name, description) as scores_run:
            if not scores_run.path(SCORES).exists():  # nothing is added to a finished audit
                jsonl.write_rows(scores_run.path(SCORES), map(_score_row, range(len(pairs)), scores))
        machine = common_machine([member.machine for member in members])
        scored[name] = ScoredLabeler(fmean(member.threshold for member in members), description, machine, scores)
    return scored


def _scores(run: runs.Run, labeler: Labeler, pairs: Sequence[ResultPair]) -> list[Score]:
    """Scores of all pairs; written to the run folder."""
    batches = labeler.plan(pairs)

    def compute(remaining: Sequence[Sequence[int]]) -> Generator[list[jsonl.JsonObject], None, None]:
        for batch in remaining:
            yield list(map(_score_row, batch, score_batch(labeler, [pairs[i] for i in batch])))

    write_batches(run.path(SCORES), batches, str, compute, f"auditing {labeler.name}")
    rows = {int(row["id"]): row for _, row in jsonl.read_rows(run.path(SCORES))}
    return [Score(row["score"], row["outcome"], stance=row.get("stance")) for _, row in sorted(rows.items())]


def _score_row(index: int, score: Score) -> jsonl.JsonObject:
    row: jsonl.JsonObject = {"id": str(index), "score": score.score, "outcome": score.outcome}
    return row if score.stance is None else {**row, "stance": score.stance}


def _take_over(run: runs.Run, earlier: Path) -> None:
    """Copy the scores of an earlier audit if labeler and pairs are the same."""
    if not (earlier / SCORES).exists() or run.path(SCORES).exists():
        return
    settings = dict(run.manifest["settings"])
    if not_recorded := _is_of_earlier_version(earlier):
        settings.pop("pairs_sha256", None)
    if runs.read_manifest(earlier)["settings"] != settings:
        runs.notice(f"{earlier} has scores of another labeler or of other pairs: they are computed again")
        return
    if not_recorded:
        runs.notice(f"{earlier} does not record its pairs: they may differ from these if its seed did")
    jsonl.write_atomic(run.path(SCORES), (earlier / SCORES).read_bytes())


def _pairs_setting(scores: Path, pairs: Sequence[ResultPair]) -> dict[str, str]:
    """The fingerprint of the pairs, except where scores of an earlier version are continued."""
    if _is_of_earlier_version(scores):
        return {}
    return {"pairs_sha256": jsonl.fingerprint([[statement(pair.instruction), pair.result.text] for pair in pairs])}


def _is_of_earlier_version(scores: Path) -> bool:
    """Whether these scores are of a version that did not record the fingerprint of the pairs."""
    return (scores / runs.MANIFEST).exists() and runs.setting_of(scores, "pairs_sha256") is None
