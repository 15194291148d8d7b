"""The document model of reports, which writers render as HTML, Markdown or terminal text.

A report holds text, numbers and estimates, never markup: its texts are untrusted, and the writers escape them.
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
        value: The value; an estimate is shown with its interval, None as missing.
        note: Small text after the value.
        signed: The value is a difference: it is shown with its sign, and in bold if its interval excludes 0.
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
    """Figures: one column for each model or set, rows in groups."""

    columns: Sequence[str]
    groups: Sequence[Group]


@dataclass(frozen=True)
class Facts:
    """Settings and provenance: one column for each model or set.

    Attributes:
        columns: Names of the models or sets.
        rows: Name of a fact, and its value for each column; None if it is not recorded.
        compared: Names of the facts that are highlighted if their values differ.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str | None]]]
    compared: Sequence[str] = ()


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        name: The model or set that gave the answers.
        truth: Title of the rows, such as `human label`.
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
class Code:
    """A command or a program, as it is typed."""

    text: str


@dataclass(frozen=True)
class Headline:
    """The main finding in one sentence, without a full stop, and the figures that support it."""

    text: str
    remark: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Texts in columns of equal width, each with its heading."""

    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bullets:
    """A list; each entry has a bold beginning (which may be empty) and the rest of its text."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figures:
    """A few prominent figures, each with its name."""

    entries: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Flags:
    """Reasons to doubt a result, by code; name and code may be empty."""

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
    """A plot of intervals on one scale, by title of the figure; HTML alone shows it, tables hold the same figures."""

    figures: Mapping[str, Sequence[Interval]]
    note: str = ""


@dataclass(frozen=True)
class Bin:
    """The answers of which the probability is within a range.

    Attributes:
        low: Lower end of the range.
        high: Upper end of the range.
        count: Number of answers; at least one.
        probability: Their mean probability.
        right: Share of them that is right.
    """

    low: float
    high: float
    count: int
    probability: float
    right: Estimate


@dataclass(frozen=True)
class Reliability:
    """A reliability plot of one set: the share of right answers by their probability."""

    name: str
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Calibration:
    """Reliability plots side by side."""

    sets: Sequence[Reliability]


@dataclass(frozen=True)
class Split:
    """A bar of items by which set has them right: both, only the first, only the second, neither."""

    first: str
    second: str
    counts: tuple[int, int, int, int]

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        """Key, description and count of each part."""
        words = ("both right", f"only {self.first} right", f"only {self.second} right", "both wrong")
        return list(zip(("both", "first", "second", "neither"), words, self.counts, strict=True))


@dataclass(frozen=True)
class Series:
    """A curve of (step, value) points; with `dots` every point is marked, for values measured at few steps."""

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over the same steps.

    Attributes:
        title: Title of the plot.
        axis: Title of the y axis.
        series: The curves; none is empty.
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
    """Plots side by side; text describes them in words if they are `described`, else HTML alone shows them."""

    plots: Sequence[Plot]
    described: bool = True


@dataclass(frozen=True)
class Case:
    """A search result and its claim, with scores between 0 and 1 in the order of the columns of `Cases`."""

    claim: str
    result: str
    scores: Sequence[float]


@dataclass(frozen=True)
class Cases:
    """Single search results with several scores, collapsed unless they are `open`."""

    title: str
    columns: Sequence[str]
    cases: Sequence[Case]
    open: bool = False


Block = (
    Bullets
    | Calibration
    | Cases
    | Code
    | Facts
    | Figures
    | Flags
    | Heading
    | Headline
    | Intervals
    | Matrix
    | Plots
    | SideBySide
    | Split
    | Table
    | Text
)


@dataclass(frozen=True)
class Section:
    """A part of a report under its heading.

    Attributes:
        heading: The heading; empty in a report that is too short for headings.
        blocks: The content, in order.
        name: The set or run that it is about, in a report on several.
    """

    heading: str
    blocks: Sequence[Block]
    name: str = ""


@dataclass(frozen=True)
class Report:
    """A result in the form that people read.

    Attributes:
        title: The heading.
        about: The line below the title, such as what was measured on which data.
        sections: The sections, in order.
        verdict: The verdicts in one line, for programs and the terminal.
        items: JSON value with the rows of the HTML page's filterable list; None for a page without a list.
    """

    title: str
    about: str = ""
    sections: Sequence[Section] = ()
    verdict: str = ""
    items: Mapping[str, Any] | None = None


def short(title: str, about: str, *blocks: Block) -> Report:
    """A report without headings, as a stage prints it.

    Args:
        title: Beginning of the first line, such as the model's name.
        about: Rest of the first line.
        *blocks: The content.
    """
    return Report(title, about, (Section("", blocks),))
