"""The verb `label`: score every search result of every instruction, on one or many machines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.cluster import RayOptions
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.labeling.base import Labeler, ResultPair, Score, machine_of, score_batch, verdict_for
from sailkit.labeling.labels_file import LABELS, labels_row, pairs_fingerprint
from sailkit.labeling.load import load_labeler
from sailkit.labeling.options import LabelerOptions
from sailkit.labeling.results import Labeling
from sailkit.records import Judgement, Searched
from sailkit.retrieval.instructions import read_searched

SCORES = "scores.jsonl"  # a row for each pair, in the order of the plan
_SHARD = re.compile(r"(\d+)/(\d+)")
SHARD_WAIT = 60.0  # seconds that a finished shard waits for one that holds the lock
# Yields the scores of each batch, in order.
Scorer = Callable[[Labeler, Sequence[Sequence[ResultPair]]], Generator[list[Score], None, None]]


@checked
def label(
    *,
    results: Path,
    out: Path,
    labeler: str | Labeler = "similarity",
    threshold: float | None = None,
    shard: str | None = None,
    ray: Annotated[RayOptions, Parameter(name="*")] = RayOptions(),
    options: Annotated[LabelerOptions, Parameter(name="*")] = LabelerOptions(),
) -> Labeling:
    """Judge each search result informative or distracting.

    Writes labels.jsonl, with a row for each row of the results, to a run folder. The same command continues a
    stopped run.

    Args:
        results: A run folder of search, or its results.jsonl.
        out: The run folder.
        labeler: similarity, overlap, entailment:MODEL, judge:MODEL, or module:attribute; several joined by + for the
            mean of their scores; in Python also an object.
        threshold: Least score of an informative result; the labeler's own by default.
        shard: Score part I of N of the batches, as I/N from 1/N to N/N; the last to finish writes labels.jsonl.
        ray: Distribute the batches over a Ray cluster.
        options: How to load and run the labeler.

    Returns:
        Counts, and the path of the labels.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    part = read_shard(shard)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"`threshold` should be from 0 to 1, not {threshold}")
    options = replace(options, date=options.date or runs.setting_of(out, "labeler", "date"))
    pool = ray.pool(shard=shard, max_requests=options.max_requests)
    rows = read_searched(results)
    loaded = load_labeler(labeler, options)
    description = {"labeler": loaded.name, **loaded.describe()}
    scorer: Scorer = _score_here
    if pool is not None:
        from sailkit.labeling import cluster

        if not isinstance(labeler, str):
            raise UserError("`ray` loads the labeler on every node: give its name as `labeler`, not an object")
        scorer = cluster.scorer(pool, labeler, replace(options, date=description.get("date")))  # one date on all nodes
    pairs = [ResultPair(row.instruction, result) for row in rows for result in row.results]
    # All batches are planned before they are divided among machines: the low bits of a score depend on its batch.
    batches = loaded.plan(pairs)
    names = [f"{row.instruction.id}#{number}" for row in rows for number in range(1, len(row.results) + 1)]
    settings = {
        "labeler": description,
        "threshold": loaded.threshold if threshold is None else threshold,
        "results_sha256": jsonl.fingerprint([[row.instruction.id, pairs_fingerprint(row)] for row in rows]),
        "n": len(rows),
        "pairs": len(pairs),
    }
    if part is None:
        with runs.open_run(out, "label", settings) as run:
            _score_all(run, loaded, pairs, names, batches, scorer)
            return _finish(run, loaded, rows, [run.path(SCORES)], names, [batches])
    with runs.open_run(out, "label", settings, wait=SHARD_WAIT):
        pass  # only checks or writes the settings that all shards share
    index, count = part
    folders = [out / f"shard-{i + 1}-of-{count}" for i in range(count)]
    shares = [batches[i::count] for i in range(count)]
    with runs.open_run(folders[index], "label shard", {**settings, "shard": shard}) as run:
        _score_all(run, loaded, pairs, names, shares[index], scorer)
    with runs.open_run(out, "label", settings, wait=SHARD_WAIT) as run:
        return _finish(run, loaded, rows, [folder / SCORES for folder in folders], names, shares)


def read_shard(text: str | None) -> tuple[int, int] | None:
    """Parse `I/N` into the 0-based index of a shard and the number of shards; None stays None."""
    if text is None:
        return None
    match = _SHARD.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"`shard` {text!r}: write I/N, from 1/N to N/N")
    return int(match[1]) - 1, int(match[2])


def _score_here(labeler: Labeler, batches: Sequence[Sequence[ResultPair]]) -> Generator[list[Score], None, None]:
    return (score_batch(labeler, batch) for batch in batches)


def _score_all(
    run: runs.Run,
    labeler: Labeler,
    pairs: Sequence[ResultPair],
    names: Sequence[str],
    batches: Sequence[Sequence[int]],
    scorer: Scorer,
) -> None:
    def compute(remaining: Sequence[Sequence[int]]) -> Generator[list[jsonl.JsonObject], None, None]:
        with contextlib.closing(scorer(labeler, [[pairs[i] for i in batch] for batch in remaining])) as scored:
            for batch, scores in zip(remaining, scored, strict=True):
                yield [{"id": names[i], **_score_row(score)} for i, score in zip(batch, scores, strict=True)]

    write_batches(run.path(SCORES), batches, names.__getitem__, compute, f"labelling with {labeler.name}")


def _finish(
    run: runs.Run,
    labeler: Labeler,
    rows: Sequence[Searched],
    files: Sequence[Path],
    names: Sequence[str],
    shares: Sequence[Sequence[Sequence[int]]],
) -> Labeling:
    """Write the judgements in the order of the results, if all shards have finished."""
    settings = run.manifest["settings"]
    scores: dict[str, Score] = {}
    missing = []
    for number, (file, share) in enumerate(zip(files, shares, strict=True), start=1):
        count = sum(map(len, share))
        # The last line of a shard that is being written, or was killed, may be incomplete.
        if not file.exists() or file.read_bytes().count(b"\n") < count:
            missing.append(number)
        elif not missing:
            scores |= {row.pop("id"): Score(**row) for _, row in jsonl.read_rows(file)}
    if missing:
        return Labeling(
            run.folder,
            settings["labeler"]["labeler"],
            settings["threshold"],
            settings["n"],
            settings["pairs"],
            missing_shards=tuple(missing),
            machine=machine_of(labeler),
        )
    ordered = iter([_judgement(scores[name], settings["threshold"]) for name in names])
    judgements = [[next(ordered) for _ in row.results] for row in rows]
    jsonl.write_rows(run.path(LABELS), map(labels_row, rows, judgements))
    return Labeling.of_judgements(run.folder, settings, chain.from_iterable(judgements), machine_of(labeler))


def _score_row(score: Score) -> jsonl.JsonObject:
    row = asdict(score)
    del row["stance"]
    return row


def _judgement(score: Score, threshold: float) -> Judgement:
    verdict = verdict_for(score.score, threshold)
    return Judgement(score.score, verdict, score.outcome, score.cut_tokens, score.raw_output)
