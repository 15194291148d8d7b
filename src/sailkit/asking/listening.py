"""What servers share: the key of their clients, the port, and stopping on a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from sailkit.errors import UserError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")  # the names of requests that the server accepts without a key


def client_key(variable: str | None, host: str) -> str | None:
    """The key of the clients, from an environment variable; None for a server that only this machine reaches.

    Args:
        variable: Name of the environment variable, or None.
        host: The address to listen on.

    Raises:
        UserError: The variable is empty, or missing although other machines can reach the host.
    """
    key = os.environ.get(variable, "").strip() if variable else None
    if variable and not key:
        raise UserError(f"`key_env` {variable}: this environment variable is empty; set it to the key of the clients")
    if key is None and host not in _LOOPBACK:
        raise UserError(f"`host` {host} can be reached from other machines: name a variable with a key in `key_env`")
    return key


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port.

    Raises:
        UserError: The port is out of range or taken, or there is no such host.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"`port` should be from 0 to 65535, not {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); choose another `port` or `host`") from None


def url_of(host: str, listener: socket.socket) -> str:
    """The URL of a server without a path."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def quiet_signals() -> Iterator[None]:
    """Let uvicorn stop on SIGINT and SIGTERM without ending the process by the signal, which it raises again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(number: int, frame: FrameType | None) -> None: ...

    previous = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
