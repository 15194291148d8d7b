"""Send a single query to a web engine: SearXNG's JSON API over HTTP, or ddgs."""

from __future__ import annotations

import functools
import html
import json
import math
import ssl
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from sailkit import __version__, retry
from sailkit.errors import UserError
from sailkit.records import SearchResult
from sailkit.retrieval.instructions import make_result
from sailkit.text import without_markup
from sailkit.urls import server_url

_MAX_BYTES = 4_000_000  # of one answer


class SearchFailedError(Exception):
    """A search failed.

    Attributes:
        wait: Seconds to wait before a retry; None if a retry would fail too.
    """

    def __init__(self, why: str, wait: float | None = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def searxng_server(url: str | None) -> str:
    """The base URL of a SearXNG server.

    Raises:
        UserError: The URL is missing, or not a plain http(s) URL.
    """
    if url is None:
        raise UserError("`engine='searxng'` needs `searxng_url`")
    return server_url(url, "`searxng_url`", like="http://localhost:8080").removesuffix("/search")


def search_searxng(server: str, query: str, timeout: float) -> list[SearchResult]:
    """Send a query to SearXNG's JSON API (https://docs.searxng.org/dev/search_api.html).

    Args:
        server: Base URL of the server.
        query: The query.
        timeout: Seconds for the whole response.

    Raises:
        SearchFailedError: The server did not respond, or without results.
    """
    address = f"{server}/search?{urllib.parse.urlencode({'q': query, 'format': 'json'})}"
    try:
        answer = json.loads(_get(address, timeout).decode("utf-8"))
    except (ValueError, RecursionError):
        raise SearchFailedError("an answer that is not JSON") from None
    rows = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise SearchFailedError("JSON without a list of results", wait=None)
    if not rows and (unresponsive := answer.get("unresponsive_engines")):
        raise SearchFailedError(f"its engines did not answer: {unresponsive}")
    return _results("searxng", rows, "content", "url")


def _get(address: str, timeout: float) -> bytes:
    """Return the body of a GET request, read up to a limit of bytes and of time."""
    import httpx2 as httpx

    # The limit counts raw bytes, and iter_raw does not decode: ask for an uncompressed body.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": f"sailkit/{__version__}"}
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        with (
            # A redirect would carry the query to another server than the one named. A new client for each request
            # keeps no cookies.
            httpx.Client(verify=_tls(), timeout=timeout, follow_redirects=False) as client,
            client.stream("GET", address, headers=headers) as response,
        ):
            if not response.is_success:
                hint = "; has its settings.yml json among search.formats?" if response.status_code == 403 else ""
                wait = retry.retry_after(response.headers.get("Retry-After"))
                transient = retry.is_transient(response.status_code)
                raise SearchFailedError(f"HTTP {response.status_code}{hint}", wait if transient else None)
            try:
                for part in response.iter_raw():
                    data += part
                    if len(data) > _MAX_BYTES:
                        raise SearchFailedError(f"an answer of more than {_MAX_BYTES} bytes", wait=None)
                    if time.monotonic() > deadline:  # the socket's timeout restarts with every byte
                        raise SearchFailedError(f"no whole answer within {timeout:g} s")
            except httpx.RemoteProtocolError:
                raise SearchFailedError("the answer was cut off") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise SearchFailedError(str(error) or type(error).__name__) from None
    return bytes(data)


@functools.cache
def _tls() -> ssl.SSLContext:
    """A TLS context that trusts the system's certificate authorities, including those of an organisation."""
    return ssl.create_default_context()


def search_ddgs(query: str, k: int, timeout: float) -> list[SearchResult]:
    """Send a query through ddgs.

    The library does not distinguish engines that refused (HTTP 403, 429) from engines without results. No results are
    therefore a failure, and a search with ddgs never has the outcome `empty`.

    Args:
        query: The query.
        k: Maximum results.
        timeout: Seconds for the search.

    Raises:
        SearchFailedError: No engine returned results.
    """
    import ddgs

    try:
        rows = ddgs.DDGS(timeout=math.ceil(timeout)).text(query, max_results=k)
    except ddgs.exceptions.DDGSException as error:
        raise SearchFailedError(str(error) or type(error).__name__) from None
    return _results("web", rows, "body", "href")


def _results(engine: str, rows: Sequence[Any], body: str, url: str) -> list[SearchResult]:
    """Ranked results from an engine's rows; mark-up becomes plain text, and only web addresses are kept as URLs."""
    results = []
    for rank, row in enumerate(rows, start=1):
        fields = row if isinstance(row, dict) else {}
        address = fields.get(url)
        on_the_web = isinstance(address, str) and address.lower().startswith(("http://", "https://"))
        title, text = (_plain(fields.get(name)) for name in ("title", body))
        results.append(make_result(engine, rank, title, text, address if on_the_web else ""))
    return results


def _plain(text: object) -> str:
    return " ".join(html.unescape(without_markup(text, of_page=True)).split()) if isinstance(text, str) else ""
