"""Search the web with rate limiting and retries; a snapshot stores every answer for offline search."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from sailkit import retry, runs
from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl
from sailkit.records import Instruction, SearchOutcome, SearchResult
from sailkit.retrieval.base import EngineResults
from sailkit.retrieval.engines import SearchFailedError, search_ddgs, search_searxng, searxng_server
from sailkit.retrieval.instructions import make_result
from sailkit.retrieval.local import query

WebEngine = Literal["web", "searxng"]
QUERY_CHARACTERS = 400  # engines refuse longer queries; cut at a word boundary
_MAX_FAILURES = 10  # consecutive queries without an answer: the engine is down or blocks us


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the snapshot: the engine's answer to a query."""

    k: int
    outcome: SearchOutcome
    results: tuple[SearchResult, ...]


class WebSearcher:
    """Searches with one engine, one query at a time; a query answered in the snapshot is not sent again."""

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
        lock: filelock.BaseFileLock | None = None,
    ) -> None:
        """Initialise the searcher; nothing is sent or written.

        Args:
            engine: `web` (ddgs) or `searxng`.
            snapshot: JSON Lines to which every answer is appended.
            url: The SearXNG server.
            offline: Read the snapshot only; other queries are `unavailable`.
            interval: Minimum seconds between two requests; also the wait before the first retry, doubled for each next.
            timeout: Timeout of a request in seconds.
            tries: Attempts before a query is `unavailable`.
            lock: The lock of the snapshot, if several searchers of this process write to it.

        Raises:
            UserError: A library or the snapshot is missing, or the URL or a number is invalid.
        """
        for name, value in (("interval", interval), ("timeout", timeout)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"`{name}` should be above 0, not {value}")
        if tries < 1:
            raise UserError(f"`tries` should be at least 1, not {tries}")
        if offline and not snapshot.is_file():
            raise UserError(f"`offline` reads a snapshot, and there is no file {snapshot}")
        self.name: str = engine
        self._facts: dict[str, Any] = {"engine": engine, "version": 1, "query_characters": QUERY_CHARACTERS}
        self._search_once: Callable[[str, int, float], list[SearchResult]]
        self._server: str | None = None
        if engine == "searxng":
            server = searxng_server(url)
            self._facts["searxng_url"] = self._server = server
            self._search_once = lambda query, _, timeout: search_searxng(server, query, timeout)
        else:
            self._search_once = search_ddgs
        if not offline:
            with required_extra("web", f"`engine='{engine}'`"):
                importlib.import_module("httpx2" if engine == "searxng" else "ddgs")
        else:
            self._facts["snapshot_sha256"] = jsonl.file_fingerprint([snapshot])
        self._path, self._offline = snapshot, offline
        self.live = not offline
        self._interval, self._timeout, self._tries = interval, timeout, tries
        self._known: dict[str, _Entry] | None = None
        self._last_request = -math.inf
        self._failures = 0
        self._lock = lock or filelock.FileLock(f"{snapshot}.lock")

    def describe(self) -> dict[str, Any]:
        """Everything that affects the results, except the web itself."""
        return dict(self._facts)

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """The results of each instruction from the snapshot, else from the engine.

        Raises:
            UserError: The snapshot cannot be read or written, or the engine keeps failing.
        """
        if self._known is None:
            self._known = self._open()
        return [[self._search(web_query(instruction), k, self._known)] for instruction in instructions]

    def close(self) -> None:
        """Unlock the snapshot for other processes."""
        self._lock.release()
        self._known = None

    def _search(self, text: str, k: int, known: dict[str, _Entry]) -> EngineResults:
        if not text:
            return EngineResults(self.name, "left_out")
        entry = known.get(text)
        if entry is None and self._offline:
            return EngineResults(self.name, "unavailable")
        if entry is None or (entry.k < k and len(entry.results) < k and not self._offline):
            answer = self._ask(text, k)
            if entry is None or answer.outcome != "unavailable":
                entry = known[text] = answer
        return EngineResults(self.name, entry.outcome, entry.results[:k])

    def _ask(self, text: str, k: int) -> _Entry:
        """Query the engine, and write its answer to the snapshot before it is used."""
        results, why = self._try(text, k)
        outcome: SearchOutcome = "unavailable" if results is None else "found" if results else "empty"
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [{name: getattr(result, name) for name in ("rank", "title", "body", "url")} for result in results or ()]
        row = {"engine": self.name, "query": text, "k": k, "at": at, "outcome": outcome, "results": rows}
        row |= {"searxng_url": self._server} if self._server else {}
        try:
            with self._path.open("ab") as stream:
                stream.write(jsonl.encode(jsonl.dumps(row | ({"why": why} if why else {})) + "\n"))
        except OSError as error:
            raise jsonl.writing_failed(self._path, error) from None
        self._failures = self._failures + 1 if results is None else 0
        if results is None:
            runs.notice(f"{self.name}: no answer: {why}")
        if self._failures >= _MAX_FAILURES:
            raise UserError(
                f"{self.name} has not answered {_MAX_FAILURES} queries in a row (the last: {why}); "
                "the same command continues where it stopped"
            )
        return _entry(row, "")

    def _try(self, text: str, k: int) -> tuple[list[SearchResult] | None, str]:
        """Query the engine with retries: the results, or None and the reason of the last failure."""
        why = ""
        for number in range(self._tries):
            time.sleep(max(0.0, self._last_request + self._interval - time.monotonic()))
            try:
                return self._search_once(text, k, self._timeout), ""
            except SearchFailedError as failure:
                why = " ".join(str(failure).split())[:200]
                if failure.wait is None:
                    break
                if number + 1 < self._tries:
                    time.sleep(retry.pause(number + 1, self._interval, failure.wait))
            finally:
                self._last_request = time.monotonic()
        return None, why

    def _open(self) -> dict[str, _Entry]:
        """Read the snapshot; unless offline, lock it and truncate an incomplete last line of a killed run."""
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
            # The last answer counts. An unavailable entry counts as no answer, so the query is sent again.
            same_server = row.get("searxng_url") in (None, self._server)
            if engine == self.name and same_server and isinstance(text, str) and entry.outcome != "unavailable":
                known[text] = entry
        return known


def _entry(row: dict[str, Any], where: str) -> _Entry:
    outcome, k, at = row["outcome"], row["k"], row["at"]
    if outcome not in ("found", "empty", "unavailable") or not isinstance(k, int) or not isinstance(at, str):
        raise ValueError(where)
    results = (
        make_result(row["engine"], int(result["rank"]), result["title"], result["body"], result["url"], at)
        for result in row["results"]
    )
    return _Entry(k, outcome, tuple(results))


def web_query(instruction: Instruction) -> str:
    """The query for a web engine: that of local engines, cut at a word boundary to 400 characters."""
    text = "".join(c if c.isprintable() else " " for c in query(instruction))
    text = " ".join(text.encode("utf-8", "ignore").decode().split())
    if len(text) <= QUERY_CHARACTERS:
        return text
    return text[: QUERY_CHARACTERS + 1].rpartition(" ")[0] or text[:QUERY_CHARACTERS]
