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
            `left_out`, where the query is empty.
        results: The engine's results, best first.
    """

    engine: str
    outcome: SearchOutcome
    results: tuple[SearchResult, ...] = ()


class Searcher(Protocol):
    """Anything that retrieves passages; `sailkit search --engine module:attribute` loads a plug-in.

    The verb `search` calls `describe` first, then `search` batch by batch, and finally `close`, also after an error.
    Each batch is written before the next is searched for; a stopped run continues after the last written one.

    Attributes:
        name: The engine's name, in messages and in the run's manifest.
        batch: Number of instructions in a call of `search`.
        live: Whether an unavailable search may succeed later, as with a server; the same command then repeats it.
    """

    name: str
    batch: int
    live: bool

    def describe(self) -> dict[str, Any]:
        """Everything that affects the results, as JSON values, such as versions and fingerprints of files.

        It is written to the run's manifest, and a run is only continued with the same description.

        Returns:
            At least `engine`, the searcher's name.
        """

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """Search for a batch of instructions.

        Args:
            instructions: The batch.
            k: Maximum results of each engine.

        Returns:
            For each instruction, the results of each engine; a single one unless the searcher combines several.

        Raises:
            UserError: The search cannot continue; earlier batches are kept.
        """

    def close(self) -> None:
        """Release locks and connections."""
