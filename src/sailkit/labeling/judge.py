"""A labeler that prompts a language model for a one-word judgement, scored by the word's probability if available."""

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

_MOST_SENT = 20_000  # characters of a result; a server rejects prompts longer than its context


class Judge:
    """Scores with a causal language model, local or behind an OpenAI-compatible server; only results are cut."""

    threshold = 0.5

    def __init__(self, model: str, options: ModelOptions | None = None) -> None:
        """Load the model; see `sailkit.models.load.load_model`."""
        self.name = f"judge:{model}"
        check_scorable(model)
        self._model = load_model(model, options)
        check_scorable(self._model)
        self._most_sent = _MOST_SENT if is_endpoint(model) else None
        self._wording = frames()["judge"]
        self._answers: dict[str, str] = self._wording["answers"]
        self._words = {word: verdict for verdict, words in self._wording["words"].items() for word in words}

    @property
    def runs_on(self) -> dict[str, Any]:
        """Device and dtype of the model; empty for a server."""
        described = self._model.describe()
        return {name: described[name] for name in ("device", "dtype") if described.get(name)}

    def describe(self) -> dict[str, Any]:
        """Everything that affects the scores."""
        return {
            "labeler": self.name,
            "version": 1,
            **self._model.describe(),
            "prompts_sha256": jsonl.fingerprint([self._wording, frames()["result"], frames()["plain"]]),
            "rules_version": ANSWER_RULES_VERSION,
            **({"most_characters": self._most_sent} if self._most_sent else {}),
        }

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """The model's batches of the pairs that it scores, then the skipped pairs in order."""
        prompts = [self.prompt(pair) for pair in pairs]
        skipped = [self._skip_reason(pair, prompt) is not None for pair, prompt in zip(pairs, prompts, strict=True)]
        asks, skips = ([i for i, skip in enumerate(skipped) if skip is kind] for kind in (False, True))
        batches = self._model.plan([prompts[i] for i in asks], SCORE_RESERVE)
        rest = [[skips[i] for i in batch] for batch in batches_of(len(skips), 64)]
        return [[asks[i] for i in batch] for batch in batches] + rest

    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """P(informative) over the two answers; 1 or 0 where the model returns only text."""
        prompts = [self.prompt(pair) for pair in pairs]
        reasons = [self._skip_reason(pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
        sent = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
        replies = iter(self._model.score(sent, self._answers) if sent else ())
        return [
            Score(None, reason) if reason else self._read(pair, next(replies))
            for pair, reason in zip(pairs, reasons, strict=True)
        ]

    def _skip_reason(self, pair: ResultPair, prompt: Prompt) -> JudgementOutcome | None:
        """Why a pair is not scored: no response, or a prompt too long even without the result; else None."""
        if not pair.instruction.output.strip():
            return "no_response"
        try:
            self._model.plan([prompt], SCORE_RESERVE)
        except UserError:
            return "failed"
        return None

    def _read(self, pair: ResultPair, reply: Reply) -> Score:
        cut = reply.cut_tokens
        if self._most_sent:
            cut += math.ceil(max(0, len(pair.result.body) - self._most_sent) / 4)  # about four characters a token
        if reply.refusal is not None:
            return Score(None, "refused", cut, reply.refusal)
        if reply.answers:
            logs = {answer.label: answer.logprob for answer in reply.answers.values()}
            odds = logs["distracting"] - logs["informative"]
            return Score(1 / (1 + math.exp(min(odds, 700.0))), cut_tokens=cut)
        verdict, outcome = read_answer(reply.text or "", self._words)
        if verdict is None:
            # A server that separates thoughts from answers returns empty text if generation ended within a thought.
            written = reply.text if (reply.text or "").strip() or not reply.thought else f"<think>{reply.thought}"
            return Score(None, "refused" if outcome == "refused" else "unreadable", cut, written)
        return Score(float(verdict == "informative"), "judged", cut, reply.text)

    def prompt(self, pair: ResultPair) -> Prompt:
        """The prompt for a pair."""
        row = pair.instruction
        question = "\n".join(text for text in (row.instruction.strip(), row.input.strip()) if text)
        template = self._wording["question" if question else "claim"]
        values: dict[str, str | Sequence[Part]] = {
            "question": question,
            "response": row.output.strip(),
            "evidence": evidence_parts([self._shortened(pair.result)]),
            "answers": [Part(frames()["answers_join"].join(self._answers.values()), constant=True)],
        }
        return (Message("user", fill(template, values)),)

    def _shortened(self, result: SearchResult) -> SearchResult:
        return replace(result, title=result.title[: self._most_sent], body=result.body[: self._most_sent])
