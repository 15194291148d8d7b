"""Near misses: search results about the subject of an example that do not decide it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from sailkit.errors import required_extra
from sailkit.records import Example, SearchResult, result_text
from sailkit.stats.overlap import passage_parts

_DEPTH = 100  # BM25 results of an example that are considered
_MOST = 8  # near misses of an example
_BATCH = 512


def near_misses(examples: Sequence[Example], *, same_group: bool) -> dict[str, list[SearchResult]]:
    """Find the search results of other examples that are nearest to an example by BM25 but do not decide it.

    Two kinds of results may decide an example and are left out: those that share a sentence with its own results, and
    those that match it better than the best of its own results that support a label.

    Args:
        examples: The examples, with their search results.
        same_group: Whether results of an example's own group qualify. Where groups are claims about one subject, these
            are the nearest.

    Returns:
        Id of an example -> its near misses, the nearest first.
    """
    with required_extra("search", "near misses"):
        import bm25s
    passages: list[SearchResult] = []
    position: dict[str, int] = {}
    for result in (result for example in examples for result in example.evidence):
        if position.setdefault(result.body, len(passages)) == len(passages):
            passages.append(result)
    of_group: defaultdict[str, set[int]] = defaultdict(set)
    for example in examples:
        of_group[example.group].update(position[result.body] for result in example.evidence)
    parts = [passage_parts(passage.body) for passage in passages]
    index = bm25s.BM25()
    tokens = bm25s.tokenize([passage.text for passage in passages], show_progress=False)
    if not any(tokens.ids):
        return {example.id: [] for example in examples}
    index.index(tokens, show_progress=False)
    nearest = {}
    for example, ranked in zip(examples, _ranked(index, examples, len(passages)), strict=True):
        own = {part for result in example.evidence for part in parts[position[result.body]]}
        excluded = set() if same_group else of_group[example.group]
        supporting = {
            position[result.body] for result, stance in zip(example.evidence, example.stances, strict=False) if stance
        }
        unmatched = len(ranked) if supporting else 0  # every match may then decide the claim
        best = next((rank for rank, passage in enumerate(ranked) if passage in supporting), unmatched)
        rest = (i for i in ranked[best:] if i not in excluded and not parts[i] & own)
        nearest[example.id] = [passages[i] for i, _ in zip(rest, range(_MOST), strict=False)]
    return nearest


def _ranked(index: Any, examples: Sequence[Example], passages: int) -> list[list[int]]:
    """Positions of the passages that match each example, the best first."""
    import bm25s

    queries = [
        result_text(" ".join(dict.fromkeys(result.title for result in example.evidence)), example.text)
        for example in examples
    ]
    tokens = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    ranked = []
    for start in range(0, len(tokens), _BATCH):
        known = [[token for token in query if token in index.vocab_dict] for query in tokens[start : start + _BATCH]]
        searchable = [i for i, query in enumerate(known) if query]
        ranks: list[list[int]] = [[] for _ in known]
        if searchable:
            indices, scores = index.retrieve(
                [known[i] for i in searchable], k=min(_DEPTH, passages), show_progress=False
            )
            for i, row, values in zip(searchable, indices, scores, strict=True):
                order = np.lexsort((row, -values))  # ties are broken by position
                ranks[i] = [int(row[j]) for j in order if values[j] > 0]
        ranked += ranks
    return ranked
