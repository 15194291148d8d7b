"""Evaluation from Python: a loaded model, a task object, examples in memory, and no folder."""

from __future__ import annotations

import gc
import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sailkit
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.records import Example, SearchResult
from sailkit.reporting import report
from sailkit.signatures import for_command_line
from sailkit.tasks.task import load_task

TASK = """
name: tiny
data:
  file: items.jsonl
  fields: {id: key, text: claim, label: truth, evidence: {list: results, body: text}}
labels: {good: {answer: good}, bad: {answer: very bad}}
protocols:
  direct: {wordings: {plain: "{text} Is that {answers}?", short: "{text} {answers}?"}}
"""
ROWS = [
    {
        "key": f"item-{i}",
        "claim": f"Tom saw {i} dogs.",
        "truth": "bad" if i % 3 else "good",
        "results": [{"text": f"There were {i} dogs."}],
    }
    for i in range(12)
]
OPTIONS = ModelOptions(dtype="float32")


@pytest.fixture(scope="module")
def path(shared: Path) -> str:
    return str(shared / "models" / "stories260k")


@pytest.fixture(scope="module")
def model(path):
    return load_model(path, OPTIONS)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tiny.yaml").write_text(TASK)
    return tmp_path / "tiny.yaml"


def files(folder: Path) -> dict[str, bytes]:
    """A run's files; the manifest without its environment, which has the time."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["environment"]
    names = ("predictions.jsonl", "metrics.json")
    return {name: (folder / name).read_bytes() for name in names} | {"manifest": json.dumps(manifest).encode()}


@pytest.mark.parametrize("kind", ["mappings", "frame", "frame of parquet", "examples"])
def test_objects_give_what_names_and_files_give(path, model, task, tmp_path, kind):
    evaluate(model=path, task=str(task), out=str(tmp_path / "files"), options=OPTIONS)
    examples = {
        "mappings": ROWS,
        "frame": pd.DataFrame(ROWS),
        "frame of parquet": pd.DataFrame([{**row, "results": np.array(row["results"])} for row in ROWS]),
        "examples": [
            Example(row["key"], row["claim"], row["truth"], (SearchResult(row["results"][0]["text"], rank=1),))
            for row in ROWS
        ],
    }[kind]
    evaluate(model=model, task=load_task(task), examples=examples, out=tmp_path / "memory")
    assert files(tmp_path / "memory") == files(tmp_path / "files")


def test_a_row_of_a_data_frame_may_have_no_evidence(model, task):
    rows = [{**row, "results": None if i == 1 else row["results"]} for i, row in enumerate(ROWS)]
    result = evaluate(model=model, task=load_task(task), examples=pd.DataFrame(rows))
    assert len(result.predictions) == len(ROWS)


def test_options_are_refused_where_they_would_be_ignored(model, task):
    with pytest.raises(UserError, match="this one is loaded; give them to `load_model`"):
        evaluate(model=model, task=load_task(task), options=ModelOptions(dtype="bfloat16"))


def test_rows_of_any_task_may_have_the_usual_names(model, task):
    usual = [{"id": row["key"], "text": row["claim"], "label": row["truth"], "evidence": ["A dog."]} for row in ROWS]
    by_field = evaluate(model=model, task=load_task(task), examples=ROWS)
    by_usual_name = evaluate(model=model, task=load_task(task), examples=usual)
    assert by_field.predictions == by_usual_name.predictions
    numbered = evaluate(model=model, task=load_task(task), examples=[{"text": "Tom ate.", "label": "bad"}])
    assert [(p.id, p.text, p.gold) for p in numbered.predictions] == [("1", "Tom ate.", "bad")]


def test_changed_examples_are_another_run(model, task, tmp_path):
    first = evaluate(model=model, task=load_task(task), examples=ROWS, out=tmp_path / "run")
    before = (tmp_path / "run" / "predictions.jsonl").read_bytes()
    (tmp_path / "run" / "predictions.jsonl").write_bytes(before[: len(before) // 2])
    assert evaluate(model=model, task=load_task(task), examples=ROWS, out=tmp_path / "run") == first
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"holds another run \(data_sha256"):
        evaluate(model=model, task=load_task(task), examples=ROWS[::-1], out=tmp_path / "run")


def test_without_a_folder_the_predictions_last_as_long_as_the_result(model, task):
    evaluation = evaluate(model=model, task=load_task(task), examples=ROWS)
    folder = evaluation.folder
    assert len(evaluation.to_frame()) == len(evaluation.predictions) == 12
    assert folder.is_dir()
    del evaluation
    gc.collect()
    assert not folder.exists()


def test_a_failure_leaves_no_temporary_folder(model, task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(UserError, match="IN/OUT in USD"):
        evaluate(model=Priced(model), task=load_task(task), examples=ROWS, price="cheap")
    assert not [*(tmp_path / "temporary").iterdir()]


class Priced:
    """A model that costs a request for every answer."""

    def __init__(self, model) -> None:
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def estimate(self, prompts, max_new_tokens, repeats=1, *, scored=False):
        return {"requests": len(prompts), "prompt_tokens": 1, "completion_tokens": 1}

    def with_repeat(self, repeat):
        return self


def test_evaluations_are_compared_by_the_names_of_their_folders_or_models(model, task, tmp_path):
    named = evaluate(model=model, task=load_task(task), out=tmp_path / "plain")
    unnamed = evaluate(model=model, task=load_task(task), wording="short")
    comparison = compare(named, unnamed)
    assert comparison.names == ("plain", "stories260k")
    assert [*comparison.pairs[0].factors] == ["wording", "prompts_sha256"]
    written = report(named, unnamed, out=tmp_path / "report.html")
    assert written.verdict == "cannot tell whether plain or stories260k is better"
    with pytest.raises(UserError, match="a Comparison has no folder to report on"):
        report(comparison, out=tmp_path / "report.html")
    assert (
        compare(tmp_path / "plain", str(tmp_path / "plain")).pairs[0].both_right
        == named.confusion.counts[0][0] + (named.confusion.counts[1][1])
    )


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "`examples`: no examples with the labels good, bad"),
        ([{"claim": "Tom ate."}], r"`examples`, line 1: no field 'truth' \(found: claim, key\)"),
        ([ROWS[0], "Tom ate."], "`examples`, row 2: expected a mapping, found str"),
        ([ROWS[0], ROWS[0]], "id 'item-0' was used before"),
        ([Example("1", "Tom ate.", "ugly")], "`examples`, row 1: label 'ugly' is not one of good, bad"),
    ],
)
def test_examples_that_cannot_be_used(model, task, tmp_path, examples, message):
    with pytest.raises(UserError, match=message):
        evaluate(model=model, task=load_task(task), examples=examples, out=tmp_path / "run")
    with pytest.raises(UserError, match="either `data` or `examples`"):
        evaluate(model=model, task=load_task(task), examples=ROWS, data=tmp_path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_knows_only_what_can_be_written():
    parameters = inspect.signature(for_command_line(evaluate)).parameters
    assert parameters["model"].annotation is str
    assert sailkit.evaluate is evaluate


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"answer": "generat"}, "`answer` takes logprob, generate, not 'generat'; did you mean 'generate'?"),
        ({"half": "1"}, "`half` takes first, second, not '1'"),
        ({"search": "none "}, "`search` takes evidence, near, random, none, not 'none '; did you mean 'none'?"),
        ({"verify": "no"}, "`verify` takes auto, on, off, not 'no'"),
    ],
)
def test_a_choice_that_python_does_not_check_is_refused(model, task, choice, message):
    with pytest.raises(UserError) as caught:
        evaluate(model=model, task=task, **choice)
    assert str(caught.value) == message


def test_compare_and_report_refuse_other_labels_to_compare_against(model, task, tmp_path):
    for number in (1, 2):
        evaluate(model=model, task=task, out=tmp_path / f"run{number}", seed=number)
    folders = tmp_path / "run1", tmp_path / "run2"
    with pytest.raises(UserError, match="`against` takes human, reference, not 'gold'"):
        compare(*folders, against="gold")
    with pytest.raises(UserError, match="`against` takes human, reference, not 'gold'"):
        report(*folders, against="gold", out=tmp_path / "report.html")


def test_paths_numpy_seeds_and_labels_in_one_text_are_accepted(path, task, tmp_path):
    plain = evaluate(model=path, task=task, out=tmp_path / "plain", options=OPTIONS, seed=3, labels=["good", "bad"])
    other = evaluate(
        model=Path(path), task=task, out=tmp_path / "other", options=OPTIONS, seed=np.int64(3), labels="good,bad"
    )
    assert files(plain.folder) == files(other.folder)


def test_examples_that_can_be_read_only_once_are_refused(model, task):
    with pytest.raises(UserError, match="`examples` should be a list or a pandas data frame, not a generator"):
        evaluate(model=model, task=task, examples=(row for row in ROWS))
