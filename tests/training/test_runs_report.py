"""The page of several training runs: a paired comparison of held-out losses, common plots, and what differs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.reporting import report
from sailkit.training.plots import Logged, plots_of_runs
from test_reporting import HOSTILE, Page
from training.test_report import FIGURES, history, tuned


def with_losses(folder: Path, losses: list[float], held_out: str | None = "ab" * 32, text: str = "", **changes) -> Path:
    """A finished run with the loss of each held-out row."""
    tuned(folder, text, **changes)
    rows = [{"id": str(i), "loss": loss, "tokens": 1 + i % 3} for i, loss in enumerate(losses)]
    (folder / "held_out-tuned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["held_out_sha256"] = held_out
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_runs_are_compared_on_the_same_held_out_rows(tmp_path):
    first = [1.0 + (i % 5) / 10 for i in range(30)]
    folders = with_losses(tmp_path / "a", first), with_losses(tmp_path / "b", [loss + 0.5 for loss in first])
    written = report(*folders, out=tmp_path / "out.html")
    tokens = sum(1 + i % 3 for i in range(30))
    assert f"a has a lower held-out loss than b (difference −{30 * 0.5 / tokens:.3f}, " in written.verdict
    back = report(*reversed(folders), out=tmp_path / "out.html").verdict
    assert f"b has a higher held-out loss than a (difference +{30 * 0.5 / tokens:.3f}, " in back
    noisy = with_losses(tmp_path / "c", [loss + (0.5 if i % 2 else -0.5) for i, loss in enumerate(first)])
    assert (
        "It cannot be told whether a or c has the lower" in report(folders[0], noisy, out=tmp_path / "o.html").verdict
    )


@pytest.mark.parametrize("held_out", ["cd" * 32, None])
def test_runs_with_other_held_out_rows_are_not_compared(tmp_path, held_out):
    folders = with_losses(tmp_path / "a", [1.0] * 30), with_losses(tmp_path / "b", [2.0] * 30, held_out)
    verdict = report(*folders, out=tmp_path / "out.html").verdict
    assert verdict.startswith("The held-out rows of a and b differ: their figures cannot be compared")


def test_the_page_shows_what_differs_and_has_a_curve_for_each_run(tmp_path):
    folders = [with_losses(tmp_path / name, [1.0] * 30, steps=80 + i) for i, name in enumerate("abc")]
    manifest = json.loads((folders[2] / "manifest.json").read_text())
    manifest["effective"]["training"]["weight_decay"] = 0.25
    (folders[2] / "manifest.json").write_text(json.dumps(manifest))
    page = Page(report(*folders, out=tmp_path / "out.html").html)
    markdown = (tmp_path / "out.md").read_text()
    (differing,) = re.findall(r"## Settings that differ\n\n\| \| a \| b \| c \|\n\|-.*\n((?:\|.*\n)+)", markdown)
    assert differing == "| training.weight\\_decay | 0.0 | 0.0 | 0.25 |\n"
    assert "| Steps | 80 | 81 | 82 |" in markdown
    assert page.tags["svg"] == 5  # loss in training and held out, MCC, AUROC, learning rate
    assert page.tags["script"] == 0


def test_each_run_has_its_curve_in_the_same_plot():
    slower = [{**row, "eval_loss": row["eval_loss"] + 1} if "eval_loss" in row else row for row in history()]
    plots = plots_of_runs([Logged(history(), FIGURES, "a"), Logged(slower, FIGURES, "b")])
    (held_out,) = [plot for plot in plots if plot.title == "Held-out loss"]
    assert [series.name for series in held_out.series] == ["a", "b"]
    assert held_out.series[0].points[0] == held_out.series[1].points[0] == (0.0, FIGURES["base_loss"])
    assert held_out.series[1].points[1][1] - held_out.series[0].points[1][1] == pytest.approx(1)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path, text):
    pages = [
        Page(report(with_losses(tmp_path / words[0] / "a", [1.0] * 9, text=words[1]),
                    with_losses(tmp_path / words[0] / "b", [1.0] * 9, text="y", steps=5), out=tmp_path / "o.html").html)
        for words in (("plain", "word"), ("hostile", text))
    ]  # fmt: skip
    assert pages[0].tags == pages[1].tags
    assert [a[:2] for a in pages[0].attributes] == [a[:2] for a in pages[1].attributes]


def test_a_damaged_run_is_one_line(tmp_path):
    folders = with_losses(tmp_path / "a", [1.0] * 9), with_losses(tmp_path / "b", [1.0] * 9)
    (folders[1] / "data.json").write_text('{"data": [1]}')
    with pytest.raises(UserError, match="does not hold what finetune writes"):
        report(*folders, out=tmp_path / "out.html")
