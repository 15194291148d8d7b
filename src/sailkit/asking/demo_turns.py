"""What the demo computes: search, then each model's judgement and answer to the results that are switched on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sailkit.asking.model import SearchAugmentedModel
from sailkit.asking.results import Answer
from sailkit.asking.retrieve import Retrieve, given_results
from sailkit.errors import UserError
from sailkit.models.sources import default_model
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.records import Instruction, Judgement, Searched, SearchResult
from sailkit.tasks.task import Question

PASTED = "pasted"  # the source of a result that the user wrote
LONGEST_QUESTION, LONGEST_RESULT = 1000, 4000  # characters


@dataclass(frozen=True)
class Entry:
    """A search result on the page.

    Attributes:
        result: The search result.
        is_active: Whether it is sent to the models.
    """

    result: SearchResult
    is_active: bool = True

    @property
    def is_pasted(self) -> bool:
        """Whether the user wrote it."""
        return self.result.source == PASTED


@dataclass(frozen=True)
class Turn:
    """A question with its search results, and the answers so far.

    Attributes:
        question: The question or claim.
        is_claim: Whether it is judged as a claim of the task.
        entries: The search results; None before the search.
        answers: The answer of each model that has begun.
        is_complete: Whether all models have answered.
    """

    question: str
    is_claim: bool
    entries: tuple[Entry, ...] | None = None
    answers: tuple[Answer, ...] = ()
    is_complete: bool = False

    @property
    def sent(self) -> tuple[SearchResult, ...]:
        """The search results that the models are shown."""
        return tuple(entry.result for entry in self.entries or () if entry.is_active)

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """For each entry its number in the prompt; None if it is switched off."""
        active = [index for index, entry in enumerate(self.entries or ()) if entry.is_active]
        return tuple(active.index(i) + 1 if i in active else None for i in range(len(self.entries or ())))

    def judgement(self, entry: int, model: int) -> Judgement | None:
        """A model's judgement of an entry, if there is one."""
        number = self.numbers[entry]
        judgements = self.answers[model].judgements if model < len(self.answers) else ()
        return judgements[number - 1] if number is not None and judgements else None

    def switched(self, active: Sequence[bool]) -> Turn:
        """The same question with other results switched on, not answered yet."""
        entries = tuple(replace(entry, is_active=on) for entry, on in zip(self.entries or (), active, strict=False))
        return Turn(self.question, self.is_claim, entries)

    def with_pasted(self, text: str) -> Turn:
        """The same question with a result that the user wrote, not answered yet.

        Raises:
            UserError: The text is empty or too long, or there are too many results.
        """
        entries = self.entries or ()
        if len(entries) >= MOST_VERIFIED:
            raise UserError(f"there are {len(entries)} results, the most that a model judges; ask again to start over")
        if len(text) > LONGEST_RESULT:
            raise UserError(f"the result has {len(text)} characters; {LONGEST_RESULT} are the most")
        results = given_results([{"body": text.strip(), "source": PASTED}])
        if not results:
            raise UserError("the result has no text")
        return Turn(self.question, self.is_claim, (*entries, Entry(results[0])))


class DemoPipeline:
    """The models side by side, and where their search results come from.

    Attributes:
        names: The models' names.
    """

    def __init__(
        self, models: Sequence[SearchAugmentedModel], question: Question, retrieve: Retrieve, max_new_tokens: int
    ) -> None:
        """Use loaded models.

        Args:
            models: Models for free questions; for claims they are given the task's question.
            question: The question of the task, for claims.
            retrieve: The search.
            max_new_tokens: Longest answer to a free question.
        """
        self.names = tuple(augmented.model.name for augmented in models)
        self._free = tuple(models)
        self._judging = tuple(SearchAugmentedModel(each.model, each.style, question) for each in models)
        self._retrieve, self._max_new_tokens = retrieve, max_new_tokens

    def run(self, turn: Turn, put: Callable[[Turn], None], stop: Callable[[], bool]) -> Turn:
        """Search unless the turn has results, then let each model answer.

        Args:
            turn: The question.
            put: Called with the turn so far: after the search, and as the answers grow.
            stop: Whether to stop; asked after each token.

        Raises:
            UserError: The question is empty or too long, the search failed, or a model cannot answer.
        """
        if not turn.question.strip():
            raise UserError("write a claim or a question first")
        if len(turn.question) > LONGEST_QUESTION:
            raise UserError(f"the text has {len(turn.question)} characters; {LONGEST_QUESTION} are the most")
        if turn.entries is None:
            turn = replace(turn, entries=tuple(map(Entry, self._retrieve(turn.question).results)))
        put(turn)
        searched = Searched(Instruction("question", turn.question), turn.sent)
        for augmented in self._judging if turn.is_claim else self._free:
            if stop():
                return turn
            turn = self._answered(augmented, searched, turn, put, stop)
        return replace(turn, is_complete=not stop())

    def _answered(
        self,
        augmented: SearchAugmentedModel,
        searched: Searched,
        turn: Turn,
        put: Callable[[Turn], None],
        stop: Callable[[], bool],
    ) -> Turn:
        before = turn.answers

        def stream(answer: Answer) -> None:
            put(replace(turn, answers=(*before, answer)))

        try:
            answer = augmented.answer(searched, self._max_new_tokens, stream, stop)
        finally:
            augmented.forget_prompts()
        turn = replace(turn, answers=(*before, answer))
        put(turn)
        return turn


def judges_claims_alone(model: str) -> bool:
    """Whether a model was trained to judge claims and has no other answers: the tuned model of the package."""
    return model == default_model(claims=True)
