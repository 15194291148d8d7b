"""The OpenAI-compatible HTTP application of `serve`: a gate in front of the routes, and one worker for the model."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sailkit.asking.live import GrowingText
from sailkit.asking.results import Answer, judged_results
from sailkit.asking.retrieve import SearchUnavailableError
from sailkit.errors import UserError
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.records import SearchResult
from sailkit.retrieval.instructions import make_result, with_text
from sailkit.text import without_surrogates

AnswerQuestion = Callable[
    [str, Sequence[SearchResult] | None, int, Callable[[Answer], None], Callable[[], bool]], Answer
]
_LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        request_bytes: Largest body of a request.
        queue: Most requests that wait or run.
        seconds: Time of a request, its wait included.
        max_new_tokens: Longest answer.
    """

    request_bytes: int
    queue: int
    seconds: float
    max_new_tokens: int


class GivenResult(BaseModel):
    """A search result that the client has."""

    body: str
    title: str = ""
    url: str = ""


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn of the conversation."""

    role: str
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as text."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A chat completion request; parameters of sampling are ignored, because answers are greedy."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    search_results: list[GivenResult] | None = Field(default=None, max_length=MOST_VERIFIED)

    def question(self) -> str:
        """The last message of the user."""
        texts = [message.text for message in self.messages if message.role == "user"]
        if not texts or not texts[-1].strip():
            raise HTTPException(400, "the request has no message of role user with text")
        return without_surrogates(texts[-1])

    def results(self) -> tuple[SearchResult, ...] | None:
        """The results that the client passed; None to search."""
        if self.search_results is None:
            return None
        return with_text(
            [
                make_result("request", rank, given.title, given.body, given.url)
                for rank, given in enumerate(self.search_results, start=1)
            ]
        )

    def new_tokens(self, most: int) -> int:
        """The longest answer, within the server's limit."""
        return min(most, self.max_completion_tokens or self.max_tokens or most)


class Gate:
    """Checks the key, and reads the body within the limits, before the application sees a request."""

    def __init__(self, app: ASGIApp, key: str | None, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.expected is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            await _error(401, "the key is missing or wrong")(scope, receive, send)
            return
        if scope["method"] == "POST" and not headers.get(b"content-type", b"").startswith(b"application/json"):
            await _error(415, "the body should be application/json")(scope, receive, send)  # forms need no preflight
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                more = True
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.limits.request_bytes:
                        why = f"the request is larger than {self.limits.request_bytes} bytes"
                        await _error(413, why)(scope, receive, send)
                        return
        except TimeoutError:
            await _error(408, f"the request took longer than {self.limits.seconds:g} s")(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, send)


class Worker:
    """Answers requests one after the other in a thread.

    Attributes:
        answered: Number of requests that were answered to their end.
    """

    def __init__(self, answer: AnswerQuestion, limits: Limits, stopping: Callable[[], bool]) -> None:
        self.answered = 0
        self._answer, self._limits, self._stopping = answer, limits, stopping
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def updates(self, request: ChatRequest) -> AsyncGenerator[tuple[Answer, bool]]:
        """The answer as it grows, and whether it is complete.

        Raises:
            HTTPException: The queue is full, or the time was over before the request's turn.
            UserError: The question cannot be answered.
        """
        if self._waiting >= self._limits.queue:
            raise HTTPException(429, "too many requests are waiting; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[Answer | Exception, bool]] = asyncio.Queue()
        deadline, cancelled = time.monotonic() + self._limits.seconds, threading.Event()
        question, results = request.question(), request.results()
        new_tokens = request.new_tokens(self._limits.max_new_tokens)

        def stop() -> bool:
            return cancelled.is_set() or self._stopping() or time.monotonic() > deadline

        def in_loop(call: Callable[..., None], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(call, *args)

        def put(update: Answer | Exception, complete: bool = False) -> None:
            in_loop(queue.put_nowait, (update, complete))

        def work() -> None:
            try:
                if stop():
                    raise HTTPException(503, f"no answer within {self._limits.seconds:g} s", {"Retry-After": "1"})
                put(self._answer(question, results, new_tokens, put, stop), True)
            except Exception as error:
                put(error)
            finally:
                in_loop(self._leave)

        self._waiting += 1
        self._thread.submit(work)
        try:
            complete = False
            while not complete:
                update, complete = await queue.get()
                if isinstance(update, Exception):
                    raise update
                self.answered += complete
                yield update, complete
        finally:
            cancelled.set()  # the client may have gone

    def _leave(self) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """Wait for the answer in progress, which stops at its next token."""
        self._thread.shutdown(cancel_futures=True)


def create_app(model_id: str, worker: Worker, limits: Limits, key: str | None) -> FastAPI:
    """Build the application.

    Args:
        model_id: The model's name for clients.
        worker: Answers the requests.
        limits: What a client may ask for.
        key: The key that clients must send; None to serve everybody who reaches the server.
    """
    app = FastAPI(title="sailkit", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, key=key, limits=limits)
    if key is None:
        # A page in a browser can point a host name of its own at 127.0.0.1.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK, www_redirect=False)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(UserError, _user_error)
    created = int(time.time())

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        entry = {"id": model_id, "object": "model", "created": created, "owned_by": "sailkit"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions")
    async def complete(request: ChatRequest, connection: Request) -> Any:
        if request.model != model_id:
            raise HTTPException(404, f"no model {request.model!r}; this server has {model_id!r}")
        updates = worker.updates(request)
        first, complete = await anext(updates)  # errors up to here have a status of their own
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_id}
        if request.stream:
            usage = bool(request.stream_options and request.stream_options.include_usage)
            return StreamingResponse(_events(head, first, updates, usage), media_type="text/event-stream")
        answer = first
        while not complete:
            answer, complete = await anext(updates)
            if await connection.is_disconnected():
                await updates.aclose()
                break
        message = {"role": "assistant", "content": answer.answer}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answer), "logprobs": None}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer), **_search(answer)}
        return JSONResponse(body)

    return app


async def _events(
    head: dict[str, Any], first: Answer, updates: AsyncGenerator[tuple[Answer, bool]], usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: the judged search results, the pieces of the answer, the end."""

    def event(delta: dict[str, str] | None, reason: str | None = None, **more: Any) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    yield event({"role": "assistant", "content": ""}, **_search(first))
    answer, text = first, GrowingText(cleaned=False)
    try:
        async with contextlib.aclosing(updates):
            async for answer, complete in updates:
                if piece := text.piece(answer.answer, last=complete):
                    yield event({"content": piece})
    except (UserError, HTTPException) as error:
        why = error.detail if isinstance(error, HTTPException) else str(error)
        yield f"data: {json.dumps({'error': {'message': why}})}\n\n"
        return
    yield event({}, _reason(answer), **_search(answer))
    if usage:
        yield event(None, usage=_usage(answer))
    yield "data: [DONE]\n\n"


def _search(answer: Answer) -> dict[str, Any]:
    """The fields that the response has beside those of OpenAI's."""
    return {"search_results": judged_results(answer), "verification": answer.verification}


def _reason(answer: Answer) -> str:
    return "length" if answer.cut_off else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    refused = cast(StarletteHTTPException, error)
    return _error(refused.status_code, str(refused.detail), dict(refused.headers or {}))


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    first = cast(RequestValidationError, error).errors()[0]
    return _error(400, f"{'.'.join(map(str, first['loc'][1:])) or 'the body'}: {first['msg']}")


async def _user_error(_: Request, error: Exception) -> JSONResponse:
    return _error(502 if isinstance(error, SearchUnavailableError) else 400, str(error))
