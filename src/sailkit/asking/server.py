"""The OpenAI-compatible HTTP application of `serve`."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal, cast

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sailkit.asking.gate import LOOPBACK, Gate, Limits, error_response
from sailkit.asking.live import GrowingText
from sailkit.asking.results import Answer, judged_results
from sailkit.asking.retrieve import NotRecordedError, SearchUnavailableError
from sailkit.asking.worker import Worker
from sailkit.errors import UserError
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.records import SearchResult
from sailkit.retrieval.instructions import make_result, with_text
from sailkit.text import without_surrogates


class GivenResult(BaseModel):
    """A search result that the client has."""

    body: str
    title: str = ""
    url: str = ""


class ChatMessage(BaseModel):
    """A turn of the conversation; the content is only read if it is the question."""

    role: str
    content: Any = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ChatRequest(BaseModel):
    """A chat completion request; parameters of sampling are ignored, because answers are greedy.

    A parameter may be null where OpenAI's may be.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    stop: Annotated[Annotated[list[str], Field(max_length=4)] | None, BeforeValidator(_as_list)] = None
    search_results: list[GivenResult] | None = Field(default=None, max_length=MOST_VERIFIED)

    def question(self) -> str:
        """The last message of the user."""
        contents = [message.content for message in self.messages if message.role == "user"] or [None]
        parts = contents[-1] if isinstance(contents[-1], list) else [{"text": contents[-1] or ""}]
        text = ""
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise HTTPException(400, "the last message of role user: only text is understood")
            text += part["text"]
        if not text.strip():
            raise HTTPException(400, "the request has no message of role user with text")
        return without_surrogates(text)

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

    def until(self) -> list[str]:
        """The texts before which the answer ends."""
        return [text for text in self.stop or () if text]


class ModelFailedError(UserError):
    """The model gave no answer, for a reason that is not the question's."""


def create_app(model_id: str, worker: Worker[Answer], limits: Limits, key: str | None) -> FastAPI:
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
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
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
        updates = worker.updates(
            request.question(), request.results(), request.new_tokens(limits.max_new_tokens), request.until()
        )
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
        why = error.detail if isinstance(error, HTTPException) else _for_client(error)
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


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    refused = cast(StarletteHTTPException, error)
    return error_response(refused.status_code, str(refused.detail), dict(refused.headers or {}))


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    first = cast(RequestValidationError, error).errors()[0]
    return error_response(400, f"{'.'.join(map(str, first['loc'][1:])) or 'the body'}: {first['msg']}")


async def _user_error(_: Request, error: Exception) -> JSONResponse:
    failed = isinstance(error, (SearchUnavailableError, ModelFailedError))
    return error_response(502 if failed else 400, _for_client(cast(UserError, error)))


def _for_client(error: UserError) -> str:
    """The message for a client: without the path of a run, and other questions' ids."""
    if isinstance(error, NotRecordedError):
        return "there are no recorded search results for this question"
    return str(error)
