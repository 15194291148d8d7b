"""Score the batches of `label` on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Any

from sailkit.cluster import Job, Pool
from sailkit.labeling.base import Labeler, ResultPair, Score, score_batch
from sailkit.labeling.load import load_labeler
from sailkit.labeling.options import LabelerOptions
from sailkit.records import Instruction, SearchResult


def scorer(
    pool: Pool, name: str, options: LabelerOptions
) -> Callable[[Labeler, Sequence[Sequence[ResultPair]]], Generator[list[Score], None, None]]:
    """Return a function that scores batches on a cluster, in order.

    Args:
        pool: The workers of the cluster.
        name: The labeler's name, by which every node loads it.
        options: How to load and run it.
    """
    job = Job("labeler", _load, {"name": name, "options": asdict(options)}, _score)

    def score(labeler: Labeler, batches: Sequence[Sequence[ResultPair]]) -> Generator[list[Score], None, None]:
        tasks = [[asdict(pair) for pair in batch] for batch in batches]
        with contextlib.closing(pool.run(job, labeler, tasks)) as replies:
            for reply in replies:
                yield [Score(**fields) for fields in json.loads(reply)]

    return score


def _load(setup: dict[str, Any]) -> Labeler:
    return load_labeler(setup["name"], LabelerOptions(**setup["options"]))


def _score(labeler: Labeler, rows: list[dict[str, Any]]) -> bytes:
    pairs = [ResultPair(Instruction(**row["instruction"]), SearchResult(**row["result"])) for row in rows]
    return json.dumps([asdict(score) for score in score_batch(labeler, pairs)]).encode()
