"""Asking an OpenAI-compatible server: a few requests at a time, tried again, within a budget; what it says is read."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sailkit.errors import UserError
from sailkit.models import ModelOptions

if TYPE_CHECKING:
    import openai

_LONGEST_WAIT = 60.0  # seconds that a server may ask to be left alone
_ROUNDING = 1e-3  # of a log-probability of nearly 0
_SHORTEST_KEY = 8  # a shorter one is a placeholder such as EMPTY, not a secret

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of a server's answer.

    Attributes:
        text: The message's content.
        finish_reason: Why the server stopped.
        prompt_tokens: As the server counted them; 0 where it does not say.
        completion_tokens: Likewise.
        top_logprobs: Tokens at the first generated position and their log-probabilities; empty where not given.
        model: What the server calls itself.
        system_fingerprint: And its configuration.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    top_logprobs: list[tuple[str, float]] = field(default_factory=list)
    model: str | None = None
    system_fingerprint: str | None = None


class PassingError(Exception):
    """A failure that another try may mend; `wait` is how long the server asks to be left alone."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class _NoLogprobsError(Exception):
    """The server refuses to be asked for log-probabilities."""


class Exchange:
    """The way to one server.

    Attributes:
        name: What errors call it.
        sent: HTTP requests so far.
        logprobs: False once the server has refused to give log-probabilities.
        tries: How often one prompt is sent before giving up.
        backoff: Seconds before the second try, doubled for each one after.
    """

    tries = 6
    backoff = 1.0

    def __init__(self, name: str, base_url: str, options: ModelOptions) -> None:
        """Prepare to ask; nothing is sent.

        Raises:
            UserError: An option cannot be used, or the key cannot be sent.
        """
        if not (options.concurrency >= 1 and options.max_requests >= 0 and options.timeout > 0):
            raise UserError("--concurrency and --timeout should be above 0, and --max-requests at least 0")
        self.name = name
        self.base_url = base_url
        self.options = options
        self.sent = 0
        self.logprobs = True
        self._api_key()

    def ask(self, bodies: Mapping[str, Body], keep: Callable[[str, Answer], None]) -> None:
        """Send requests and hand over each answer as soon as it is there.

        After a failure nothing more is sent, but what is on its way is waited for and handed over: it is paid for.

        Args:
            bodies: Requests by name.
            keep: Told the name and the answer.

        Raises:
            UserError: The server refused, did not answer in any try, or the budget is used up.
        """
        _run(self._ask_all(bodies, keep))

    async def _ask_all(self, bodies: Mapping[str, Body], keep: Callable[[str, Answer], None]) -> None:
        import openai

        slots, stop = asyncio.Semaphore(self.options.concurrency), asyncio.Event()
        # A redirect would carry prompts to another place than the one named, and turns a POST into a GET.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None)
        key = self._api_key() or "none"  # a server of one's own asks for none, the client insists on one
        async with openai.AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0, http_client=http) as client:

            async def ask(name: str, body: Body) -> None:
                async with slots:
                    try:
                        if answer := await self._ask(client, body, stop):
                            keep(name, answer)
                    except BaseException:
                        stop.set()
                        raise

            done = await asyncio.gather(*(ask(*item) for item in bodies.items()), return_exceptions=True)
        for failure in filter(None, done):
            raise failure

    async def _ask(self, client: openai.AsyncOpenAI, body: Body, stop: asyncio.Event) -> Answer | None:
        """Ask until there is an answer, patience ends, or another request has failed for good."""
        tried = 0
        while not stop.is_set():
            wanted = body if self.logprobs else {k: v for k, v in body.items() if "logprobs" not in k}
            try:
                return await self._send(client, wanted)
            except _NoLogprobsError:
                self.logprobs = False
            except PassingError as failure:
                tried += 1
                if tried == self.tries:
                    raise UserError(
                        f"{self.name}: gave up after {tried} tries, the last: {failure}; "
                        "run the same command again, it goes on where it stopped"
                    ) from None
                # Jitter spreads out those that failed together.
                pause = failure.wait + self.backoff * 2 ** (tried - 1) * random.uniform(0.5, 1.5)  # noqa: S311
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
        return None

    async def _send(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """One HTTP request, counted before it is sent."""
        import openai

        limit = self.options.max_requests
        if limit and self.sent >= limit:
            raise UserError(
                f"{self.name}: the {limit} requests of --max-requests are used up; "
                "run the same command again, it goes on where it stopped"
            )
        self.sent += 1
        try:
            # Of the whole exchange; the client's own timeout starts anew with every byte.
            async with asyncio.timeout(self.options.timeout):
                response = await self.post(client, body)
        except TimeoutError:
            raise PassingError(f"no answer within {self.options.timeout:g} s (--timeout)") from None
        except openai.APIStatusError as error:
            raise self._refusal(error, body) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise PassingError(f"the connection failed ({self._safe(str(cause)) or type(cause).__name__})") from None
        return self.read(self._safe(response.content.decode("utf-8", "replace")))

    async def post(self, client: openai.AsyncOpenAI, body: Body) -> Any:
        """Send one request: a chat completion, unless a subclass asks for something else."""
        return await client.chat.completions.with_raw_response.create(**body)

    def read(self, text: str) -> Answer:
        """Read the body of the server's answer."""
        return read_completion(text)

    def refused_logprobs(self, message: str) -> Exception:
        """What is raised where the server refuses to give log-probabilities: here they are left out from now on."""
        return _NoLogprobsError(message)

    def _refusal(self, error: openai.APIStatusError, body: Body) -> Exception:
        """What a status other than success means: try again, ask otherwise, or tell the user."""
        status, headers = error.status_code, error.response.headers
        text = self._safe(error.response.text)
        # Some servers call it their own fault (500), which trying again would not mend.
        if (status in (400, 422) or status >= 500) and "logprobs" in body and "logprob" in text.casefold():
            return self.refused_logprobs(_message(text))
        if status in (408, 409, 429) or status >= 500:
            return PassingError(f"status {status}: {_message(text)}", retry_after(headers))
        env = self.options.api_key_env
        mend = {
            401: f"; check the key in {env}" if self._api_key() else f"; put the key into the variable {env}",
            403: f"; check the key in {env}",
            404: "; check the model's name and the base URL, which ends in /v1 on most servers",
        }.get(status, "")
        if 300 <= status < 400:
            place = self._safe(headers.get("location", "nowhere"))
            mend = f"; it redirects to {_short(place)}, name that as the base URL if it is right"
        return UserError(f"{self.name} refused with status {status}: {_message(text)}{mend}")

    def _api_key(self) -> str:
        """The key, or nothing; read where it is used, so that no object holds it."""
        key = os.environ.get(self.options.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self.options.api_key_env} has characters that cannot be sent")
        return key

    def _safe(self, text: str) -> str:
        """Text from the server, without the key if it echoes it."""
        key = self._api_key()
        return text.replace(key, "[key]") if len(key) >= _SHORTEST_KEY else text


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end from plain code, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()


def read_choice(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of an answer, and the first of its choices.

    Raises:
        PassingError: It is no answer.
    """
    try:
        # Half a surrogate pair is JSON, but cannot be written as UTF-8.
        data = json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise PassingError(f"an answer that is not JSON: {_short(text)}") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise PassingError(f"an answer without choices: {_message(text)}")
    return data, choice


def read_completion(text: str) -> Answer:
    """Read the body of a chat completion.

    Raises:
        PassingError: It is none.
    """
    data, choice = read_choice(text)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else 0
    if not (content is None or isinstance(content, str)):
        raise PassingError(f"an answer without a message: {_short(text)}")
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=content or "",
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        top_logprobs=_first_position(choice),
        model=_text(data.get("model")),
        system_fingerprint=_text(data.get("system_fingerprint")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _first_position(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest tokens at the first generated position; nothing where they are not given in the usual form."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    if any(logprob > _ROUNDING for _, logprob in found):
        return []  # no probability is above 1: whatever these are, they are not what was asked for
    return [(token, logprob) for token, logprob in found if math.isfinite(logprob)]


def _message(text: str) -> str:
    """The message in an error's body, or the body, in one short line."""
    try:
        data = json.loads(text)
        error = data.get("error") or data.get("detail") or data.get("message")
        return _short(str(error.get("message") or error) if isinstance(error, dict) else str(error or text))
    except (ValueError, AttributeError, RecursionError):
        return _short(text)


def _short(text: str) -> str:
    line = " ".join(text.split()) or "(nothing said)"
    return line if len(line) <= 200 else f"{line[:197]}..."


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, as a number or a date; 0 where it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(_LONGEST_WAIT, max(0.0, seconds))  # in this order NaN becomes 0
