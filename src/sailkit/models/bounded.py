"""Limits the size of HTTP responses after decompression, because servers are not trusted."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

ENCODING = "gzip"  # the `Accept-Encoding` of requests; deflate is decompressed too
_PIECE = 2**18  # bytes that are decompressed at a time, so that a small response cannot fill the memory


class TooLargeError(Exception):
    """A response is larger than the limit."""


class PackingError(Exception):
    """The compression of a response is unknown or damaged."""


def limit_body(limit: int) -> Callable[[Any], Awaitable[None]]:
    """A hook for httpx's `event_hooks` that bounds the decompressed size of each response.

    Args:
        limit: Bytes.

    Returns:
        The hook. Reading a larger response raises `TooLargeError`, one that cannot be decompressed `PackingError`.
    """

    async def hook(response: Any) -> None:
        encoding = response.headers.pop("content-encoding", "").strip().casefold()
        response.stream = _limited(response.stream, encoding, limit)

    return hook


def _limited(stream: Any, encoding: str, limit: int) -> Any:
    # The response must keep httpx's stream class; depending on its release, openai uses httpx or httpx2.
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    class Limited(base):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpack, size = _unpacker(encoding), 0
            async for chunk in stream:
                for piece in unpack(chunk):
                    size += len(piece)
                    if size > limit:
                        raise TooLargeError
                    yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    if encoding in ("", "identity"):
        return lambda chunk: iter((chunk,))
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise PackingError(f"an answer packed as {encoding[:20]!r}, which was not asked for")
    kind = zlib.MAX_WBITS + 32  # gzip's header or zlib's
    state = zlib.decompressobj(kind)

    def unpack(chunk: bytes) -> Iterator[bytes]:
        nonlocal state
        try:
            while chunk:
                if state.eof:  # a gzip stream may have several members
                    state = zlib.decompressobj(kind)
                yield state.decompress(chunk, _PIECE)
                chunk = state.unused_data if state.eof else state.unconsumed_tail
        except zlib.error:
            raise PackingError("an answer that cannot be unpacked") from None

    return unpack
