"""The protocol of searchers, which retrieve passages for instructions from a corpus, a file or the web."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sailkit.records import Instruction, SearchOutcome, SearchResult


@dataclass(frozen=True, slots=True)
class EngineResults:
    """The results of one engine for one instruction.

    Attributes:
        engine: The engine's name, which is also the `source` of its results.
        outcome: `found`; `empty`, where the engine has no results; `unavailable`, where it gave no answer; or
            `left_out`, where there was nothing to search for.
        results: The engine's results, best first.
    """

    engine: str
    outcome: SearchOutcome
    results: tuple[SearchResult, ...] = ()


class Searcher(Protocol):
    """Anything that retrieves passages; `sailkit search --engine module:attribute` takes a class of your own.

    `search` calls `describe` first, then `search` for one batch after the other, and `close` in the end, also after an
    error. Each batch is written before the next is searched for, and a run that was stopped continues behind it.

    Attributes:
        name: The engine's name, in messages and in the run's manifest.
        batch: How many instructions a call of `search` gets.
        live: Whether a search that was unavailable may have results later, as with a server. The same command then
            repeats these searches.
    """

    name: str
    batch: int
    live: bool

    def describe(self) -> dict[str, Any]:
        """Everything that decides the results, as JSON values, such as versions and fingerprints of files.

        It is written to the run's manifest, and a run only continues with the same description.

        Returns:
            At least `engine`, the searcher's name.
        """

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """Search for a batch of instructions.

        Args:
            instructions: The batch.
            k: Most results of each engine.

        Returns:
            For each instruction, the results of each engine: of one, unless the searcher combines several.

        Raises:
            UserError: The search cannot go on; what was written before is kept.
        """

    def close(self) -> None:
        """Release locks and connections."""
