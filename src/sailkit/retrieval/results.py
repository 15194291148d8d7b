"""The result of the verb `search`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from sailkit import runs
from sailkit.files.tables import to_frame
from sailkit.records import Searched, SearchOutcome
from sailkit.rendering.model import Report, Text, short
from sailkit.rendering.result import Result
from sailkit.retrieval.instructions import RESULTS, read_searched

if TYPE_CHECKING:
    import pandas as pd

_ON_THE_WEB = ("web", "searxng")


@dataclass(frozen=True)
class SearchRun(Result):
    """A run of `search`.

    Attributes:
        folder: The run's folder.
        engine: The engines, separated by commas.
        n: Number of instructions.
        outcomes: Outcome -> number of searches; an instruction has one search for each engine.
        n_results: Number of search results.
        dropped_results: Number of results dropped because they have no text.
        unfinished: Sentence on the searches that the same command will repeat; None if there are none.
    """

    folder: Path
    engine: str
    n: int
    outcomes: Mapping[SearchOutcome, int]
    n_results: int
    dropped_results: int
    unfinished: str | None = None

    @property
    def results(self) -> Path:
        """The file with the instructions and their search results."""
        return self.folder / RESULTS

    def rows(self) -> list[Searched]:
        """The instructions with their search results."""
        return read_searched(self.folder)

    def to_frame(self) -> pd.DataFrame:
        """A row for each search result, with `id` and text of its instruction."""
        return to_frame(
            {"id": row.instruction.id, "instruction": row.instruction.instruction, **asdict(result)}
            for row in self.rows()
            for result in row.results
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the result of a finished run.

        Raises:
            UserError: The folder is not a run of `search`, or its results cannot be read.
        """
        manifest = runs.read_manifest(folder, "search")
        if "searcher" in manifest:
            return cls.from_folder(folder, live=manifest["searcher"]["live"])
        settings = manifest["settings"]
        engines: Mapping[str, Mapping[str, Any]] = settings.get("engines") or {settings["engine"]: settings}
        # Earlier versions did not record it.
        live = any(name in _ON_THE_WEB and "snapshot_sha256" not in each for name, each in engines.items())
        return cls.from_folder(folder, live=live)

    @classmethod
    def from_folder(cls, folder: str | Path, *, live: bool) -> Self:
        """Compute the result from the files of a run.

        Args:
            folder: The run's folder.
            live: Whether unavailable searches may succeed later.
        """
        rows = read_searched(folder)
        unanswered = sum("unavailable" in row.searches.values() for row in rows) if live else 0
        counts = Counter(outcome for row in rows for outcome in row.searches.values())
        return cls(
            folder=Path(folder),
            engine=runs.setting_of(folder, "engine"),
            n=len(rows),
            outcomes={outcome: counts[outcome] for outcome in get_args(SearchOutcome)},
            n_results=sum(len(row.results) for row in rows),
            dropped_results=sum(row.dropped_results for row in rows),
            unfinished=f"{unanswered} of {len(rows)} instructions had no answer from an engine; "
            "the same command asks again for them"
            if unanswered
            else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as `--json` writes them."""
        return {
            "engine": self.engine,
            "n": self.n,
            **{str(outcome): count for outcome, count in self.outcomes.items()},
            "results_in_all": self.n_results,
            "dropped_results": self.dropped_results,
            "results": str(self.results),
            "unfinished": self.unfinished,
        }

    def report(self) -> Report:
        """The outcomes, counts and path of the results."""
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.items())
        return short(
            self.engine,
            f"{self.n} instructions: {outcomes}",
            Text(f"{self.n_results} results, {self.dropped_results} without text dropped"),
            Text(f"results: {self.results}"),
        )
