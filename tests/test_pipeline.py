"""`sailkit run`: the steps of a recipe in order, read where they have finished, again where something changed."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM

import forked
from sailkit import pipeline
from sailkit.errors import UserError
from sailkit.overview import resume_point
from sailkit.pipeline import run
from sailkit.steps.inputs import content_of
from sailkit.steps.recipe import dependents, read_recipe
from small_rows import example, write

RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE = """
about: Training data from three questions.
variables: {k: 2, style: chat}
steps:
  results: {search: {instructions: questions.jsonl, engine: bm25, corpus: corpus, k: $k}}
  labels: {label: {results: $results, labeler: similarity, dtype: float32}}
  examples: {build: {results: $results, labels: $labels, style: $style, held_out: 0}}
  other: {search: {instructions: questions.jsonl, engine: bm25, corpus: corpus, k: 1}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    questions = {"Where do whales live?": "In the sea.", "What do bees make?": "Honey.", "How hot is the sun?": "Hot."}
    rows = [{"id": f"q{i}", "instruction": q, "input": "", "output": a} for i, (q, a) in enumerate(questions.items())]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("corpus").mkdir()
    for name, text in (("whales", "Whales live in the sea."), ("bees", "Bees make honey."), ("sun", "The sun is hot.")):
        Path("corpus", f"{name}.txt").write_text(text)
    Path("recipe.yaml").write_text(RECIPE)
    return Path("recipe.yaml")


def states(result) -> dict[str, str]:
    return {step.name: step.state for step in result.steps}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_finished_steps_are_read_and_a_changed_one_runs_again_with_all_that_read_it(recipe):
    out = Path("out")
    assert set(states(run(recipe, out=out, dry_run=True)).values()) == {"new"}
    assert not out.exists()
    first = run(recipe, out=out)
    assert set(states(first).values()) == {"finished"}
    assert all(step.result for step in first.steps)
    assert (out / "examples" / "train.jsonl").is_file()
    before = contents(out)
    assert run(recipe, out=out).to_json() == first.to_json()
    assert contents(out) == before
    plan = run(recipe, out=out, set=["style=sail-fixed"], dry_run=True)
    assert states(plan) == {"results": "finished", "labels": "finished", "examples": "changed", "other": "finished"}
    run(recipe, out=out, set=["style=sail-fixed"])
    (earlier,) = (out / "earlier").iterdir()
    assert contents(earlier) == contents_of(before, "examples")
    plan = run(recipe, out=out, set=["style=sail-fixed", "k=3"], dry_run=True)
    assert states(plan) == {"results": "changed", "labels": "changed", "examples": "changed", "other": "finished"}


def test_a_folder_that_is_gone_is_written_again_and_all_that_read_it(recipe):
    out = Path("out")
    run(recipe, out=out)
    shutil.rmtree(out / "results")
    before = contents(out)
    expected = {"results": "new", "labels": "again", "examples": "again", "other": "finished"}
    assert states(run(recipe, out=out, dry_run=True)) == expected
    assert contents(out) == before
    run(recipe, out=out, until="results")
    assert states(run(recipe, out=out, dry_run=True)) == expected | {"results": "finished"}
    assert set(states(run(recipe, out=out)).values()) == {"finished"}
    assert {path.name.split("-")[0] for path in (out / "earlier").iterdir()} == {"labels", "examples"}


def contents_of(files: dict[str, bytes], step: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{step}/"): data for name, data in files.items() if name.startswith(f"{step}/")}


def test_the_verdict_of_a_comparison_is_shown_and_it_has_no_folder_for_later_steps(tmp_path, shared):
    logs = [str(shared / "recorded" / f"climate-fever.{name}.jsonl") for name in ("llama2-7b-chat", "sail-7b")]
    text = f"steps:\n  facts: {{compare: {{sets: {logs}}}}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    result = run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    assert "climate-fever.llama2-7b-chat is better than climate-fever.sail-7b" in str(result)
    assert run(tmp_path / "recipe.yaml", out=tmp_path / "out").steps[0].verdict == result.steps[0].verdict
    (tmp_path / "recipe.yaml").write_text(text + "  page: {report: {sets: $facts}}\n")
    with pytest.raises(UserError, match=r"step facts \(compare\) writes no folder"):
        run(tmp_path / "recipe.yaml", out=tmp_path / "out")


def test_the_content_of_an_input_file_counts_and_its_time_does_not(recipe):
    run(recipe, out=Path("out"), until="results")
    Path("questions.jsonl").touch()
    assert states(run(recipe, out=Path("out"), until="results", dry_run=True)) == {"results": "finished"}
    Path("questions.jsonl").write_text(Path("questions.jsonl").read_text().replace("bees", "wasps"))
    assert states(run(recipe, out=Path("out"), until="results", dry_run=True)) == {"results": "changed"}


def test_a_dry_run_names_input_files_that_are_missing(recipe):
    Path("corpus").rename("elsewhere")
    steps = {step.name: step for step in run(recipe, out=Path("out"), dry_run=True).steps}
    assert steps["results"].estimate == {"missing": ["corpus"]}
    assert steps["labels"].estimate is None


def test_a_run_names_all_missing_inputs_before_its_first_step(recipe):
    text = RECIPE.replace(
        "questions.jsonl, engine: bm25, corpus: corpus, k: 1", "OWNER/NAME, engine: bm25, corpus: gone"
    )
    text += "  tuned: {finetune: {model: any, data: [$examples, runs/none]}}\n"
    recipe.write_text(text + "  last: {audit: {data: judged.jsonl, labeler: overlap}}\n")
    message = r"^missing inputs: step other: gone; step tuned: runs/none; step last: judged\.jsonl; paths are"
    with pytest.raises(UserError, match=message):
        run(recipe, out=Path("out"))
    assert not Path("out").exists()
    assert run(recipe, out=Path("out"), until="results").steps[0].state == "finished"


def test_a_training_recipe_may_be_one_of_the_package(recipe):
    """By its name, as on the command line."""
    recipe.write_text("steps: {tuned: {finetune: {recipe: smollm2-flags, data: gone}}}")
    with pytest.raises(UserError, match=r"^missing inputs: step tuned: gone; paths are"):
        run(recipe, out="out")
    recipe.write_text("steps: {tuned: {distill: {recipe: distill-hal}}}")
    with pytest.raises(UserError, match=r"step tuned: no file distill-hal, .* did you mean 'distill-half'"):
        run(recipe, out="out", dry_run=True)


@pytest.mark.parametrize(
    ("step", "missing"),
    [
        ("search: {instructions: gone.jsonl, corpus: corpus}", "gone.jsonl"),
        ("finetune: {model: any, data: corpus, set: {curriculum: nope.jsonl}}", "nope.jsonl"),
        ("finetune: {model: any, data: corpus, set: ['held_out=[a, corpus]']}", "a"),
        ("finetune: {recipe: train.yaml, model: any}", "data/first, data/second"),
        ("finetune: {recipe: gone.yaml}", "gone.yaml"),
        ("distill: {recipe: train.yaml, data: corpus, set: {teacher_outputs: answers.json}}", "answers.json"),
        ("evaluate: {model: any, task: task.yaml}", "data/claims.jsonl"),
    ],
)
def test_missing_inputs_that_a_task_or_a_training_recipe_names(recipe, step, missing):
    Path("train.yaml").write_text("data: [data/first, data/second, corpus]")
    Path("task.yaml").write_text(TASK.replace("claims.jsonl", "data/claims.jsonl"))
    recipe.write_text(f"steps: {{first: {{{step}}}}}")
    with pytest.raises(UserError, match=f"^missing inputs: step first: {missing}; paths are"):
        run(recipe, out="out")
    (planned,) = run(recipe, out="out", dry_run=True).steps
    assert ", ".join(planned.estimate["missing"]) == missing


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("evaluate: {model: any, task: climate-fevr}", "no task 'climate-fevr': did you mean 'climate-fever'"),
        ("evaluate: {model: any, task: gone.yaml}", "cannot read gone.yaml"),
        ("evaluate: {model: any, task: 'no_module:TASK'}", "no_module:TASK: No module named 'no_module'"),
        ("rescore: {files: log.jsonl, task: fevr}", "no task 'fevr'"),
        ("build: {results: $results, labels: $results, exclude_task: {hsd: corpus, fevr: corpus}}", "no task 'fevr'"),
        ("finetune: {data: corpus, set: no-value}", "`set` 'no-value': write KEY=VALUE"),
    ],
)
def test_a_task_that_does_not_exist_is_refused_before_the_first_step(recipe, step, message, dry_run):
    recipe.write_text(RECIPE + f"  last: {{{step}}}\n")
    with pytest.raises(UserError, match=f"step last: {message}"):
        run(recipe, out="out", dry_run=dry_run)
    assert not Path("out").exists()


def test_texts_that_are_too_long_for_paths(recipe):
    long = "x" * 300
    recipe.write_text(f"steps: {{first: {{search: {{instructions: questions.jsonl, corpus: {long}}}}}}}")
    assert run(recipe, out="out", dry_run=True).steps[0].estimate == {"missing": [long]}
    with pytest.raises(UserError, match=r"^missing inputs: step first: xxx"):
        run(recipe, out="out")
    for step in (
        f"finetune: {{recipe: {long}}}",
        f"search: {{instructions: '{long}:Plugin', engine: '{long}:Engine'}}",
    ):
        recipe.write_text(f"steps: {{first: {{{step}}}}}")
        with pytest.raises(UserError, match="first: "):
            run(recipe, out="out")
    recipe.write_text(RECIPE)
    for dry_run in (True, False):
        with pytest.raises(UserError, match="File name too long"):
            run(recipe, out=long, dry_run=dry_run)


def test_from_runs_a_step_and_all_after_it_again(recipe):
    with pytest.raises(UserError, match="step results has not finished"):
        run(recipe, out=Path("out"), from_="labels")
    run(recipe, out=Path("out"))
    plan = run(recipe, out=Path("out"), from_="examples", dry_run=True)
    assert states(plan) == {"results": "finished", "labels": "finished", "examples": "again", "other": "again"}
    again = run(recipe, out=Path("out"), from_="examples", until="examples")
    assert states(again) == {"results": "finished", "labels": "finished", "examples": "finished"}
    assert len(list(Path("out", "earlier").iterdir())) == 1


def test_two_versions_of_a_step_in_one_second_are_both_kept(recipe, monkeypatch):
    monkeypatch.setattr("sailkit.journal.time", SimpleNamespace(strftime=lambda _: "20260101-000000"))
    for _ in range(4):
        run(recipe, out="out", until="results", from_="results" if Path("out").exists() else None)
    assert len(list(Path("out", "earlier").iterdir())) == 3


def test_a_changed_step_that_is_refused_keeps_its_output(recipe):
    """Until it writes: once the mistake is undone, hours of work are there again."""
    recipe.write_text(
        f"variables: {{limit: 2, k: 2}}\nsteps: {{first: {{search: {SEARCH[:-1]}, k: $k, limit: $limit}}}},"
        " second: {rescore: {files: $first/results.jsonl, task: sample-claims}}}"
    )
    run(recipe, out="out", until="first")
    before = contents(Path("out", "first"))
    with pytest.raises(UserError, match="limit"):
        run(recipe, out="out", set=["limit=0"])
    assert contents(Path("out", "first")) == before
    assert states(run(recipe, out="out", until="first", dry_run=True)) == {"first": "finished"}
    assert states(run(recipe, out="out", until="first", set=["limit=3"])) == {"first": "finished"}
    assert [contents(folder) for folder in Path("out", "earlier").iterdir()] == [before]


@pytest.mark.long
def test_a_killed_pipeline_continues_and_ends_with_the_same_files(recipe):
    run(recipe, out=Path("whole"))
    for _ in range(3):
        process = forked.Command("run", "recipe.yaml", "--out", "killed")
        deadline = time.monotonic() + 60
        while process.poll() is None and not list(Path("killed", "labels").glob("*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(recipe, out=Path("killed"))
    for name in ("results/results.jsonl", "labels/labels.jsonl", "examples/train.jsonl"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert not Path("killed", "earlier").exists()


def test_a_merge_that_was_killed_at_its_end_runs_again(recipe, shared):
    """`merge` refuses a folder that exists; the journal did not get to know that it was written."""
    base = LlamaForCausalLM.from_pretrained(shared / "models" / "stories260k")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
    AutoTokenizer.from_pretrained(shared / "models" / "stories260k").save_pretrained("adapter")
    recipe.write_text("about: A plain model.\nsteps:\n  whole: {merge: {adapter: adapter}}\n")
    run(recipe, out=Path("out"))
    merged = contents(Path("out", "whole"))
    journal = json.loads(Path("out", "pipeline.json").read_text())
    entry = journal["steps"]["whole"]
    journal["steps"]["whole"] = {
        **{name: entry[name] for name in ("command", "fingerprint", "seconds")},
        "finished": False,
    }
    Path("out", "pipeline.json").write_text(json.dumps(journal))
    assert states(run(recipe, out=Path("out"))) == {"whole": "finished"}
    assert contents(Path("out", "whole")) == merged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{search: {instructions", "{serach: {instructions"), "no stage 'serach'; did you mean 'search'?"),
        (("labeler: similarity", "labeller: similarity"), "step labels: label: .*--labeller. Did you mean --labeler"),
        (("$results, labeler", "$result, labeler"), "no such variable or earlier step; did you mean 'results'?"),
        (("k: 1", "k: many"), "step other: search: .*--k"),
        (("other: {search", "k: {search"), "step k: choose a name of small letters, digits and _ that is no variable"),
        (("about:", "aboot:"), "unknown key 'aboot'; did you mean 'about'?"),
        (("steps:", "stages:"), "is no pipeline: it has no steps"),
    ],
)
def test_a_mistake_in_any_step_is_found_before_the_first_runs(recipe, change, message):
    recipe.write_text(RECIPE.replace(*change))
    with pytest.raises(UserError, match=message):
        run(recipe, out=Path("out"))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("address", "settings"),
    [("http://me:secret@localhost", []), ("http://localhost", ["server=http://me:secret@localhost"])],
)
def test_an_address_with_a_password_is_refused_and_not_written(recipe, address, settings):
    recipe.write_text(
        f"variables: {{server: '{address}'}}\n"
        "steps: {first: {search: {instructions: questions.jsonl, engine: searxng, searxng_url: $server}}}"
    )
    with pytest.raises(UserError, match=r"^step first: an address takes no user:password@") as caught:
        run(recipe, out="out", set=settings)
    assert "secret" not in str(caught.value)
    assert not Path("out").exists()


def test_a_folder_of_something_else_is_left_alone(recipe):
    Path("out").mkdir()
    Path("out", "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not a pipeline folder"):
        run(recipe, out=Path("out"))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_is_no_pipeline_folder(recipe, dry_run):
    Path("out").write_text("mine")
    with pytest.raises(UserError, match="out exists and is not a pipeline folder"):
        run(recipe, out="out", dry_run=dry_run)


def test_a_folder_whose_pipeline_was_killed_as_it_began_is_continued(recipe):
    Path("out").mkdir()
    Path("out", ".pipeline.json.k2f3.sailkit-unfinished").write_text("{")
    run(recipe, out=Path("out"), until="results")


@pytest.mark.parametrize("text", ['{"steps": ["build", "deploy"]}', '{"stages": {}}'])
def test_the_pipeline_file_of_another_program_is_left_alone(recipe, text):
    Path("out").mkdir()
    Path("out", "pipeline.json").write_text(text)
    with pytest.raises(UserError, match=r"out/pipeline\.json was not written by sailkit"):
        run(recipe, out=Path("out"))
    assert contents(Path("out")) == {"pipeline.json": text.encode()}


def test_a_step_is_the_command_that_it_shows(recipe):
    (step,) = run(recipe, out=Path("out"), until="results").steps
    words = step.command.split()
    assert words[:2] == ["sailkit", "search"]
    written = contents(Path("out/results"))
    done = forked.run(*words[1:])
    assert done.returncode == 0, done.stderr
    assert contents(Path("out/results")) == written


def test_the_run_of_a_step_records_the_command_of_the_step(recipe):
    steps = {step.name: step for step in run(recipe, out="run").steps}
    manifest = json.loads(Path("run/results/manifest.json").read_text())
    assert manifest["environment"]["command"] == steps["results"].command


def test_the_file_stays_one_page():
    assert len(Path(pipeline.__file__).read_text().splitlines()) < 100


def after_change(name: str) -> str:
    """The state of the first step once it has run and `name`, one of its inputs, has changed."""
    assert states(run("recipe.yaml", out="out", dry_run=True))["first"] == "new"
    run("recipe.yaml", out="out", until="first")
    assert states(run("recipe.yaml", out="out", until="first"))["first"] == "finished"
    Path(name).write_text(Path(name).read_text().replace("FALSE", "TRUE", 1) + "\n")
    return states(run("recipe.yaml", out="out", until="first", dry_run=True))["first"]


SEARCH = "{instructions: questions.jsonl, engine: bm25, corpus: corpus}"
PAGE_MODEL = re.search(r"```python\n# my_model.py\n(.*?)```", (RECIPES.parent / "docs/plugins.md").read_text(), re.S)[1]
TASK = """
name: claims
data: {file: claims.jsonl, fields: {text: text, label: label}}
labels: {"TRUE": {answer: Correct}, "FALSE": {answer: Wrong}}
protocols: {direct: {wordings: {plain: "Is this correct? {answers}\\n\\nClaim: {text}"}}}
"""


def test_files_and_folders_within_an_argument_count(recipe):
    """As in `judge:MODEL`, `NAME=FILE`, lists with commas, and labelers joined by a plus."""
    Path("claims.jsonl").write_text("claims")
    texts = ("x=claims.jsonl", "judge:corpus", "corpus,recipe.yaml", "overlap+judge:corpus", "judge:corpus+overlap")
    before = {text: content_of(text, Path("out")) for text in texts}
    Path("claims.jsonl").write_text("changed")
    Path("corpus", "more.txt").write_text("more")
    Path("mine.py").write_text("class Labeler: ...")
    before["similarity+mine:Labeler"] = content_of("similarity+mine:Labeler", Path("out"))
    Path("mine.py").write_text("class Labeler: version = 2")
    for text, fingerprint in before.items():
        assert fingerprint
        assert content_of(text, Path("out")) != fingerprint
    assert content_of("climate-fever=none.jsonl", Path("out")) is None


@pytest.mark.parametrize("place", ["out/rows.jsonl", "rows.jsonl"])
def test_a_file_that_a_step_writes_decides_those_that_read_it(recipe, place):
    """Wherever it is written, and although it is there with other content when the steps are read."""
    searching = f"{SEARCH[:-1]}, k: $k, snapshot: {place}}}"
    Path("recipe.yaml").write_text(
        f"variables: {{k: 2}}\nsteps: {{first: {{search: {searching}}}, second: {{rescore: {{files: [{place}]}}}}}}"
    )
    before, after = (read_recipe("recipe.yaml", Path("out"), settings, pipeline.STAGES) for settings in ((), ["k=3"]))
    assert before[0].files == [place]
    assert before[1] in dependents(before, before[:1])
    assert [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)] == [False, False]
    again = read_recipe("recipe.yaml", Path("out"), (), pipeline.STAGES)
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("written by the first step")
    assert [step.fingerprint for step in read_recipe("recipe.yaml", Path("out"), (), pipeline.STAGES)] == [
        step.fingerprint for step in again
    ]


def test_variables_may_hold_the_folder_of_the_recipe_and_each_other(recipe):
    Path("deep").mkdir()
    Path("questions.jsonl").rename("deep/my questions.jsonl")
    Path("deep/recipe.yaml").write_text(
        "variables: {file: my questions.jsonl, asked: $here/$file, k: 2}\n"
        "steps: {first: {search: {instructions: $asked, engine: bm25, corpus: corpus, k: $k}}}"
    )
    run("deep/recipe.yaml", out="out")
    (step,) = run("deep/recipe.yaml", out="out", dry_run=True).steps
    assert step.state == "finished"
    assert "'deep/my questions.jsonl'" in step.command
    Path("deep").rename("moved")  # where a recipe lies does not decide a result
    assert states(run("moved/recipe.yaml", out="out", dry_run=True)) == {"first": "finished"}


def test_a_setting_of_no_variable_is_refused_without_its_value(recipe):
    with pytest.raises(UserError, match="NAME a variable of the recipe") as error:
        run(recipe, out="out", set=["url=https://user:password@127.0.0.1"])
    assert "'url'" in str(error.value)
    assert "password" not in str(error.value)


def test_null_is_the_default(recipe):
    recipe.write_text(f"steps: {{first: {{search: {SEARCH[:-1]}, limit: null, snapshot: null}}}}}}")
    (step,) = run(recipe, out=Path("out")).steps
    assert "None" not in step.command


def test_values_in_a_mapping_are_those_of_the_command_line(recipe):
    """As YAML reads them: a null removes a setting of a training recipe."""
    settings = {
        "lora": None,
        "training.bf16": False,
        "training.max_steps": 3,
        "held_out": ["a b", "c"],
        "style": "sail",
    }
    recipe.write_text(f"steps: {{first: {{finetune: {{model: any, data: corpus, set: {json.dumps(settings)}}}}}}}")
    (step,) = read_recipe(recipe, Path("out"), (), pipeline.STAGES)
    words = step.bound.arguments["set"]
    assert {key: yaml.safe_load(value) for key, value in (word.split("=") for word in words)} == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"steps: {{first: {{search: {SEARCH}}}, first: {{search: {SEARCH}}}}}", "key 'first' is given twice"),
        (f"steps: {{earlier: {{search: {SEARCH}}}}}", "step earlier: that folder is for earlier versions of steps"),
        (
            f"steps: {{first: {{search: {SEARCH[:-1]}, out: there}}}}}}",
            "a step writes to out/first; leave out .* 'out'",
        ),
        ("steps: {first: {search: {1: x}}}", "step first: write the arguments of search as  {NAME: VALUE}"),
        ("steps: {first: {search: [x]}}", "step first: write the arguments of search as  {NAME: VALUE}"),
        (f"variables: [a]\nsteps: {{first: {{search: {SEARCH}}}}}", "write  variables:  as  NAME: VALUE"),
        ("steps: {first: {search: {instructions: costs 5$}}}", r"'costs 5\$': write \$\$ for a dollar sign"),
    ],
)
def test_a_recipe_that_cannot_mean_anything_is_refused(recipe, text, message):
    recipe.write_text(text)
    with pytest.raises(UserError, match=message):
        run(recipe, out=Path("out"))
    assert not Path("out").exists()


def test_the_data_of_a_task_count(recipe):
    claims = [{"text": f"Claim {i}.", "label": ("TRUE", "FALSE")[i % 2]} for i in range(4)]
    Path("claims.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
    Path("task.yaml").write_text(TASK)
    Path("yes.py").write_text(PAGE_MODEL)
    recipe.write_text("steps: {first: {evaluate: {model: 'yes:Yes', task: task.yaml, answer: generate}}}")
    assert after_change("claims.jsonl") == "changed"
    run(recipe, out="out")
    assert states(run(recipe, out="out", dry_run=True)) == {"first": "finished"}
    Path("yes.py").write_text(PAGE_MODEL + "# another version\n")
    assert states(run(recipe, out="out", dry_run=True)) == {"first": "changed"}


FOLDER_TASK = TASK.replace("file: claims.jsonl", "file: claims, table: claims.jsonl")


@pytest.mark.parametrize(
    ("task", "data", "files"),
    [
        ("task.yaml", "claims/claims.jsonl", {"task.yaml": FOLDER_TASK}),
        ("claims_plugin:TASK", "claims.jsonl", {"claims_plugin.py": f"TASK = {yaml.safe_load(TASK)}"}),
        ("folder_plugin:TASK", "claims/claims.jsonl", {"folder_plugin.py": f"TASK = {yaml.safe_load(FOLDER_TASK)}"}),
    ],
)
def test_the_data_of_a_task_count_in_a_folder_and_of_a_plugin(recipe, task, data, files):
    claims = [{"text": f"Claim {i}.", "label": ("TRUE", "FALSE")[i % 2]} for i in range(4)]
    Path(data).parent.mkdir(exist_ok=True)
    for name, text in {
        data: "".join(json.dumps(claim) + "\n" for claim in claims),
        "yes.py": PAGE_MODEL,
        **files,
    }.items():
        Path(name).write_text(text)
    recipe.write_text(f"steps: {{first: {{evaluate: {{model: 'yes:Yes', task: '{task}', answer: generate}}}}}}")
    assert after_change(data) == "changed"


def fingerprint(step: str) -> str:
    """The fingerprint of a single step."""
    Path("recipe.yaml").write_text(f"steps: {{first: {{{step}}}}}")
    return read_recipe("recipe.yaml", Path("out"), (), pipeline.STAGES)[0].fingerprint


TRAINING = {
    "rows.jsonl": "data: rows.jsonl",
    "more.jsonl": "data: [rows.jsonl, more.jsonl]",
    "held.jsonl": "held_out: held.jsonl",
    "pairs.jsonl": "curriculum: [pairs.jsonl]",
    "base/config.json": "model: base",
    "adapters/adapter_config.json": "adapters: adapters",
    "answers.json": "teacher_outputs: answers.json",
}


@pytest.mark.parametrize(("name", "settings"), TRAINING.items())
def test_what_a_training_recipe_names_counts(recipe, name, settings):
    """Relative to the working directory; also in a recipe that the recipe extends."""
    Path("recipes").mkdir()
    Path("recipes/below.yaml").write_text(settings)
    Path("recipes/train.yaml").write_text("extends: below.yaml")
    Path(name).parent.mkdir(exist_ok=True)
    step = "finetune: {recipe: recipes/train.yaml}"
    prints = [fingerprint(step)]
    for text in ("before", "after it"):
        Path(name).write_text(text)
        prints.append(fingerprint(step))
    assert len({*prints}) == 3
    argument = settings.split(":")[0]
    step = f"distill: {{recipe: recipes/train.yaml, set: {{{argument}: other}}}}"
    before = fingerprint(step)
    Path(name).write_text("once more")
    assert fingerprint(step) == before, "the recipe's own is not read"


def test_a_choice_names_no_folder(recipe):
    step = "evaluate: {model: any, task: sample-claims, search: evidence}"
    before = fingerprint(step)
    Path("evidence").mkdir()
    Path("evidence/notes.txt").write_text("no input")
    assert fingerprint(step) == before


def test_a_run_that_is_read_again_stays_the_same(recipe):
    claims = [{"text": f"Claim {i}.", "label": ("TRUE", "FALSE")[i % 2]} for i in range(4)]
    Path("claims.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
    Path("task.yaml").write_text(TASK)
    Path("yes.py").write_text(PAGE_MODEL)
    arguments = {"model": "yes:Yes", "task": "task.yaml", "answer": "generate", "out": "base"}
    pipeline.STAGES["evaluate"](**arguments)
    before = fingerprint("report: {sets: base}")
    for file in Path("base").iterdir():
        os.utime(file, (0, 0))
    pipeline.STAGES["evaluate"](**arguments)
    assert fingerprint("report: {sets: base}") == before
    Path("base/metrics.json").write_text(Path("base/metrics.json").read_text() + " ")
    assert fingerprint("report: {sets: base}") != before


def test_a_file_that_a_step_writes_is_no_input(recipe):
    claims = [{"text": f"Claim {i}.", "label": ("TRUE", "FALSE")[i % 2]} for i in range(4)]
    Path("claims.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
    Path("task.yaml").write_text(TASK)
    Path("yes.py").write_text(PAGE_MODEL)
    arguments = "{model: 'yes:Yes', task: task.yaml, answer: generate, csv_out: table.csv}"
    recipe.write_text(f"steps: {{first: {{evaluate: {arguments}}}}}")
    run(recipe, out="out")
    assert Path("table.csv").is_file()
    assert states(run(recipe, out="out", dry_run=True)) == {"first": "finished"}


def test_a_folder_of_inputs_may_hold_the_pipeline(recipe):
    recipe.write_text(f"steps: {{first: {{search: {SEARCH}}}}}")
    run(recipe, out="corpus/out")
    assert states(run(recipe, out="corpus/out", dry_run=True)) == {"first": "finished"}


def test_inputs_count_where_the_pipeline_is_the_working_directory(recipe, monkeypatch):
    Path("here").mkdir()
    monkeypatch.chdir("here")
    Path("../recipe.yaml").write_text(
        "steps: {first: {search: {instructions: $here/questions.jsonl, engine: bm25, corpus: $here/corpus}}}"
    )
    run("../recipe.yaml", out=".")
    Path("../questions.jsonl").write_text(Path("../questions.jsonl").read_text().replace("bees", "wasps"))
    assert states(run("../recipe.yaml", out=".", dry_run=True)) == {"first": "changed"}


def test_two_inputs_that_change_places_are_a_change(recipe):
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "text.txt").write_text(f"Text {name}.")
    recipe.write_text("steps: {first: {search: {instructions: questions.jsonl, engine: bm25, corpus: [a, b]}}}")
    run(recipe, out="out")
    Path("a").rename("c")
    Path("b").rename("a")
    Path("c").rename("b")
    assert states(run(recipe, out="out", dry_run=True)) == {"first": "changed"}


def test_all_after_from_run_again_also_if_it_was_stopped(recipe, monkeypatch):
    run(recipe, out="out")

    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    stage = pipeline.STAGES["label"]
    stop.__signature__, stop.__annotations__ = inspect.signature(stage), stage.__annotations__
    monkeypatch.setitem(pipeline.STAGES, "label", functools.wraps(stage)(stop))
    with pytest.raises(KeyboardInterrupt, match=r"^the same command without --from continues"):
        run(recipe, out="out", from_="labels")
    monkeypatch.setitem(pipeline.STAGES, "label", stage)
    plan = run(recipe, out="out", dry_run=True)
    assert states(plan) == {"results": "finished", "labels": "again", "examples": "again", "other": "again"}
    assert set(states(run(recipe, out="out")).values()) == {"finished"}
    assert set(states(run(recipe, out="out", dry_run=True)).values()) == {"finished"}


def test_the_step_that_was_stopped_is_named(recipe, monkeypatch):
    run(recipe, out="out")
    run(recipe, out="out", from_="labels")
    stage = pipeline.STAGES["label"]

    def stop(out: Path, **_: object) -> None:
        Path(out).mkdir()
        Path(out, "scores.jsonl").write_text('{"id": "q0"}\n')
        os.utime(Path(out, "scores.jsonl"), (0, 0))
        raise KeyboardInterrupt

    stop.__signature__, stop.__annotations__ = inspect.signature(stage), stage.__annotations__
    monkeypatch.setitem(pipeline.STAGES, "label", functools.wraps(stage)(stop))
    assert resume_point("out") is None
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out="out", set=["k=3"])
    assert resume_point("out") == "step labels, row 2 of out/labels/scores.jsonl"
    Path("out/labels/scores.jsonl").unlink()
    assert resume_point("out") == "step labels"


def test_a_pipeline_is_run_by_one_process_at_a_time(recipe):
    run(recipe, out="out", until="results")
    with filelock.FileLock("out/.lock"), pytest.raises(UserError, match="out is in use by another sailkit process"):
        run(recipe, out="out")
    run(recipe, out="out")


def test_a_step_that_got_no_answer_shows_in_the_exit_status(recipe):
    arguments = "{instructions: questions.jsonl, engine: searxng, searxng_url: 'http://127.0.0.1:9', tries: 1}"
    recipe.write_text(f"steps: {{first: {{search: {arguments}}}}}")
    done = forked.run("run", recipe, "--out", "out")
    assert done.returncode == 3, done.stderr
    assert "sailkit: unfinished: step first; the same command continues it" in done.stderr


@pytest.mark.parametrize("name", ["laptop", "quickstart", "reproduce"])
@pytest.mark.long
def test_every_step_of_the_recipes_that_come_with_the_project_can_be_run(name, tmp_path):
    plan = run(RECIPES / f"{name}.yaml", out=tmp_path / "out", dry_run=True)
    assert {step.state for step in plan.steps} == {"new"}
    assert {step.name for step in plan.steps if step.command.split()[1] in ("finetune", "distill")} <= {
        step.name for step in plan.steps if step.estimate
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["laptop", "quickstart", "reproduce"])
def test_a_folder_within_that_of_a_step_is_one_that_the_step_writes(name):
    """A dry run does not look into folders that no step has written yet."""
    text = (RECIPES / f"{name}.yaml").read_text()
    steps = yaml.safe_load(text)["steps"]
    within = {(step, part) for step, part in re.findall(r"\$(\w+)/([\w.-]+\w)", text) if step in steps}
    assert {(next(iter(steps[step])), part) for step, part in within} <= {
        ("finetune", "model"),
        ("audit", "audit.json"),
    }


@pytest.mark.long
def test_the_recipe_of_the_page_works_as_it_stands(tmp_path):
    page = (RECIPES.parent / "docs" / "pipeline.md").read_text("utf-8")
    (tmp_path / "recipe.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    result = run(tmp_path / "recipe.yaml", out=tmp_path / "out", set=["limit=20"])
    assert set(states(result).values()) == {"finished"}
    assert list((tmp_path / "out" / "page").glob("*.html"))


@pytest.mark.long
def test_the_laptop_recipe_runs_from_claims_to_reports(shared, tmp_path):
    """Everything real and small: a few claims, of which some are held out, and two training steps."""
    few = [f"{rows}=100" for rows in re.findall(r"(\w+_rows\w*):", (RECIPES / "laptop.yaml").read_text())]
    result = run(RECIPES / "laptop.yaml", out=tmp_path / "out", set=[*few, "items=10", "steps=2", f"data={shared}"])
    assert set(states(result).values()) == {"finished"}
    assert list((tmp_path / "out" / "fever_report").glob("*.html"))


@pytest.mark.long
def test_a_recipe_trains_several_seeds_and_compares_them_as_groups(tmp_path, shared):
    pytest.importorskip("trl")
    write(tmp_path / "data", map(example, range(16)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
variables: {{seeds: 2}}
steps:
  tuned:
    finetune:
      model: {shared / "models" / "stories260k"}
      data: {tmp_path / "data"}
      seeds: $seeds
      set: {{training.bf16: false, training.max_steps: 2, training.learning_rate: 2e-3}}
  own: {{evaluate: &measure {{model: $tuned, task: sample-claims, limit: 24, dtype: float32, search: evidence}}}}
  random: {{evaluate: {{<<: *measure, search: random}}}}
  difference: {{compare: {{sets: [$own, $random]}}}}
  page: {{report: {{sets: [$own, $random]}}}}
""")
    result = run(recipe, out=tmp_path / "out")
    assert set(states(result).values()) == {"finished"}
    comparison = next(step.result for step in result.steps if step.name == "difference")
    assert (comparison["seeds"], comparison["paired"], comparison["n"]) == ([2, 2], True, 24)
    assert [group["runs"] for group in comparison["run_groups"]] == [["seed-0", "seed-1"]] * 2
    assert set(states(run(recipe, out=tmp_path / "out")).values()) == {"finished"}
