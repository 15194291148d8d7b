"""A labeler that asks a language model for one word, and takes the word's probability where it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.base import ResultPair, Score, batches_of
from sailkit.models.base import SCORE_RESERVE, ModelOptions, Reply, check_scorable, is_endpoint
from sailkit.models.load import load_model
from sailkit.prompts.parse import ANSWER_RULES_VERSION, read_answer
from sailkit.prompts.render import Message, Part, Prompt, evidence_parts, fill, frames
from sailkit.records import JudgementOutcome, SearchResult

_SENT = 20_000  # characters of a result that a server gets: it knows its own limit, and refuses what is beyond


class Judge:
    """A causal language model here, or any OpenAI-compatible server; the question is never cut, only the result."""

    threshold = 0.5

    def __init__(self, model: str, options: ModelOptions | None = None) -> None:
        """Load the model; see `sailkit.models.base.load_model`."""
        self.name = f"judge:{model}"
        self._model = load_model(model, options)
        check_scorable(self._model)
        self._sent = _SENT if is_endpoint(model) else None
        self._wording = frames()["judge"]
        self._answers: dict[str, str] = self._wording["answers"]
        self._words = {word: verdict for verdict, words in self._wording["words"].items() for word in words}

    @property
    def runs_on(self) -> dict[str, Any]:
        """Device and number format of the model, where it runs here."""
        return {name: value for name, value in self._model.describe().items() if name in ("device", "dtype")}

    def describe(self) -> dict[str, Any]:
        """Everything about the labeler that decides its scores."""
        return {
            "labeler": self.name,
            "version": 1,
            **self._model.describe(),
            "prompts_sha256": jsonl.fingerprint([self._wording, frames()["result"], frames()["plain"]]),
            "rules_version": ANSWER_RULES_VERSION,
            **({"most_characters": self._sent} if self._sent else {}),
        }

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """The model's own plan of what it is asked, and the rest in order."""
        prompts = [self.prompt(pair) for pair in pairs]
        silent = [self._silent(pair, prompt) is not None for pair, prompt in zip(pairs, prompts, strict=True)]
        asked, rest = ([i for i, left_out in enumerate(silent) if left_out is kind] for kind in (False, True))
        batches = self._model.plan([prompts[i] for i in asked], SCORE_RESERVE)
        return [[asked[i] for i in batch] for batch in batches] + [
            [rest[i] for i in b] for b in batches_of(len(rest), 64)
        ]

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """P(informative) among the two answers; 1 or 0 where only text comes back."""
        prompts = [self.prompt(pair) for pair in pairs]
        silent = [self._silent(pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
        asked = [prompt for prompt, outcome in zip(prompts, silent, strict=True) if outcome is None]
        replies = iter(self._model.score(asked, self._answers) if asked else ())
        return [
            Score(None, outcome) if outcome else self._read(pair, next(replies))
            for pair, outcome in zip(pairs, silent, strict=True)
        ]

    def _silent(self, pair: ResultPair, prompt: Prompt) -> JudgementOutcome | None:
        """Why a pair is not asked about: no response, or a question that does not fit even without the result."""
        if not pair.instruction.output.strip():
            return "no_response"
        try:
            self._model.plan([prompt], SCORE_RESERVE)
        except UserError:
            return "failed"
        return None

    def _read(self, pair: ResultPair, reply: Reply) -> Score:
        cut = reply.cut_tokens
        if self._sent:
            cut += math.ceil(max(0, len(pair.result.body) - self._sent) / 4)  # about four characters a token
        if reply.refusal is not None:
            return Score(None, "refused", cut, reply.refusal)
        if reply.answers:
            logs = {answer.label: answer.logprob for answer in reply.answers.values()}
            odds = logs["distracting"] - logs["informative"]
            return Score(1 / (1 + math.exp(min(odds, 700.0))), cut_tokens=cut)
        verdict, outcome = read_answer(reply.text or "", self._words)
        if verdict is None:
            # A thought that the server tells from an answer that never came is all that was written.
            written = reply.text if (reply.text or "").strip() or not reply.thought else f"<think>{reply.thought}"
            return Score(None, "refused" if outcome == "refused" else "unreadable", cut, written)
        return Score(float(verdict == "informative"), "judged", cut, reply.text)

    def prompt(self, pair: ResultPair) -> Prompt:
        """What the model is asked about one pair."""
        one = pair.instruction
        question = "\n".join(text for text in (one.instruction.strip(), one.input.strip()) if text)
        template = self._wording["question" if question else "claim"]
        values: dict[str, str | Sequence[Part]] = {
            "question": question,
            "response": one.output.strip(),
            "evidence": evidence_parts([self._shown(pair.result)]),
            "answers": [Part(frames()["answers_join"].join(self._answers.values()), constant=True)],
        }
        return (Message("user", fill(template, values)),)

    def _shown(self, result: SearchResult) -> SearchResult:
        return replace(result, title=result.title[: self._sent], body=result.body[: self._sent])
