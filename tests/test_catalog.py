"""`sailkit recipes` and `sailkit samples`: what comes with the package is listed, copied, and usable by name."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sailkit
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.packaged import recipe_path, sample_files, sample_path

ROOT = Path(__file__).parents[1]


def test_every_recipe_and_example_is_listed_with_what_it_is_and_needs():
    files = {file.name: file for file in sailkit.recipes().files}
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= files.keys()
    assert {path.name for path in (ROOT / "examples").glob("*.*")} <= files.keys()
    assert all(file.about and file.path.is_file() for file in files.values())
    inherits = files["distill-qwen2.5-1.5b-sequence"]  # from its base
    assert (inherits.kind, inherits.needs) == ("distill", "training data from build; one GPU")
    assert [files[name].kind for name in ("quickstart", "reproduce", "sail-7b", "accelerate/ddp")] == [
        *("run", "run", "finetune", "accelerate")
    ]
    assert files["tasks/answers.yaml"].about.startswith("Questions with their own answer")


@pytest.mark.long
def test_a_recipe_is_copied_with_the_files_that_it_uses(tmp_path):
    def copied(*names: str) -> set[str]:
        return {path.relative_to(tmp_path).as_posix() for path in sailkit.recipes(*names, to=tmp_path).copies}

    training = re.search(r"recipe: \$here/(\S+\.yaml)", (ROOT / "recipes" / "quickstart.yaml").read_text())[1]
    assert copied("quickstart") == {"recipes/quickstart.yaml", f"recipes/{training}"}
    assert copied("sail-7b-mistral-recommended") == {
        f"recipes/sail-7b-{name}.yaml" for name in ("mistral-recommended", "deberta-recommended", "deberta")
    }
    script = {"examples/finetune.sh", "examples/claims.py", "examples/tasks/factcheck.yaml"}
    assert script <= copied("finetune.sh")
    plan = sailkit.run(tmp_path / "recipes" / "quickstart.yaml", out=tmp_path / "out", dry_run=True)
    assert not [step for step in plan.steps if step.estimate and "missing" in step.estimate]
    assert sailkit.recipes("quickstart", to=tmp_path).copies  # equal files may be there
    (tmp_path / "recipes" / training).write_text("model: another\n")
    with pytest.raises(UserError, match=r"\.yaml exists and differs; choose another `to`"):
        sailkit.recipes("quickstart", to=tmp_path)
    assert (tmp_path / "recipes" / training).read_text() == "model: another\n"


@pytest.mark.long
def test_a_recipe_runs_by_its_name_unless_there_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = sailkit.run("quickstart", out="out", dry_run=True)
    given = sailkit.run(ROOT / "recipes" / "quickstart.yaml", out="out", dry_run=True)
    assert named.to_json() == given.to_json()
    assert recipe_path("distill-qwen2.5-0.5b").name == "distill-qwen2.5-0.5b.yaml"
    with pytest.raises(UserError, match=r"no recipe of that name; did you mean 'quickstart'\?"):
        sailkit.run("quikstart", out="out")
    Path("quickstart").write_text("steps: {}\n")
    assert sailkit.run("quickstart", out="out", dry_run=True).steps == ()
    with pytest.raises(UserError, match="cannot read runs/sail"):  # the data that the recipe names
        sailkit.finetune("sail-7b", dry_run=True)


def test_the_recordings_say_how_they_were_made_and_hold_what_they_should():
    for name, search in (("base-own", "evidence"), ("base-random", "random")):
        folder = sample_files()[name]
        settings = jsonl.read_json(folder / "manifest.json")["settings"]
        assert [settings[key] for key in ("model", "task", "answer", "search", "n")] == [
            *("smollm2-135m", "sample-facts", "generate", search, 104)
        ]
        evaluation = sailkit.Evaluation.load(folder)
        assert {flag.code for flag in evaluation.flags} == {"below-baseline", "unreadable-answers"}
    assert sum(file.stat().st_size for file in folder.parent.rglob("*") if file.is_file()) < 220_000


def test_the_labelled_recording_is_what_its_script_makes_of_the_run():
    script = runpy.run_path(str(ROOT / "benchmarks" / "recordings.py"))
    rows = [row for _, row in jsonl.read_rows(sample_files()["base-own"] / "predictions.jsonl")]
    expected = [script["labelled"](row) for row in sorted(rows, key=lambda row: row["index"])]
    assert [row for _, row in jsonl.read_rows(sample_files()["keyword-parser.jsonl"])] == expected


def test_the_recordings_are_compared_and_scored_again_by_name():
    comparison = sailkit.compare("sample:base-own", Path("sample:base-random"))
    pair = comparison.pairs[0]
    assert (pair.n, pair.groups, pair.verdict) == (104, 52, "cannot tell")
    assert pair.factors == {"search": ["evidence", "random"]}
    (rescored,) = sailkit.rescore("sample:keyword-parser.jsonl")
    assert {flag.code for flag in rescored.flags} == {"default-class-parser", "below-baseline", "unreadable-answers"}
    # The same answers as in the run, so the same figures once they are read by our rules.
    own = sailkit.Evaluation.load(sample_files()["base-own"])
    assert rescored.summary.human.figures["accuracy"] == own.figures["accuracy"]
    assert rescored.recorded.figures["accuracy"].value > 2 * own.figures["accuracy"].value


def test_samples_are_listed_and_copied(tmp_path):
    listed = sailkit.samples()
    assert {file.name for file in listed.files} == sample_files().keys()
    assert "sample:keyword-parser.jsonl" in str(listed)
    copies = sailkit.samples("base-own", "facts.jsonl", to=tmp_path).copies
    assert {path.relative_to(tmp_path).as_posix() for path in copies} == {
        *("facts.jsonl", "base-own/manifest.json", "base-own/metrics.json", "base-own/predictions.jsonl")
    }
    assert str(sailkit.report(tmp_path / "base-own", out=tmp_path / "report.html").html).endswith("report.html")


def test_a_sample_that_does_not_exist_is_an_error_and_a_plug_in_named_sample_is_none():
    with pytest.raises(UserError, match=r"no sample 'base-onw'; did you mean 'base-own'\?"):
        sailkit.compare("sample:base-onw", "sample:base-random")
    with pytest.raises(UserError, match="no recipe or example 'nosuch'"):
        sailkit.recipes("nosuch")
    assert sample_path("sample:CAPITALS") == Path("sample:CAPITALS")  # an attribute of the user's sample.py


@pytest.mark.long
def test_an_installed_wheel_has_recipes_examples_and_samples(tmp_path):
    """Built from the sdist, installed without its dependencies, which come from this environment."""
    python, dist = tmp_path / "venv" / "bin" / "python", tmp_path / "dist"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "hatchling"], check=True)
    subprocess.run([python, "-m", "hatchling", "build", "--target", "sdist", "--directory", dist], check=True, cwd=ROOT)
    (sdist,) = dist.iterdir()
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", sdist]
    subprocess.run(pip, check=True)
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    # After the installed package on the path, so that the editable installation there is not imported.
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))

    def installed(*words: str) -> str:
        command = [python, "-m", "sailkit", *words]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run([python, "-c", "import sailkit; print(sailkit.__file__)"], capture_output=True, text=True,
                           check=True, env={}, cwd=tmp_path).stdout  # fmt: skip
    assert where.startswith(str(tmp_path))
    assert "quickstart" in installed("recipes")
    assert "cannot tell" in installed("compare", "sample:base-own", "sample:base-random")
    installed("recipes", "--to", ".")
    copied = {
        path.relative_to(tmp_path) for folder in ("recipes", "examples") for path in (tmp_path / folder).rglob("*.*")
    }
    expected = {path.relative_to(ROOT) for folder in ("recipes", "examples") for path in (ROOT / folder).rglob("*.*")}
    assert copied == {path for path in expected if path.name != "embed.py" and "__pycache__" not in path.parts}
    installed("run", "quickstart", "--out", "runs/quickstart", "--until", "rows")
    assert (tmp_path / "runs" / "quickstart" / "rows" / "train.jsonl").is_file()
