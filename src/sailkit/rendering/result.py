"""What the results of all stages have in common."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sailkit.rendering import html, terminal
from sailkit.rendering.model import Report


class Result:
    """A base for the frozen dataclasses that stages return.

    A class has `to_json`; the `report` module of its folder has `short_report`, which makes it a report. So the class
    need not know how it is shown, and the report may know all about the class.
    """

    def to_json(self) -> Any:
        """The result as it is written to files and by `--json`."""
        raise NotImplementedError

    def report(self) -> Report:
        """What a person reads of it."""
        folder = type(self).__module__.rpartition(".")[0]
        report: Report = import_module(f"{folder}.report").short_report(self)
        return report

    def __str__(self) -> str:
        return terminal.text(self.report())

    def _repr_html_(self) -> str:
        return html.fragment(self.report())


def to_json(result: Any) -> Any:
    """A stage's result, or a list of them, as JSON values."""
    if isinstance(result, (list, tuple)):
        return [to_json(item) for item in result]
    return result.to_json() if hasattr(result, "to_json") else result
