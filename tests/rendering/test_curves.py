"""Curves are drawn where their values are, whatever the values."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from sailkit.rendering.curves import describe, draw
from sailkit.rendering.html import svg
from sailkit.rendering.model import Plot, Series


def points(drawn: str, name: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(drawn)
    (line, *_) = [g.find("{*}polyline") for g in root.findall("{*}g") if g.get("class") == name]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_curves_are_drawn_where_their_values_are():
    plot = Plot("A <b>", "y", (Series("a", ((0, 0.0), (50, 5.0), (100, 10.0))), Series("b", ((100, 2.5),))), kept=50)
    drawn = svg(plot)
    (x0, y0), (x1, y1), (x2, y2) = points(drawn, "c1")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    ((only, quarter),) = points(drawn, "c2")
    assert only == x2
    assert y0 - quarter == pytest.approx((y0 - y2) / 4, abs=0.11)
    texts = [text.text for text in ElementTree.fromstring(drawn).findall(".//{*}text")]
    assert {"0", "2", "10", "20", "100", "step", "y", "a", "b", "kept"} <= set(texts)
    assert "A <b>" not in drawn


@pytest.mark.parametrize("values", [(1e-5, 2e-4), (0.7, 0.7), (0.0, 0.0), (-3.0, 4.5), (1e6, 3e7), (5e-324, 5e-324)])
def test_every_range_of_values_can_be_drawn(values):
    drawn = svg(Plot("t", "y", (Series("a", tuple(enumerate(values))),)))
    for _, y in points(drawn, "c1"):
        assert 34 <= y <= 226


def texts(drawn: str) -> list[tuple[str, dict[str, str]]]:
    return [(text.text, text.attrib) for text in ElementTree.fromstring(drawn).findall(".//{*}text")]


@pytest.mark.parametrize(
    "values", [(11.88, 11.94), (1.1801, 1.1809), (0.0, 1.2e-3), (1e-6, 3e-5), (1.1e4, 1.5e4), (1e300, 1.001e300)]
)
def test_no_two_ticks_have_the_same_label(values):
    plot = Plot("t", "y", (Series("a", tuple(enumerate(values))),))
    drawing = draw(plot)
    names = [label for _, label in drawing.y_ticks]
    assert len({*names}) == len(names) >= 3
    assert len({len(name.partition("e")[0].partition(".")[2]) for name in names if name != "0"}) == 1, "one notation"
    assert all(24 + 6.7 * len(name) <= drawing.left for name in names), "labels end before the title of the axis"


def test_a_legend_of_long_names_takes_more_rows_and_names_do_not_overlap():
    runs = [f"runs/learning-rate-{i}e-5" for i in range(9)]
    plot = Plot("t", "y", tuple(Series(name, ((0, 1.0), (9, i + 2.0))) for i, name in enumerate(runs)), kept=9)
    drawing = draw(plot)
    entries = [(*curve.key, 27 + 6.7 * len(curve.name)) for curve in drawing.curves] + [(*drawing.kept_key, 60)]
    for i, (x, y, width) in enumerate(entries):
        assert x + width <= 480
        assert y + 14 <= drawing.top
        assert not any(y == other_y and x < other_x < x + width for other_x, other_y, _ in entries[i + 1 :])
    assert len({curve.style for curve in drawing.curves}) == 9
    assert max(float(at["y"]) for text, at in texts(svg(plot)) if text in runs) < drawing.top


def test_values_in_words_tell_different_values_apart():
    plot = Plot("t", "y", (Series("a", ((0, 11.9001), (20, 11.9)), dots=True), Series("b", ((1500, 0.25),))))
    assert describe(plot) == "a from 11.9001 at step 0 to 11.9 at step 20; b 0.25 at step 1,500"
    assert "a, step 0: 11.9001" in svg(plot)
