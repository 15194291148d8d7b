"""The house rules that no other test would notice: who imports whom, what stays out, how long a file may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sailkit

ROOT = Path(sailkit.__file__).parent
MOST_LINES = 350
# Data flows downward: a module imports from its own folder, without a circle, or from a layer above it.
LAYERS = (
    "errors arguments packaged plugins text urls retry console records files provenance runs stats cluster distributed",
    "prompts",
    "tasks models",
    "rendering",
    "retrieval",
    "labeling evaluation",
    "data",
    "training",
    "distillation asking",
    "signatures help overview catalog diagnosis reporting steps journal pipeline cli testing __main__",
)
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text("utf-8")) for name, file in FILES.items()}


def imports(name: str) -> set[str]:
    """Every module of the package that a module imports, also those it imports only when a function is called."""
    targets: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
            targets |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target.removeprefix("sailkit.") for target in targets if target.startswith("sailkit.")} & FILES.keys()


IMPORTS = {name: imports(name) for name in FILES}


def folder(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("name", sorted(FILES.keys() - {""}))
def test_a_module_imports_only_from_its_own_folder_or_a_layer_above(name):
    for imported in IMPORTS[name]:
        same = folder(imported) == folder(name) or LAYER[folder(imported)] == LAYER[folder(name)] in (
            0,
            len(LAYERS) - 1,
        )
        above = LAYER[folder(imported)] < LAYER[folder(name)]
        assert same or above, f"{name} imports {imported}, which is in a layer below it or beside it"


def test_no_imports_form_a_circle():
    # A package's own file holds no more than a docstring, so a folder is no module of its own here.
    graph = {name: {other for other in IMPORTS[name] if FILES[other].name != "__init__.py"} for name in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_package_holds_its_modules_and_nothing_else():
    for name, file in FILES.items():
        if name and file.name == "__init__.py":
            assert len(TREES[name].body) == 1, f"{name}/__init__.py holds more than its docstring"


def test_the_public_names_are_what_their_modules_define():
    for name in sailkit.__all__:
        assert getattr(sailkit, name).__name__ == name if name != "__version__" else sailkit.__version__
    typed = {alias.asname for node in ast.walk(TREES[""]) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == {*sailkit.__all__} - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        sailkit.evalute  # noqa: B018
    assert {*sailkit.__all__} <= {*dir(sailkit)}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sailkit", ["torch", "transformers", "sklearn", "numpy", "pydantic"]),
        ("sailkit.cli", ["torch", "transformers", "sklearn", "openai", "scipy.stats", "pyarrow", "matplotlib"]),
    ],
)
def test_importing_is_light(module, absent):
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Words that say nothing of what a value is; a reader of transformers or scikit-learn would have to guess.
RIDDLES = {
    *("told", "found", "said", "asked", "one", "aside", "apart", "place", "places", "chance", "aimed", "made"),
    *("slope", "thin", "wide", "pull", "agreed", "together", "deal"),
}


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Variables, parameters, functions, classes and attributes that a module gives a name to, and the lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno


@pytest.mark.parametrize("name", FILES)
def test_names_say_what_a_value_is(name):
    assert [(word, line) for word, line in bound_names(TREES[name]) if word.strip("_") in RIDDLES] == []


@pytest.mark.parametrize("code", ["found = f(x)", "def f(told): ...", "[one.id for one in rows]", "self.place = 1"])
def test_such_a_name_would_be_noticed(code):
    assert [word for word, _ in bound_names(ast.parse(code)) if word in RIDDLES]


@pytest.mark.parametrize("name", FILES)
def test_a_file_does_one_job(name):
    assert len(FILES[name].read_text("utf-8").splitlines()) <= MOST_LINES


def dangers(tree: ast.AST) -> Iterator[str]:
    """What could run code that somebody else wrote."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Call):
            names = {ast.unparse(node.func)}
            names |= {
                f"{k.arg}=True" for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True
            }
        elif isinstance(node, (ast.AnnAssign, ast.Assign)):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            true = isinstance(node.value, ast.Constant) and node.value.value is True
            names = {f"{ast.unparse(target)}=True" for target in targets} if true else set()
        elif isinstance(node, ast.arguments):
            pairs = [*zip([*node.posonlyargs, *node.args][::-1], node.defaults[::-1], strict=False)]
            pairs += [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            names = {f"{a.arg}=True" for a, d in pairs if isinstance(d, ast.Constant) and d.value is True}
        else:
            continue
        yield from names & {
            *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
            *("eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"),
            *("os.system", "trust_remote_code=True", "shell=True", "allow_pickle=True"),
        }


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_code_of_others(name):
    assert list(dangers(TREES[name])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load('x')",
        "eval('1')",
        "load(x, trust_remote_code=True)",
        "def f(a, trust_remote_code=True): ...",
        "def f(*, trust_remote_code: bool = True): ...",
        "class Options:\n    trust_remote_code: bool = True",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_such_code_would_be_noticed(code):
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "re.compile('x')", "load(trust_remote_code=flag)", "import torch"])
def test_other_code_is_left_alone(code):
    assert list(dangers(ast.parse(code))) == []


@pytest.mark.parametrize("name", FILES)
def test_no_model_is_spread_over_devices(name):
    """Under a launcher each process has a device of its own, and the whole model is there."""
    whole = '{"device_map": {"": device}}'
    assert "device_map" not in FILES[name].read_text("utf-8").replace(whole, "")


DOCS = Path(__file__).parents[1] / "docs" / "architecture.md"


def test_the_page_about_the_architecture_names_what_there_is():
    text = DOCS.read_text("utf-8")
    files = set(re.findall(r"`(?:src/sailkit/)?(\w+(?:/\w+)?\.py)`", text))
    assert len(files) > 20
    known = {str(file.relative_to(ROOT)) for file in FILES.values()} | {file.name for file in FILES.values()}
    known |= {f"tests/{file.name}" for file in DOCS.parents[1].glob("tests/*.py")}
    assert sorted(files - known) == []
    rows = re.findall(r"^\| \d+ \| (.*?) \|", text, re.MULTILINE)
    named = [{name.strip("/") for name in re.findall(r"`([\w/]+)`", row)} for row in rows]
    assert named == [{*layer.split()} - {"__main__"} for layer in LAYERS]
