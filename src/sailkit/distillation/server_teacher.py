"""A teacher behind an OpenAI-compatible server that returns log-probabilities of prompt tokens.

Supported are vLLM (`prompt_logprobs`) and servers that answer `echo` with token ids. A server that names tokens only by
their text cannot be used, because different tokens may have the same text: those of `the` with and without a space, or
of the single bytes of a character.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sailkit.distillation.records import TeacherExample, TeacherRow
from sailkit.distillation.teacher import TopK, max_row_tokens
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.completions import Answer, read_choice
from sailkit.models.endpoint import checked_url, read_name
from sailkit.models.http import Body, ChatClient
from sailkit.models.sources import Source
from sailkit.prompts.chat_template import reads_clock, today

if TYPE_CHECKING:
    import openai

_BATCHES = 4  # batch size in multiples of the concurrency
_ENTRY = 400  # most bytes of a log-probability in a response; some servers list each of them twice
_PREFIX = "token_id:"  # with which a server writes token ids in place of texts
_ROUNDING = 1e-3  # tolerance of log-probabilities above 0, and of sums of probabilities above 1


@dataclass(frozen=True, slots=True)
class _Echo(Answer):
    choice: dict[str, Any] = field(default_factory=dict)


class _EchoClient(ChatClient):
    """Requests text completions instead of chats; `entries` is the most log-probabilities in a response."""

    entries = 0

    def most_bytes(self) -> int:
        return max(super().most_bytes(), self.entries * _ENTRY)

    async def post(self, client: openai.AsyncOpenAI, body: Body) -> Any:
        return await client.completions.with_raw_response.create(**body)

    def read(self, text: str) -> Answer:
        return _Echo("", choice=read_choice(text, self.mask())[1])

    def refused(self, reason: str) -> Answer:
        return _Echo("", refusal=reason)

    def refused_logprobs(self, message: str) -> Exception:
        return UserError(f"{self.name} refuses to give log-probabilities: {message}; try a lower `top_k`")


class ServerTeacher:
    """A teacher behind a server, which is queried for the log-probabilities of given tokens.

    The tail of a position is one minus the probabilities that the server lists.
    """

    def __init__(self, name: str, options: ModelOptions, folder: Path, kept: TopK) -> None:
        """Prepare the client; nothing is sent.

        Args:
            name: `endpoint:MODEL@BASE_URL`.
            options: Concurrency, budget, timeout, and the variable with the key.
            folder: Folder of the teacher's tokenizer.
            kept: How to truncate the distributions.

        Raises:
            UserError: The name, an option or the tokenizer cannot be used.
        """
        from transformers import AutoTokenizer

        self._model, url = read_name(name)
        self._url = checked_url(url, options.api_key_env)
        self.name = f"endpoint:{self._model}@{self._url}"
        self._client = _EchoClient(self.name, self._url, options)
        if not folder.is_dir():
            raise UserError(f"`teacher_tokenizer` {folder}: no such folder")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # damaged files raise errors without a common base class
            raise UserError(f"cannot load the tokenizer in {folder}: {' '.join(str(error).split())[:200]}") from None
        self.context = max_row_tokens(None, self.tokenizer)
        self._date = (options.date or today()) if reads_clock(self.tokenizer) else None
        self._source = Source(folder)
        self._size = len(set(self.tokenizer.get_vocab().values()))
        self._kept = kept

    def describe(self) -> dict[str, Any]:
        """Everything that determines the values, as far as a client knows it."""
        return {
            "model": self.name,
            "served_model": self._model,
            "base_url": self._url,
            **self._source.trained(),
            "tokenizer_sha256": self._source.digests()["tokenizer_sha256"],
            "dtype": None,
            "api": "completions, log-probabilities of the prompt",
            "vocabulary": self._size,
            **({"date": self._date} if self._date else {}),
        }

    def plan(self, pairs: Sequence[TeacherExample]) -> list[list[int]]:
        """Batches in the order of the data; the server forms its own."""
        size = _BATCHES * self._client.options.concurrency
        return [list(range(i, min(i + size, len(pairs)))) for i in range(0, len(pairs), size)]

    def rows(self, pairs: Sequence[TeacherExample]) -> list[TeacherRow]:
        """The teacher's distributions along the completions of one batch.

        Raises:
            UserError: The server refuses, or does not return the log-probabilities.
        """
        replies: dict[str, _Echo] = {}

        def keep(name: str, answer: Answer) -> None:
            assert isinstance(answer, _Echo)
            replies[name] = answer

        self._client.entries = max(len(pair.prompt + pair.tokens) for pair in pairs) * (self._kept.k + 2)
        self._client.ask({str(i): self._body(pair) for i, pair in enumerate(pairs)}, keep)
        for i, pair in enumerate(pairs):
            if (reason := replies[str(i)].refusal) is not None:
                raise UserError(f"{self.name} refuses example {pair.name!r}: {reason}; take that row out of the data")
        return [self._row(pair, replies[str(i)].choice) for i, pair in enumerate(pairs)]

    def _body(self, pair: TeacherExample) -> Body:
        k = min(self._kept.k, self._size)
        more = {"prompt_logprobs": k, "return_tokens_as_token_ids": True}
        body: Body = {"model": self._model, "prompt": list(pair.prompt + pair.tokens), "temperature": 0}
        return body | {"max_tokens": 1, "echo": True, "logprobs": k, "extra_body": more}

    def _row(self, pair: TeacherExample, choice: Mapping[str, Any]) -> TeacherRow:
        whole, start = pair.prompt + pair.tokens, len(pair.prompt)
        try:
            listed = _by_id(choice, len(whole))[start : len(whole)]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            raise UserError(
                f"{self.name} gives no log-probabilities of a prompt's tokens by token id; "
                "vLLM does, or load the teacher here"
            ) from None
        wanted = min(self._kept.k, self._size)
        ids, logprobs = np.zeros((len(listed), wanted), np.int64), np.full((len(listed), wanted), -np.inf)
        for i, (position, token) in enumerate(zip(listed, pair.tokens, strict=True)):
            if token not in position:
                raise UserError(f"{self.name} reads other tokens than were sent; give its own `teacher_tokenizer`")
            if len(position) < wanted:
                raise UserError(
                    f"{self.name} gives {len(position)} log-probabilities at a position, and {wanted} were asked for; "
                    f"use `top_k` {len(position)}, or raise the server's limit (vLLM: --max-logprobs)"
                )
            best = itertools.islice(sorted(position.items(), key=lambda item: (-item[1], item[0])), wanted)
            ids[i], logprobs[i] = zip(*best, strict=True)
        sums = np.exp(logprobs).sum(1)
        if not sums.max() <= 1 + _ROUNDING:
            raise UserError(f"{self.name}: the probabilities of a position sum to {sums.max():.4f}, more than 1")
        observed = [position[token] for position, token in zip(listed, pair.tokens, strict=True)]
        rest = np.maximum(0.0, 1 - sums)
        return self._kept.row(pair.tokens, ids, logprobs, rest, np.asarray(observed))


def _by_id(choice: Mapping[str, Any], n: int) -> list[dict[int, float]]:
    """Token id -> log-probability, for each of the n tokens that were sent; empty for the first.

    Raises:
        ValueError: Tokens are named by text; a KeyError, IndexError or TypeError if log-probabilities are missing.
    """
    if isinstance(given := choice.get("prompt_logprobs"), list):
        positions = [
            {int(token): float(entry["logprob"]) for token, entry in (listed or {}).items()} for listed in given
        ]
    else:
        logprobs = choice["logprobs"]
        positions = [
            {_id(token): float(logprob) for token, logprob in (listed or {}).items()}
            for listed in logprobs["top_logprobs"]
        ]
        for listed, token, logprob in zip(positions, logprobs["tokens"], logprobs["token_logprobs"], strict=True):
            if logprob is not None:
                listed[_id(token)] = float(logprob)
    if len(positions) < n or any(math.isnan(value) for listed in positions for value in listed.values()):
        raise ValueError
    return positions


def _id(token: str) -> int:
    if not token.startswith(_PREFIX):
        raise ValueError(token)
    return int(token.removeprefix(_PREFIX))
