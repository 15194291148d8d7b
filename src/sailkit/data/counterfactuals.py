"""Counterfactual claims and passages: a name, number or year replaced, so that only both together tell the label.

A claim and its passage share a span, such as a year. Replacing it in the claim, in the passage or in both gives four
pairs: both claims are supported by one passage and refuted by the other. Neither the claims nor the passages alone
predict the label, unlike in collected data, where false claims are worded differently (Schuster et al. 2019, "Towards
debiasing fact verification models", and 2021, "Get your vitamin C!", write such pairs by hand).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sailkit import runs
from sailkit.data.leaks import words_of
from sailkit.records import COUNTERFACTUAL, Example, original_id
from sailkit.tasks.groups import same_text_key

COUNTERFACTUALS_VERSION = 3  # of the rules by which spans are found and replaced, and pairs chosen and ordered
_NAME = re.compile(r"\b[A-Z][a-zA-Z'’-]+(?: (?:(?:of|the|and|de|von) )?[A-Z][a-zA-Z'’-]+)*")
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?![\w,.-]*\w)")
_YEAR = re.compile(r"1[0-9]{3}|20[0-9]{2}")
_NO_NAMES = frozenset(
    ["The", "A", "An", "He", "She", "It", "They", "In", "On", "At", "Is", "Was", "There", "This", "That", "His", "Her"]
)
_FEWEST = 8  # spans after the same word from which to choose a replacement
_FURTHEST = 30  # years between a year and its replacement
_ATTEMPTS = 20


def counterfactual_examples(examples: Sequence[Example], supports: str, refutes: str, seed: int) -> list[Example]:
    """Make three counterfactual examples of each supported claim that shares a replaceable span with its passage.

    Args:
        examples: The examples; those without a span to replace give none. The subject of a claim, its first words, is
            not replaced: the passage would be about something else rather than refute the claim.
        supports: The label of claims that their passage supports.
        refutes: The label of claims that their passage refutes.
        seed: The run's seed; the replacement depends on it and the example's id.

    Returns:
        For each such example: the claim replaced (refuted), the passage replaced (refuted), and both (supported), of
        the example's group.
    """
    spans = [(example, list(_spans(example.text))) for example in examples]
    pools: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for _, of_claim in spans:
        for span, kind, before in of_claim:
            pools[kind, before].append(span)
    rewritten = []
    for example, of_claim in spans:
        if example.label != supports or not example.stances:
            continue
        results = [r for r, stance in zip(example.evidence, example.stances, strict=True) if stance == supports]
        rng = random.Random(runs.seed_for(seed, "counterfactual", example.id))  # noqa: S311 - not for cryptography
        shared = [(result, *span) for result in results for span in of_claim if _occurs(span[0], result.body)]
        if not shared:
            continue
        result, old, kind, before = rng.choice(shared)
        new = _replacement(old, kind, pools[kind, before], f"{example.text} {result.text}", rng)
        if new is None:
            continue
        claim = _replace(old, new, example.text)
        passage = replace(result, title=_replace(old, new, result.title), body=_replace(old, new, result.body))
        for name, text, shown, label in (
            ("claim", claim, result, refutes),
            ("passage", example.text, passage, refutes),
            ("both", claim, passage, supports),
        ):
            rewritten.append(
                replace(
                    example,
                    id=f"{example.id}{COUNTERFACTUAL}{name}",
                    text=text,
                    label=label,
                    evidence=(shown,),
                    stances=(label,),
                )
            )
    return rewritten


def without_copies(examples: Sequence[Example], added: Sequence[Example]) -> list[Example]:
    """Leave out families of which a claim was rewritten into that of another group.

    It would join the two groups, and so move claims to the other side of the split that data without counterfactual
    pairs have.

    Args:
        examples: The examples, of which those of the same words are one group.
        added: The counterfactual examples made of them.
    """
    group_of: dict[tuple[str, ...], str] = {}
    copies: set[str] = set()
    for example in [*examples, *added]:
        if group_of.setdefault(same_text_key(example.text, words_of), example.group) != example.group:
            copies.add(original_id(example.id))
    return [example for example in added if original_id(example.id) not in copies]


def _spans(claim: str) -> Iterator[tuple[str, str, str]]:
    """Each name and number after the claim's first word, with its kind and the word before it."""
    for kind, pattern in (("name", _NAME), ("number", _NUMBER)):
        for match in pattern.finditer(claim):
            span = match.group()
            before = claim[: match.start()].split()
            if not before or span.split()[0] in _NO_NAMES:
                continue
            yield span, "year" if _YEAR.fullmatch(span) else kind, before[-1].lower()


def _replacement(old: str, kind: str, pool: Sequence[str], text: str, rng: random.Random) -> str | None:
    """A span of the same kind, seen after the same word, that does not occur in the text; None if there is none."""
    if kind != "year" and len(set(pool)) < _FEWEST:
        return None
    for _ in range(_ATTEMPTS):
        new = str(int(old) + rng.choice((-1, 1)) * rng.randint(1, _FURTHEST)) if kind == "year" else rng.choice(pool)
        if not _occurs(new, text):
            return new
    return None


def _pattern(span: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(span)}(?!\w)")


def _occurs(span: str, text: str) -> bool:
    return bool(_pattern(span).search(text))


def _replace(old: str, new: str, text: str) -> str:
    return _pattern(old).sub(lambda _: new, text)
