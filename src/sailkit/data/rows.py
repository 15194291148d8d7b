"""Turn labelled search results into training examples, and split them into train, held out, dropped and removed."""

from __future__ import annotations

import random
import re
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from sailkit import runs
from sailkit.data.leaks import LeakCheck, removed_row
from sailkit.files import jsonl
from sailkit.labeling.base import verdict_for
from sailkit.labeling.labels_file import Labels
from sailkit.records import Instruction, Judgement, Searched, SearchResult, TrainingExample, Verdict

SPLIT_SEED = 0  # the same for every seed, or a row that one data set holds out would be a training row of another


@dataclass
class RowBuilder:
    """Puts every row into one of four lists: train, held out, dropped (unusable) or removed (a leak).

    Attributes:
        style: Style of the training examples.
        shares: Shares of rows with no, one, two ... search results.
        top: How many of the best results a row can draw.
        threshold: Threshold of all labelers; None for each labeler's own.
        mix: How several labelers are combined: `mean`, `all` or `any`.
        held_out_share: Share of the instructions that are held out; a larger share holds out the same ones and more.
        seed: The run's seed.
        check: Finds examples of tasks in a row; None to skip the check.
        train: The training set.
        held_out: The examples that are held out.
        dropped: Rows that cannot be used, with the reason.
        removed: Rows that contain an example of a task.
        candidates: Verdict, or reason for having none -> number of results.
        rows: Number of rows added.
        fewer: Rows with fewer candidates than were drawn.
        cut_tokens: Tokens that the labelers did not read.
        without_text: Results without text, which the search dropped.
    """

    style: str
    shares: Sequence[float]
    top: int
    threshold: float | None
    mix: str
    held_out_share: float
    seed: int
    check: LeakCheck | None
    train: list[TrainingExample] = field(default_factory=list)
    held_out: list[TrainingExample] = field(default_factory=list)
    dropped: list[jsonl.JsonObject] = field(default_factory=list)
    removed: list[jsonl.JsonObject] = field(default_factory=list)
    candidates: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    fewer: int = 0
    cut_tokens: int = 0
    without_text: int = 0

    def __post_init__(self) -> None:
        self.ends = list(accumulate(self.shares))[:-1]

    def add_all(self, searched: Sequence[Searched], labels: Sequence[Labels]) -> None:
        """Add all rows.

        Args:
            searched: The rows.
            labels: The judgements of each labeler.
        """
        with runs.progress("building", len(searched)) as tick:
            for index, row in enumerate(searched):
                self._add(row, [item.judgements[index] for item in labels], [item.threshold for item in labels])
                tick()

    def _add(self, searched: Searched, judgements: Sequence[Sequence[Judgement]], thresholds: Sequence[float]) -> None:
        """Add a row with its judgements by each labeler."""
        self.rows += 1
        self.without_text += searched.dropped_results
        row = searched.instruction
        for name in ("instruction", "output"):
            if not getattr(row, name).strip():
                self.dropped.append({"id": row.id, "reason": f"empty {name}"})
                return
        leak = self.check.find(row) if self.check else None
        if leak:
            self.removed.append(removed_row(row.id, leak))
            return
        example = self._example(row, self._candidates(searched, judgements, thresholds))
        held_out = runs.seed_for(SPLIT_SEED, "held out", group_of(row)) < self.held_out_share * 2**64
        (self.held_out if held_out else self.train).append(example)

    def _candidates(
        self, searched: Searched, judgements: Sequence[Sequence[Judgement]], thresholds: Sequence[float]
    ) -> list[tuple[SearchResult, Verdict]]:
        """The results that a row can draw, with the combined verdict of the labelers."""
        candidates = []
        for position in candidate_positions(searched.results, self.top):
            of_result = [by_labeler[position] for by_labeler in judgements]
            self.cut_tokens += sum(judgement.cut_tokens for judgement in of_result)
            verdict = self._mix(of_result, thresholds)
            if verdict is None:
                self.candidates[next(item.outcome for item in of_result if item.outcome != "judged")] += 1
            else:
                self.candidates[verdict] += 1
                candidates.append((searched.results[position], verdict))
        return candidates

    def _mix(self, judgements: Sequence[Judgement], thresholds: Sequence[float]) -> Verdict | None:
        """The combined verdict of the labelers; None if any of them has none."""
        scores = [item.score for item in judgements if item.outcome == "judged" and item.score is not None]
        if len(scores) < len(judgements):
            return None
        limits = [self.threshold] * len(scores) if self.threshold is not None else list(thresholds)
        if self.mix == "mean":
            return verdict_for(statistics.fmean(scores), statistics.fmean(limits))
        informative = [score >= limit for score, limit in zip(scores, limits, strict=True)]
        return "informative" if (all if self.mix == "all" else any)(informative) else "distracting"

    def _example(self, row: Instruction, candidates: Sequence[tuple[SearchResult, Verdict]]) -> TrainingExample:
        rng = random.Random(runs.seed_for(self.seed, "draw", row.id))  # noqa: S311 - not for cryptography
        number = bisect_right(self.ends, rng.random())
        self.fewer += len(candidates) < number
        chosen = rng.sample(candidates, min(number, len(candidates)))  # in random order
        return TrainingExample(
            id=row.id,
            instruction=row.instruction,
            input=row.input,
            results=tuple(result for result, _ in chosen),
            judgements=tuple(verdict for _, verdict in chosen),
            response=row.output,
            style=self.style,
        )


def candidate_positions(results: Sequence[SearchResult], top: int) -> list[int]:
    """Positions of the results that a row can draw: the top results of other engines, and the best of BM25.

    If BM25 is the only engine, its own top results. Duplicates by title and body are skipped.
    """
    ranked = sorted(range(len(results)), key=lambda position: results[position].rank or position + 1)
    lexical = [position for position in ranked if results[position].source == "bm25"]
    other = [position for position in ranked if results[position].source != "bm25"]
    distinct: dict[tuple[str, str], int] = {}
    for position in other[:top] + lexical[:1] if other else lexical[:top]:
        distinct.setdefault((results[position].title, results[position].body), position)
    return list(distinct.values())


def group_of(row: Instruction) -> str:
    """The words of instruction and input, without case and punctuation; rows of one group go to the same split."""
    return "\x00".join(" ".join(re.findall(r"\w+", text.casefold())) or text for text in (row.instruction, row.input))
