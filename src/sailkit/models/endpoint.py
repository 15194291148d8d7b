"""A model behind any OpenAI-compatible server, asked by chat completions; each answer is paid for once."""

from __future__ import annotations

import copy
import importlib.util
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from typing import Any

from sailkit import runs
from sailkit.errors import UserError, missing_extra
from sailkit.files import jsonl
from sailkit.models.base import Finished, ModelOptions, Reply
from sailkit.models.completions import Answer
from sailkit.models.http import Body, ChatClient
from sailkit.prompts.render import Prompt, escape_special
from sailkit.records import AnswerScore
from sailkit.urls import server_url

ENDPOINT_FORM = "endpoint:MODEL@BASE_URL, such as endpoint:qwen2.5-7b@http://127.0.0.1:8000/v1"
TOP_LOGPROBS = 20  # the most that servers commonly give
SCORE_TOKENS = 16  # room for an answer that is read where log-probabilities do not decide
_LEAST = 1e-7  # probability below which a server's rounding decides
LABEL_SHARE = 0.5  # of the first token's probability that the answer words must hold
_FORMAT = 2  # of a cached answer: raise it when Answer, or how it is read, changes
_BATCHES = 4  # prompts of a batch, in multiples of the concurrency: few idle slots, little to ask twice
_NAME = re.compile(r"endpoint:(?P<model>.+)@(?P<url>https?://.+)", re.DOTALL)  # greedy: the last such @


class EndpointModel:
    """A model behind an OpenAI-compatible server, asked at temperature 0.

    Every answer goes to the cache as it arrives, and nothing that is there is asked again. The server applies
    its own chat template and knows its own limits, so prompts are neither rendered nor shortened here.

    Attributes:
        name: As the user wrote it.
        client: The client of the server, with its budget; repeats share it.
        repeat: Which of several askings this is; a part of the cache's key.
        served_by: What the server called itself in its answers -> how many answers.
    """

    def __init__(self, model: str, base_url: str, options: ModelOptions) -> None:
        """Prepare to ask; nothing is sent.

        Args:
            model: The server's name for the model.
            base_url: Its address, up to and with `/v1` on most servers.
            options: Concurrency, budget, timeout, and where the key is.

        Raises:
            UserError: The address or an option cannot be used, or the key cannot be sent.
        """
        self.model = model
        self.base_url = checked_url(base_url, options.api_key_env)
        self.name = f"endpoint:{model}@{self.base_url}"
        self.client = ChatClient(self.name, self.base_url, options)
        self.repeat = 0
        self.served_by: dict[str, int] = {}
        self._cache = runs.Cache(runs.cache_folder() / "responses")
        self._told: set[str] = set()

    @classmethod
    def from_name(cls, name: str, options: ModelOptions) -> EndpointModel:
        """Find the server behind `endpoint:MODEL@BASE_URL`; see `sailkit.models.load.load_model`."""
        return cls(*read_name(name), options)

    def with_repeat(self, repeat: int) -> EndpointModel:
        """The same model asked once more: its answers are cached under the repeat's number."""
        other = copy.copy(self)
        other.repeat = repeat
        return other

    def describe(self) -> dict[str, Any]:
        """Everything that is known here and decides the answers."""
        return {
            "model": self.name,
            "served_model": self.model,
            "base_url": self.base_url,
            "dtype": None,
            "chat_template": "server",
            "api": "chat completions",
            "temperature": 0,
            "top_logprobs": TOP_LOGPROBS,
            "repeat": self.repeat,
            "response_format": _FORMAT,
        }

    def count_tokens(self, text: str) -> int:
        """Roughly how many tokens a text takes: one for four bytes."""
        return math.ceil(len(text.encode()) / 4)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches in order; the server keeps its own limits, so `reserve` and `names` decide nothing."""
        size = _BATCHES * self.client.options.concurrency
        return [list(range(i, min(i + size, len(prompts)))) for i in range(0, len(prompts), size)]

    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Score labels by the first generated token; see `Model.score` and `label_scores`.

        Where these do not decide, or the server gives none, `Reply.answers` is empty and `Reply.text` is to be read.
        """
        bodies = [self._body(prompt, SCORE_TOKENS, scored=True) for prompt in prompts]
        found = self._answers(bodies)
        if not all(answer.top_logprobs or answer.refusal is not None for answer in found):
            self._warn(f"{self.name} gives no log-probabilities; its answers are read from the text, without scores")
        scores = [
            {} if answer.refusal is not None or answer.thought else label_scores(answer.top_logprobs, answers)
            for answer in found
        ]
        return [_reply(*parts) for parts in zip(bodies, found, scores, strict=True)]

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. A server is not interrupted: `finished` and `likely` do nothing."""
        bodies = [self._body(prompt, max_new_tokens) for prompt in prompts]
        return [_reply(body, answer, {}) for body, answer in zip(bodies, self._answers(bodies), strict=True)]

    def estimate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, repeats: int = 1, *, scored: bool = False
    ) -> dict[str, int]:
        """What asking would still cost; nothing is sent.

        Args:
            prompts: What would be asked.
            max_new_tokens: Longest answer.
            repeats: How often each prompt would be asked.
            scored: Answers would be scored, not generated; these have a length of their own.

        Returns:
            `requests` that are not in the cache, their `prompt_tokens` (roughly: a token for four bytes), and their
            `completion_tokens` at most.
        """
        length = SCORE_TOKENS if scored else max_new_tokens
        bodies = [self._body(prompt, length, scored=scored) for prompt in prompts]
        new: dict[str, int] = {}
        for repeat in range(self.repeat, self.repeat + repeats):
            asked = self.with_repeat(repeat)
            for body in bodies:
                if asked._stored(body) is None:
                    content = "".join(turn["content"] for turn in body["messages"])
                    new[jsonl.fingerprint(asked._key(body))] = self.count_tokens(content)
        return {
            "requests": len(new),
            "prompt_tokens": sum(new.values()),
            "completion_tokens": len(new) * length,
        }

    def _body(self, prompt: Prompt, max_tokens: int, *, scored: bool = False) -> Body:
        """One request. Text from outside is escaped: the server would take `<|im_end|>` in it for the real thing."""
        messages = []
        for message in prompt:
            content = ""
            # Pieces from outside that touch are escaped as one, or they could spell a token between them.
            for trusted, parts in groupby(message.parts, key=lambda part: part.trusted):
                text = "".join(part.text for part in parts)
                content += text if trusted else escape_special(text)
            messages.append({"role": message.role, "content": content})
        body: Body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        return body | ({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if scored else {})

    def _key(self, body: Body) -> dict[str, Any]:
        # The request as it is wanted: what a server that refuses log-probabilities answered instead is found too.
        return {"format": _FORMAT, "base_url": self.base_url, "repeat": self.repeat, "request": body}

    def _stored(self, body: Body) -> Answer | None:
        value = self._cache.get(self._key(body))
        with suppress(TypeError):
            return Answer(**value)
        return None

    def _answers(self, bodies: Sequence[Body]) -> list[Answer]:
        """Answers in order, from the cache or the server; what is wanted twice is sent once."""
        names = [jsonl.fingerprint(self._key(body)) for body in bodies]
        wanted = dict(zip(names, bodies, strict=True))
        known = {name: answer for name, body in wanted.items() if (answer := self._stored(body))}

        def keep(name: str, answer: Answer) -> None:
            # A refusal with an error's status is not kept: filters and limits are changed without notice.
            if answer.refusal is None or answer.finish_reason is not None:
                self._cache.put(self._key(wanted[name]), asdict(answer))
            known[name] = answer

        self.client.served |= bool(known)
        if missing := {name: body for name, body in wanted.items() if name not in known}:
            self.client.ask(missing, keep)
        if "temperature" in self.client.left_out:
            self._warn(f"{self.name} takes no temperature; its answers may change when it is asked again")
        for name in names:
            served = " ".join(filter(None, (known[name].model, known[name].system_fingerprint)))
            self.served_by[served] = self.served_by.get(served, 0) + 1
        return [known[name] for name in names]

    def _warn(self, message: str) -> None:
        """Warn once; repeats share what was said."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def read_name(name: str) -> tuple[str, str]:
    """Model and base URL of `endpoint:MODEL@BASE_URL`; the URL is not looked at."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"an endpoint's name has the form {ENDPOINT_FORM}")
    if importlib.util.find_spec("openai") is None:
        raise missing_extra("endpoint", "an endpoint")
    return parts["model"], parts["url"]


def label_scores(top: Sequence[tuple[str, float]], answers: Mapping[str, str]) -> dict[str, AnswerScore]:
    """Scores of labels from the likeliest first tokens, where these decide.

    A token that is a label's whole answer word is an observation of the label. The word may be spelled in several ways
    (`Yes`, ` yes`), and pieces that begin it and no other (`Y`) count with it. A label that is not listed has a bound,
    below all that is listed and at most what is left of the probability.

    Args:
        top: Tokens and log-probabilities.
        answers: Label -> answer word.

    Returns:
        Answer word -> score. Nothing where the text has to be read instead: the likeliest token is no answer word (but
        white space, a quote, a thought), the answer words hold less than `LABEL_SHARE` of the probability, or one of
        them is listed only by a piece of it, for it takes several tokens.
    """
    words = {label: word.strip().casefold() for label, word in answers.items()}
    listed = [(token.strip().casefold(), logprob) for token, logprob in top]
    if not listed or max(listed, key=lambda entry: (entry[1], entry[0]))[0] not in words.values():
        return {}
    begun = {text: [label for label, word in words.items() if word.startswith(text)] for text, _ in listed if text}
    if any(words[label] not in begun for labels in begun.values() for label in labels):
        return {}
    spoken = {
        label: [value for text, value in listed if text == word or begun.get(text) == [label]]
        for label, word in words.items()
    }
    observed = {label: _log_sum_exp(values) for label, values in spoken.items() if values}
    if sum(map(math.exp, observed.values())) < LABEL_SHARE:
        return {}
    left = math.log(max(1 - sum(math.exp(logprob) for _, logprob in top), _LEAST))
    bound = min(left, math.nextafter(min(logprob for _, logprob in top), -math.inf))
    return {
        answers[label]: AnswerScore(label, (), observed.get(label, bound), bound=label not in observed)
        for label in words
    }


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _reply(body: Body, answer: Answer, scores: dict[str, AnswerScore]) -> Reply:
    return Reply(
        prompt="\n\n".join(f"{turn['role']}: {turn['content']}" for turn in body["messages"]),
        prompt_fingerprint=jsonl.fingerprint(body["messages"])[:16],
        prompt_tokens=answer.prompt_tokens,
        text=answer.text,
        answers=scores,
        completion_tokens=answer.completion_tokens,
        cut_off=answer.finish_reason == "length",
        refusal=answer.refusal,
        thought=answer.thought,
    )


def checked_url(url: str, api_key_env: str) -> str:
    """The base URL of an endpoint, without a password, a query or a fragment; see `server_url`."""
    secrets = f"; put the key into the environment variable {api_key_env}"
    return server_url(url, "the endpoint's base URL", like=ENDPOINT_FORM, secrets=secrets)
