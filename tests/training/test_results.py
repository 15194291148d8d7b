"""Results of training are typed, and their JSON is that of the files: its names and their order do not change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.stats.intervals import Estimate
from sailkit.training.results import MergedModel, TrainingPlan, TrainingRun

RUNS = Path(__file__).parents[1] / "fixtures" / "runs" / "runs"
CHANGE = {"loss_change": -0.5, "loss_change_low": -0.75, "loss_change_high": -0.25}
FLAGGED = {"flagging_rows": 8, "flagging_results": 12, "flagging_mcc": 0.5}


def written(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir()
    jsonl.write_json(folder / "metrics.json", values)
    return folder


@pytest.mark.parametrize("name", ["finetune", "distill-logits/student", "distill-sequence/student"])
def test_a_run_of_an_earlier_version_reads_back_to_the_byte(name, tmp_path):
    run = TrainingRun.load(RUNS / name)
    jsonl.write_json(tmp_path / "again.json", run.to_json())
    assert (tmp_path / "again.json").read_bytes() == (RUNS / name / "metrics.json").read_bytes()


def test_the_figures_of_a_run_are_typed(tmp_path):
    values = json.loads((RUNS / "finetune" / "metrics.json").read_text())
    values |= {f"{prefix}_{name}": value for prefix in ("base", "tuned") for name, value in FLAGGED.items()} | CHANGE
    folder = written(tmp_path / "run", values | {"pushed": "https://hub.test/a/b"})
    shutil.copy(RUNS / "finetune" / "history.jsonl", folder)
    run = TrainingRun.load(str(folder))
    assert run.to_json() == values | {"pushed": "https://hub.test/a/b"}
    assert (run.folder, run.model, run.base) == (folder, folder / "model", values["model"])
    assert (run.before["loss"], run.after["loss"]) == (values["base_loss"], values["tuned_loss"])
    assert FLAGGED.items() <= run.before.items() and FLAGGED.items() <= run.after.items()  # noqa: PT018
    assert run.figures == {"loss_change": Estimate(-0.5, -0.75, -0.25)}
    assert [row["step"] for row in run.history if "loss" in row] == [1, 2, 3, 4]


def test_what_a_run_does_not_have_is_not_written(tmp_path):
    values = json.loads((RUNS / "finetune" / "metrics.json").read_text())
    bare = {name: value for name, value in values.items() if not name.startswith(("base_", "tuned_"))}
    bare |= {"best_step": None, "held_out_rows": 0}  # nothing was held out
    del bare["dtype"], bare["device"]  # a run from before these were kept
    run = TrainingRun.load(written(tmp_path / "run", bare))
    assert list(run.to_json().items()) == list(bare.items())
    assert (run.before, run.after, run.figures, run.dtype, run.pushed, run.history) == ({}, {}, {}, None, None, [])


def test_a_run_that_is_not_finished_or_damaged_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is not finished; run the same +sailkit finetune"):
        TrainingRun.load(tmp_path)
    with pytest.raises(UserError, match="does not hold what finetune writes"):
        TrainingRun.load(written(tmp_path / "run", {"rows": 1}))


def test_plans_and_merged_models_are_written_as_before():
    sizes = {"rows": 3, "dropped": 1, "dropped_rows": [{"id": "a", "reason": "no response"}]}
    tokens = {"tokens": 30, "supervised_tokens": 12, "longest": 11, "cut_tokens": None, "tokens_estimated": True}
    steps = {"held_out_rows": 0, "rows_per_step": 2, "steps_per_epoch": 2, "steps": 4, "epochs": 2.0}
    totals = {"tokens_in_all": 60, "supervised_in_all": 24}
    unknown = dict.fromkeys(("parameters", "trainable_parameters", "memory", "columns", "seconds"))
    values = {"model": "m", **sizes, **tokens, **steps, **totals, **unknown, "missing": ["no config"]}
    values |= {"device": None, "processes": 1}
    plan = TrainingPlan(**values)  # type: ignore[arg-type]
    assert json.dumps(plan.to_json()) == json.dumps({"dry_run": True, **values})
    merged = MergedModel(Path("runs/merged"), base="smollm2-135m")
    assert json.dumps(merged.to_json()) == '{"model": "runs/merged", "base": "smollm2-135m"}'
