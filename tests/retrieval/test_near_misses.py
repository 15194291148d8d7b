"""Near misses: about the subject of a claim, without deciding it."""

from __future__ import annotations

from sailkit.records import Example, SearchResult
from sailkit.retrieval.near_misses import near_misses
from sailkit.stats.overlap import passage_parts
from sailkit.tasks.task import load_task

BRIDGE = "The bridge over the Tamar was opened in May 1859 by Prince Albert."
LENGTH = "The Tamar bridge has a length of 667 metres and two main spans."
RIVER = "The Tamar rises near the north coast and flows south for 98 kilometres."
LEMONS = "Lemons grow on small trees in warm countries around the world."


def example(name: str, text: str, *bodies: str, group: str = "", stance: str | None = "SUPPORTS") -> Example:
    evidence = tuple(SearchResult(body) for body in bodies)
    return Example(name, text, "SUPPORTS", evidence, stances=(stance,) * len(bodies), group=group or name)


def bodies(found: list[SearchResult]) -> list[str]:
    return [result.body for result in found]


def test_a_passage_with_a_sentence_of_the_evidence_is_no_near_miss():
    examples = [
        example("1", "The Tamar bridge was opened by Prince Albert.", BRIDGE),
        example("2", "The Tamar bridge has two spans.", f"{BRIDGE} {LENGTH}"),
        example("3", "The Tamar flows south.", RIVER),
        example("4", "Lemons grow on trees.", LEMONS),
    ]
    near = near_misses(examples, same_group=False)
    assert bodies(near["1"]) == [RIVER]  # neither the passage that holds its evidence, nor one without a word in common
    assert bodies(near["4"]) == []


def test_a_passage_that_matches_better_than_the_evidence_is_no_near_miss():
    claim = "The bridge over the Tamar was opened in May 1859."
    examples = [
        example("1", claim, LENGTH),
        example("2", "Albert opened it.", BRIDGE),
        example("3", "It flows.", RIVER),
    ]
    assert bodies(near_misses(examples, same_group=False)["1"]) == [RIVER]
    neutral = [example("1", claim, LENGTH, stance=None), *examples[1:]]
    assert bodies(near_misses(neutral, same_group=False)["1"]) == [BRIDGE, RIVER]


def test_passages_of_its_group_are_near_misses_where_groups_share_a_subject():
    examples = [
        example("1", "Prince Albert opened the Tamar bridge.", BRIDGE, group="bridge"),
        example("2", "The Tamar bridge has two spans.", LENGTH, group="bridge"),
        example("3", "The Tamar flows south.", RIVER),
    ]
    assert bodies(near_misses(examples, same_group=True)["1"]) == [LENGTH, RIVER]
    assert bodies(near_misses(examples, same_group=False)["1"]) == [RIVER]


def test_the_titles_of_the_evidence_are_part_of_the_query():
    titled = Example(
        "1", "It opened in 1859.", "SUPPORTS", (SearchResult(BRIDGE, title="Tamar"),), stances=("SUPPORTS",), group="1"
    )
    assert bodies(near_misses([titled, example("2", "It flows.", RIVER)], same_group=False)["1"]) == [RIVER]


def test_no_near_miss_of_fever_holds_a_sentence_of_the_evidence(shared):
    examples = load_task("fever").load(shared / "stance" / "fever.jsonl").examples[:3000]
    near = near_misses(examples, same_group=True)
    assert sum(len(found) == 8 for found in near.values()) > 0.9 * len(examples)
    for one in examples:
        own = set().union(*(passage_parts(result.body) for result in one.evidence))
        assert not any(own & passage_parts(result.body) for result in near[one.id])
