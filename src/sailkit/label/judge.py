"""A labeler that asks a language model for one word, and takes the word's probability where it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sailkit import jsonl
from sailkit.answers import RULES_VERSION, read_answer
from sailkit.label import Pair, Score
from sailkit.models import SCORE_RESERVE, ModelOptions, load_model
from sailkit.prompts import Message, Part, Prompt, evidence_parts, fill, frames


class Judge:
    """A causal language model here, or any OpenAI-compatible server; the question is never cut, only the result."""

    threshold = 0.5

    def __init__(self, model: str, options: ModelOptions | None = None) -> None:
        """Load the model; see `sailkit.models.load_model`."""
        self.name = f"judge:{model}"
        self._model = load_model(model, options)
        self._wording = frames()["judge"]
        self._answers: dict[str, str] = self._wording["answers"]
        self._words = {word: verdict for verdict, words in self._wording["words"].items() for word in words}

    def describe(self) -> dict[str, Any]:
        """Everything about the labeler that decides its scores."""
        return {
            "labeler": self.name,
            "version": 1,
            **self._model.describe(),
            "prompts_sha256": jsonl.fingerprint([self._wording, frames()["result"], frames()["plain"]]),
            "rules_version": RULES_VERSION,
        }

    def plan(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """The model's own plan."""
        names = [f"result for {pair.instruction.id}" for pair in pairs]
        return self._model.plan([self.prompt(pair) for pair in pairs], SCORE_RESERVE, names)

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """P(informative) among the two answers; 1 or 0 where only text comes back."""
        found = []
        for pair, reply in zip(
            pairs, self._model.score([self.prompt(pair) for pair in pairs], self._answers), strict=True
        ):
            if not pair.instruction.output.strip():
                found.append(Score(None, "no_response"))
            elif reply.answers:
                logs = {answer.label: answer.logprob for answer in reply.answers.values()}
                odds = logs["distracting"] - logs["informative"]
                found.append(Score(1 / (1 + math.exp(min(odds, 700.0))), cut_tokens=reply.cut_tokens))
            else:
                verdict, outcome = read_answer(reply.text or "", self._words)
                if verdict is None:
                    silent = "refused" if outcome == "refused" else "unreadable"
                    found.append(Score(None, silent, reply.cut_tokens, reply.text))  # type: ignore[arg-type]
                else:
                    found.append(Score(float(verdict == "informative"), "judged", reply.cut_tokens, reply.text))
        return found

    def prompt(self, pair: Pair) -> Prompt:
        """What the model is asked about one pair."""
        one = pair.instruction
        question = "\n".join(text for text in (one.instruction.strip(), one.input.strip()) if text)
        template = self._wording["question" if question else "claim"]
        values: dict[str, str | Sequence[Part]] = {
            "question": question,
            "response": one.output.strip(),
            "evidence": evidence_parts([pair.result]),
            "answers": [Part(frames()["answers_join"].join(self._answers.values()), constant=True)],
        }
        return (Message("user", fill(template, values)),)
