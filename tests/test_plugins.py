"""Plug-ins: the examples of docs/plugins.md as they stand there, and what a broken one says."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from sailkit.cluster import RayOptions
from sailkit.errors import UserError
from sailkit.labeling.base import Labeler
from sailkit.labeling.label import label
from sailkit.models.load import load_model
from sailkit.plugins import is_plugin, load_attribute, load_plugin

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text("utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^`(sailkit [^`]*)`$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name, text in FILES.items():
        Path(name).write_text(text)
    questions = [("What makes honey?", "bees"), ("Where does a whale live?", "In the sea.")]
    rows = [{"id": f"q{i}", "instruction": q, "input": "", "output": a} for i, (q, a) in enumerate(questions)]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capitals = [("Paris is the capital of France.", "TRUE"), ("Rome is the capital of Spain.", "FALSE")] * 3
    Path("capitals.jsonl").write_text("".join(json.dumps({"statement": s, "label": v}) + "\n" for s, v in capitals))
    return tmp_path


def sailkit(command: str) -> subprocess.CompletedProcess[str]:
    return forked.run(*shlex.split(command)[1:])


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_kind_of_plug_in_has_an_example():
    assert set(FILES) == {"my_search.py", "my_labeler.py", "my_model.py", "my_task.py"}
    assert len(COMMANDS) == 4


def test_the_examples_of_the_page_work_as_they_stand(folder):
    for command in COMMANDS[:3]:
        done = sailkit(command)
        assert done.returncode == 0, done.stderr
    results = lines("runs/results/results.jsonl")
    assert [row["results"][0]["body"] for row in results] == ["Honey is made by bees.", "Whales live in the sea."]
    assert {row["results"][0]["source"] for row in results} == {"glossary"}
    assert len(lines("runs/labels/labels.jsonl")) == 2
    predictions = lines("runs/yes/predictions.jsonl")
    assert {row["raw_output"] for row in predictions} == {"Correct"}
    manifest = json.loads(Path("runs/yes/manifest.json").read_text())
    assert "my_model:Yes" in json.dumps(manifest)
    assert "plugin_source_sha256" in json.dumps(manifest)


def test_a_plug_in_whose_class_is_elsewhere_is_another_one_if_its_module_changes(folder, monkeypatch):
    Path("base_labeler.py").write_text(FILES["my_labeler.py"])
    name = next(iter(re.findall(r"^class (\w+)", FILES["my_labeler.py"], re.MULTILINE)))
    digests = set()
    for number in range(2):
        Path("derived.py").write_text(f"from base_labeler import {name}\nthreshold = {number}\nmine = {name}()\n")
        for module in ("derived", "base_labeler"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        digests.add(load_plugin("derived:mine", Labeler).describe()["plugin_source_sha256"])
    assert len(digests) == 2


def test_a_task_of_the_page_is_measured(folder):
    done = sailkit(COMMANDS[3].replace("smollm2-135m", "my_model:Yes") + " --answer generate --json -")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == 0.5


def test_a_changed_plug_in_is_another_run(folder):
    assert sailkit(COMMANDS[1].replace("runs/results", "missing")).returncode == 2
    assert sailkit(COMMANDS[0]).returncode == 0
    assert sailkit(COMMANDS[1]).returncode == 0
    assert sailkit(COMMANDS[1]).returncode == 0
    Path("my_labeler.py").write_text(FILES["my_labeler.py"] + "\n# another version\n")
    done = sailkit(COMMANDS[1])
    assert done.returncode == 2
    assert "holds another run" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Thing", "No module named 'nowhere'"),
        ("my_labeler:Mention", "module my_labeler has no 'Mention'; did you mean 'Mentions'?"),
        ("my_search:Glossary", "is no Labeler: it lacks threshold, plan, score"),
        ("broken:Thing", "broken:Thing: No module named 'not_installed'"),
        ("raises:Thing", "raises:Thing: ZeroDivisionError: division by zero (raises.py, line 2)"),
        ("unclosed:Thing", "unclosed:Thing: SyntaxError: '(' was never closed (unclosed.py, line 1)"),
        ("needs:Thing", "needs:Thing: a class is called without arguments: missing a required argument: 'size'"),
        ("statistics:Thing", "module statistics has no 'Thing'"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder, name, message):
    Path("broken.py").write_text("import not_installed\n")
    Path("raises.py").write_text("import json\n1 / 0\n")
    Path("unclosed.py").write_text("Thing = (\n")
    Path("needs.py").write_text("class Thing:\n    def __init__(self, size): ...\n")
    with pytest.raises(UserError) as caught:
        load_plugin(name, Labeler)
    assert message in str(caught.value).replace(f"{folder}/", "")


GOOD = """
from sailkit.labeling.base import Score
class Thing:
    name, threshold = "thing", 0.5
    def describe(self): return {"version": 1}
    def plan(self, pairs): return [[i] for i in range(len(pairs))]
    def score(self, pairs): return [Score(1.0) for pair in pairs]
"""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("0.5", "'half'", "is no Labeler: threshold should be float, not 'half'"),
        ('{"version": 1}', "None", "breaks the protocol Labeler: describe() should return dict[str, Any]: None"),
        ('{"version": 1}', '{"words": {1, 2}}', "describe() should return JSON values: 'set' object"),
        ("[[i] for", "[i for", "plan() should return list[list[int]]: [0, 1]"),
        ("range(len(pairs))", "range(1)", "plan() should put each index below 2 into exactly one batch"),
        ("Score(1.0) for", "1.0 for", "score() should return list[Score]: [1.0]"),
        ("[Score(1.0) for pair in pairs]", "[]", "score() should return 1 values: it returned 0"),
        (
            "return [Score(1.0) for pair in pairs]",
            "raise NotImplementedError('later')",
            "does not implement score(): later",
        ),
    ],
)
def test_a_plug_in_that_breaks_its_protocol_is_one_line(folder, monkeypatch, right, wrong, message):
    rows = [{"id": str(i), "instruction": "Why?", "output": "So.", "results": [{"body": "ice"}]} for i in range(2)]
    Path("results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("partial.py").write_text(GOOD.replace(right, wrong))
    monkeypatch.delitem(sys.modules, "partial", raising=False)
    with pytest.raises(UserError) as caught:
        label(results=Path("results.jsonl"), out=Path("labels"), labeler="partial:Thing")
    assert str(caught.value).startswith("partial:Thing ")
    assert message in str(caught.value)


def test_a_labeler_in_memory_labels_as_the_same_by_name(folder):
    rows = [{"id": "a", "instruction": "Why?", "output": "ice", "results": [{"body": "ice"}, {"body": "sun"}]}]
    Path("results.jsonl").write_text(json.dumps(rows[0]) + "\n")
    labeler = load_attribute("my_labeler:Mentions")()
    results = Path("results.jsonl")
    label(results=results, out=Path("named"), labeler="my_labeler:Mentions")
    labeling = label(results=results, out=Path("given"), labeler=labeler)
    assert labeling.labeler == "mentions"
    assert lines("given/labels.jsonl") == lines("named/labels.jsonl")
    with pytest.raises(UserError, match="`ray` loads the labeler on every node"):
        label(results=results, out=Path("ray"), labeler=labeler, ray=RayOptions(True))
    with pytest.raises(UserError, match="object is no Labeler: it lacks name, threshold"):
        label(results=results, out=Path("other"), labeler=object())
    with pytest.raises(UserError, match="object is no Model: it lacks name, describe"):
        load_model(object())


def test_a_name_of_the_standard_library_is_recognised_in_the_error(folder):
    Path("statistics.py").write_text("class Thing: ...\n")  # sailkit has imported Python's own by now
    with pytest.raises(UserError, match=f"no 'Thing'.* in {re.escape(statistics.__file__)}"):
        load_attribute("statistics:Thing")


def test_names_of_models_and_hub_ids_are_no_plug_ins():
    for name in ("endpoint:m@http://localhost:1/v1", "Qwen/Qwen2.5-0.5B", "smollm2-135m", "./model", "C:\\model"):
        assert not is_plugin(name)
    assert is_plugin("my.package:Thing")
    assert load_attribute("json:dumps") is json.dumps
