"""Pairs of a claim and a passage that says nothing of it, for data in which every judged passage is informative."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sailkit import runs
from sailkit.labeling.base import ResultPair
from sailkit.labeling.human import HumanPair, Origin
from sailkit.records import Example, SearchResult
from sailkit.retrieval.near_misses import near_misses


def with_negatives(pairs: Sequence[HumanPair], seed: int, mix: Literal["each", "half"] = "each") -> list[HumanPair]:
    """Add passages of other claims, judged `neither`, after each pair.

    Args:
        pairs: Pairs of one part of the data; passages are drawn from among them only.
        seed: Seed of the random passages.
        mix: `each`: a near miss (by BM25) and a random passage for each pair; `half`: one of the two.
    """
    if len({pair.claim for pair in pairs}) < 2:
        return list(pairs)
    examples = [
        Example(
            str(i), pair.pair.instruction.output, None, (pair.pair.result,), group=pair.claim, stances=(pair.stance,)
        )
        for i, pair in enumerate(pairs)
    ]
    nearest = near_misses(examples, same_group=True)
    mined = []
    for example, pair in zip(examples, pairs, strict=True):
        mined.append(pair)
        rng = random.Random(runs.seed_for(seed, "negatives", example.text + pair.pair.result.text))  # noqa: S311
        other = rng.choice(pairs)
        while other.claim == pair.claim:
            other = rng.choice(pairs)
        negatives: dict[Origin, SearchResult] = {
            "near": next(iter(nearest[example.id]), other.pair.result),
            "random": other.pair.result,
        }
        origins: Sequence[Origin] = ("near", "random") if mix == "each" else (rng.choice(("near", "random")),)
        for origin in origins:
            negative = ResultPair(pair.pair.instruction, negatives[origin])
            mined.append(replace(pair, pair=negative, stance="neither", votes=("neither",), origin=origin))
    return mined
