"""Read search results in SAIL's published format: a list with an entry for each instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.records import Instruction
from sailkit.retrieval.base import EngineResults
from sailkit.retrieval.instructions import make_result


class RecordedSearcher:
    """Reads `[[search_results or null, bm25_results], ...]`; null is an unavailable search."""

    name = "recorded"
    batch = 1024
    live = False

    def __init__(self, path: Path, instructions: Sequence[Instruction]) -> None:
        """Read the file; its entries are in the order of the instructions.

        Args:
            path: A JSON list with one entry for each instruction.
            instructions: All instructions, in order.

        Raises:
            UserError: The file has another format or length.
        """
        entries = jsonl.read_value(path, list, "list")
        if len(entries) != len(instructions):
            raise UserError(
                f"{path} has {len(entries)} entries and there are {len(instructions)} instructions; "
                "they must be parallel"
            )
        self._entries: dict[str, list[EngineResults]] = {}
        for number, (entry, instruction) in enumerate(zip(entries, instructions, strict=True), start=1):
            if not isinstance(entry, list) or len(entry) != 2:
                raise UserError(f"{path}, entry {number}: expected [search_results or null, bm25_results]")
            self._entries[instruction.id] = [
                _engine_results(engine, value, f"{path}, entry {number}")
                for engine, value in zip(("web", "bm25"), entry, strict=True)
            ]
        self._sha256 = jsonl.file_fingerprint([path])

    def describe(self) -> dict[str, Any]:
        """Everything that affects the results."""
        return {"engine": self.name, "version": 1, "recording_sha256": self._sha256}

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """The recorded results, the best k of each engine."""
        return [
            [replace(recorded, results=recorded.results[:k]) for recorded in self._entries[instruction.id]]
            for instruction in instructions
        ]

    def close(self) -> None:
        """Do nothing: no lock is held."""


def _engine_results(engine: str, value: Any, where: str) -> EngineResults:
    if value is None:
        return EngineResults(engine, "unavailable")
    entries = value if isinstance(value, list) else [value]
    results = []
    for rank, entry in enumerate(entries, start=1):
        if isinstance(entry, str):
            # A BM25 result in SAIL's format is a text whose first line is the title.
            title, _, body = entry.partition("\n") if "\n" in entry else ("", "", entry)
            results.append(make_result(engine, rank, title, body))
        elif isinstance(entry, dict):
            address = entry.get("href") or entry.get("url")
            results.append(make_result(engine, rank, entry.get("title"), entry.get("body"), address))
        else:
            raise UserError(f"{where}: {engine} results should be objects with title and body, texts, or null")
    return EngineResults(engine, "found" if results else "empty", tuple(results))
