"""A model behind an OpenAI-compatible server, through cached chat completions."""

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
SCORE_TOKENS = 16  # length of the answer that is read if the log-probabilities do not decide
_MIN_PROBABILITY = 1e-7  # smaller probabilities are rounding of the server
LABEL_SHARE = 0.5  # least probability of all answer words together at the first token
_FORMAT = 2  # version of cached answers: raise it when Answer, or how it is read, changes
_BATCHES = 4  # batch size in multiples of the concurrency: few idle slots, few requests to repeat
_NAME = re.compile(r"endpoint:(?P<model>.+)@(?P<url>https?://.+)", re.DOTALL)  # greedy: the last such @


class EndpointModel:
    """A model behind an OpenAI-compatible server, at temperature 0.

    Every answer is cached as it arrives, and a cached request is never sent again. The server applies its chat template
    and its limits, so prompts are neither rendered nor shortened here.

    Attributes:
        name: The name that the user gave.
        client: The client of the server, with its budget; repeats share it.
        repeat: The number of the repetition, a part of the cache's key.
        served_by: Model and configuration that the server reports -> number of answers.
    """

    def __init__(self, model: str, base_url: str, options: ModelOptions) -> None:
        """Prepare the client; nothing is sent.

        Args:
            model: The server's name for the model.
            base_url: Its base URL, which ends in `/v1` on most servers.
            options: Concurrency, budget, timeout, and the variable with the key.

        Raises:
            UserError: The URL or an option cannot be used, or the key cannot be sent.
        """
        self.model = model
        self.base_url = checked_url(base_url, options.api_key_env)
        self.name = f"endpoint:{model}@{self.base_url}"
        self.client = ChatClient(self.name, self.base_url, options)
        self.repeat = 0
        self.served_by: dict[str, int] = {}
        self._cache = runs.Cache(runs.cache_folder() / "responses")
        self._warned: set[str] = set()

    @classmethod
    def from_name(cls, name: str, options: ModelOptions) -> EndpointModel:
        """The model of `endpoint:MODEL@BASE_URL`; see `sailkit.models.load.load_model`."""
        return cls(*read_name(name), options)

    def with_repeat(self, repeat: int) -> EndpointModel:
        """The same model for another repetition, whose answers are cached under its number."""
        other = copy.copy(self)
        other.repeat = repeat
        return other

    def describe(self) -> dict[str, Any]:
        """Everything that determines the answers, as far as a client knows it."""
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
        """Estimate the tokens of a text: one for four bytes."""
        return math.ceil(len(text.encode()) / 4)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches in the order of the prompts; the server has its own limits, so `reserve` and `names` are not used."""
        size = _BATCHES * self.client.options.concurrency
        return [list(range(i, min(i + size, len(prompts)))) for i in range(0, len(prompts), size)]

    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Score labels by the first generated token; see `Model.score` and `label_scores`.

        If its log-probabilities do not decide, or the server gives none, `Reply.answers` is empty, and the answer is
        read from `Reply.text`.
        """
        bodies = [self._body(prompt, SCORE_TOKENS, scored=True) for prompt in prompts]
        completions = self._answers(bodies)
        if not all(answer.top_logprobs or answer.refusal is not None for answer in completions):
            self._warn(f"{self.name} gives no log-probabilities; its answers are read from the text, without scores")
        scores = [
            {} if answer.refusal is not None or answer.thought else label_scores(answer.top_logprobs, answers)
            for answer in completions
        ]
        return [_reply(*parts) for parts in zip(bodies, completions, scores, strict=True)]

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. A server cannot be stopped, so `finished` and `likely` are not used."""
        bodies = [self._body(prompt, max_new_tokens) for prompt in prompts]
        return [_reply(body, answer, {}) for body, answer in zip(bodies, self._answers(bodies), strict=True)]

    def estimate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, repeats: int = 1, *, scored: bool = False
    ) -> dict[str, int]:
        """The cost of the requests that are not cached; nothing is sent.

        Args:
            prompts: The prompts.
            max_new_tokens: Most tokens of an answer.
            repeats: How often each prompt is sent.
            scored: Whether answers are scored instead of generated; their length is then `SCORE_TOKENS`.

        Returns:
            The number of `requests` that are not cached, their estimated `prompt_tokens`, and the upper bound of their
            `completion_tokens`.
        """
        length = SCORE_TOKENS if scored else max_new_tokens
        bodies = [self._body(prompt, length, scored=scored) for prompt in prompts]
        new: dict[str, int] = {}
        for repeat in range(self.repeat, self.repeat + repeats):
            model = self.with_repeat(repeat)
            for body in bodies:
                if model._stored(body) is None:
                    content = "".join(turn["content"] for turn in body["messages"])
                    new[jsonl.fingerprint(model._key(body))] = self.count_tokens(content)
        return {
            "requests": len(new),
            "prompt_tokens": sum(new.values()),
            "completion_tokens": len(new) * length,
        }

    def _body(self, prompt: Prompt, max_tokens: int, *, scored: bool = False) -> Body:
        """Build a request. Untrusted text is escaped, because a server would encode `<|im_end|>` as a special token."""
        messages = []
        for message in prompt:
            content = ""
            # Adjacent untrusted parts are escaped together, or they could spell a special token across their border.
            for trusted, parts in groupby(message.parts, key=lambda part: part.trusted):
                text = "".join(part.text for part in parts)
                content += text if trusted else escape_special(text)
            messages.append({"role": message.role, "content": content})
        body: Body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        return body | ({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if scored else {})

    def _key(self, body: Body) -> dict[str, Any]:
        # The planned request, which may differ from the one sent if the server refused log-probabilities.
        return {"format": _FORMAT, "base_url": self.base_url, "repeat": self.repeat, "request": body}

    def _stored(self, body: Body) -> Answer | None:
        value = self._cache.get(self._key(body))
        with suppress(TypeError):
            return Answer(**value)
        return None

    def _answers(self, bodies: Sequence[Body]) -> list[Answer]:
        """Answers in order, from the cache or the server; equal requests are sent once."""
        names = [jsonl.fingerprint(self._key(body)) for body in bodies]
        requests = dict(zip(names, bodies, strict=True))
        known = {name: answer for name, body in requests.items() if (answer := self._stored(body))}

        def keep(name: str, answer: Answer) -> None:
            # A refusal by an HTTP error is not cached: servers change their filters and limits without notice.
            if answer.refusal is None or answer.finish_reason is not None:
                self._cache.put(self._key(requests[name]), asdict(answer))
            known[name] = answer

        self.client.served |= bool(known)
        if missing := {name: body for name, body in requests.items() if name not in known}:
            self.client.ask(missing, keep)
        if "temperature" in self.client.left_out:
            self._warn(f"{self.name} takes no temperature; its answers may change when it is asked again")
        for name in names:
            served = " ".join(filter(None, (known[name].model, known[name].system_fingerprint)))
            self.served_by[served] = self.served_by.get(served, 0) + 1
        return [known[name] for name in names]

    def _warn(self, message: str) -> None:
        """Warn once for all repeats."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def read_name(name: str) -> tuple[str, str]:
    """Model and base URL of `endpoint:MODEL@BASE_URL`; the URL is not checked."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"an endpoint's name has the form {ENDPOINT_FORM}")
    if importlib.util.find_spec("openai") is None:
        raise missing_extra("endpoint", "an endpoint")
    return parts["model"], parts["url"]


def label_scores(top: Sequence[tuple[str, float]], answers: Mapping[str, str]) -> dict[str, AnswerScore]:
    """Scores of labels from the likeliest first tokens, if these are sufficient.

    A server lists only some tokens (up to 20), so a label's log-probability is observed or bounded. A listed token that
    equals the label's answer word, up to case and white space, is an observation, and so is a token that begins this
    word and no other (`Y`); their probabilities are added. A label without such a token gets an upper bound: the least
    listed probability, or what the listed tokens leave of 1 if that is less.

    Args:
        top: Tokens and log-probabilities.
        answers: Label -> answer word.

    Returns:
        Answer word -> score. Empty if the text has to be read instead: the likeliest token is not an answer word (but
        white space, a quote, a thought), the answer words have less than `LABEL_SHARE` of the probability, or an answer
        word has several tokens, so that its first token does not give its probability.
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
    if math.fsum(map(math.exp, observed.values())) < LABEL_SHARE:  # whatever the order
        return {}
    left = math.log(max(1 - sum(math.exp(logprob) for _, logprob in top), _MIN_PROBABILITY))
    bound = min(left, math.nextafter(min(logprob for _, logprob in top), -math.inf))
    return {
        answers[label]: AnswerScore(label, (), observed.get(label, bound), bound=label not in observed)
        for label in words
    }


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


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
