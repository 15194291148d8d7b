"""Asking an OpenAI-compatible server: a few requests at a time, tried again, within a budget; what it says is read."""

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

_MOST_IN_A_ROW = 8  # failures of unknown kinds, with no answer between them, before all are taken to fail
_ENOUGH_SAID = 4000  # characters of a failure from which its line is made
# What a server may not take at all, or under another name only.
_MAY_BE_LEFT_OUT = ("temperature",)
_MAY_BE_RENAMED = {"max_tokens": "max_completion_tokens"}

Body = dict[str, Any]


class _OtherwiseError(Exception):
    """The server wants to be asked in another form, which is known now."""


class ChatClient:
    """The way to one server.

    Attributes:
        name: What errors call it.
        sent: HTTP requests so far.
        served: Whether it has answered a request like these, so that a refusal is not about how they are asked.
        left_out: Parameters that the server has refused, which are not sent any more.
        renamed: Parameters that it knows by another name.
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
        self._in_a_row = 0
        self._api_key()

    def ask(self, bodies: Mapping[str, Body], keep: Callable[[str, Answer], None]) -> None:
        """Send requests and hand over each answer as soon as it is there.

        After a failure nothing more is sent, but what is on its way is waited for and handed over: it is paid for. A
        refusal of what one request holds is no failure but its answer, with `Answer.refusal`.

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
        hooks = {"response": [limit_body(self.most_bytes())]}
        packing = {"Accept-Encoding": ENCODING}
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None, event_hooks=hooks, headers=packing)
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
            try:
                answer = await self._send(client, self._as_taken(body))
                self.served, self._in_a_row = True, 0
                return answer
            except _OtherwiseError:
                continue
            except ItemRefusedError as refusal:
                return self.refused(str(refusal))
            except PassingError as failure:
                tried += 1
                if tried == self.tries:
                    if failure.replied and self._others_are_answered():
                        return self.refused(f"no answer in {tried} tries, the last: {failure}")
                    raise UserError(
                        f"{self.name}: gave up after {tried} tries, the last: {failure}; "
                        "run the same command again, it goes on where it stopped"
                    ) from None
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), retry.pause(tried, self.backoff, failure.wait))
        return None

    async def _send(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """One HTTP request, counted before it is sent."""
        import openai

        limit = self.options.max_requests
        if limit and self.sent >= limit:
            raise UserError(
                f"{self.name}: the {limit} requests of `max_requests` are used up; "
                "run the same command again, it goes on where it stopped"
            )
        self.sent += 1
        try:
            # Of the whole exchange; the client's own timeout starts anew with every byte.
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
            said = self.mask().text(str(cause)[:_ENOUGH_SAID]) or type(cause).__name__
            raise PassingError(f"the connection failed ({said})") from None
        return self.read(response.content.decode("utf-8", "replace"))

    async def post(self, client: openai.AsyncOpenAI, body: Body) -> Any:
        """Send one request: a chat completion, unless a subclass asks for something else."""
        return await client.chat.completions.with_raw_response.create(**body)

    def read(self, text: str) -> Answer:
        """Read the body of the server's answer."""
        return read_completion(text, self.mask())

    def refused(self, reason: str) -> Answer:
        """The answer to an item whose content the server refuses."""
        return Answer("", refusal=reason)

    def refused_logprobs(self, message: str) -> Exception:
        """What is raised where the server refuses to give log-probabilities: here they are left out from now on."""
        self.left_out |= {"logprobs", "top_logprobs"}
        return _OtherwiseError(message)

    def _as_taken(self, body: Body) -> Body:
        """A request in the form that the server takes."""
        return {self.renamed.get(name, name): value for name, value in body.items() if name not in self.left_out}

    def _refusal(self, error: openai.APIStatusError, body: Body) -> Exception:
        """What a status other than success means: try again, ask otherwise, the item's outcome, or tell the user."""
        status, headers, text = error.status_code, error.response.headers, error.response.text
        message = error_message(text, self.mask())
        # Some servers call it their own fault (500), which trying again would not mend.
        if (status in (400, 403, 422) or status >= 500) and "logprobs" in body and "logprob" in text.casefold():
            return self.refused_logprobs(message)
        if status in (400, 422) and self._learns_form(body, text):
            return _OtherwiseError(message)
        if retry.is_transient(status):
            # The other statuses above it are about the server, whatever is asked.
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
            place = self.mask().text(headers.get("location", "nowhere"))
            mend = f"; it redirects to {short(place)}, name that as the base URL if it is right"
        return UserError(f"{self.name} refused with status {status}: {message}{mend}")

    def _learns_form(self, body: Body, text: str) -> bool:
        """Whether an error says how to ask instead, as models that think do; that is kept for what follows."""
        for name, other in _MAY_BE_RENAMED.items():
            if name in body and other in text and is_unsupported(text, name):
                self.renamed[name] = other
                return True
        for name in _MAY_BE_LEFT_OUT:
            if name in body and is_unsupported(text, name):
                self.left_out.add(name)
                return True
        return False

    def _is_about_item(self, status: int, text: str, body: Body) -> bool:
        """Whether a refusal is about what this request holds: by its kind, or because others like it are answered."""
        most = max((body[name] for name in ("max_tokens", "max_completion_tokens") if name in body), default=0)
        if status == 413 or (status in (400, 403, 422, 451) and is_about_item(text, most)):
            return True
        return status in (400, 422) and self._others_are_answered()

    def _others_are_answered(self) -> bool:
        """Whether requests like one that failed are answered, and not too many have failed since the last of them."""
        self._in_a_row += self.served
        return self.served and self._in_a_row < _MOST_IN_A_ROW

    def most_bytes(self) -> int:
        """How large an answer may be."""
        return int(self.options.max_response_mb * 1e6)

    def _api_key(self) -> str:
        """The key, or nothing; read where it is used, so that no object holds it."""
        key = os.environ.get(self.options.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self.options.api_key_env} has characters that cannot be sent")
        return key

    def mask(self) -> KeyMask:
        """What takes the key out of the server's words."""
        return KeyMask(self._api_key())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end from plain code, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()
