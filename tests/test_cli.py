"""The command line as a process: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from forked import run as sailkit
from sailkit import cli
from sailkit.cli import VERBS
from sailkit.data.build import build
from sailkit.errors import UserError

RECORDED = "climate-fever.{}.jsonl"


@pytest.fixture
def recorded(shared: Path) -> tuple[Path, Path]:
    return tuple(shared / "recorded" / RECORDED.format(name) for name in ("llama2-7b-chat", "sail-7b"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    rows = [
        {"id": str(i), "text": f"claim {i}", "label": "SUPPORTS" if i % 2 else "REFUTES", "output": "Correct."}
        for i in range(20)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def overview() -> str:
    return sailkit("--help").stdout


@pytest.mark.parametrize("value", ["2.7", "abc"])
def test_a_number_that_must_be_whole_is_not_rounded(value, tmp_path):
    done = sailkit("evaluate", "--model", "x", "--task", "sample-facts", "--limit", value, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert f"--limit: should be a whole number, not '{value}'" in " ".join(done.stderr.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_flags_from_its_function(verb, overview):
    assert verb in overview
    done = sailkit(verb, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    if verb == "evaluate":
        for flag in ("--model", "--task", "--few-shot", "--calibrate", "--reference", "--dtype", "--limit", "--device"):
            assert flag in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rescore", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["rescor"], "rescore"),
        (["rescore", "--pubished", "f1=1"], "--pubished"),
        (["compare", "one"], "two or more"),
        (["evaluate", "--task", "hsd", "--out", "x"], "--model"),
        (["runs", "nowhere"], "no folder nowhere"),
        (["runs"], "no folder runs here; name the folder of your runs"),
        (
            ["build-task", "fever", "--distractors", "own", "random", "--out", "x"],
            "left over: random; a flag takes one",
        ),
        (["report"], "needs one or more"),
        (["rescore", "--published", "accuracy=most"], "not a number"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, said, tmp_path):
    done = sailkit(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sailkit: error: ")
    assert said in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_rescore_for_people_and_for_programs(recorded, tmp_path):
    done = sailkit("rescore", recorded[0], "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    for name, value in {
        "recorded_accuracy": 0.6461, "recorded_macro_f1": 0.3925, "accuracy": 0.7365, "macro_f1": 0.7342,
        "human_accuracy": 0.6527, "majority_accuracy": 0.7211,
    }.items():  # fmt: skip
        assert round(found[name], 4) == value
        assert f"{value:.4f}" in done.stdout
    assert {"constant-predictor", "default-class-parser"} <= set(found["flags"])
    assert found["n"] == 907
    assert found["unreadable"] == 0
    assert 0.5 < found["reference_kappa"] < 0.6
    for name in ("accuracy", "macro_f1", "human_accuracy", "recorded_accuracy"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    alone = sailkit("rescore", recorded[0], "--json", "-")
    assert json.loads(alone.stdout) == found


def test_compare_names_the_winner_and_that_both_lose_to_a_constant(recorded):
    done = sailkit("compare", *recorded)
    assert "llama2-7b-chat is better than climate-fever.sail-7b" in done.stdout
    assert done.stdout.count("is below always answering SUPPORTS (0.7211)") == 2
    found = json.loads(sailkit("compare", *recorded, "--json", "-").stdout)
    assert found["verdict"] == "better"
    assert (found["only_a"], found["only_b"]) == (153, 62)
    assert found["p_value"] < 1e-8
    assert found["factors"] == {}


def test_markup_in_an_answer_is_only_text(small, tmp_path):
    text = small.read_text().replace('"id": "3"', '"id": "[red]3"')
    (tmp_path / "[bold]x.jsonl").write_text(text)
    done = sailkit("rescore", tmp_path / "[bold]x.jsonl")
    assert "[bold]x" in done.stdout


def test_reading_needs_neither_torch_nor_transformers(small):
    code = (
        "import sys; from sailkit.cli import main; main(['rescore', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers', 'sklearn', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, small], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error(small):
    words = [sys.executable, "-m", "sailkit", "rescore", str(small), "--json", "-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


@pytest.mark.long
def test_runs_are_listed_and_held_against_each_other(shared, tmp_path):
    model = shared / "models" / "stories260k"
    for name, wording in (("one", "plain"), ("two", "checker")):
        task = ["--task", "sample-claims", "--limit", 3, "--wording", wording]
        done = sailkit("evaluate", "--model", model, *task, "--out", tmp_path / "runs" / name)
        assert done.returncode == 0, done.stderr
    listed = json.loads(sailkit("runs", "--json", "-", cwd=tmp_path).stdout)["runs"]
    assert [row["wording"] for row in listed] == ["plain", "checker"]
    both = sailkit("runs", tmp_path / "runs" / "one", tmp_path / "runs" / "two", "--json", "-")
    differences = json.loads(both.stdout)["differences"]
    assert differences["wording"] == ["plain", "checker"]
    assert set(differences) == {"wording", "prompts_sha256"}


def test_an_error_names_the_argument_in_python_and_the_flag_on_the_command_line(tmp_path, capsys):
    with pytest.raises(UserError) as error:
        build(results=tmp_path, labels=[tmp_path], out=tmp_path / "out", held_out=1.0)
    assert str(error.value).startswith("`held_out_share` should be at least 0 and below 1")
    with pytest.raises(SystemExit):
        cli.main(["build", "--results", str(tmp_path), "--labels", str(tmp_path), "--out", "o", "--held-out", "1.0"])
    assert "error: --held-out-share should be at least 0 and below 1" in capsys.readouterr().err


def test_a_value_of_an_argument_is_written_as_on_the_command_line():
    assert (
        cli._with_flags("use `answer='generate'` with `max_new_tokens`")
        == "use --answer generate with --max-new-tokens"
    )
    assert cli._with_flags("the field `nosuch` of a file") == "the field `nosuch` of a file"


@pytest.mark.parametrize(("everywhere", "printed"), [(False, ""), (True, "sailkit: error: out of memory\n")])
def test_a_process_prints_an_error_that_it_alone_has(monkeypatch, capsys, everywhere, printed):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        cli._fail("out of memory", everywhere=everywhere)
    assert capsys.readouterr().err == printed
