"""Which search results a model is shown when it is measured, in the form in which it was trained to read them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from sailkit import runs
from sailkit.errors import UserError
from sailkit.models.base import Model
from sailkit.prompts.render import Message, Part, Prompt
from sailkit.prompts.sail import (
    MOST_VERIFIED,
    check_style,
    conversation,
    every_judgement,
    read_verification,
    trained_style,
    verification,
)
from sailkit.records import Example, SearchResult, TrainingExample, Verdict

Search = Literal["evidence", "random", "none"]


@dataclass(frozen=True)
class EvidenceStyle:
    """How search results are shown, and whether the model judges them first.

    Attributes:
        style: As in training.
        verify: The verification sentence is generated first, and the answer comes behind it.
        most: Search results that an item has at most.
        bound: Tokens that a verification sentence may take.
    """

    style: str
    verify: bool
    most: int
    bound: int = 0

    def prompt(self, question: str, example: Example) -> Prompt:
        """The conversation that asks a question about an example, rendered as in training."""
        return conversation(TrainingExample(example.id, question, "", example.evidence, (), "", self.style))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """Every verification sentence that there is for as many search results as are shown, or fewer."""
        return tuple(sentence for n in range(1, self.most + 1) for sentence in self.sentences_of(n))

    def sentences_of(self, n: int) -> tuple[str, ...]:
        """Every verification sentence of n search results."""
        return tuple(verification(verdicts, self.style) for verdicts in every_judgement(n))

    def verified(self, text: str) -> bool:
        """Whether a text holds a whole verification sentence."""
        return text.lstrip().startswith(self.sentences)

    def sentence(self, text: str, n: int) -> tuple[str, tuple[Verdict, ...] | None]:
        """The verification sentence that opens a text, and its verdicts; else the whole text and None."""
        said = text.strip()
        found = next((sentence for sentence in self.sentences_of(n) if said.startswith(sentence)), None)
        return (found, read_verification(found, n)) if found else (said, None)

    @staticmethod
    def behind(prompt: Prompt, sentence: str) -> Prompt:
        """A prompt whose answer has begun with a sentence; what a model wrote holds no special tokens."""
        return (*prompt, Message("assistant", (Part(sentence, trusted=False),), begun=True)) if sentence else prompt


def evidence_style_for(model: Model, style: str, verify: str, most: int) -> EvidenceStyle:
    """The form for a model.

    Args:
        model: Who is measured.
        style: `auto` takes the one that the model was trained in, else `chat` where it has a template.
        verify: `auto` for models that were trained to.
        most: Search results that an item has at most.

    Raises:
        UserError: No such style, a server that should verify, or too many search results to verify.
    """
    described = model.describe()
    trained = trained_style(described)
    if style == "auto":
        style = trained or ("chat" if described.get("chat_template") else "sail-fixed")
    check_style(style)
    server = "served_model" in described
    checks = bool(trained) if verify == "auto" else verify == "on"
    if checks and server:
        raise UserError("`verify='on'`: a server does not go on with an answer that is begun here; leave it out")
    if checks and (thought := described.get("open_thought")):
        raise UserError(f"`verify='on'`: {model.name}'s chat template opens a thought, {thought.strip()}; leave it out")
    if checks and most > MOST_VERIFIED:
        raise UserError(f"`results` {most}: at most {MOST_VERIFIED} search results are verified")
    form = EvidenceStyle(style, checks and most > 0, most)
    if not form.verify:
        return form
    # Behind a space, which some tokenizers make a token of its own, and with room for the one that ends it.
    return replace(form, bound=max(model.count_tokens(f" {sentence}") for sentence in form.sentences) + 2)


def with_search_results(
    examples: Sequence[Example], search: Search, results: int, seed: int, pool: Sequence[Example]
) -> list[Example]:
    """Examples with the search results that they are shown.

    Args:
        examples: What is asked about.
        search: `evidence` (their own), `random` (as many, each of another example) or `none`.
        results: Most search results of each.
        seed: Each example's draw comes from this and its id.
        pool: Examples whose search results are drawn from.

    Raises:
        UserError: There are no search results to show.
    """
    if search == "none":
        return [replace(one, evidence=(), stances=()) for one in examples]
    if not any(one.evidence for one in examples):
        raise UserError(f"`search` {search}: the data have no search results; give the task an `evidence` field")
    if search == "evidence":
        return [replace(one, evidence=one.evidence[:results], stances=one.stances[:results]) for one in examples]
    every = [(one.group, result) for one in pool for result in one.evidence]
    return [replace(one, evidence=_others(one, every, results, seed), stances=()) for one in examples]


def _others(
    one: Example, every: Sequence[tuple[str, SearchResult]], results: int, seed: int
) -> tuple[SearchResult, ...]:
    chance = random.Random(runs.seed_for(seed, "random results", one.id))  # noqa: S311 - a draw, not a secret
    own = {result.body for result in one.evidence}
    wanted = len(one.evidence[:results])
    found: list[SearchResult] = []
    for _ in range(200):
        if len(found) == wanted:
            break
        group, result = chance.choice(every)
        if group != one.group and result.body not in own:
            own.add(result.body)
            found.append(result)
    if len(found) < wanted:
        raise UserError(f"`search='random'`: item {one.id}: the other items have too few search results")
    return tuple(found)
