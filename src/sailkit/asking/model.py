"""A search-augmented model: judges the search results of a question, and answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from sailkit.asking.flags import judge_results
from sailkit.asking.results import Answer
from sailkit.errors import UserError
from sailkit.evaluation.ask import Plan, answer_batch, prompt_for, shows_evidence
from sailkit.evaluation.evidence import EvidenceStyle, evidence_style_for, with_matching_template
from sailkit.models.base import SCORE_RESERVE, Model, ModelOptions, Reply, answers_first, is_vllm
from sailkit.models.load import load_model
from sailkit.prompts.render import Prompt
from sailkit.prompts.sail import conversation
from sailkit.prompts.thoughts import settled, split_thoughts
from sailkit.records import Example, Searched, TrainingExample, Verdict
from sailkit.tasks.task import Question

Stream = Callable[[Answer], None]  # takes the answer so far
Stop = Callable[[], bool]


class SearchAugmentedModel:
    """A model with the style in which it is shown search results.

    Attributes:
        model: The model.
        style: How search results are shown, and whether the model verifies them first.
        question: The question of a task; None for free questions.
    """

    def __init__(self, model: Model, style: EvidenceStyle, question: Question | None = None) -> None:
        self.model = model
        self.style = style
        self.question = question

    @classmethod
    def load(
        cls,
        name: str | Path | Model,
        options: ModelOptions,
        most: int,
        *,
        style: str = "auto",
        verify: str = "auto",
        question: Question | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: As in `load_model`.
            options: How to load and run it.
            most: Most search results of a question.
            style: The style of search results; `auto` selects that of the model's training.
            verify: Whether the model verifies the results first; `auto` for models that were trained to.
            question: The question of a task.

        Raises:
            UserError: The model cannot be loaded, or does not go with the style.
        """
        name = str(name) if isinstance(name, Path) else name
        loaded = load_model(name, options)
        evidence_style = evidence_style_for(loaded, style, verify, most)
        return cls(with_matching_template(loaded, evidence_style, name, options), evidence_style, question)

    def answer(
        self,
        searched: Searched,
        max_new_tokens: int,
        stream: Stream | None = None,
        stop: Stop = lambda: False,
        until: Sequence[str] = (),
    ) -> Answer:
        """Judge the search results, then answer.

        Args:
            searched: The question with its search results.
            max_new_tokens: Most tokens of a generated answer.
            stream: Called with the answer so far: first with the judged search results, then as it grows. Not
                called for a claim, whose labels are scored at once.
            stop: Called after each token; once it returns true, the answer stops.
            until: Texts before the first of which a generated answer ends.

        Raises:
            PromptTooLongError: The question does not fit into the model's context.
            UserError: The model failed or refused.
        """
        instruction = searched.instruction
        text = "\n".join(filter(None, (instruction.instruction, instruction.input)))
        example = Example(instruction.id, text, None, searched.results)
        prompt = self._prompt(searched, example)
        # A model that answers first judges its results after the answer, not here.
        judges = self._styled and not answers_first(self.model.describe())
        n = len(searched.results) if judges else 0
        reserve = max(self.style.bound, SCORE_RESERVE)
        self.model.plan([prompt], reserve + (0 if self.question else max_new_tokens), ["the question"])
        so_far = Answer(
            text, self.model.name, searched.results, judge_results(self.model, prompt, self.style.style, n, reserve),
            is_claim=self.question is not None,
        )  # fmt: skip
        if self.question:
            return self._classify(so_far, example)
        return self._generate(so_far, prompt, max_new_tokens, stream, stop, until)

    def forget_prompts(self) -> None:
        """Drop cached prompts, which a server would collect without end."""
        forget = getattr(self.model, "forget_prompts", None)
        if forget:
            forget()

    @property
    def _styled(self) -> bool:
        return self.question is None or not shows_evidence(self.question)

    def _prompt(self, searched: Searched, example: Example) -> Prompt:
        if self.question:
            return prompt_for(self._plan(), example, 0)
        fields = searched.instruction
        shown = TrainingExample(fields.id, fields.instruction, fields.input, example.evidence, (), "", self.style.style)
        return conversation(shown)

    def _plan(self) -> Plan:
        assert self.question is not None
        # Answers cannot be scored inside a thought, nor by vLLM.
        writes = is_vllm(self.model.name) or self.model.describe().get("open_thought")
        return Plan(
            self.question, "generate" if writes else "logprob", evidence_style=self.style if self._styled else None
        )

    def _classify(self, so_far: Answer, example: Example) -> Answer:
        """Answer a claim as an evaluation of the task does."""
        plan = self._plan()
        prediction = answer_batch(self.model, plan, [(0, example)])[0]
        if prediction.outcome == "refused" and prediction.reason:
            raise UserError(f"{self.model.name} gave no answer: {prediction.reason}")
        turn = next(iter(prediction.turns), {})
        return replace(
            _with_verification(so_far, str(turn.get("raw_output") or ""), turn.get("verdicts")),
            answer=plan.question.answers[prediction.label] if prediction.label else prediction.raw_output or "",
            label=prediction.label,
            labels=prediction.scores,
            prompt=prediction.prompt,
            prompt_tokens=prediction.prompt_tokens,
            completion_tokens=prediction.completion_tokens,
            cut_tokens=prediction.cut_tokens,
        )

    def _generate(
        self,
        so_far: Answer,
        prompt: Prompt,
        max_new_tokens: int,
        stream: Stream | None,
        stop: Stop,
        until: Sequence[str],
    ) -> Answer:
        """Generate an answer, after the verification sentence if the model writes one."""
        n = len(so_far.results)
        if self.style.verify and n:
            reply = self._reply(
                prompt, self.style.bound, lambda text: stop() or self.style.verified(text), self.style.sentences_of(n)
            )
            sentence, verdicts = self.style.sentence(split_thoughts(reply.text or "")[0], n)
            if verdicts:
                prompt = self.style.behind(prompt, sentence)
            so_far = _with_verification(so_far, sentence, verdicts)
        if stream:
            stream(so_far)
        stopped = False

        def finished(text: str) -> bool:
            nonlocal stopped
            answer, ended = _before_first(settled(_answer_in(text)), until)
            if stream:
                stream(replace(so_far, answer=answer if ended else _before_begun(answer, until)))
            stopped = stop()
            return stopped or ended

        reply = self._reply(prompt, max_new_tokens, finished)
        answer, ended = _before_first(_answer_in(reply.text or ""), until)
        return replace(
            so_far,
            answer=answer,
            prompt=reply.prompt,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cut_tokens=reply.cut_tokens,
            cut_off=stopped or (reply.cut_off and not ended),
        )

    def _reply(
        self, prompt: Prompt, max_new_tokens: int, finished: Callable[[str], bool], likely: tuple[str, ...] = ()
    ) -> Reply:
        reply = self.model.generate([prompt], max_new_tokens, finished, likely)[0]
        if reply.refusal is not None:
            raise UserError(f"{self.model.name} gave no answer: {reply.refusal}")
        return reply


def _answer_in(text: str) -> str:
    """The answer in a reply: nothing while a thought is open."""
    answer, thinking = split_thoughts(text)
    return "" if thinking else answer.strip()


def _before_first(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of some others, and whether there was one."""
    ends = [text.index(end) for end in until if end in text]
    return (text[: min(ends)], True) if ends else (text, False)


def _before_begun(text: str, until: Sequence[str]) -> str:
    """A growing text without an end that may still become one of some others."""
    begun = (size for end in until for size in range(1, min(len(end), len(text) + 1)) if text.endswith(end[:size]))
    return text[: len(text) - max(begun, default=0)]


def _with_verification(answer: Answer, sentence: str, verdicts: tuple[Verdict, ...] | None) -> Answer:
    """The answer with the model's verification sentence, whose verdicts replace those of the likeliest sentence.

    Any other text, which a model writes that was not trained to verify, is none.
    """
    if not verdicts:
        return answer
    judgements = answer.judgements
    if judgements:
        judgements = tuple(replace(j, verdict=verdict) for j, verdict in zip(judgements, verdicts, strict=True))
    return replace(answer, verification=sentence.strip(), judgements=judgements)
