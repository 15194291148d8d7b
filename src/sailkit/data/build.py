"""Labelled search results in, training data out: sampled as in SAIL (Luo et al. 2023), split, checked for leaks."""

from __future__ import annotations

import math
import random
import re
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

from sailkit import runs
from sailkit.data import exports
from sailkit.data.card import CARD, CARD_PAGE, audit_figures, card_of, page_of
from sailkit.data.exports import DROPPED, HELD_OUT, TRAIN, example_row
from sailkit.data.leaks import LEAK_RULES_VERSION, Leak, LeakCheck
from sailkit.errors import UserError, at_least_one, nearest
from sailkit.files import jsonl
from sailkit.labeling.base import verdict_for
from sailkit.labeling.labels import LABELS, Labels, read_labels
from sailkit.prompts.sail import check_style, wording
from sailkit.records import Instruction, Judgement, Searched, SearchResult, TrainingExample, Verdict
from sailkit.retrieval.instructions import RESULTS, read_searched
from sailkit.tasks.task import load_task

REMOVED = "removed.jsonl"
ExportFormat = Literal["trl", "trl-parquet", "sail"]
Mix = Literal["mean", "all", "any"]


def build(
    *,
    results: Path,
    labels: list[Path],
    out: Path,
    style: Literal["sail", "sail-fixed", "chat"] = "chat",
    shares: str = "0.2,0.1,0.3,0.4",
    top: int = 5,
    threshold: float | None = None,
    mix: Mix = "mean",
    held_out: float = 0.05,
    exclude_task: list[str] | None = None,
    export: list[ExportFormat] | None = None,
    audit: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Build training data from labelled search results.

    Args:
        results: The run folder of search, or its results file.
        labels: The run folder of label; several labelers can be mixed.
        out: Run folder to write: train.jsonl, held_out.jsonl, dropped.jsonl, removed.jsonl, card.json and card.md.
        style: How a row will read: the model's own chat template, SAIL's published prompt, or that without its slips.
        shares: Shares of rows with no, one, two, three ... search results; they sum to 1.
        top: Search results to draw from, the best of them by rank; of several engines the best BM25 hit is one more.
        threshold: Scores from here on are informative; by default each labeler's own threshold.
        mix: How several labelers decide: the mean of their scores, all of them, or any of them.
        held_out: Share of instructions that are kept apart; the same instruction and input are always on one side.
        exclude_task: Remove rows that contain a test item of this task, exactly or nearly; NAME, or NAME=PATH where
            the task does not carry its data.
        export: Write train and held_out in these forms too.
        audit: The JSON of an audit of the labeler, to be quoted in the card.
        limit: Only the first so many rows.
        seed: Each row's draw comes from this and its id.

    Returns:
        The data card.

    Raises:
        UserError: Bad options, or labels that belong to other data.
    """
    check_style(style)
    counts = read_shares(shares)
    forms = list(dict.fromkeys(export or ()))
    _check_options(top, threshold, mix, held_out, forms, limit, labels)
    searched = read_searched(results)
    loaded = [read_labels(folder, searched) for folder in labels]
    quoted = audit_figures(audit, [str(one.labeler.get("labeler")) for one in loaded]) if audit else None
    check, tasks = _leak_check(exclude_task or ())
    results_file = results / RESULTS if results.is_dir() else results
    settings = {
        "results_sha256": jsonl.file_fingerprint([results_file]),
        "labels_sha256": [jsonl.file_fingerprint([folder / LABELS]) for folder in labels],
        "labelers": [one.labeler for one in loaded],
        "label_thresholds": [one.threshold for one in loaded],
        "style": style,
        "styles_sha256": jsonl.fingerprint(wording()),
        "shares": counts,
        "top": top,
        "threshold": threshold,
        "mix": mix if len(labels) > 1 else None,
        "held_out": held_out,
        "exclude_task": tasks,
        "leak_rules": LEAK_RULES_VERSION if tasks else None,
        "export": forms,
        "audit": quoted,
        "limit": limit,
        "seed": seed,
    }
    with runs.open_run(out, "build", settings) as run:
        if run.path(CARD).exists():  # written last: the run is finished
            return jsonl.read_json(run.path(CARD))
        builder = _Builder(style, counts, top, threshold, mix, held_out, seed, check)
        builder.add_all(searched[:limit], loaded)
        return _write(run, builder, forms)


def read_shares(text: str) -> list[float]:
    """Shares between commas, as numbers that sum to 1."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"`shares` {text!r}: write numbers between commas, such as 0.2,0.1,0.3,0.4") from None
    if not all(0 <= share <= 1 for share in found) or abs(math.fsum(found) - 1) > 1e-6:
        raise UserError(f"`shares` {text!r}: shares are between 0 and 1, and sum to 1")
    return found


def _check_options(
    top: int,
    threshold: float | None,
    mix: str,
    held_out: float,
    forms: Sequence[str],
    limit: int | None,
    labels: Sequence[Path],
) -> None:
    at_least_one(top=top, limit=limit)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"`threshold` should be between 0 and 1, not {threshold}")
    if not 0 <= held_out < 1:
        raise UserError(f"`held_out` should be at least 0 and below 1, not {held_out}")
    if mix not in get_args(Mix):
        raise UserError(f"no mix {mix!r}: {nearest(mix, get_args(Mix))}")
    for form in forms:
        if form not in get_args(ExportFormat):
            raise UserError(f"no export {form!r}: {nearest(form, get_args(ExportFormat))}")
    if not labels:
        raise UserError("no `labels`; give the run folder of  sailkit label")


def _leak_check(names: Sequence[str]) -> tuple[LeakCheck | None, list[dict[str, Any]]]:
    """The check against all tasks, and what they are."""
    texts: list[tuple[str, str, str]] = []
    tasks = []
    for text in names:
        name, _, path = text.partition("=")
        task = load_task(name, ["all"])
        data = task.load(path or None)
        texts += [(task.name, example.id, example.text) for example in data.examples]
        tasks.append({"task": task.name, "examples": len(data.examples), "data_sha256": data.fingerprint})
    return (LeakCheck(texts) if tasks else None), tasks


class _Builder:
    """Puts every row somewhere: training, held out, dropped or removed."""

    def __init__(
        self,
        style: str,
        shares: Sequence[float],
        top: int,
        threshold: float | None,
        mix: str,
        held_out: float,
        seed: int,
        check: LeakCheck | None,
    ) -> None:
        self.style, self.top, self.threshold, self.mix, self.seed = style, top, threshold, mix, seed
        self.held_out_share, self.check = held_out, check
        self.ends = list(accumulate(shares))[:-1]
        self.train: list[TrainingExample] = []
        self.held_out: list[TrainingExample] = []
        self.dropped: list[jsonl.JsonObject] = []
        self.removed: list[jsonl.JsonObject] = []
        self.rows = 0
        self.candidates: Counter[str] = Counter()
        self.fewer = self.cut = self.without_text = 0

    def add_all(self, searched: Sequence[Searched], labels: Sequence[Labels]) -> None:
        with runs.progress("building", len(searched)) as tick:
            for place, one in enumerate(searched):
                self._add(one, [found.judgements[place] for found in labels], [found.threshold for found in labels])
                tick()

    def _add(self, one: Searched, judged: Sequence[Sequence[Judgement]], thresholds: Sequence[float]) -> None:
        self.rows += 1
        self.without_text += one.dropped_results
        row = one.instruction
        for name in ("instruction", "output"):
            if not getattr(row, name).strip():
                self.dropped.append({"id": row.id, "reason": f"empty {name}"})
                return
        leak = self.check.find(row) if self.check else None
        if leak:
            self.removed.append(removed_row(row.id, leak))
            return
        example = self._example(one, self._candidates(one, judged, thresholds))
        side = runs.seed_for(self.seed, "held out", group_of(row)) < self.held_out_share * 2**64
        (self.held_out if side else self.train).append(example)

    def _candidates(
        self, one: Searched, judged: Sequence[Sequence[Judgement]], thresholds: Sequence[float]
    ) -> list[tuple[SearchResult, Verdict]]:
        found = []
        for place in candidate_positions(one.results, self.top):
            said = [judgements[place] for judgements in judged]
            self.cut += sum(judgement.cut_tokens for judgement in said)
            mixed = self._mix(said, thresholds)
            if mixed is None:
                self.candidates[next(one.outcome for one in said if one.outcome != "judged")] += 1
            else:
                self.candidates[mixed] += 1
                found.append((one.results[place], mixed))
        return found

    def _mix(self, judgements: Sequence[Judgement], thresholds: Sequence[float]) -> Verdict | None:
        """One verdict of all labelers; None where any of them has none."""
        scores = [one.score for one in judgements if one.outcome == "judged" and one.score is not None]
        if len(scores) < len(judgements):
            return None
        limits = [self.threshold] * len(scores) if self.threshold is not None else list(thresholds)
        if self.mix == "mean":
            return verdict_for(statistics.fmean(scores), statistics.fmean(limits))
        said = [score >= limit for score, limit in zip(scores, limits, strict=True)]
        return "informative" if (all if self.mix == "all" else any)(said) else "distracting"

    def _example(self, one: Searched, candidates: Sequence[tuple[SearchResult, Verdict]]) -> TrainingExample:
        row = one.instruction
        chance = random.Random(runs.seed_for(self.seed, "draw", row.id))  # noqa: S311 - a draw, not a secret
        drawn = bisect_right(self.ends, chance.random())
        self.fewer += len(candidates) < drawn
        chosen = chance.sample(candidates, min(drawn, len(candidates)))  # in random order
        return TrainingExample(
            id=row.id,
            instruction=row.instruction,
            input=row.input,
            results=tuple(result for result, _ in chosen),
            judgements=tuple(said for _, said in chosen),
            response=row.output,
            style=self.style,
        )


def candidate_positions(results: Sequence[SearchResult], top: int) -> list[int]:
    """Places of the results that a row draws from: the top ones of the other engines, and the best BM25 hit.

    Where BM25 is the only engine the top ones are its own. The same title and body count once.
    """
    best = sorted(range(len(results)), key=lambda place: results[place].rank or place + 1)
    lexical = [place for place in best if results[place].source == "bm25"]
    other = [place for place in best if results[place].source != "bm25"]
    seen: dict[tuple[str, str], int] = {}
    for place in [*(other[:top] + lexical[:1] if other else lexical[:top])]:
        seen.setdefault((results[place].title, results[place].body), place)
    return list(seen.values())


def group_of(row: Instruction) -> str:
    """What decides a row's side: the words of instruction and input, case and punctuation aside."""
    return "\x00".join(" ".join(re.findall(r"\w+", text.casefold())) or text for text in (row.instruction, row.input))


def removed_row(name: str, leak: Leak) -> jsonl.JsonObject:
    """A row of `removed.jsonl`: which example the row of this id contains, and how."""
    return {"id": name, **asdict(leak)}


def _write(run: runs.Run, built: _Builder, forms: Sequence[str]) -> dict[str, Any]:
    exported = []
    for name, examples in ((TRAIN, built.train), (HELD_OUT, built.held_out)):
        jsonl.write_rows(run.path(name), map(example_row, examples))
        stem = run.path(name.removesuffix(".jsonl"))
        exported += [exports.export(examples, form, stem) for form in forms]
    jsonl.write_rows(run.path(DROPPED), built.dropped)
    jsonl.write_rows(run.path(REMOVED), built.removed)
    counts = {
        "n_in": built.rows,
        "n_train": len(built.train),
        "n_held_out": len(built.held_out),
        "n_dropped": len(built.dropped),
        "n_removed": len(built.removed),
        "dropped": dict(sorted(Counter(row["reason"] for row in built.dropped).items())),
        "removed": dict(sorted(Counter(f"{row['task']}, {row['kind']}" for row in built.removed).items())),
        "candidates": dict(sorted(built.candidates.items())),
        "fewer_results_than_drawn": built.fewer,
        "results_without_text": built.without_text,
        "cut_tokens_in_labelling": built.cut,
        "exports": exported,
    }
    card = card_of(built.train, counts, run.manifest["settings"])
    jsonl.write_atomic(run.path(CARD_PAGE), page_of(card))
    jsonl.write_json(run.path(CARD), card)
    return card
