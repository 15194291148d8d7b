"""Curves are drawn where their values are, whatever the values."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

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
