"""The base class of the results that stages return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

from sailkit.rendering import html, terminal
from sailkit.rendering.model import Report


class Result(ABC):
    """Base class of the frozen dataclasses that stages return.

    A subclass defines `to_json`. Its report is made by `short_report` in the `report` module of its folder, so results
    do not import reports.
    """

    @abstractmethod
    def to_json(self) -> Any:
        """The result as JSON values, as in files and with `--json`."""

    def report(self) -> Report:
        """The result as a report."""
        folder = type(self).__module__.rpartition(".")[0]
        report: Report = import_module(f"{folder}.report").short_report(self)
        return report

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # or the dataclass lists every field

    def __repr__(self) -> str:
        folder = getattr(self, "folder", None)
        return f"<{type(self).__name__}{f' in {folder}' if folder else ''}>"

    def __str__(self) -> str:
        return terminal.text(self.report())

    def _repr_html_(self) -> str:
        return html.fragment(self.report())


def to_json(result: Any) -> Any:
    """A stage's result, or a list of results, as JSON values."""
    if isinstance(result, (list, tuple)):
        return [to_json(item) for item in result]
    return result.to_json() if hasattr(result, "to_json") else result
