"""Groups of examples whose search results overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sailkit.records import Example

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FEWEST_WORDS = 6  # of a sentence that two passages share; shorter ones are headings and remnants of pages


def passage_parts(text: str) -> set[str]:
    """A passage and its sentences, without short ones; two passages overlap if they share any of them."""
    sentences = (sentence.strip() for sentence in _SENTENCE_END.split(text))
    return {text.strip(), *(sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS)}


def grouped_by_evidence(examples: Sequence[Example]) -> list[Example]:
    """Put examples whose search results overlap into one group.

    A group is a connected component of the graph of examples and sentences; its name is the smallest id in it.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[str, int] = {}
    edges = [
        (index, len(examples) + nodes.setdefault(part, len(nodes)))
        for index, example in enumerate(examples)
        for result in example.evidence
        for part in passage_parts(result.body)
    ]
    size = len(examples) + len(nodes)
    ends = np.array(edges, dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(size, size))
    components = connected_components(graph, directed=False)[1][: len(examples)]
    names: dict[int, str] = {}
    for component, example in zip(components, examples, strict=True):
        names[component] = min(example.id, names.get(component, example.id))
    return [replace(example, group=names[c]) for c, example in zip(components, examples, strict=True)]
