"""Every kind of block in HTML, Markdown and on the terminal: figures are shown, and text from outside stays text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest

from sailkit.rendering import html, markdown, model, terminal
from sailkit.rendering.result import Result
from sailkit.stats.intervals import Estimate
from test_reporting import HOSTILE

GAP = Estimate(0.1234, 0.05, 0.2)


def every_block(text: str) -> model.Report:
    """A report of all kinds of blocks, with a text wherever one can come from outside."""
    cells = [model.Cell(Estimate(0.6543, 0.6, 0.7)), model.Cell(GAP, signed=True), model.Cell(None)]
    more = [model.Cell(1234), model.Cell(0.25, f"{text}n"), model.Cell(text)]
    plot = model.Plot(f"{text}p", f"{text}y", (model.Series(f"{text}s", ((0, 1.0), (9, 2.5)), dots=True),), kept=9)
    bins = model.Bin(0.5, 0.6, 1234, 0.55, Estimate(0.6, 0.5, 0.7))
    blocks = [
        model.Headline(f"{text}v", f"{text}r"),
        model.Heading(f"{text}h"),
        model.Text(f"{text}t"),
        model.Code(f"{text}o"),
        model.Bullets([(f"{text}b", f"{text}c"), ("", f"{text}d")]),
        model.Figures([(f"{text}f", cells[0])]),
        model.Flags(f"{text}g", {f"{text}code": [f"{text}m"]}),
        model.Table([f"{text}{i}" for i in range(3)], [model.Group(f"{text}head", [model.Row(f"{text}row", cells)]),
                                                       model.Group("second", [model.Row("last", more)])]),
        model.Facts([f"{text}x", "y"], [(f"{text}fact", [f"{text}value", None])], [f"{text}fact"]),
        model.Matrix(f"{text}m", f"{text} label", [f"{text}l", "b"], [f"{text}l", "b", "none"], [[7, 2, 1], [0, 5, 0]]),
        model.Split(f"{text}a", f"{text}b", (17, 2, 19, 3)),
        model.Intervals({f"{text}i": [model.Interval(f"{text}j", Estimate(0.5, 0.4, 0.6), f"{text}k", 0.45)]}),
        model.Plots([plot]),
        model.Calibration([model.Reliability(f"{text}set", [bins])]),
        model.Cases(f"{text}cases", [f"{text}u", "w"], [model.Case(f"{text}claim", f"{text}result", (0.25, 0.75))]),
    ]  # fmt: skip
    return model.Report(f"{text}title", f"{text}about", [model.Section(f"{text}section", blocks, f"{text}name")])


class Tags(HTMLParser):
    """Tags and names of attributes, and the text that is shown."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name) for name, _ in attrs]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("write", [html.page, html.fragment])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts_in_html(write, text):
    plain, page = Tags(write(every_block("word"))), Tags(write(every_block(text)))
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert page.tags["script"] == 0
    assert not {"src", "href", "style", "action"} & {name for _, name in page.attributes}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts_in_markdown(text):
    written = markdown.page(every_block(text)).split("-->", 1)[1]
    assert "<" not in written
    assert not re.search(r"(?<!\\)(?:\\\\)*[`\[\]]", written)
    tables = re.findall(r"(?:^\|.*\n)+", written, re.M)
    assert len(tables) == 7
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("text", ["\x1b[31m", *HOSTILE])
def test_hostile_texts_stay_texts_on_the_terminal(text):
    written = terminal.text(every_block(text))
    assert "\x1b" not in written
    assert "\x07" not in written


def test_markup_of_the_terminal_library_is_text():
    written, plain = terminal.text(every_block("[red]x[/]")), terminal.text(every_block("red-x-red"))
    assert written.replace("[red]x[/]", "red-x-red") == plain


def test_every_writer_shows_every_figure():
    report = every_block("word")
    written = {"page": Tags(html.page(report)).text, "fragment": Tags(html.fragment(report)).text,
               "markdown": markdown.page(report), "terminal": terminal.text(report)}  # fmt: skip
    for name, words in written.items():
        numbers = ["0.6543 [0.600, 0.700]", "+0.1234 [+0.050, +0.200]", "0.2500", "1,234"]
        if name != "terminal":
            numbers = ["0.654", "0.600 to 0.700", "+0.123", "+0.050 to +0.200", "0.250", "1,234"]
        for number in [*numbers, "7", "5", "17", "19", "not recorded", "0.750", "from 1 at step 0 to 2.5 at step 9"]:
            assert number in words, (name, number)
        for word in ("title", "about", "v", "o", "set", "r", "m", "code", "fact", "value", "claim", "result"):
            assert f"word{word}" in words, (name, word)


def test_a_wide_table_becomes_several_that_fit_the_terminal():
    columns = [f"labeler-{i}" for i in range(7)]
    cells = [model.Cell(Estimate(i / 10, i / 10 - 0.01, i / 10 + 0.01)) for i in range(7)]
    table = model.Table(columns, [model.Group("unanimous, 1,200 pairs", [model.Row("AUROC", cells)])])
    for width in (60, 80, 140):
        written = terminal.text(model.short("", "", table), width)
        assert max(map(len, written.splitlines())) <= width
        for i, name in enumerate(columns):
            assert name in written
            assert f"{i / 10:.4f}" in written
            assert f"[{i / 10 - 0.01:.3f}, {i / 10 + 0.01:.3f}]" in written
    assert "0.3000 [0.290, 0.310]" in terminal.text(model.short("", "", table), 200)


def test_a_difference_is_bold_only_where_its_interval_excludes_0():
    open_ = model.Cell(Estimate(0.1, -0.1, 0.3), signed=True)
    for cell, bold in ((model.Cell(GAP, signed=True), True), (open_, False), (model.Cell(GAP), False)):
        report = model.short("t", "", model.Table(["c"], [model.Group("g", [model.Row("r", [cell])])]))
        assert ("<td><b>" in html.page(report)) == bold
        assert ("| **+" in markdown.page(report)) == bold


def test_a_flag_is_named_as_far_as_it_has_a_name():
    for name, code, head in (
        ("", "", "! "),
        ("", "few-items", "! few-items: "),
        ("a", "few-items", "! a, few-items: "),
    ):
        assert terminal.text(model.short("", "", model.Flags(name, {code: ["3 items"]}))) == f"{head}3 items\n"


@dataclass(frozen=True)
class Measured(Result):
    """A result as stages return them."""

    share: Estimate

    def to_json(self) -> dict[str, float]:
        return self.share.flat("share")

    def report(self) -> model.Report:
        return model.short("measured", "one share", model.Figures([("share", model.Cell(self.share))]))


def test_a_result_shows_itself_in_a_notebook_and_in_print():
    result = Measured(GAP)
    assert str(result) == "\nmeasured: one share\nshare: 0.1234 [0.050, 0.200]\n"
    assert "0.123 0.050 to 0.200" in Tags(result._repr_html_()).text
    assert repr(result) == "<Measured>"


def test_a_notebook_shows_the_plots_of_a_result_that_its_text_leaves_out():
    curve = model.Plot("Loss", "loss", (model.Series("training", ((0, 2.0), (9, 1.0))),))
    report = model.short(
        "",
        "",
        model.Intervals({"Accuracy": [model.Interval("mine", Estimate(0.5, 0.4, 0.6), "a constant", 0.45)]}),
        model.Plots([curve], described=False),
    )
    fragment = html.fragment(report)
    assert Tags(fragment).tags["polyline"] == 1
    assert Tags(fragment).tags["circle"] == 1
    style = re.search("<style>(.*?)</style>", fragment, re.DOTALL)[1]
    assert not re.search(r"\.(plot|curves)[^{]*{[^}]*display: none", style)
    assert {*re.findall(r"var\((--[\w-]+)\)", style)} <= {*re.findall(r"(--[\w-]+):", style)}
    assert Tags(html.fragment(model.short("", "", model.Flags("", {})))).tags["ul"] == 0
    assert "Loss" not in terminal.text(report) + markdown.body(report)
    described = model.short("", "", model.Plots([curve]))
    assert "Loss: training from 2 at step 0 to 1 at step 9" in terminal.text(described)
    assert "Loss: training from 2 at step 0 to 1 at step 9" in markdown.body(described)


def test_a_line_break_is_no_unsafe_character():
    report = every_block("first\nsecond\t")
    pages, text = html.page(report) + html.fragment(report), markdown.body(report)
    assert "\ufffd" not in pages + text
    assert "first second t" in " ".join(text.split())
