"""The models of several training seeds, measured with one command and compared as a group."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import sailkit
from sailkit import runs
from sailkit.cli import main
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.group_results import EvaluationGroup
from sailkit.models.base import ModelOptions

CALL = {"task": "sample-claims", "limit": 24, "options": ModelOptions(dtype="float32")}


@pytest.fixture(scope="module")
def tuned(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of two seeds, laid out as `finetune --seeds` does, whose models differ."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    for seed in range(2):
        with runs.open_run(folder / f"seed-{seed}", "finetune", {"seed": seed}) as run:
            shutil.copytree(shared / "models" / "stories260k", run.path("model"))
        (weights,) = run.path("model").glob("*.safetensors")
        tensors = load_file(weights)
        save_file({name: tensor * (1 + seed) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def group(tuned, tmp_path_factory) -> EvaluationGroup:
    return evaluate(model=tuned, out=tmp_path_factory.mktemp("measured") / "evidence", search="evidence", **CALL)


def test_each_seed_has_a_run_as_if_it_were_measured_alone(tuned, group, tmp_path):
    assert [run.folder for run in group.evaluations] == [group.folder / "seed-0", group.folder / "seed-1"]
    alone = evaluate(model=tuned / "seed-1" / "model", out=tmp_path / "alone", search="evidence", **CALL)
    assert alone.to_json() == group.evaluations[1].to_json()
    assert group.evaluations[0].predictions != group.evaluations[1].predictions
    for name in ("accuracy", "macro_f1"):
        values = [run.figures[name].value for run in group.evaluations]
        assert group.means.by_run[name] == pytest.approx(values)
        assert group.figures[name].value == pytest.approx(np.mean(values))
    assert group.to_json()["accuracy_by_run"] == list(group.means.by_run["accuracy"])
    assert "24 items, 2 models" in str(group)


def test_the_run_folder_of_a_single_seed_stands_for_its_model(tuned, group, tmp_path):
    result = evaluate(model=tuned / "seed-0", out=tmp_path / "out", search="evidence", **CALL)
    assert result.to_json() == group.evaluations[0].to_json()
    with runs.open_run(tmp_path / "distilled", "distill", {}) as run:
        shutil.copytree(tuned / "seed-0" / "model", run.path("student") / "model")
    student = evaluate(model=tmp_path / "distilled", out=tmp_path / "student", search="evidence", **CALL)
    assert student.predictions == group.evaluations[0].predictions


def test_groups_are_compared_from_the_results_and_from_their_folders(tuned, group, capsys, tmp_path):
    other = evaluate(model=str(tuned), search="random", **CALL)
    in_memory = sailkit.compare(group, other)
    assert in_memory.names == ("evidence", "tuned")
    assert in_memory.pairs[0].paired
    arguments = ["--task", "sample-claims", "--limit", "24", "--dtype", "float32", "--search", "random"]
    main(["evaluate", "--model", str(tuned), *arguments, "--out", str(tmp_path / "random")])
    capsys.readouterr()
    main(["compare", str(group.folder), str(tmp_path / "random"), "--json", "-"])
    values = json.loads(capsys.readouterr().out)
    assert values["names"] == ["evidence", "random"]
    assert values["accuracy_differences_by_run"] == list(in_memory.pairs[0].by_run["accuracy"])
    assert values["accuracy_difference"] == in_memory.pairs[0].differences["accuracy"].estimate.value


def test_what_would_mix_runs_up_is_refused(tuned, group, tmp_path):
    with pytest.raises(UserError, match="`csv_out` is for a single model"):
        evaluate(model=tuned, out=tmp_path / "out", csv_out=tmp_path / "rows.csv", **CALL)
    with pytest.raises(UserError, match="does not hold a run for each seed"):
        evaluate(model=tuned, out=group.folder / "seed-0", **CALL)
    shutil.copytree(tuned, tmp_path / "tuned")
    shutil.rmtree(tmp_path / "tuned" / "seed-1" / "model")
    with pytest.raises(UserError, match=r"seed-1 is not finished; run the same  sailkit finetune"):
        evaluate(model=tmp_path / "tuned", out=tmp_path / "out", **CALL)
