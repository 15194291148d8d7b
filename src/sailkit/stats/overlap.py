"""Texts that overlap, because they share a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FEWEST_WORDS = 6  # of a sentence that two texts share; shorter ones are headings and remnants of pages


def passage_parts(text: str) -> set[str]:
    """A text and its sentences, without short ones; two texts overlap if they share any of them."""
    sentences = (sentence.strip() for sentence in _SENTENCE_END.split(text))
    return {text.strip(), *(sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS)}


def overlap_groups(items: Sequence[Sequence[str]]) -> list[int]:
    """The number of each item's group: the connected components of the graph of items and parts of their texts.

    Args:
        items: The texts of each item.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[str, int] = {}
    edges = [
        (index, len(items) + nodes.setdefault(part, len(nodes)))
        for index, texts in enumerate(items)
        for text in texts
        for part in passage_parts(text)
    ]
    size = len(items) + len(nodes)
    ends = np.array(edges, dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(size, size))
    components: list[int] = connected_components(graph, directed=False)[1][: len(items)].tolist()
    return components
