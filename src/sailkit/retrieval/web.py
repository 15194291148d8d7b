"""Engines on the web: asked politely, tried again, and every answer frozen in a snapshot that replaces the network."""

from __future__ import annotations

import contextlib
import email.message
import html
import http.client
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from sailkit import __version__, runs
from sailkit.errors import UserError, missing_extra
from sailkit.files import jsonl
from sailkit.records import Instruction, SearchOutcome, SearchResult
from sailkit.retrieval.base import EngineResults
from sailkit.retrieval.instructions import make_result
from sailkit.retrieval.local import query

WebEngine = Literal["web", "searxng"]
SNAPSHOT = "snapshot.jsonl"
QUERY_CHARACTERS = 400  # engines refuse longer ones; a query ends with a whole word
_MOST_BYTES = 4_000_000  # of one answer
_LONGEST_WAIT = 60.0  # seconds that a server may ask to be left alone
_GIVE_UP = 10  # queries in a row without an answer: the engine is down, or has had enough of us
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class _FailedError(Exception):
    """No answer to one query; `wait` is how long to leave the server alone, None where asking again is no use."""

    def __init__(self, why: str, wait: float | None = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the snapshot: what an engine said about a query, when it was asked for k results."""

    k: int
    outcome: SearchOutcome
    results: tuple[SearchResult, ...]


class WebSearcher:
    """Asks one engine, one query at a time; what the snapshot holds is not asked again."""

    batch = 8

    def __init__(
        self,
        engine: WebEngine,
        snapshot: Path,
        url: str | None = None,
        *,
        offline: bool = False,
        interval: float = 1.0,
        timeout: float = 10.0,
        tries: int = 4,
    ) -> None:
        """Prepare to ask; nothing is sent and no file is made.

        Args:
            engine: `web` (ddgs) or `searxng`.
            snapshot: JSON Lines to which every answer is appended.
            url: The SearXNG server.
            offline: Read the snapshot only; what is not in it is `unavailable`.
            interval: Least seconds between two requests; also the wait before the second try, doubled after.
            timeout: Seconds for one request.
            tries: How often a query is sent before it is `unavailable`.

        Raises:
            UserError: A library is not installed, the URL or a number cannot be used, or there is no snapshot to read.
        """
        for flag, value in (("`interval`", interval), ("`timeout`", timeout)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag} should be above 0, not {value}")
        if tries < 1:
            raise UserError(f"`tries` should be at least 1, not {tries}")
        if offline and not snapshot.is_file():
            raise UserError(f"`offline` reads a snapshot, and there is no file {snapshot}")
        self.name: str = engine
        self._facts: dict[str, Any] = {"engine": engine, "version": 1, "query_characters": QUERY_CHARACTERS}
        self._ask: Callable[[str, int, float], list[SearchResult]]
        if engine == "searxng":
            server = _server(url)
            self._facts["searxng_url"] = server
            self._ask = lambda text, _, seconds: _ask_searxng(server, text, seconds)
        else:
            if not offline:
                _ddgs()
            self._ask = _ask_ddgs
        if offline:
            self._facts["snapshot_sha256"] = jsonl.file_fingerprint([snapshot])
        self._path, self._offline = snapshot, offline
        self.live = not offline
        self._interval, self._timeout, self._tries = interval, timeout, tries
        self._known: dict[str, _Entry] | None = None
        self._last = -math.inf
        self._failures = 0
        self._lock = filelock.FileLock(f"{snapshot}.lock")

    def describe(self) -> dict[str, Any]:
        """Everything about the searcher that decides its results, but for the web itself."""
        return dict(self._facts)

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """What the snapshot holds for each instruction, else what the engine says now.

        Raises:
            UserError: The snapshot cannot be read or written, or the engine has not answered many queries in a row.
        """
        if self._known is None:
            self._known = self._open()
        return [[self._search(web_query(one), k, self._known)] for one in instructions]

    def close(self) -> None:
        """Let others write to the snapshot."""
        self._lock.release()
        self._known = None

    def _search(self, text: str, k: int, known: dict[str, _Entry]) -> EngineResults:
        if not text:
            return EngineResults(self.name, "left_out")
        entry = known.get(text)
        if entry is None and self._offline:
            return EngineResults(self.name, "unavailable")
        if entry is None or (entry.k < k and len(entry.results) < k and not self._offline):
            asked = self._freeze(text, k)
            if entry is None or asked.outcome != "unavailable":
                entry = known[text] = asked
        return EngineResults(self.name, entry.outcome, entry.results[:k])

    def _freeze(self, text: str, k: int) -> _Entry:
        """Ask, and write down what came of it before it is used."""
        results, why = self._patiently(text, k)
        outcome: SearchOutcome = "unavailable" if results is None else "found" if results else "empty"
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [{"rank": one.rank, "title": one.title, "body": one.body, "url": one.url} for one in results or ()]
        row = {"engine": self.name, "query": text, "k": k, "at": at, "outcome": outcome, "results": rows}
        try:
            with self._path.open("ab") as stream:
                stream.write(jsonl.encode(jsonl.dumps(row | ({"why": why} if why else {})) + "\n"))
        except OSError as error:
            raise jsonl.writing_failed(self._path, error) from None
        self._failures = self._failures + 1 if results is None else 0
        if results is None:
            runs.notice(f"{self.name}: no answer: {why}")
        if self._failures >= _GIVE_UP:
            raise UserError(
                f"{self.name} has not answered {_GIVE_UP} queries in a row (the last: {why}); "
                "the same command goes on where it stopped"
            )
        return _entry(row, "")

    def _patiently(self, text: str, k: int) -> tuple[list[SearchResult] | None, str]:
        """Results, or None and why there are none, after several tries."""
        why = ""
        for number in range(self._tries):
            time.sleep(max(0.0, self._last + self._interval - time.monotonic()))
            try:
                return self._ask(text, k, self._timeout), ""
            except _FailedError as failure:
                why = " ".join(str(failure).split())[:200]
                if failure.wait is None:
                    break
                if number + 1 < self._tries:
                    time.sleep(min(max(failure.wait, self._interval * 2**number), _LONGEST_WAIT))
            finally:
                self._last = time.monotonic()
        return None, why

    def _open(self) -> dict[str, _Entry]:
        """Read the snapshot; for writing, hold it alone and cut off what a killed run left of a line."""
        try:
            if not self._offline:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
            data = self._path.read_bytes() if self._path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if not self._offline and len(whole) < len(data):
                with self._path.open("r+b") as stream:
                    stream.truncate(len(whole))
        except filelock.Timeout:
            raise UserError(f"{self._path} is in use by another sailkit process; wait for it") from None
        except OSError as error:
            raise jsonl.reading_failed(self._path, error) from None
        known = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            where = f"{self._path}, line {number}"
            try:
                row = json.loads(line)
                engine, text = row["engine"], row["query"]
                entry = _entry(row, where)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(f"{where}: not a line of a snapshot") from None
            # The last answer counts. What was unavailable is asked again, or is unavailable again where none is asked.
            if engine == self.name and isinstance(text, str) and entry.outcome != "unavailable":
                known[text] = entry
        return known


def _entry(row: dict[str, Any], where: str) -> _Entry:
    outcome, k, at = row["outcome"], row["k"], row["at"]
    if outcome not in ("found", "empty", "unavailable") or not isinstance(k, int) or not isinstance(at, str):
        raise ValueError(where)
    results = (
        make_result(row["engine"], int(one["rank"]), one["title"], one["body"], one["url"], at)
        for one in row["results"]
    )
    return _Entry(k, outcome, tuple(results))


def web_query(instruction: Instruction) -> str:
    """What an engine is asked: the words that local engines get, as many as fit into 400 characters."""
    text = "".join(c if c.isprintable() else " " for c in query(instruction))
    text = " ".join(text.encode("utf-8", "ignore").decode().split())
    if len(text) <= QUERY_CHARACTERS:
        return text
    return text[: QUERY_CHARACTERS + 1].rpartition(" ")[0] or text[:QUERY_CHARACTERS]


def _server(url: str | None) -> str:
    if url is None:
        raise UserError("`engine='searxng'` needs `searxng_url`")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password or parts.query or parts.fragment or not url.isprintable():
        raise UserError("`searxng_url` should be like http://localhost:8080: no other scheme, no password, no query")
    return url.rstrip("/").removesuffix("/search")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the query to another place than the one named."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _ask_searxng(server: str, text: str, seconds: float) -> list[SearchResult]:
    """One request to SearXNG's JSON API (https://docs.searxng.org/dev/search_api.html)."""
    address = f"{server}/search?{urllib.parse.urlencode({'q': text, 'format': 'json'})}"
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        address, headers={"Accept": "application/json", "User-Agent": f"sailkit/{__version__}"}
    )
    deadline = time.monotonic() + seconds
    data = bytearray()
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as response:
            while part := response.read1(65536):
                data += part
                if len(data) > _MOST_BYTES:
                    raise _FailedError(f"an answer of more than {_MOST_BYTES} bytes", wait=None)
                if time.monotonic() > deadline:  # a server that drips never runs into a socket's timeout
                    raise _FailedError(f"no whole answer within {seconds:g} s")
            if response.length:
                raise _FailedError("the answer was cut off")
    except urllib.error.HTTPError as error:
        error.close()
        hint = "; has its settings.yml json among search.formats?" if error.code == 403 else ""
        raise _FailedError(
            f"HTTP {error.code}{hint}", _retry_after(error.headers) if error.code in _PASSING else None
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _FailedError(str(getattr(error, "reason", None) or error or type(error).__name__)) from None
    try:
        answer = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _FailedError("an answer that is not JSON") from None
    rows = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise _FailedError("JSON without a list of results", wait=None)
    if not rows and (silent := answer.get("unresponsive_engines")):
        raise _FailedError(f"its engines did not answer: {silent}")
    return _results("searxng", rows, "content", "url")


def _retry_after(headers: email.message.Message) -> float:
    """Seconds to wait; 0 where the server does not say, or gives a date."""
    with contextlib.suppress(ValueError):
        seconds = float(headers.get("Retry-After", "0"))
        return min(seconds, _LONGEST_WAIT) if seconds > 0 else 0.0
    return 0.0


def _ddgs() -> Any:
    try:
        import ddgs
    except ImportError:
        raise missing_extra("web", "`engine='web'`") from None
    return ddgs


def _ask_ddgs(text: str, k: int, seconds: float) -> list[SearchResult]:
    """One search through ddgs.

    It tells engines that refused (HTTP 403, 429) no differently from engines that found nothing, so that nothing is
    known when it has no results: that is a failure, and `empty` never comes from here.
    """
    library = _ddgs()
    try:
        rows = library.DDGS(timeout=math.ceil(seconds)).text(text, max_results=k)
    except library.exceptions.DDGSException as error:
        raise _FailedError(str(error) or type(error).__name__) from None
    return _results("web", rows, "body", "href")


def _results(engine: str, rows: Sequence[Any], body: str, url: str) -> list[SearchResult]:
    """Results with their places among all; marked-up text becomes plain, only web addresses are addresses."""
    found = []
    for rank, row in enumerate(rows, start=1):
        fields = row if isinstance(row, dict) else {}
        address = fields.get(url)
        safe = isinstance(address, str) and address.lower().startswith(("http://", "https://"))
        found.append(
            make_result(engine, rank, _plain(fields.get("title")), _plain(fields.get(body)), address if safe else "")
        )
    return found


def _plain(text: object) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", text)).split()) if isinstance(text, str) else ""
