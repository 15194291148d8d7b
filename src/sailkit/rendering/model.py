"""What a person reads of a result, before a writer makes it HTML, Markdown or terminal text.

A report is built from text, numbers and estimates, never from markup: texts may come from anywhere, and escaping them
is the writers' job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sailkit.stats.intervals import Estimate


@dataclass(frozen=True)
class Cell:
    """A figure or a text.

    Attributes:
        value: An estimate is shown with its interval; None where there is no such figure.
        note: Set smaller behind the value.
        signed: The value is a difference: it gets its sign, and is bold where its interval excludes 0.
    """

    value: Estimate | float | str | None
    note: str = ""
    signed: bool = False

    @property
    def point(self) -> float | str | None:
        """The value without its interval."""
        return self.value.value if isinstance(self.value, Estimate) else self.value

    @property
    def bold(self) -> bool:
        """Whether it is a difference whose interval excludes 0."""
        return self.signed and isinstance(self.value, Estimate) and self.value.sign != 0


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, and a cell for each column."""

    name: str
    cells: Sequence[Cell]

    @property
    def known(self) -> bool:
        """Whether any cell has a value."""
        return any(cell.value is not None for cell in self.cells)


@dataclass(frozen=True)
class Group:
    """Rows of a table under one heading."""

    heading: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """Figures: a column for each thing that is measured, rows in groups."""

    columns: Sequence[str]
    groups: Sequence[Group]


@dataclass(frozen=True)
class Facts:
    """Settings and provenance: a column for each thing that they are about.

    Attributes:
        columns: Names of the things.
        rows: Name of a fact, and its value for each column; None where it is not recorded.
        compared: Names of the facts that stand out where their values differ.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str | None]]]
    compared: Sequence[str] = ()


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        name: Whose.
        truth: What the rows are, such as `human label`.
        rows: The labels.
        columns: The labels in the same order, then the outcomes without a label.
        counts: A row of counts for each label.
    """

    name: str
    truth: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Headline:
    """What the figures say in one sentence, without a full stop, and what that rests on."""

    text: str
    remark: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list: of each entry what stands out at its beginning (or nothing), and the rest."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figures:
    """A few figures that stand out, each with its name."""

    entries: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Flags:
    """Reasons to doubt a result: code -> sentences. Name and code are empty where there is none."""

    name: str
    messages: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Interval:
    """A row of a plot of intervals: an estimate beside a baseline."""

    name: str
    estimate: Estimate
    baseline: str
    at: float


@dataclass(frozen=True)
class Intervals:
    """A plot of intervals on one scale (title of a figure -> its rows), in HTML alone: tables hold the same figures."""

    figures: Mapping[str, Sequence[Interval]]
    note: str = ""


@dataclass(frozen=True)
class Split:
    """Items of two sets by who is right, as a bar: both, only the first, only the second, neither."""

    first: str
    second: str
    counts: tuple[int, int, int, int]

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        """Of each part a key, what it is in words, and its count."""
        words = ("both right", f"only {self.first} right", f"only {self.second} right", "both wrong")
        return list(zip(("both", "first", "second", "neither"), words, self.counts, strict=True))


@dataclass(frozen=True)
class Series:
    """A curve: step and value, by step; with `dots` every point is marked, for what is measured now and then."""

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over the same steps.

    Attributes:
        title: What it shows.
        axis: What the values are.
        series: The curves, none of them empty.
        kept: The step whose weights were kept, or None.
        file: Name of a file for it, without an ending.
    """

    title: str
    axis: str
    series: tuple[Series, ...]
    kept: float | None = None
    file: str = ""


@dataclass(frozen=True)
class Plots:
    """Plots side by side."""

    plots: Sequence[Plot]


@dataclass(frozen=True)
class Case:
    """A search result and its claim, with scores between 0 and 1 in the order of the columns of `Cases`."""

    claim: str
    result: str
    scores: Sequence[float]


@dataclass(frozen=True)
class Cases:
    """Single search results with several scores, unfolded by the reader unless they are `open`."""

    title: str
    columns: Sequence[str]
    cases: Sequence[Case]
    open: bool = False


Block = (
    Bullets | Cases | Facts | Figures | Flags | Heading | Intervals | Matrix | Plots | Split | Table | Text | Headline
)


@dataclass(frozen=True)
class Section:
    """A part of a report under its heading.

    Attributes:
        heading: Empty where the report is too short for headings.
        blocks: What stands in it, in order.
        name: What it is about, where several things are reported on.
    """

    heading: str
    blocks: Sequence[Block]
    name: str = ""


@dataclass(frozen=True)
class Report:
    """What a person reads of a result.

    Attributes:
        title: The heading.
        about: What was measured on what, for the line below the title.
        sections: The parts in order.
        verdict: The verdicts in one line, for programs and the terminal.
        items: Rows for the list that the HTML page filters and opens, a JSON value; None for a page without it.
    """

    title: str
    about: str = ""
    sections: Sequence[Section] = ()
    verdict: str = ""
    items: Mapping[str, Any] | None = None


def short(title: str, about: str, *blocks: Block) -> Report:
    """A report without headings, as a stage prints it.

    Args:
        title: What was done, or the model that did it.
        about: The rest of the first line.
        *blocks: What follows.
    """
    return Report(title, about, (Section("", blocks),))
