"""Draw training examples from a task's examples: search results, a wording of the question, and the answer."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from sailkit import runs
from sailkit.data.balance import SupportedLabel, match_frequencies
from sailkit.errors import UserError
from sailkit.prompts.render import as_text, fill, frames
from sailkit.records import Example, SearchResult, TrainingExample, Verdict, original_id
from sailkit.retrieval.near_misses import near_misses
from sailkit.tasks.task import Question, Task, load_task

Distractor = Literal["random", "near", "own"]
Unsupported = Literal["label", "undecided", "random"]
_ATTEMPTS = 100


class ExampleDrawer:
    """Draws training examples; each draw depends only on the seed and the example's id."""

    def __init__(
        self,
        task: Task,
        protocol: str,
        examples: Sequence[Example],
        items: Sequence[SupportedLabel],
        *,
        labels: Sequence[str],
        shares: Sequence[float],
        supported: float,
        distractors: Sequence[str],
        unsupported: Unsupported,
        style: str,
        seed: int,
    ) -> None:
        """Initialise the drawer.

        Args:
            task: The task.
            protocol: The protocol from which wordings are drawn.
            examples: The examples whose evidence can be shown.
            items: The items to be drawn. Their results are shown about as often as distracting as they are as
                informative; otherwise a passage alone would tell its judgement.
            labels: The labels of all decided claims, from which `unsupported` random draws.
            shares: Shares of rows with no, one, two ... search results.
            supported: Of the rows with search results, the share with at least one informative result.
            distractors: Where distracting results come from.
            unsupported: The answer of a row without an informative result: the label that the example's own evidence
                supports, the task's label for claims that nothing decides, or any of the labels at random.
            style: Style of the training examples.
            seed: The run's seed.

        Raises:
            UserError: No wording of the protocol is usable for a training example, or the task has no label for claims
                that nothing decides.
        """
        # The labels of rows without an informative result; empty for that of the item.
        self._unsupported = list(labels) if unsupported == "random" else []
        if unsupported == "undecided":
            undecided = undecided_label(task, "`unsupported='undecided'`")
            task = load_task(task, [*task.labels, undecided])
            self._unsupported = [undecided]
        names = task.spec.protocols.get(protocol)
        questions = [task.question(protocol, name) for name in (names.wordings if names else [None])]
        self._questions = [question for question in questions if _is_trainable(question)]
        if not self._questions:
            raise UserError(f"{task.name}/{protocol} has no wording of one step without {{evidence}} to train on")
        self._ends = list(accumulate(shares))[:-1]
        self._supported, self._distractors, self._style, self._seed = supported, distractors, style, seed
        # Results of the drawn items first: each is then as often distracting as informative.
        self._pools = (
            [(item.group, result) for item in items for result in _supporting(item)],
            [(example.group, result) for example in examples for result in example.evidence],
        )
        self._near = near_misses(examples, same_group=task.groups_share_subject) if "near" in distractors else {}
        informative: defaultdict[str, float] = defaultdict(float)
        for item in items:
            supporting = _supporting(item)
            for result in supporting:
                informative[result.body] += 1 / len(supporting)
        near = (
            [[result.body for result in self._near[original_id(item.example.id)]] for item in items]
            if self._near
            else []
        )
        self._weights = match_frequencies(near, informative)

    def draw(self, item: SupportedLabel, copy: int) -> TrainingExample:
        """Draw a training example.

        Args:
            item: The example, and the label that the answer gives; it is undecided if no evidence supports that label.
            copy: Number of earlier draws of the item.
        """
        example = item.example
        name = f"{example.id}/{item.label}/{copy}"
        rng = random.Random(runs.seed_for(self._seed, "draw", name))  # noqa: S311 - not for cryptography
        number = bisect_right(self._ends, rng.random())
        supporting = _supporting(item)
        informative: list[SearchResult] = []
        if number and supporting and rng.random() < self._supported:
            informative = rng.sample(supporting, rng.randint(1, min(number, len(supporting))))
        shown: list[tuple[SearchResult, Verdict]] = [(result, "informative") for result in informative]
        while len(shown) < number:
            result = self._distracting(example, rng, {result.body for result, _ in shown})
            shown.append((result, "distracting"))
        rng.shuffle(shown)
        question = rng.choice(self._questions)
        answers = frames()["answers_join"].join(question.answers.values())
        return TrainingExample(
            id=name,
            instruction=as_text(fill(question.steps[0], {"text": example.text.strip(), "answers": answers})),
            input="",
            results=tuple(result for result, _ in shown),
            judgements=tuple(verdict for _, verdict in shown),
            response=question.answers[self.label(item, name, bool(informative))],
            style=self._style,
        )

    def label(self, item: SupportedLabel, name: str, informative: bool) -> str:
        """The label that a row answers with, by its id and whether it shows an informative result."""
        if informative or not self._unsupported:
            return item.label
        return self._unsupported[runs.seed_for(self._seed, "guess", name) % len(self._unsupported)]

    def _distracting(self, example: Example, rng: random.Random, shown: set[str]) -> SearchResult:
        kind = rng.choice(self._distractors)
        if kind == "own":
            judged = list(zip(example.evidence, example.stances, strict=True))
            deciding = {result.body for result, stance in judged if stance is not None}  # also of copies
            neutral = (result for result, stance in judged if stance is None)
            if candidates := [result for result in neutral if result.body not in shown | deciding]:
                return rng.choice(candidates)
        if kind == "near":
            weights = {
                result: self._weights.get(result.body, 0.0)  # a claim that nothing decides has others
                for result in self._near[original_id(example.id)]
                if result.body not in shown
            }
            if any(weights.values()):
                return rng.choices([*weights], [*weights.values()])[0]
        excluded = shown | {result.body for result in example.evidence}
        for pool in self._pools:
            for _ in range(_ATTEMPTS):
                group, result = rng.choice(pool)
                if group != example.group and result.body not in excluded:
                    return result
        raise UserError(f"example {example.id!r}: no other example has a search result that could distract")


def undecided_label(task: Task, option: str) -> str:
    """The task's label for claims that nothing decides.

    Args:
        task: The task.
        option: The option that needs it, for the error.

    Raises:
        UserError: The task has none.
    """
    if task.spec.undecided_label is None:
        raise UserError(f"{option}: give task {task.name} an `undecided_label` in its YAML")
    return task.spec.undecided_label


def _supporting(item: SupportedLabel) -> list[SearchResult]:
    """The results of an item that support its label, each text once."""
    judged = zip(item.example.evidence, item.example.stances, strict=True)
    by_body: dict[str, SearchResult] = {}
    for result, stance in judged:
        if stance == item.label:
            by_body.setdefault(result.body, result)
    return list(by_body.values())


def _is_trainable(question: Question) -> bool:
    """Whether a wording is usable for training: a single call, without text besides its prompt."""
    beside = question.systems[0] or question.shows_examples or "{evidence}" in question.steps[0]
    return question.train and len(question.steps) == 1 and not beside
