"""The reliability plot of an evaluation: its bins are those of the expected calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from sailkit.evaluation.reliability import reliability
from sailkit.evaluation.views import read_view
from sailkit.rendering.html import page
from sailkit.rendering.model import Calibration, short
from sailkit.stats.intervals import proportion
from test_reporting import Page, good, made, prediction, run_folder


def scored(n: int = 200, **changes):
    """Answers with probabilities from 0.5 to 1, of which about half are right."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        probability = 0.5 + 0.5 * rng.random()
        label, other = ("SUPPORTS", "REFUTES") if rng.random() < 0.5 else ("REFUTES", "SUPPORTS")
        scores = {label: probability, other: 1 - probability}
        rows.append(prediction(i, label=label, scores=scores, answered_by="logprob", **changes))
    return rows


def test_bins_sum_up_to_the_calibration_error(tmp_path):
    rows = scored()
    view = read_view(run_folder(tmp_path / "a", rows, answer="logprob"), "human", None, None, 0)
    plot = reliability(view)
    assert [round(group.low, 1) for group in plot.bins] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert sum(group.count for group in plot.bins) == 200
    gaps = sum(group.count / 200 * abs(group.right.value - group.probability) for group in plot.bins)
    assert gaps == pytest.approx(view.summary.ece)
    inside = [p for p in rows if 0.7 <= max(p.scores.values()) < 0.8]
    assert plot.bins[2].right == proportion(sum(p.label == p.gold for p in inside), len(inside))


def test_intervals_of_items_in_groups_are_over_groups(tmp_path):
    scores = {"SUPPORTS": 0.95, "REFUTES": 0.05}
    rows = [
        prediction(i, label="SUPPORTS", gold=("SUPPORTS", "REFUTES")[i // 10 % 2], group=f"g{i // 10}", scores=scores)
        for i in range(200)
    ]
    (grouped,) = reliability(read_view(run_folder(tmp_path / "a", rows), "human", None, None, 0)).bins
    single = proportion(100, 200)
    assert grouped.right.value == 0.5
    assert grouped.right.high - grouped.right.low > 2 * (single.high - single.low)


def test_the_page_draws_each_set_with_its_counts(tmp_path):
    folders = [run_folder(tmp_path / name, scored(), answer="logprob") for name in ("a", "b")]
    shown, markdown, _ = made(tmp_path, *folders)
    plot = reliability(read_view(folders[0], "human", None, None, 0))
    assert "Calibration A dot is the share of right answers" in shown.text
    for name in ("a", "b"):
        assert f"| {name} | answers | mean probability | share that is right |" in markdown
    for group in plot.bins:
        assert f"{group.count} answers, {group.right.value:.3f} right" in shown.text
    assert "Calibration" not in made(tmp_path / "text", run_folder(tmp_path / "c", good()))[0].text


def test_a_dot_is_drawn_where_its_values_are(tmp_path):
    view = read_view(run_folder(tmp_path / "a", scored(), answer="logprob"), "human", None, None, 0)
    plot = reliability(view)
    (tmp_path / "page.html").write_text(page(short("", "", Calibration([plot]))))
    drawn = Page(tmp_path / "page.html").attributes
    dots = [float(value) for tag, name, value in drawn if (tag, name) == ("circle", "cx")]
    heights = [float(value) for tag, name, value in drawn if (tag, name) == ("circle", "cy")]
    probabilities, shares = [b.probability for b in plot.bins], [b.right.value for b in plot.bins]
    assert np.corrcoef(dots, probabilities)[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(heights, shares)[0, 1] == pytest.approx(-1, abs=1e-4)
