"""The stage `label`: every search result of every instruction gets a score, once, here or on many machines."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.cluster import RayOptions
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.labeling.base import (
    LABELS,
    Labeler,
    ResultPair,
    Score,
    labels_row,
    machine_of,
    pairs_fingerprint,
    score_batch,
    verdict_for,
)
from sailkit.labeling.load import LabelerOptions, load_labeler
from sailkit.models.base import ModelOptions
from sailkit.prompts.thoughts import thought_is_open
from sailkit.records import Judgement, Searched
from sailkit.retrieval.instructions import read_searched

SCORES = "scores.jsonl"  # one row for each pair, in the order of the plan
_SHARD = re.compile(r"(\d+)/(\d+)")
SHARD_WAIT = 60.0  # seconds that a finished shard waits for another that is writing
# Scores each batch, in order; here, or on a cluster.
Scorer = Callable[[Labeler, Sequence[Sequence[ResultPair]]], Generator[list[Score], None, None]]


def label(
    *,
    results: Path,
    out: Path,
    labeler: str = "similarity",
    threshold: float | None = None,
    direction: Literal["result-first", "response-first", "both"] = "result-first",
    measure: Literal["entailment", "relevance"] = "entailment",
    form: Literal["pair", "esp"] = "pair",
    shard: str | None = None,
    ray: Annotated[RayOptions, Parameter(name="*")] = RayOptions(),
    chat: Literal["auto", "on", "off"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    batch_tokens: int = 0,
    max_requests: int = 0,
    concurrency: int = 8,
    timeout: float = 60.0,
    max_response_mb: float = 32.0,
    api_key_env: str = "OPENAI_API_KEY",
    date: str | None = None,
) -> dict[str, Any]:
    """Judge each search result informative or distracting with respect to the response.

    Writes labels.jsonl, a row for each row of the results, to a run folder. A run that was stopped goes on where it
    stopped when the same command is given again.

    Args:
        results: A run folder of search, or its results.jsonl.
        out: The run folder.
        labeler: similarity, overlap, entailment:MODEL or judge:MODEL.
        threshold: Scores from here on are informative; the labeler's own by default.
        direction: For entailment: which is the premise, the result (result-first), the response, or both in turn.
        measure: For entailment: P(entailment), or relevance, 1 - P(neutral).
        form: For entailment: two texts as a pair, or ESP's one sentence.
        shard: Do part I of N of the batches, as I/N from 1/N to N/N; the last to finish writes labels.jsonl.
        ray: Share the batches out on a Ray cluster.
        chat: For judge: use the model's chat template: auto (where it has one), on, off.
        dtype: Number format; auto takes bfloat16 where the machine has it.
        device: Where to run: auto, cpu, cuda:0, mps.
        batch_tokens: For judge: most tokens in a batch; 0 chooses.
        max_requests: Most requests to an endpoint, retries included; 0 for no limit.
        concurrency: Most requests at a time, of each worker.
        timeout: Seconds for one request.
        max_response_mb: Most megabytes of one answer, unpacked.
        api_key_env: Environment variable with the endpoint's key.
        date: For judge: the day, as YYYY-MM-DD, for chat templates that read the clock; today by default.

    Returns:
        Counts, and where the labels are.

    Raises:
        UserError: Anything that the user can mend; nothing is overwritten.
    """
    part = read_shard(shard)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"`threshold` should be from 0 to 1, not {threshold}")
    model = ModelOptions(
        chat=chat, dtype=dtype, device=device, batch_tokens=batch_tokens, max_requests=max_requests,
        concurrency=concurrency, timeout=timeout, max_response_mb=max_response_mb, api_key_env=api_key_env,
        date=date or runs.setting_of(out, "labeler", "date"),
    )  # fmt: skip
    options = LabelerOptions(direction, measure, form, model)
    pool = ray.pool(shard=shard, max_requests=max_requests)
    rows = read_searched(results)
    judge = load_labeler(labeler, options)
    scorer: Scorer = _score_here
    if pool is not None:
        from sailkit.labeling import cluster

        model = replace(model, date=judge.describe().get("date"))  # the same on all machines
        scorer = cluster.scorer(pool, labeler, replace(options, model=model))
    pairs = [ResultPair(row.instruction, result) for row in rows for result in row.results]
    # The whole is planned before anything is left to other machines: a score's low bits depend on its batch.
    batches = judge.plan(pairs)
    names = [f"{row.instruction.id}#{rank}" for row in rows for rank in range(1, len(row.results) + 1)]
    settings = {
        "labeler": judge.describe(),
        "threshold": judge.threshold if threshold is None else threshold,
        "results_sha256": jsonl.fingerprint([[row.instruction.id, pairs_fingerprint(row)] for row in rows]),
        "n": len(rows),
        "pairs": len(pairs),
    }
    if part is None:
        with runs.open_run(out, "label", settings) as run:
            _score_all(run, judge, pairs, names, batches, scorer)
            return machine_of(judge) | _finish(run, rows, [run.path(SCORES)], names, [batches])
    with runs.open_run(out, "label", settings, wait=SHARD_WAIT):
        pass  # its settings must be these, whichever shard comes first
    index, count = part
    places = [out / f"shard-{i + 1}-of-{count}" for i in range(count)]
    shares = [batches[i::count] for i in range(count)]
    with runs.open_run(places[index], "label shard", {**settings, "shard": shard}) as run:
        _score_all(run, judge, pairs, names, shares[index], scorer)
    with runs.open_run(out, "label", settings, wait=SHARD_WAIT) as run:
        return machine_of(judge) | _finish(run, rows, [place / SCORES for place in places], names, shares)


def read_shard(text: str | None) -> tuple[int, int] | None:
    """`I/N` as the part, from 0, and how many there are; None where nothing is shared out."""
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
                yield [{"id": names[i], **asdict(score)} for i, score in zip(batch, scores, strict=True)]

    write_batches(run.path(SCORES), batches, names.__getitem__, compute, f"labelling with {labeler.name}")


def _finish(
    run: runs.Run,
    rows: Sequence[Searched],
    files: Sequence[Path],
    names: Sequence[str],
    shares: Sequence[Sequence[Sequence[int]]],
) -> dict[str, Any]:
    """Put the scores into the order of the results, once all are there."""
    figures: dict[str, Any] = {"labeler": run.manifest["settings"]["labeler"]["labeler"], "n": len(rows)}
    scores: dict[str, Score] = {}
    missing = []
    for number, (file, share) in enumerate(zip(files, shares, strict=True), start=1):
        count = sum(map(len, share))
        # The last line of a shard that is at work, or was killed, may be half written.
        if not file.exists() or file.read_bytes().count(b"\n") < count:
            missing.append(number)
        elif not missing:
            scores |= {row.pop("id"): Score(**row) for _, row in jsonl.read_rows(file)}
    if missing:
        return {**figures, "finished": False, "missing_shards": missing}
    threshold = run.manifest["settings"]["threshold"]
    every = iter(names)
    lines = []
    counts: Counter[str] = Counter()
    cut = read = unfinished = 0
    for row in rows:
        judgements = []
        for _ in row.results:
            one = scores[next(every)]
            judgements.append(
                Judgement(one.score, verdict_for(one.score, threshold), one.outcome, one.cut_tokens, one.raw_output)
            )
        counts.update(judgement.verdict or judgement.outcome for judgement in judgements)
        cut += sum(judgement.cut_tokens for judgement in judgements)
        read += sum(judgement.outcome == "judged" and judgement.raw_output is not None for judgement in judgements)
        unfinished += sum(thought_is_open(judgement.raw_output or "") for judgement in judgements)
        lines.append(jsonl.dumps(labels_row(row, judgements)) + "\n")
    jsonl.write_atomic(run.path(LABELS), "".join(lines))
    silent = {kind: counts[kind] for kind in ("unreadable", "refused", "failed", "no_response")}
    judged = counts["informative"] + counts["distracting"]
    return {
        **figures,
        "finished": True,
        "pairs": len(names),
        "threshold": threshold,
        "informative": counts["informative"],
        "distracting": counts["distracting"],
        "informative_share": counts["informative"] / judged if judged else None,
        **silent,
        **_flags(len(names), read, unfinished),
        "cut_tokens": cut,
        "labels": str(run.path(LABELS)),
    }


def _flags(pairs: int, read: int, unfinished: int) -> dict[str, Any]:
    """Reasons to doubt a judge's scores, as the figures of a run have them."""
    messages: dict[str, list[str]] = {}
    if read:
        text = f"{read} of {pairs} judgements were read from the text, and are 1 or 0: the probabilities of the first"
        messages["read-from-text"] = [f"{text} token did not decide between the answer words, or were not given"]
    if unfinished:
        messages["open-thoughts"] = [f"{unfinished} of {pairs} replies end within a thought, before any answer"]
    return {"flags": list(messages), "flag_messages": messages}
