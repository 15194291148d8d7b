"""Typed results: what they hold, how they are written, and that they can be read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.figures import Summary
from sailkit.evaluation.rescore import rescore
from sailkit.evaluation.results import Evaluation

TASK = """
name: tiny
data: {file: items.jsonl, fields: {id: key, text: claim, label: truth}}
labels: {good: {answer: good}, bad: {answer: very bad}}
protocols:
  direct: {wordings: {plain: "{text} Is that {answers}?", short: "{text} {answers}?"}}
"""


@pytest.fixture
def arguments(shared: Path, tmp_path: Path) -> dict[str, str]:
    rows = [{"key": f"item-{i}", "claim": f"Tom saw {i} dogs.", "truth": "bad" if i % 3 else "good"} for i in range(24)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK)
    return {"model": str(shared / "models" / "stories260k"), "task": str(tmp_path / "tiny.yaml")}


def test_an_evaluation_is_what_its_folder_holds(arguments, tmp_path):
    evaluation = evaluate(**arguments, out=tmp_path / "run", reference=arguments["model"])
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.dumps(evaluation.to_json()) == json.dumps(written)
    for name, estimate in evaluation.figures.items():
        ends = (written[name], written[f"{name}_low"], written[f"{name}_high"])
        assert (estimate.value, estimate.low, estimate.high) == ends
    assert {"accuracy", "f1_bad", "human_macro_f1"} <= evaluation.figures.keys()
    assert [flag.code for flag in evaluation.flags] == written["flags"]
    assert (evaluation.folder, evaluation.task, evaluation.labels) == (tmp_path / "run", "tiny", ("good", "bad"))
    again = Evaluation.load(tmp_path / "run")
    assert again == evaluation
    assert [p.label for p in again.predictions] == [p.label for p in evaluation.predictions]
    assert sum(p.label == p.gold for p in again.predictions) / 24 == again.figures["accuracy"].value


def test_predictions_as_a_frame(arguments, tmp_path):
    evaluation = evaluate(**arguments, out=tmp_path / "run")
    frame = evaluation.to_frame()
    assert frame["id"].tolist() == [f"item-{i}" for i in range(24)]
    assert (frame["label"] == frame["gold"]).mean() == evaluation.figures["accuracy"].value
    assert frame[["score_good", "score_bad"]].sum(axis=1).tolist() == pytest.approx([1.0] * 24)


def test_a_folder_without_figures_is_no_evaluation(arguments, tmp_path):
    evaluate(**arguments, out=tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text('{"n": 24, "labels": ["good", "bad"]}')
    with pytest.raises(UserError, match=r"metrics.json: not the figures of an evaluation .*; evaluate again"):
        Evaluation.load(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"is not finished; run the same +sailkit evaluate"):
        Evaluation.load(tmp_path / "run")
    with pytest.raises(UserError, match="is not a run folder"):
        Evaluation.load(tmp_path)


def test_comparisons_and_rescored_recordings_are_typed(recordings):
    comparison = compare(recordings.llama, recordings.sail, task=recordings.task)
    (pair,) = comparison.pairs
    flat = comparison.to_json()
    assert (pair.verdict, pair.n, comparison.flags[0].code) == ("better", 907, "below-majority")
    assert pair.differences["accuracy"].low == flat["accuracy_difference_low"] > 0
    assert pair.a_figures.figures["macro_f1"].value == flat["a_macro_f1"]
    assert flat["comparisons"] == [pair.to_json()]
    (rescored,) = rescore(recordings.llama, task=recordings.task)
    assert rescored.figures["recorded_accuracy"].value == rescored.to_json()["recorded_accuracy"]
    assert rescored.summary.human.figures["accuracy"] == rescored.figures["human_accuracy"]
    assert pair.a == rescored.name
    assert 0 < rescored.figures["reference_agreement"].low < 1
    summary = Summary(**Summary.fields_of(rescored.to_json()))
    assert replace(summary, flags=rescored.summary.flags) == rescored.summary
