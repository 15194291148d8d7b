"""Pairs of a claim and a passage that says nothing of it, for data in which every judged passage is informative."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sailkit import runs
from sailkit.labeling.base import ResultPair
from sailkit.labeling.human import HumanPair, Origin
from sailkit.records import Example, SearchResult
from sailkit.retrieval.near_misses import near_misses
from sailkit.stats.overlap import passage_parts

_ATTEMPTS = 20  # random draws before all pairs are searched


def with_negatives(pairs: Sequence[HumanPair], seed: int, mix: Literal["each", "half"] = "each") -> list[HumanPair]:
    """Add passages of other claims, judged `neither`, after each pair.

    A passage that shares a sentence with any judged passage of the claim is no negative; without others, none is added.

    Args:
        pairs: Pairs of one part of the data; passages are drawn from among them only.
        seed: Seed of the random passages.
        mix: `each`: a near miss (by BM25) and a random passage for each pair; `half`: one of the two.
    """
    if len({pair.claim for pair in pairs}) < 2:
        return list(pairs)
    of_claim: defaultdict[str, list[HumanPair]] = defaultdict(list)
    for pair in pairs:
        of_claim[_normalised(pair.pair.instruction.output)].append(pair)
    examples = [
        Example(
            claim,
            judged[0].pair.instruction.output,
            None,
            tuple(pair.pair.result for pair in judged),
            group=judged[0].claim,
            stances=tuple(pair.stance if pair.official else None for pair in judged),
        )
        for claim, judged in of_claim.items()
    ]
    nearest = near_misses(examples, same_group=True)
    parts = {pair.pair.result.body: passage_parts(_normalised(pair.pair.result.body)) for pair in pairs}
    earlier: Counter[str] = Counter()  # pairs of each claim so far; each pair gets another near miss
    mined = []
    for claim, pair in ((_normalised(pair.pair.instruction.output), pair) for pair in pairs):
        mined.append(pair)
        judged_parts = {part for judged in of_claim[claim] for part in parts[judged.pair.result.body]}
        rng = random.Random(runs.seed_for(seed, "negatives", pair.pair.instruction.output + pair.pair.result.text))  # noqa: S311
        drawn = (rng.choice(pairs) for _ in range(_ATTEMPTS))
        usable = (
            other.pair.result
            for candidates in (drawn, pairs)
            for other in candidates
            if other.claim != pair.claim and judged_parts.isdisjoint(parts[other.pair.result.body])
        )
        near = [result for result in nearest[claim] if judged_parts.isdisjoint(parts[result.body])]
        other = next(usable, None)
        if other is None:
            continue
        negatives: dict[Origin, SearchResult] = {
            "near": near[earlier[claim] % len(near)] if near else other,
            "random": other,
        }
        earlier[claim] += 1
        origins: Sequence[Origin] = ("near", "random") if mix == "each" else (rng.choice(("near", "random")),)
        for origin in origins:
            negative = ResultPair(pair.pair.instruction, negatives[origin])
            mined.append(replace(pair, pair=negative, stance="neither", votes=("neither",), origin=origin))
    return mined


def _normalised(text: str) -> str:
    """A text without case and line breaks, as copies of it may differ in these."""
    return " ".join(text.casefold().split())
