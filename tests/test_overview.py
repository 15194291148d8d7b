"""The list of runs: state, main figure, model and age of each, in 80 columns and as a page; where a run continues."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import filelock
import pytest

from sailkit import overview, reporting, runs
from sailkit.errors import UserError
from sailkit.rendering import terminal
from sailkit.stats.intervals import Estimate
from test_reporting import HOSTILE, Page

KEPT = Path(__file__).parent / "fixtures" / "runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("evaluate-logprob", "evaluate-generate", "distill-logits", "finetune"):
        shutil.copytree(KEPT / "runs" / name, tmp_path / "runs" / name)
    shutil.copytree(KEPT / "killed" / "evaluate-verified", tmp_path / "runs" / "stopped")
    return tmp_path / "runs"


def states(folder: Path) -> dict[str, str]:
    return {Path(run.folder).name: overview.state(run) for run in runs.overview(folder).runs}


def test_a_run_is_finished_stopped_or_running(folder):
    assert (states(folder)["evaluate-logprob"], states(folder)["stopped"]) == ("finished", "stopped")
    with filelock.FileLock(folder / "stopped" / runs.LOCK):
        assert states(folder)["stopped"] == "running"
    assert states(folder)["stopped"] == "stopped"


def test_the_list_fits_80_columns_and_shows_figures_with_intervals(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    listed = reporting.list_runs(Path("runs"))
    text = terminal.text(reporting.report_of(listed), width=80)
    assert max(map(len, text.splitlines())) <= 80
    metrics = json.loads((folder / "evaluate-logprob" / "metrics.json").read_text())
    line = next(line for line in text.splitlines() if line.startswith("runs/evaluate-logprob"))
    interval = Estimate(metrics["macro_f1"], metrics["macro_f1_low"], metrics["macro_f1_high"])
    assert f"{interval.value:.4f} [{interval.low:.3f}, {interval.high:.3f}]" in line
    assert "finished" in line
    assert "small" in line
    kl = json.loads((folder / "distill-logits" / "metrics.json").read_text())["tuned"]["kl"]
    assert f"{kl:.4f}" in text


def test_ages_are_in_their_largest_unit():
    now = 1_800_000_000.0
    for seconds, words in ((5, "5 s"), (120, "2 min"), (3 * 3600, "3 h"), (12 * 86400, "12 d")):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - seconds))
        assert overview.age(stamp, now) == words
    assert overview.age("yesterday", now) is None


def test_the_page_puts_the_best_run_of_a_task_first(folder, tmp_path):
    for name, value in (("evaluate-logprob", 0.2), ("evaluate-generate", 0.9)):
        path = folder / name / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"macro_f1": value}))
    reporting.list_runs(folder, html=tmp_path / "all.html")
    page = (tmp_path / "all.html").read_text()
    assert page.index("evaluate-generate") < page.index("evaluate-logprob")
    assert "0.900" in page
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(UserError, match=r"other.html exists and is not a sailkit report; .* another `html`"):
        reporting.list_runs(folder, html=tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text() == "mine"


def test_the_page_ranks_only_runs_of_the_same_items_and_draws_their_intervals(folder, tmp_path):
    other = shutil.copytree(folder / "evaluate-logprob", folder / "other-items")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["data_sha256"] = "ab" * 32
    (other / "manifest.json").write_text(json.dumps(manifest))
    page = Page(reporting_page(folder, tmp_path))
    markdown = (tmp_path / "all.md").read_text()
    first, second = re.findall(r"\n\| (\d+ items, labels .*?, data \w+) \| macro-F1", markdown)
    assert second.endswith("data abababababab")
    ranks = re.findall(r"^\| (?:(\d)\. )?\S*/([\w-]+) \|", markdown, re.M)
    assert ("1", "other-items") in ranks
    assert ("", "stopped") in ranks
    assert [rank for rank, name in ranks if name.startswith("evaluate-")] == ["1", "2"]
    assert page.text.count("always answering") >= 2
    assert first in page.text
    metrics = json.loads((folder / "evaluate-logprob" / "metrics.json").read_text())
    assert f"{metrics['accuracy']:.3f} {metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}" in page.text


def test_the_page_ranks_the_halves_of_a_data_set_apart(folder, tmp_path):
    for half in ("first", "second"):
        other = shutil.copytree(folder / "evaluate-logprob", folder / half)
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["settings"]["half"] = half
        (other / "manifest.json").write_text(json.dumps(manifest))
    markdown = reporting_page(folder, tmp_path).with_suffix(".md").read_text()
    headings = re.findall(r"\n\| (\d+ items.*?), labels .*? \| macro-F1", markdown)
    assert {"4 items, first half", "4 items, second half"} < {*headings}
    ranks = re.findall(r"^\| (\d)\. \S*/(first|second) \|", markdown, re.M)
    assert sorted(ranks) == [("1", "first"), ("1", "second")]


def reporting_page(folder: Path, out: Path) -> Path:
    reporting.list_runs(folder, html=out / "all.html")
    return out / "all.html"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts_in_the_page(folder, tmp_path, text):
    pages = []
    for words in ("word", text):
        manifest = json.loads((folder / "evaluate-logprob" / "manifest.json").read_text())
        manifest["settings"] |= {"model": f"m{words}"[:40], "task": f"t{words}", "search": f"s{words}"}
        (folder / "evaluate-logprob" / "manifest.json").write_text(json.dumps(manifest))
        pages.append(Page(reporting_page(folder, tmp_path)))
    assert pages[0].tags == pages[1].tags
    assert [a[:2] for a in pages[0].attributes] == [a[:2] for a in pages[1].attributes]


def test_an_empty_list_has_a_page(tmp_path):
    (tmp_path / "runs").mkdir()
    assert "0 runs, 0 of them finished Runs no runs" in Page(reporting_page(tmp_path / "runs", tmp_path)).text


def test_a_stopped_run_continues_from_its_rows_or_its_checkpoint(folder):
    rows = (folder / "stopped" / "predictions.jsonl").read_bytes().count(b"\n")
    assert overview.resume_point(folder / "stopped").startswith(f"row {rows + 1} of ")
    shutil.copytree(KEPT / "killed" / "finetune", folder / "training")
    assert "checkpoint-" in overview.resume_point(folder / "training")
    assert overview.resume_point(folder / "nowhere") is None
