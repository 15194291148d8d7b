"""A server for tests, public so that users can test with it too: real HTTP, only its answers are invented."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Mishap = Literal[
    "silent", "dripping", "hang_up", "cut_off", "not_json", "no_choices", "null_message", "null_content", "no_logprobs",
    "endless", "packed",
]  # fmt: skip
Behaviour = Literal["ok"] | Mishap | int


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived.

    Attributes:
        at: When, in seconds of `time.monotonic`.
        path: The path of the URL.
        headers: Headers, names in lower case.
        body: The JSON body.
    """

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class MisbehavingServer:
    """A server of chat completions on 127.0.0.1 that fails where its script says so.

        with MisbehavingServer({1: 429, 2: "cut_off"}) as server:
            model = load_model(f"endpoint:any@{server.url}")

    Its behaviours:

    * `ok`: answer.
    * a number: fail with that HTTP status; the error's message echoes the request's key, as some proxies do.
    * `silent`: say nothing; `dripping`: send a space now and then, and never an answer.
    * `hang_up`: close the connection; `cut_off`: close it within the answer.
    * `not_json`, `no_choices`, `null_message`: send an unusable answer with status 200.
    * `null_content`: answer with a message that has no text.
    * `no_logprobs`: refuse a request for log-probabilities with status 400, and answer any other.
    * `endless`: send an answer that does not end; `packed`: one of a gigabyte, packed into one megabyte.

    Attributes:
        script: Number of a request, from 1 -> the behaviour.
        otherwise: The behaviour for all other requests.
        text: The text of answers and of error messages.
        message: Fields of the answer's message that replace the default ones.
        choice: Fields of the choice, likewise.
        usage: Token counts, likewise.
        refuse: Given a request, the status and body with which it is refused, or None.
        logprobs: Tokens at the first position -> log-probability; None ignores requests for them.
        echo: Given a request for a text completion, further fields of its choice, such as `prompt_logprobs`.
        seconds: How long an answer takes; failures come at once.
        headers: Sent with every answer and error, such as Retry-After.
        requests: The requests received, in order.
        most_at_once: Most requests that were open at the same time.
    """

    script: Mapping[int, Behaviour] = field(default_factory=dict)
    otherwise: Behaviour = "ok"
    text: str = "Yes."
    message: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)
    refuse: Callable[[dict[str, Any]], tuple[int, Any] | None] | None = None
    logprobs: Mapping[str, float] | None = None
    echo: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list, init=False)
    most_at_once: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._open = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append(Received(time.monotonic(), handler.path, headers, json.loads(raw)))
            number = len(self.requests)
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            self._behave(handler, self.script.get(number, self.otherwise), self.requests[number - 1])
        finally:
            with self._lock:
                self._open -= 1

    def _behave(self, handler: BaseHTTPRequestHandler, behaviour: Behaviour, request: Received) -> None:
        refusal = self.refuse(request.body) if self.refuse and behaviour == "ok" else None
        if refusal is not None:
            self._send(handler, refusal[0], refusal[1] if isinstance(refusal[1], str) else json.dumps(refusal[1]))
        elif behaviour in ("endless", "packed"):
            self._flood(handler, packed=behaviour == "packed")
        elif behaviour == "no_logprobs" and "logprobs" in request.body:
            self._send(handler, 400, json.dumps({"error": {"message": "Parameter top_logprobs is not supported."}}))
        elif isinstance(behaviour, int):
            message = f"not for {request.headers.get('authorization')}: {self.text}"
            self._send(handler, behaviour, json.dumps({"error": {"message": message}}))
        elif behaviour in ("silent", "dripping"):
            self._stall(handler, drip=behaviour == "dripping")
        elif behaviour == "hang_up":
            handler.close_connection = True
        elif behaviour == "not_json":
            self._send(handler, 200, "<html>The model is having lunch</html>")
        else:
            self._closing.wait(self.seconds)
            body = json.dumps(self._completion(behaviour, request.body))
            self._send(handler, 200, body, cut=10 if behaviour == "cut_off" else 0)

    def _completion(self, behaviour: Behaviour, request: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": None if behaviour == "null_content" else self.text}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        message |= self.message
        choice["message"] = None if behaviour == "null_message" else message
        if "prompt" in request:
            choice |= {"text": self.text, **(self.echo(request) if self.echo else {})}
        if request.get("logprobs") and self.logprobs is not None:
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in self.logprobs.items()]
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top[: request.get("top_logprobs", 0)]}]}
        choice |= self.choice
        return {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": f"{request['model']}-served",
            "system_fingerprint": "fp_0",
            "choices": [] if behaviour == "no_choices" else [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, **self.usage},
        }

    def _send(self, handler: BaseHTTPRequestHandler, status: int, text: str, cut: int = 0) -> None:
        data = text.encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **self.headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[: len(data) - cut])
        handler.close_connection = handler.close_connection or cut > 0

    def _flood(self, handler: BaseHTTPRequestHandler, *, packed: bool) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        if packed:
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS + 16)
        sent = 0
        while not self._closing.is_set() and not (packed and sent > 10**9):
            piece = b" " * 2**20
            handler.wfile.write(packer.compress(piece) if packed else piece)
            sent += len(piece)
        handler.close_connection = True

    def _stall(self, handler: BaseHTTPRequestHandler, *, drip: bool) -> None:
        if drip:
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        while not self._closing.wait(0.02):
            if drip:
                handler.wfile.write(b" ")
        handler.close_connection = True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        # A client that goes away is what is being tested, not an error.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(server: MisbehavingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as real servers do

        def do_POST(self) -> None:
            server._answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
