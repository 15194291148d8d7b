"""Searchers: who finds passages for an instruction, here or on the web."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sailkit.records import Instruction, SearchOutcome, SearchResult


@dataclass(frozen=True, slots=True)
class EngineResults:
    """What one engine gave for one instruction.

    Attributes:
        outcome: `found`, `empty` (asked, no results), `unavailable` (could not be asked) or `left_out`.
        results: Best first, as the engine gave them.
        engine: The engine's name, which its results carry as their source.
    """

    engine: str
    outcome: SearchOutcome
    results: tuple[SearchResult, ...] = ()


class Searcher(Protocol):
    """Anything that searches.

    Attributes:
        name: What the user called it.
        batch: How many instructions it takes at a time.
        live: What was unavailable may be there the next time: it depends on a server, not on files.
    """

    name: str
    batch: int
    live: bool

    def describe(self) -> dict[str, Any]:
        """Everything about the searcher that decides its results, for the manifest."""

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """Search for a batch.

        Args:
            instructions: What is searched for.
            k: Most results of each engine.

        Returns:
            For each instruction, what each engine gave (one, except for recorded searches with several).
        """

    def close(self) -> None:
        """Let go of what others may be waiting for."""
