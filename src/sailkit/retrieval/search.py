"""The verb `search`: retrieve search results for each instruction."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import filelock

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.errors import UserError, at_least_one, nearest
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.plugins import is_plugin, load_plugin
from sailkit.records import Instruction, Searched
from sailkit.retrieval.base import EngineResults, Searcher
from sailkit.retrieval.instructions import RESULTS, read_instructions, searched_row, with_text
from sailkit.retrieval.results import SearchRun

EngineName = Literal["bm25", "dense", "hybrid", "web", "searxng", "recorded"]


@checked
def search(
    *,
    instructions: str,
    out: Path,
    engine: str = "bm25",
    corpus: list[Path] | None = None,
    recorded: Path | None = None,
    fields: list[str] | None = None,
    k: int = 5,
    passage_words: int = 120,
    passage_overlap: int = 20,
    searxng_url: str | None = None,
    snapshot: Path | None = None,
    offline: bool = False,
    interval: float = 1.0,
    web_timeout: Annotated[float, renamed("timeout")] = 10.0,
    tries: int = 4,
    limit: int | None = None,
) -> SearchRun:
    """Search for each instruction.

    Writes results.jsonl, with a row for each instruction, to a run folder. The same command continues a stopped run
    and repeats queries that a web engine did not answer. A query consists of the first 64 words of the instruction
    and its input (400 characters on the web).

    Args:
        instructions: A .jsonl, .json, .csv, .tsv (also gzipped) or .parquet file, or a hub id (OWNER/NAME).
        out: The run folder.
        engine: bm25, dense (sentence embeddings), hybrid (both), searxng (your own server), web (through ddgs),
            recorded (SAIL's published form), or module:attribute; several are separated by commas, and their results
            are concatenated.
        corpus: Tables of documents, texts, folders of both, .tar.gz of .txt, .md and .json files; repeated.
        recorded: For recorded: the JSON list that is parallel to the instructions.
        fields: OURS=THEIRS for id, instruction, input, output.
        k: Maximum results of each engine.
        passage_words: Maximum words in a passage.
        passage_overlap: Words shared by consecutive passages.
        searxng_url: For searxng: the server, such as http://localhost:8080.
        snapshot: For web and searxng: file that stores every answer; snapshot.jsonl in the run folder by default.
        offline: Read the snapshot instead of the web; queries without an answer in it are unavailable.
        interval: Minimum seconds between two requests to the web.
        web_timeout: Timeout of a request to the web in seconds.
        tries: Attempts on the web before a query counts as unavailable.
        limit: Use only the first LIMIT instructions.

    Returns:
        The path of the results, the outcomes, and in `unfinished` the searches that the same command will repeat.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    at_least_one(k=k, limit=limit)
    # A recording is parallel to the whole file of instructions, so `limit` applies only after both are read.
    in_file = read_instructions(instructions, fields, None if "recorded" in engine else limit)
    searched_for = in_file[:limit]

    def recording() -> Searcher:
        from sailkit.retrieval.recorded import RecordedSearcher

        if recorded is None:
            raise UserError("`engine='recorded'` needs `recorded` FILE")
        return RecordedSearcher(recorded, in_file)

    searcher = open_searcher(
        engine, corpus, snapshot or out / "snapshot.jsonl", passage_words=passage_words,
        passage_overlap=passage_overlap, searxng_url=searxng_url, offline=offline, interval=interval,
        timeout=web_timeout, tries=tries, recording=recording,
    )  # fmt: skip
    settings = {
        "engine": searcher.name,
        **searcher.describe(),
        "k": k,
        "n": len(searched_for),
        "instructions_sha256": jsonl.fingerprint([[o.id, o.instruction, o.input, o.output] for o in searched_for]),
    }
    batches = [searched_for[start : start + searcher.batch] for start in range(0, len(searched_for), searcher.batch)]
    with contextlib.closing(searcher), runs.open_run(out, "search", settings) as run:
        rows_before = write_batches(
            run.path(RESULTS),
            batches,
            lambda instruction: instruction.id,
            lambda remaining: ([*map(searched_row, search_batch(searcher, batch, k))] for batch in remaining),
            f"searching with {searcher.name}",
        )
        if searcher.live:
            run.describe("searcher", {"live": True})
            _search_again(run.path(RESULTS), searcher, searched_for[:rows_before], k)
        return SearchRun.from_folder(run.folder, live=searcher.live)


def open_searcher(
    engine: str,
    corpus: Sequence[Path] | None,
    snapshot: Path,
    *,
    passage_words: int = 120,
    passage_overlap: int = 20,
    searxng_url: str | None = None,
    offline: bool = False,
    interval: float = 1.0,
    timeout: float = 10.0,
    tries: int = 4,
    recording: Callable[[], Searcher] | None = None,
) -> Searcher:
    """Open one engine, or several separated by commas; only their libraries are imported.

    Args:
        engine: The engines, as in `search`.
        corpus: The corpus of bm25, dense and hybrid.
        snapshot: File that stores every answer of the web.
        passage_words: Maximum words in a passage.
        passage_overlap: Words shared by consecutive passages.
        searxng_url: The server of searxng.
        offline: Read the snapshot instead of the web.
        interval: Minimum seconds between two requests to the web.
        timeout: Timeout of a request in seconds.
        tries: Attempts before a query counts as unavailable.
        recording: Opens the engine `recorded`; without it, there is no such engine.

    Raises:
        UserError: There is no such engine, or it lacks what it needs.
    """
    lock = filelock.FileLock(f"{snapshot}.lock")

    def load(name: str) -> Searcher:
        if is_plugin(name):
            return cast(Searcher, load_plugin(name, Searcher))
        if name == "recorded":
            if recording is None:
                raise UserError("`engine='recorded'` is for  sailkit search; give its run folder as `search_run`")
            return recording()
        if name == "web" or name == "searxng":  # noqa: PLR1714 - mypy narrows only this
            from sailkit.retrieval.web import WebSearcher

            return WebSearcher(
                cast(Any, name), snapshot, searxng_url,
                offline=offline, interval=interval, timeout=timeout, tries=tries, lock=lock,
            )  # fmt: skip
        from sailkit.retrieval.local import LocalSearcher

        if not corpus:
            raise UserError(f"`engine` {name} needs `corpus`")
        return LocalSearcher(cast(Any, name), corpus, passage_words, passage_overlap)

    names = _engines(engine)
    return load(names[0]) if len(names) == 1 else _Joined([load(name) for name in names])


def _engines(text: str) -> list[str]:
    known = get_args(EngineName)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known and not is_plugin(name):
            raise UserError(f"no `engine` {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise UserError(f"`engine` {text}: an engine is named twice")
    if len(names) > 1 and "recorded" in names:
        raise UserError("`engine='recorded'` stands alone: its results are of engines of its own, web and bm25")
    return names


class _Joined:
    """Concatenates the results of several engines."""

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        self._searchers = searchers
        self.name = ",".join(searcher.name for searcher in searchers)
        self.batch = min(searcher.batch for searcher in searchers)
        self.live = any(searcher.live for searcher in searchers)

    def describe(self) -> dict[str, Any]:
        """Everything that affects the results."""
        return {"engine": self.name, "engines": {searcher.name: searcher.describe() for searcher in self._searchers}}

    def close(self) -> None:
        """Close all of them."""
        for searcher in self._searchers:
            searcher.close()

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """The results of each engine, in the order in which the engines were named."""
        by_engine = (searcher.search(instructions, k) for searcher in self._searchers)
        return [list(itertools.chain.from_iterable(row)) for row in zip(*by_engine, strict=True)]


def search_batch(searcher: Searcher, batch: Sequence[Instruction], k: int) -> list[Searched]:
    """Search for one batch; empty instructions are skipped, results without text are dropped."""
    rows = []
    for instruction, engines in zip(batch, searcher.search(batch, k), strict=True):
        if not (instruction.instruction.strip() or instruction.input.strip()):
            engines = [EngineResults(each.engine, "left_out") for each in engines]  # noqa: PLW2901
        results = tuple(result for each in engines for result in each.results)
        kept = with_text(results)
        outcomes = {each.engine: each.outcome for each in engines}
        rows.append(Searched(instruction, kept, outcomes, len(results) - len(kept)))
    return rows


def _search_again(path: Path, searcher: Searcher, earlier: Sequence[Instruction], k: int) -> None:
    """Repeat the unavailable searches of an earlier run; a row is replaced if fewer of its searches are unavailable."""
    lines = path.read_bytes().splitlines(keepends=True)
    unavailable = [_unavailable(json.loads(line)) for line in lines[: len(earlier)]]
    missing = [i for i, engines in enumerate(unavailable) if engines]
    # In any order: queries that always fail, and in the end stop the run, do not keep others from being asked.
    random.shuffle(missing)
    replaced = False
    try:
        with runs.progress(f"asking {searcher.name} again", len(missing)) as tick:
            for start in range(0, len(missing), searcher.batch):
                part = missing[start : start + searcher.batch]
                for i, searched in zip(part, search_batch(searcher, [earlier[i] for i in part], k), strict=True):
                    row = searched_row(searched)
                    if _unavailable(row) < unavailable[i]:
                        lines[i] = jsonl.encode(jsonl.dumps(row) + "\n")
                        replaced = True
                tick(len(part))
    finally:  # rewrite the file even if the engine stops answering
        if replaced:
            jsonl.write_atomic(path, b"".join(lines))


def _unavailable(row: jsonl.JsonObject) -> set[str]:
    return {engine for engine, outcome in row["searches"].items() if outcome == "unavailable"}
