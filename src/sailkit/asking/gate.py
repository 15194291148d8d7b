"""What stands between clients and a server of this package: limits, the key, and host names that are accepted."""

from __future__ import annotations

import asyncio
import base64
import hmac
from dataclasses import dataclass
from typing import Literal

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]


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


class Gate:
    """Checks the key, and reads the body within the limits, before the application sees a request."""

    def __init__(
        self, app: ASGIApp, key: str | None, limits: Limits, scheme: Literal["Bearer", "Basic"] = "Bearer"
    ) -> None:
        """Put the gate in front of an application.

        Args:
            app: The application.
            key: The key; None to let everybody pass.
            limits: Size and time of a request.
            scheme: How clients send the key; browsers ask for it as the password of `Basic`.
        """
        self.app, self.limits, self.scheme = app, limits, scheme
        self.expected = None if key is None else f"{scheme} {key}".encode()
        if key is not None and scheme == "Basic":
            self.expected = b"Basic " + base64.b64encode(f"sailkit:{key}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.expected is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            how = {"WWW-Authenticate": f'{self.scheme} realm="sailkit"'}
            await error_response(401, "the key is missing or wrong", how)(scope, receive, send)
            return
        # Any page of the web may send a form; JSON needs the server's consent.
        if scope["method"] == "POST" and not headers.get(b"content-type", b"").startswith(b"application/json"):
            await error_response(415, "the body should be application/json")(scope, receive, send)
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
                        await error_response(413, why)(scope, receive, send)
                        return
        except TimeoutError:
            await error_response(408, f"the request took longer than {self.limits.seconds:g} s")(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, send)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's servers write it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers)
