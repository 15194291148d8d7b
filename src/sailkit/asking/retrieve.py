"""Search for a single question: in a corpus, on the web, or in the recorded results of a run."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sailkit.errors import UserError, nearest
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.records import Instruction, Searched, SearchResult
from sailkit.retrieval.base import Searcher
from sailkit.retrieval.instructions import make_result, read_searched, with_text
from sailkit.retrieval.search import open_searcher, search_batch


class NotRecordedError(UserError):
    """A run has no search results for a question."""


class SearchUnavailableError(UserError):
    """An engine that gave no answer, although it may answer later."""


Retrieve = Callable[[str], Searched]  # takes a question, and returns it with its search results
GivenResults = Sequence[SearchResult | Mapping[str, Any] | str]


def check_k(k: int) -> None:
    """Check a number of search results.

    Raises:
        UserError: A model cannot judge so many.
    """
    if k > MOST_VERIFIED:
        raise UserError(f"`k` should be at most {MOST_VERIFIED}, the most search results that a model judges, not {k}")


@contextlib.contextmanager
def open_retrieval(
    engine: str,
    k: int,
    corpus: Sequence[Path] | None = None,
    search_run: str | Path | None = None,
    searxng_url: str | None = None,
) -> Iterator[Retrieve]:
    """Open an engine, or the results of a run of search.

    Args:
        engine: The engines of `search`, or none.
        k: Maximum results of each engine.
        corpus: The corpus.
        search_run: A run folder of `search`, or its results file; its results are used instead of an engine.
        searxng_url: The server of searxng.

    Yields:
        A function that takes a question and returns it with its search results.

    Raises:
        UserError: The sources contradict each other, or one cannot be opened.
    """
    if search_run is not None:
        if corpus:
            raise UserError("give either `corpus` or `search_run`, not both")
        rows = read_searched(search_run)
        yield lambda question: _recorded(rows, question, search_run, k)
    elif engine == "none":
        if corpus:
            raise UserError("`engine` none searches nothing; leave out `corpus`, or `engine`")
        yield lambda question: Searched(Instruction("question", question))
    else:
        if not corpus and engine == "bm25":
            raise UserError(
                "no search results: give `corpus` FILES, `search_run` RUN or `engine='web'`; `engine='none'` answers "
                "without search"
            )
        with (
            TemporaryDirectory(prefix="sailkit-") as folder,
            contextlib.closing(
                open_searcher(engine, corpus, Path(folder, "snapshot.jsonl"), searxng_url=searxng_url, tries=2)
            ) as searcher,
        ):
            yield partial(_search, searcher, k)


def _recorded(rows: Sequence[Searched], question: str, search_run: str | Path, k: int) -> Searched:
    """The row of a run with this id or text; with this instruction, if only one has it."""
    words = question.split()
    whole = [row for row in rows if words == f"{row.instruction.instruction} {row.instruction.input}".split()]
    same = [row for row in rows if words == row.instruction.instruction.split()]
    of_id = [row for row in rows if question == row.instruction.id]
    if matching := of_id or whole or same:
        if matching is same and len(same) > 1:
            ids = " or ".join(repr(row.instruction.id) for row in same[:2])
            raise NotRecordedError(f"{search_run} has this question with {len(same)} inputs; give an id, such as {ids}")
        _check_available(matching[0], f"{search_run} got no answer to this question; run the search again")
        results = _first_of_each_engine(matching[0], k)
        check_number(results)
        return replace(matching[0], results=tuple(results))
    known = [row.instruction.id for row in rows]
    shown = nearest(question, known) if len(known) <= 10 else f"such as {known[0]!r} or {known[1]!r}"
    raise NotRecordedError(
        f"{search_run} has no results for this question; ask one of its questions, or give an id, {shown}"
    )


def _first_of_each_engine(row: Searched, k: int) -> list[SearchResult]:
    """The first k results of each engine; of results that no engines are known for, the first k."""
    if not {result.source for result in row.results} <= row.searches.keys():
        return list(row.results[:k])
    seen: Counter[str] = Counter()
    results = []
    for result in row.results:
        seen[result.source] += 1
        if seen[result.source] <= k:
            results.append(result)
    return results


def _search(searcher: Searcher, k: int, question: str) -> Searched:
    searched = search_batch(searcher, [Instruction("question", question)], k)[0]
    _check_available(searched, f"{searcher.name} gave no answer; try again later, or search a `corpus` of your own")
    check_number(searched.results)
    return searched


def _check_available(searched: Searched, message: str) -> None:
    if not searched.results and "unavailable" in searched.searches.values():
        raise SearchUnavailableError(message)


def given_results(results: GivenResults) -> tuple[SearchResult, ...]:
    """Search results that the caller has: records, mappings with their fields (`body` is required), or texts.

    Raises:
        UserError: An entry is none of these or has an unknown field, or there are too many.
    """
    if isinstance(results, str | Mapping | SearchResult):
        raise UserError("`results` should be a list of search results, even of one")
    known = [field.name for field in fields(SearchResult)]
    converted = []
    for rank, entry in enumerate(results, start=1):
        if isinstance(entry, SearchResult):
            converted.append(entry)
            continue
        values = {"body": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping) or not isinstance(values.get("body"), str):
            raise UserError(f"`results`, entry {rank}: give a text, or a mapping with `body`, a text")
        if unknown := [name for name in values if name not in known]:
            raise UserError(f"`results`, entry {rank}: unknown field {unknown[0]!r}; {nearest(unknown[0], known)}")
        title, body, url = (values.get(name) for name in ("title", "body", "url"))
        converted.append(make_result(str(values.get("source") or "given"), rank, title, body, url))
    check_number(converted, f"give at most {MOST_VERIFIED}")
    return with_text(converted)


def check_number(results: Sequence[SearchResult], mend: str = "lower `k`") -> None:
    """Raise a UserError if there are more search results than a verification sentence judges."""
    if len(results) > MOST_VERIFIED:
        raise UserError(f"{len(results)} search results: a model judges at most {MOST_VERIFIED}; {mend}")
