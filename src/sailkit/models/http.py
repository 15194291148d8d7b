"""A client of OpenAI-compatible servers: concurrent requests, retries, a budget, and errors that name their mend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sailkit import retry
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.bounded import ENCODING, PackingError, TooLargeError, limit_body
from sailkit.models.completions import (
    Answer,
    ItemRefusedError,
    PassingError,
    error_message,
    is_about_item,
    is_unsupported,
    read_completion,
    short,
)
from sailkit.models.masking import KeyMask

if TYPE_CHECKING:
    import openai

_MAX_FAILURES_IN_A_ROW = 8  # consecutive failures of unknown kinds before the run stops
_MAX_CAUSE = 4000  # characters of an exception that are searched for the key
# Parameters that some servers refuse, and parameters that some servers know only by another name.
_MAY_BE_LEFT_OUT = ("temperature",)
_MAY_BE_RENAMED = {"max_tokens": "max_completion_tokens"}

Body = dict[str, Any]


class _OtherFormError(Exception):
    """The server requires another form of the request, which the client has recorded; send it again."""


class ChatClient:
    """A client of an OpenAI-compatible server.

    Attributes:
        name: The server's name in errors.
        sent: Number of HTTP requests so far.
        served: Whether the server has answered a request of this form; later refusals are then about the content.
        left_out: Parameters that the server has refused; they are not sent again.
        renamed: Parameters that the server knows by another name.
        tries: Most attempts to send a request.
        backoff: Seconds before the second attempt, doubled for each further attempt.
    """

    tries = 6
    backoff = 1.0

    def __init__(self, name: str, base_url: str, options: ModelOptions) -> None:
        """Prepare the client; nothing is sent.

        Raises:
            UserError: An option cannot be used, or the key cannot be sent.
        """
        if not (options.concurrency >= 1 and options.max_requests >= 0 and options.timeout > 0):
            raise UserError("`concurrency` and `timeout` should be above 0, and `max_requests` at least 0")
        if not options.max_response_mb > 0:
            raise UserError("`max_response_mb` should be above 0")
        self.name = name
        self.base_url = base_url
        self.options = options
        self.sent = 0
        self.served = False
        self.left_out: set[str] = set()
        self.renamed: dict[str, str] = {}
        self._failures_in_a_row = 0
        self._api_key()

    def ask(self, bodies: Mapping[str, Body], keep: Callable[[str, Answer], None]) -> None:
        """Send requests, and pass each answer to `keep` as soon as it arrives.

        After a failure no further request is sent, but open requests are awaited and their answers kept, because they
        are paid for. A refusal of the content of a request is no failure, but an answer with `Answer.refusal`.

        Args:
            bodies: Requests by name.
            keep: Called with the name of a request and its answer.

        Raises:
            UserError: The server refused, did not answer in any attempt, or the budget is used up.
        """
        _run(self._ask_all(bodies, keep))

    async def _ask_all(self, bodies: Mapping[str, Body], keep: Callable[[str, Answer], None]) -> None:
        import openai

        slots, stop = asyncio.Semaphore(self.options.concurrency), asyncio.Event()
        # A redirect would send prompts to a server that the user did not name, and turn a POST into a GET.
        hooks = {"response": [limit_body(self.most_bytes())]}
        headers = {"Accept-Encoding": ENCODING}
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None, event_hooks=hooks, headers=headers)
        key = self._api_key() or "none"  # a local server needs no key, but the library does
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
        """Send a request until it is answered, its attempts are used up, or another request has failed finally."""
        failures = 0
        while not stop.is_set():
            try:
                answer = await self._send(client, self._as_taken(body))
                self.served, self._failures_in_a_row = True, 0
                return answer
            except _OtherFormError:
                continue
            except ItemRefusedError as refusal:
                return self.refused(str(refusal))
            except PassingError as failure:
                failures += 1
                if failures == self.tries:
                    if failure.replied and self._others_are_answered():
                        return self.refused(f"no answer in {failures} tries, the last: {failure}")
                    raise UserError(
                        f"{self.name}: gave up after {failures} tries, the last: {failure}; "
                        "run the same command again, it continues where it stopped"
                    ) from None
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), retry.pause(failures, self.backoff, failure.wait))
        return None

    async def _send(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """One HTTP request, counted before it is sent."""
        import openai

        limit = self.options.max_requests
        if limit and self.sent >= limit:
            raise UserError(
                f"{self.name}: the {limit} requests of `max_requests` are used up; "
                "run the same command again, it continues where it stopped"
            )
        self.sent += 1
        try:
            # The limit is for the whole response; the HTTP client's own timeout starts again with every byte.
            async with asyncio.timeout(self.options.timeout):
                response = await self.post(client, body)
        except TimeoutError:
            raise PassingError(f"no answer within {self.options.timeout:g} s (`timeout`)") from None
        except TooLargeError:
            raise UserError(
                f"{self.name}: an answer larger than {self.options.max_response_mb:g} MB; "
                "raise `max_response_mb` if that is right"
            ) from None
        except PackingError as error:
            raise PassingError(str(error)) from None
        except openai.APIStatusError as error:
            raise self._refusal(error, body) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = self.mask().text(str(cause)[:_MAX_CAUSE]) or type(cause).__name__
            raise PassingError(f"the connection failed ({reason})") from None
        return self.read(response.content.decode("utf-8", "replace"))

    async def post(self, client: openai.AsyncOpenAI, body: Body) -> Any:
        """Send one request: a chat completion, unless a subclass overrides it."""
        return await client.chat.completions.with_raw_response.create(**body)

    def read(self, text: str) -> Answer:
        """Read the body of the server's answer."""
        return read_completion(text, self.mask())

    def refused(self, reason: str) -> Answer:
        """An answer that records a refusal of the request's content."""
        return Answer("", refusal=reason)

    def refused_logprobs(self, message: str) -> Exception:
        """Stop requesting log-probabilities, which the server refuses, and return the error to raise."""
        self.left_out |= {"logprobs", "top_logprobs"}
        return _OtherFormError(message)

    def _as_taken(self, body: Body) -> Body:
        """A request with the parameters that the server accepts, under its names."""
        return {self.renamed.get(name, name): value for name, value in body.items() if name not in self.left_out}

    def _refusal(self, error: openai.APIStatusError, body: Body) -> Exception:
        """The error for an HTTP status: to retry, to send in another form, to record as a refusal, or for the user."""
        status, headers, text = error.status_code, error.response.headers, error.response.text
        message = error_message(text, self.mask())
        # Some servers answer with 500 if they have no log-probabilities; a retry would not help.
        if (status in (400, 403, 422) or status >= 500) and "logprobs" in body and "logprob" in text.casefold():
            return self.refused_logprobs(message)
        if status in (400, 422) and self._learns_form(body, text):
            return _OtherFormError(message)
        if retry.is_transient(status):
            # Status 500 may be about the content; higher ones are about the server.
            return PassingError(
                f"status {status}: {message}", retry.retry_after(headers.get("retry-after")), replied=status == 500
            )
        if self._is_about_item(status, text, body):
            return ItemRefusedError(f"status {status}: {message}")
        env = self.options.api_key_env
        mend = {
            401: f"; check the key in {env}" if self._api_key() else f"; put the key into the variable {env}",
            403: f"; check the key in {env}",
            404: "; check the model's name and the base URL, which ends in /v1 on most servers",
        }.get(status, "")
        if 300 <= status < 400:
            target = self.mask().text(headers.get("location", "nowhere"))
            mend = f"; it redirects to {short(target)}, name that as the base URL if it is right"
        return UserError(f"{self.name} refused with status {status}: {message}{mend}")

    def _learns_form(self, body: Body, text: str) -> bool:
        """Record a parameter that later requests must rename or leave out; whether the error names one."""
        for name, new_name in _MAY_BE_RENAMED.items():
            if name in body and new_name in text and is_unsupported(text, name):
                self.renamed[name] = new_name
                return True
        for name in _MAY_BE_LEFT_OUT:
            if name in body and is_unsupported(text, name):
                self.left_out.add(name)
                return True
        return False

    def _is_about_item(self, status: int, text: str, body: Body) -> bool:
        """Whether a refusal is about the content: by its words, or because the server answers other requests."""
        most = max((body[name] for name in ("max_tokens", "max_completion_tokens") if name in body), default=0)
        # A proxy that blocks every request answers with a page, whose words may be those of a content filter.
        is_page = text.lstrip().startswith("<")
        if status == 413 or (status in (400, 403, 422, 451) and not is_page and is_about_item(text, most)):
            return True
        return status in (400, 422) and self._others_are_answered()

    def _others_are_answered(self) -> bool:
        """Whether the server answers other requests: few have failed since the last answer."""
        self._failures_in_a_row += self.served
        return self.served and self._failures_in_a_row < _MAX_FAILURES_IN_A_ROW

    def most_bytes(self) -> int:
        """Most bytes of a response."""
        return int(self.options.max_response_mb * 1e6)

    def _api_key(self) -> str:
        """The key, or an empty string; it is read when it is used, so that no object stores it."""
        key = os.environ.get(self.options.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self.options.api_key_env} has characters that cannot be sent")
        return key

    def mask(self) -> KeyMask:
        """The mask that removes the key from texts of the server."""
        return KeyMask(self._api_key())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine from synchronous code, also if an event loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()
